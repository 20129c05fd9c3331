package pod

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"orch/agent/disk"
)

// pulled remembers with which credentials the images of this node were pulled
// (KEP-2535, policy NeverVerifyPreloadedImages): a pod may use an image that is
// here if it has one of them, or else pulls it anew, so that its registry
// decides. What was imported or is embedded has no record and is everybody's.
// An image that was being pulled when the agent ended counts as pulled with
// credentials that nobody has.
type pulled struct {
	dir string
	log *slog.Logger
	mu  sync.Mutex // held while files are read and written
}

// pullRecord is the file of one image.
type pullRecord struct {
	Image string // its ID
	// Names gives who may use the image by the repository it was pulled from.
	Names map[string]pullAccess
}

type pullAccess struct {
	Everybody bool `json:",omitempty"` // it was pulled without a pod's credentials
	Secrets   []pullSecret
}

// pullSecret is where a credential came from, and a hash of what it was.
type pullSecret struct {
	UID             types.UID
	Namespace, Name string
	Hash            string
}

// mostSecrets bounds a record; beyond, the oldest are forgotten.
const mostSecrets = 100

// credential is a login of a pod with its source.
type credential struct {
	auth   *runtimeapi.AuthConfig
	source pullSecret
}

func loginHash(auth *runtimeapi.AuthConfig) string {
	return fileKey(auth.GetUsername() + "\x00" + auth.GetPassword() + "\x00" + auth.GetAuth())
}

// fileKey makes a file name of any text.
func fileKey(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func (p *pulled) recordFile(id string) string { return filepath.Join(p.dir, "pulled", fileKey(id)) }
func (p *pulled) intentFile(image string) string {
	return filepath.Join(p.dir, "pulling", fileKey(image))
}

// begin notes that an image is about to be pulled.
func (p *pulled) begin(image string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return replaceFile(p.intentFile(image), []byte(image))
}

// end notes with what an image was pulled: a pod's credential, or nil for none.
func (p *pulled) end(image, id string, with *pullSecret) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	access := pullAccess{Everybody: true}
	if with != nil {
		access = pullAccess{Secrets: []pullSecret{*with}}
	}
	if err := p.grant(image, id, access); err != nil {
		return err // the intent stays: nobody may use it unseen
	}
	return ignoreNotExist(os.Remove(p.intentFile(image)))
}

// fail notes that nothing came of a pull.
func (p *pulled) fail(image string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return ignoreNotExist(os.Remove(p.intentFile(image)))
}

// grant adds to who may use an image. p.mu is held.
func (p *pulled) grant(image, id string, access pullAccess) error {
	record, err := p.read(id)
	if err != nil || record == nil {
		record = &pullRecord{Image: id, Names: map[string]pullAccess{}}
	}
	old, known := record.Names[repository(image)]
	switch {
	case known && old.Everybody:
		return nil
	case !access.Everybody:
		for _, s := range old.Secrets {
			same := s.UID == access.Secrets[0].UID && s.Namespace == access.Secrets[0].Namespace && s.Name == access.Secrets[0].Name
			if !same {
				access.Secrets = append(access.Secrets, s)
			}
		}
		access.Secrets = access.Secrets[:min(len(access.Secrets), mostSecrets)]
	}
	record.Names[repository(image)] = access
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	return replaceFile(p.recordFile(id), data)
}

// read gives nil when there is no record of an image. p.mu is held.
func (p *pulled) read(id string) (*pullRecord, error) {
	data, err := os.ReadFile(p.recordFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	record := &pullRecord{}
	if err := json.Unmarshal(data, record); err != nil {
		return nil, fmt.Errorf("read record of pulled image: %w", err)
	}
	if record.Names == nil {
		record.Names = map[string]pullAccess{}
	}
	return record, nil
}

// allows tells whether a pod may use an image that is here without pulling it.
// Its credentials are asked for only if that depends on them.
func (p *pulled) allows(image, id string, credentials func() ([]credential, error)) (bool, error) {
	p.mu.Lock()
	record, err := p.read(id)
	_, pulling := os.Lstat(p.intentFile(image))
	p.mu.Unlock()
	switch {
	case err != nil:
		p.log.Warn("the image is pulled again", "image", image, "err", err)
		return false, nil
	case record == nil:
		return errors.Is(pulling, fs.ErrNotExist), nil
	}
	access := record.Names[repository(image)]
	if access.Everybody || len(access.Secrets) == 0 {
		return access.Everybody, nil
	}
	own, err := credentials()
	if err != nil {
		return false, err
	}
	for _, c := range own {
		for _, s := range access.Secrets {
			place := s.UID == c.source.UID && s.Namespace == c.source.Namespace && s.Name == c.source.Name
			if s.Hash != c.source.Hash && !place {
				continue
			}
			if s != c.source { // a changed secret, or another with the same content: good from now on
				p.mu.Lock()
				err := p.grant(image, id, pullAccess{Secrets: []pullSecret{c.source}})
				p.mu.Unlock()
				return true, err
			}
			return true, nil
		}
	}
	return false, nil
}

// resume makes records of pulls that were under way when the agent ended, and
// forgets images that are gone.
func (p *pulled) resume(ctx context.Context, images runtimeapi.ImageServiceClient) error {
	if _, err := os.Lstat(p.dir); err != nil {
		return ignoreNotExist(err) // nothing was pulled here yet
	}
	list, err := images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	here := map[string]bool{}
	for _, i := range list.GetImages() {
		here[filepath.Base(p.recordFile(i.GetId()))] = true
	}
	return errors.Join(p.each("pulled", func(name string) error {
		if here[name] {
			return nil
		}
		return os.Remove(filepath.Join(p.dir, "pulled", name))
	}), p.each("pulling", func(name string) error {
		image, err := disk.ReadBeneath(filepath.Join(p.dir, "pulling"), name, 4<<10)
		if err != nil {
			return err
		}
		found := slices.IndexFunc(list.GetImages(), func(i *runtimeapi.Image) bool {
			return slices.ContainsFunc(slices.Concat(i.GetRepoTags(), i.GetRepoDigests()), func(n string) bool { return sameName(n, string(image)) })
		})
		if found >= 0 {
			if err := p.claim(list.GetImages()[found].GetId(), string(image)); err != nil {
				return err
			}
		}
		return os.Remove(filepath.Join(p.dir, "pulling", name))
	}))
}

// claim makes a record that gives nobody access, unless there is one. p.mu is held.
func (p *pulled) claim(id, image string) error {
	record, err := p.read(id)
	if err == nil && record != nil {
		return nil
	}
	data, err := json.Marshal(pullRecord{Image: id, Names: map[string]pullAccess{repository(image): {}}})
	if err != nil {
		return err
	}
	return replaceFile(p.recordFile(id), data)
}

// each calls do for the files of a folder.
func (p *pulled) each(folder string, do func(name string) error) error {
	entries, err := os.ReadDir(filepath.Join(p.dir, folder))
	if err != nil {
		return ignoreNotExist(err)
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, ignoreNotExist(do(e.Name())))
	}
	return errors.Join(errs...)
}

// replaceFile writes a file that is there as a whole or not at all.
func replaceFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
