package runtime

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	containerdclient "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// namespace is where the CRI keeps its images in containerd.
const namespace = "k8s.io"

// ErrNoImport says that a runtime cannot take in image archives because it is
// not containerd.
var ErrNoImport = errors.New("this container runtime cannot import image archives; use its own tool")

// ImageStore is a node's images as an operator sees them.
type ImageStore struct {
	conn *grpc.ClientConn
	cri  runtimeapi.ImageServiceClient
	own  bool // the connection is ours to close

	ledger string // of imported archives; "": the runtime is not ours
}

// OpenImages gives the images of the node whose agent runs on this machine, by
// its data directory, or of another runtime by its CRI endpoint.
func OpenImages(dataDir, endpoint string) (*ImageStore, error) {
	socket := strings.TrimPrefix(endpoint, "unix://")
	if socket == "" {
		socket = newLayout(dataDir).socket
	}
	if _, err := os.Stat(socket); err != nil {
		return nil, fmt.Errorf("no container runtime answers for this node: is orch running? %w", err)
	}
	conn, err := dial(socket)
	if err != nil {
		return nil, err
	}
	store := &ImageStore{conn: conn, cri: runtimeapi.NewImageServiceClient(conn), own: true}
	if endpoint == "" {
		store.ledger = newLayout(dataDir).ledger
	}
	return store, nil
}

// ImageStore gives the images of this runtime.
func (r *Runtime) ImageStore() *ImageStore {
	store := &ImageStore{conn: r.conn, cri: r.Images()}
	if r.embed {
		store.ledger = r.layout.ledger
	}
	return store
}

// Close gives back what OpenImages took.
func (s *ImageStore) Close() error {
	if s.own {
		return s.conn.Close()
	}
	return nil
}

// List gives all images.
func (s *ImageStore) List(ctx context.Context) ([]*runtimeapi.Image, error) {
	list, err := s.cri.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	return list.Images, nil
}

// Pull fetches an image by its name; short names are Docker Hub's.
func (s *ImageStore) Pull(ctx context.Context, name string) (ref string, err error) {
	answer, err := s.cri.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", name, err)
	}
	return answer.ImageRef, nil
}

// Remove deletes an image with all its names, which it gives. An image that is
// not there is no error to the CRI, but is one here, and so is one that orch
// brings along: pods could not start without it.
func (s *ImageStore) Remove(ctx context.Context, name string) ([]string, error) {
	spec := &runtimeapi.ImageSpec{Image: name}
	found, err := s.cri.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil {
		return nil, fmt.Errorf("remove %s: %w", name, err)
	}
	if found.Image == nil {
		return nil, fmt.Errorf("remove %s: no such image", name)
	}
	names := slices.Concat(found.Image.RepoTags, found.Image.RepoDigests)
	if s.ledger != "" && slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, embeddedDomain) }) {
		return nil, fmt.Errorf("remove %s: it is part of orch, which would bring it back at the next start", name)
	}
	if _, err := s.cri.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec}); err != nil {
		return nil, fmt.Errorf("remove %s: %w", name, err)
	}
	return names, nil
}

// Archive gives the archive in the images folder that brings an image back at
// the next start, "" when there is none.
func (s *ImageStore) Archive(names []string) string {
	archives := readLedger(s.ledger).imported()
	for _, name := range names {
		if path := archives[name]; path != "" {
			return path
		}
	}
	return ""
}

// ImportArchive takes in the images of a docker or OCI archive, plain or
// compressed with gzip or zstd, and gives their names.
func (s *ImageStore) ImportArchive(ctx context.Context, path string) ([]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("import archive: %w", err)
	}
	defer file.Close()
	names, err := s.Import(ctx, file)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", path, err)
	}
	return names, nil
}

