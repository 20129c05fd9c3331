package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"orch/agent/pod"
)

// Subpath gives the host path of a file or directory inside a volume. The
// content of a volume belongs to containers, who may put symbolic links there:
// the kernel resolves the path without leaving the volume, and what it found
// is bind-mounted by its descriptor, so that it cannot be exchanged afterwards.
func (m *Manager) Subpath(_ context.Context, p *corev1.Pod, container string, mount int, volume pod.Mount, path string) (string, error) {
	path = filepath.Clean(path)
	if filepath.IsAbs(path) || path == ".." || strings.HasPrefix(path, "../") {
		return "", fmt.Errorf("subPath %q must be relative and stay inside the volume", path)
	}
	if err := makeInside(volume.HostPath, path); err != nil {
		return "", fmt.Errorf("failed to create subPath directory for volumeMount of container %q: %w", container, err)
	}
	root, err := unix.Open(volume.HostPath, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open volume %s: %w", volume.HostPath, err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		if errors.Is(err, unix.EXDEV) {
			return "", fmt.Errorf("subpath %q not within volume path %q", path, volume.HostPath)
		}
		return "", fmt.Errorf("open subpath %q of %s: %w", path, volume.HostPath, err)
	}
	defer unix.Close(fd)
	target := filepath.Join(m.podDir(p.UID), "subpaths", container, strconv.Itoa(mount))
	if err := makeTarget(fd, target); err != nil {
		return "", err
	}
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(fd), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("bind subpath %q: %w", path, err)
	}
	return target, nil
}

// makeInside makes the directories of path that are missing, without following
// links that lead out. They are as open as the volume itself.
func makeInside(volume, path string) error {
	root, err := os.OpenRoot(volume)
	if errors.Is(err, unix.ENOTDIR) && path == "." {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Lstat(path); err == nil {
		return nil
	}
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	made := ""
	for part := range strings.SplitSeq(path, "/") {
		made = filepath.Join(made, part)
		if err := root.Mkdir(made, 0o750); errors.Is(err, os.ErrExist) {
			continue
		} else if err != nil {
			return err
		}
		if err := root.Chmod(made, info.Mode()&^os.ModeType); err != nil { // whatever the umask
			return err
		}
	}
	return nil
}

// makeTarget makes the mount point: a directory for a directory, else a file.
// A mount left from before is undone first.
func makeTarget(fd int, target string) error {
	for detach(target) == nil { // one for each earlier start
		continue
	}
	if err := os.Remove(target); err != nil && !os.IsNotExist(err) { // what was a file may be a directory now
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return os.Mkdir(target, 0o750)
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	return f.Close()
}
