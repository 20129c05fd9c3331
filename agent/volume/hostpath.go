package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// checkHostPath does what the type of a hostPath volume asks for.
func checkHostPath(source *corev1.HostPathVolumeSource) error {
	path := source.Path
	if slices.Contains(strings.Split(path, "/"), "..") {
		return fmt.Errorf("invalid HostPath `%s`: must not contain '..'", path)
	}
	if source.Type == nil || *source.Type == corev1.HostPathUnset {
		return nil
	}
	switch *source.Type {
	case corev1.HostPathDirectoryOrCreate:
		if err := makeDirectory(path); err != nil {
			return err
		}
	case corev1.HostPathFileOrCreate:
		if err := makeFile(path); err != nil {
			return err
		}
	}
	info, err := os.Stat(path)
	if err != nil && !os.IsNotExist(err) && !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	return checkType(path, *source.Type, info)
}

func makeDirectory(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	return os.MkdirAll(path, 0o755)
}

func makeFile(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// checkType compares what lies at path with what the volume wants; info is nil
// when there is nothing.
func checkType(path string, kind corev1.HostPathType, info fs.FileInfo) error {
	var mode fs.FileMode
	if info != nil {
		mode = info.Mode()
	}
	ok, what := false, ""
	switch kind {
	case corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory:
		ok, what = info != nil && mode.IsDir(), "a directory"
	case corev1.HostPathFileOrCreate, corev1.HostPathFile:
		ok, what = info != nil && mode.IsRegular(), "a file"
	case corev1.HostPathSocket:
		ok, what = mode&fs.ModeSocket != 0, "a socket file"
	case corev1.HostPathCharDev:
		ok, what = mode&fs.ModeCharDevice != 0, "a character device"
	case corev1.HostPathBlockDev:
		ok, what = mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0, "a block device"
	default:
		return fmt.Errorf("%s is an invalid volume type", kind)
	}
	if !ok {
		return fmt.Errorf("hostPath type check failed: %s is not %s", path, what)
	}
	return nil
}