// Import is ImportArchive of a stream. It returns once the CRI knows the images.
func (s *ImageStore) Import(ctx context.Context, in io.Reader) ([]string, error) {
	stream, err := decompress(in)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	client, err := containerdclient.NewWithConn(s.conn)
	if err != nil {
		return nil, err
	}
	snapshotter, err := s.snapshotter(ctx)
	if err != nil {
		return nil, err
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	// The lease keeps the garbage collector off what is not yet referenced.
	ctx, release, err := client.WithLease(ctx)
	if err != nil {
		return nil, importError(err)
	}
	defer release(context.WithoutCancel(ctx))
	imported, err := client.Import(ctx, stream,
		containerdclient.WithDigestRef(archive.DigestTranslator("import-"+time.Now().UTC().Format("2006-01-02"))),
		containerdclient.WithSkipDigestRef(func(name string) bool { return name != "" }),
		containerdclient.WithDiscardUnpackedLayers())
	if err != nil {
		return nil, importError(err)
	}
	if len(imported) == 0 {
		return nil, errors.New("the archive holds no image for this platform")
	}
	var names []string
	for _, i := range imported {
		if err := unpack(ctx, client, i, snapshotter); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", i.Name, err)
		}
		names = append(names, i.Name)
	}
	return names, s.waitKnown(ctx, names)
}

func unpack(ctx context.Context, client *containerdclient.Client, i images.Image, snapshotter string) error {
	return containerdclient.NewImage(client, i).Unpack(ctx, snapshotter)
}

// waitKnown waits until the CRI, which follows containerd's events, has noticed
// the images: a moment later a pod may ask for them.
func (s *ImageStore) waitKnown(ctx context.Context, names []string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, name := range names {
		for {
			found, err := s.cri.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
			if err != nil {
				return fmt.Errorf("wait for %s: %w", name, err)
			}
			if found.Image != nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("wait for %s: %w", name, ctx.Err())
			case <-time.After(2 * time.Millisecond):
			}
		}
	}
	return nil
}

// snapshotter finds where the runtime unpacks images, from the folder it names
// in its own account of the image file system.
func (s *ImageStore) snapshotter(ctx context.Context) (string, error) {
	const prefix = "io.containerd.snapshotter.v1."
	info, err := s.cri.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		return "", fmt.Errorf("ask for the image file system: %w", err)
	}
	for _, fs := range info.ImageFilesystems {
		if name, ok := strings.CutPrefix(filepath.Base(fs.GetFsId().GetMountpoint()), prefix); ok {
			return name, nil
		}
	}
	return "", ErrNoImport
}

func importError(err error) error {
	if errdefs.IsNotImplemented(err) {
		return ErrNoImport
	}
	return err
}

// maxWindow bounds what a zstd archive may have kept in memory, in bytes: what
// zstd itself takes without being told to take more.
const maxWindow = 128 << 20

// decompress recognizes a compressed stream by its first bytes.
func decompress(in io.Reader) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(in, 64<<10)
	head, err := buffered.Peek(4)
	if err != nil {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(buffered)
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		decoder, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return decoder.IOReadCloser(), nil
	default:
		return io.NopCloser(buffered), nil
	}
}

// imageService is the CRI image service with embedded images that need no registry.
type imageService struct {
	runtimeapi.ImageServiceClient
	embedded func(name string) bool
	done     <-chan struct{} // closed when the embedded images were imported
	users    *userFileCheck  // nil: another runtime's images are its own affair
}

// ImageStatus waits for an embedded image that is still being imported.
func (s *imageService) ImageStatus(ctx context.Context, in *runtimeapi.ImageStatusRequest, opts ...grpc.CallOption) (*runtimeapi.ImageStatusResponse, error) {
	if s.embedded(in.GetImage().GetImage()) {
		select {
		case <-s.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	found, err := s.ImageServiceClient.ImageStatus(ctx, in, opts...)
	if err != nil || s.users == nil || found.GetImage() == nil || s.embedded(in.GetImage().GetImage()) {
		return found, err
	}
	if err := s.users.check(ctx, found.GetImage().GetId()); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return found, nil
}

// PullImage answers for embedded images from what is here: "orch.local" is no
// registry, and a policy of Always means "the newest", which is ours.
func (s *imageService) PullImage(ctx context.Context, in *runtimeapi.PullImageRequest, opts ...grpc.CallOption) (*runtimeapi.PullImageResponse, error) {
	if s.embedded(in.GetImage().GetImage()) {
		found, err := s.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: in.Image}, opts...)
		if err != nil {
			return nil, err
		}
		if found.Image != nil {
			return &runtimeapi.PullImageResponse{ImageRef: found.Image.Id}, nil
		}
		return nil, status.Errorf(codes.NotFound, "%s is not embedded in orch, and %s is no registry", in.Image.Image, strings.TrimSuffix(embeddedDomain, "/"))
	}
	return s.ImageServiceClient.PullImage(ctx, in, opts...)
}
