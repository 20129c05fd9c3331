package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestUserFilesOfImages(t *testing.T) {
	for name, c := range map[string]struct {
		lay  func(passwd string) error
		want string // part of the error; "": none
	}{
		"none":             {func(string) error { return nil }, ""},
		"a file":           {func(p string) error { return os.WriteFile(p, []byte("root:x:0:0"), 0o600) }, ""},
		"a link":           {func(p string) error { return os.Symlink("/etc/other", p) }, ""},
		"a FIFO":           {func(p string) error { return unix.Mkfifo(p, 0o600) }, "not a regular file"},
		"a link to a FIFO": {func(p string) error { return os.Symlink("/fifo", p) }, "not a regular file"},
		"a link above":     {func(p string) error { return os.Symlink("../../../../../../fifo", p) }, "not a regular file"},
		"a loop":           {func(p string) error { return os.Symlink("passwd", p) }, "cannot be opened"},
		"a device":         {func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) }, "not a regular file"},
		"a directory":      {func(p string) error { return os.Mkdir(p, 0o700) }, "not a regular file"},
		"a huge file":      {func(p string) error { return sparse(p, 1<<40) }, "larger than"},
	} {
		root := t.TempDir()
		for _, err := range []error{
			os.Mkdir(filepath.Join(root, "etc"), 0o700), os.WriteFile(filepath.Join(root, "etc/other"), nil, 0o600),
			unix.Mkfifo(filepath.Join(root, "fifo"), 0o600), c.lay(filepath.Join(root, "etc/passwd")),
		} {
			if err != nil {
				t.Fatal(name, err)
			}
		}
		err := checkUserFiles(root)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func sparse(path string, size int64) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return os.Truncate(path, size)
}
