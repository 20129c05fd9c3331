package volume

import (
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// Permissions that the pod's group gets on what it may write, on what it may
// read, and on directories in addition.
const (
	groupWrites fs.FileMode = 0o660
	groupReads  fs.FileMode = 0o440
	groupEnters fs.FileMode = 0o110
)

// fsGroup is the group that owns a pod's volumes, nil for none.
func fsGroup(p *corev1.Pod) *int64 {
	if p.Spec.SecurityContext == nil {
		return nil
	}
	return p.Spec.SecurityContext.FSGroup
}

// giveToGroup makes group the owner of everything in dir and lets it do what
// access says. The directory itself comes last: that it is right means that
// all is. Containers may exchange files for links meanwhile; none is followed
// out of dir.
func giveToGroup(dir string, group int64, access fs.FileMode) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return giveTree(root, ".", group, access)
}

func giveTree(root *os.Root, dir string, group int64, access fs.FileMode) error {
	entries, err := fs.ReadDir(root.FS(), dir)
	if err != nil {
		return ignoreGone(err)
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if e.IsDir() {
			err = giveTree(root, name, group, access)
		} else {
			err = giveFile(root, name, group, access)
		}
		if err != nil {
			return err
		}
	}
	return giveFile(root, dir, group, access)
}

func giveFile(root *os.Root, name string, group int64, access fs.FileMode) error {
	info, err := root.Lstat(name)
	if err != nil {
		return ignoreGone(err)
	}
	if err := root.Lchown(name, -1, int(group)); err != nil {
		return ignoreGone(err)
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return nil // its mode means nothing, and chmod would follow it
	}
	mode := info.Mode()&^fs.ModeType | access
	if info.IsDir() {
		mode |= groupEnters | fs.ModeSetgid
	}
	return ignoreGone(root.Chmod(name, mode))
}

// ignoreGone: a running container may delete files while we walk.
func ignoreGone(err error) error {
	if os.IsNotExist(err) {
		return nil
	}
	return err
}

// groupMatches tells whether dir itself already belongs to group, which the
// policy OnRootMismatch takes for the whole volume.
func groupMatches(dir string, group int64) bool {
	var st unix.Stat_t
	const wanted = uint32(groupWrites | groupEnters)
	return unix.Stat(dir, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR &&
		int64(st.Gid) == group && st.Mode&unix.S_ISGID != 0 && st.Mode&wanted == wanted
}
