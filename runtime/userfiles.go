package runtime

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"

	containerdclient "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"
)

// userFiles are read by containerd out of an image when a container is made. It
// opens what lies there, and would wait for ever for the writer of a FIFO: the
// container could neither start nor be removed.
var userFiles = []string{"etc/passwd", "etc/group"}

// maxUserFile is more than containerd reads of one, in bytes.
const maxUserFile = 10 << 20

// userFileCheck looks into images before containers are made of them, once each.
type userFileCheck struct {
	store *ImageStore
	mu    sync.Mutex
	known map[string]error // by image ID; guarded by mu
}

// check refuses an image whose files of users are none. What cannot be looked at
// is left to containerd.
func (c *userFileCheck) check(ctx context.Context, id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err, ok := c.known[id]; ok {
		return err
	}
	var bad error
	err := c.store.withRootfs(ctx, id, func(root string) error {
		bad = checkUserFiles(root)
		return nil
	})
	if err != nil {
		return nil // the runtime tells what is wrong with the image
	}
	c.known[id] = bad
	return bad
}

// withRootfs mounts an image, read-only, while do runs.
func (s *ImageStore) withRootfs(ctx context.Context, id string, do func(root string) error) error {
	client, err := containerdclient.NewWithConn(s.conn)
	if err != nil {
		return err
	}
	name, err := s.snapshotter(ctx)
	if err != nil {
		return err
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	image, err := client.GetImage(ctx, id)
	if err != nil {
		return err
	}
	layers, err := image.RootFS(ctx)
	if err != nil {
		return err
	}
	snapshots, key := client.SnapshotService(name), "orch-look-"+rand.Text()
	mounts, err := snapshots.View(ctx, key, identity.ChainID(layers).String())
	if err != nil {
		return err
	}
	defer snapshots.Remove(context.WithoutCancel(ctx), key)
	return mount.WithReadonlyTempMount(ctx, mounts, do)
}

// checkUserFiles looks, as a container would find them, for files that are none.
func checkUserFiles(root string) error {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(dir)
	for _, name := range userFiles {
		fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("the image's /%s cannot be opened: %w", name, err)
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		unix.Close(fd)
		switch {
		case err != nil:
			return fmt.Errorf("the image's /%s: %w", name, err)
		case st.Mode&unix.S_IFMT != unix.S_IFREG:
			return fmt.Errorf("the image's /%s is not a regular file: no container is made of it", name)
		case st.Size > maxUserFile:
			return fmt.Errorf("the image's /%s is larger than %d MiB: no container is made of it", name, maxUserFile>>20)
		}
	}
	return nil
}
