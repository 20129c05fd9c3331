package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"orch/runtime/embedded"
)

// settle is how long an archive must be left alone before it is read: it may
// still be being copied.
const settle = time.Second

// embeddedRefs gives the names of the embedded images for pinning; what is
// pinned is never collected as garbage.
func embeddedRefs(m *embedded.Manifest) map[string]string {
	refs := map[string]string{}
	for _, image := range m.Images {
		for _, ref := range image.Refs {
			refs[ref] = ref
		}
	}
	return refs
}

// importEmbedded takes in the images of the executable that are not there in
// this very version, the pause image first: pods may start once pauseReady was
// called, and those who ask for the others wait for them.
func (r *Runtime) importEmbedded(ctx context.Context, m *embedded.Manifest, pauseReady func()) error {
	defer close(r.imagesDone)
	ledger := readLedger(r.layout.ledger)
	imported := false
	for _, image := range m.Images {
		if !r.isImported(ctx, image, ledger) {
			imported = true
			if err := r.importImage(ctx, image, ledger); err != nil {
				return fmt.Errorf("import embedded %s: %w", image.Name, err)
			}
		}
		if slices.Contains(image.Refs, PauseImage) {
			pauseReady()
		}
	}
	if imported {
		debug.FreeOSMemory() // importing leaves tens of megabytes of buffers
	}
	return nil
}

// embeddedKey is an embedded image's name in the ledger.
func embeddedKey(image embedded.File) string { return "embedded:" + image.Name }

func (r *Runtime) isImported(ctx context.Context, image embedded.File, ledger ledger) bool {
	store := &ImageStore{conn: r.conn, cri: runtimeapi.NewImageServiceClient(r.conn)}
	return ledger[embeddedKey(image)].Hash == image.SHA256 && store.has(ctx, image.Refs)
}

func (r *Runtime) importImage(ctx context.Context, image embedded.File, ledger ledger) error {
	store := &ImageStore{conn: r.conn, cri: runtimeapi.NewImageServiceClient(r.conn)}
	in, err := embedded.Open(image)
	if err != nil {
		return err
	}
	defer in.Close()
	if _, err = store.Import(ctx, in); err != nil {
		return err
	}
	ledger[embeddedKey(image)] = archiveRecord{Hash: image.SHA256}
	return ledger.write(r.layout.ledger)
}

func (s *ImageStore) has(ctx context.Context, names []string) bool {
	for _, name := range names {
		found, err := s.cri.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		if err != nil || found.Image == nil {
			return false
		}
	}
	return true
}

// watchArchives imports what the operator laid out in the images folder, then
// what is added or changed there, until ctx ends. A bad archive is reported and
// does not stop the others.
func (r *Runtime) watchArchives(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		r.log.Warn("archives added to the images folder later will not be noticed", "err", err)
		r.importArchives(ctx, ledger{})
		return nil
	}
	defer watcher.Close()
	if err := watcher.Add(r.layout.images); err != nil {
		r.log.Warn("archives added to the images folder later will not be noticed", "err", err)
	}
	refused := ledger{} // what could not be imported, so as to complain once
	r.importArchives(ctx, refused)
	var quiet <-chan time.Time // fires once nothing was written for a while
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-watcher.Events:
			if !ok {
				return nil
			}
			quiet = time.After(settle)
		case err := <-watcher.Errors:
			r.log.Warn("watch images folder", "err", err)
		case <-quiet:
			quiet = nil
			r.importArchives(ctx, refused)
		}
	}
}

// importArchives imports the archives that are new or changed since they were
// last imported or refused.
func (r *Runtime) importArchives(ctx context.Context, refused ledger) {
	entries, err := os.ReadDir(r.layout.images)
	if err != nil {
		r.log.Warn("read images folder", "err", err)
		return
	}
	ledger := readLedger(r.layout.ledger)
	imported := false
	defer func() {
		if imported {
			debug.FreeOSMemory()
		}
	}()
	for _, e := range entries {
		path := filepath.Join(r.layout.images, e.Name())
		info, err := os.Stat(path) // follows links
		if err != nil || !info.Mode().IsRegular() || !isArchive(e.Name()) {
			continue
		}
		record := archiveRecord{Size: info.Size(), Modified: info.ModTime().UnixNano()}
		if last := ledger[path]; last.sameFile(record) && len(last.Images) > 0 && r.ImageStore().has(ctx, last.Images) || refused[path].sameFile(record) {
			continue
		}
		start := time.Now()
		r.log.Info("importing image archive", "path", path, "bytes", info.Size())
		names, err := r.ImageStore().ImportArchive(ctx, path)
		if err != nil {
			if ctx.Err() == nil {
				r.log.Error("cannot import image archive", "path", path, "err", err)
				refused[path] = record
			}
			continue
		}
		r.log.Info("imported image archive", "path", path, "images", names, "took", time.Since(start).Round(time.Millisecond))
		record.Images = names
		ledger[path], imported = record, true
		if err := ledger.write(r.layout.ledger); err != nil {
			r.log.Warn("cannot record the import, it will be done again", "err", err)
		}
	}
}

func isArchive(name string) bool {
	for _, suffix := range []string{".tar", ".tar.gz", ".tgz", ".tar.zst"} {
		if strings.HasSuffix(name, suffix) && !strings.HasPrefix(name, ".") {
			return true
		}
	}
	return false
}

// ledger remembers which archives were imported, by path.
type ledger map[string]archiveRecord

// archiveRecord identifies the content of an archive: by hash, or for files by
// what a directory entry tells without reading them.
type archiveRecord struct {
	Hash     string `json:",omitempty"`
	Size     int64  `json:",omitempty"`
	Modified int64  `json:",omitempty"` // ns since 1970

	Images []string `json:",omitempty"` // names of what was in it
}

// sameFile tells whether two records are of the same content.
func (a archiveRecord) sameFile(b archiveRecord) bool {
	return a.Hash == b.Hash && a.Size == b.Size && a.Modified == b.Modified
}

// imported gives, for each name of an image that an archive brought which is
// still laid out, that archive.
func (l ledger) imported() map[string]string {
	archives := map[string]string{}
	for path, record := range l {
		if _, err := os.Stat(path); err != nil || !filepath.IsAbs(path) {
			continue
		}
		for _, name := range record.Images {
			archives[name] = path
		}
	}
	return archives
}

// readLedger gives an empty one when the file is absent or damaged: importing
// again is harmless.
func readLedger(path string) ledger {
	l := ledger{}
	data, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(data, &l) != nil || l == nil {
		return ledger{}
	}
	return l
}

// write replaces the file and forgets archives that were taken away.
func (l ledger) write(path string) error {
	for key := range l {
		if _, err := os.Stat(key); filepath.IsAbs(key) && errors.Is(err, fs.ErrNotExist) {
			delete(l, key)
		}
	}
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
