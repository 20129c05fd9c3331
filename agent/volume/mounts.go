package volume

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountTmpfs mounts a file system in memory that is not swapped out where the
// kernel (6.4 and newer) can promise that.
func mountTmpfs(dir string, flags uintptr, options string) error {
	err := unix.Mount("tmpfs", dir, "tmpfs", flags, options+",noswap")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("tmpfs", dir, "tmpfs", flags, options)
	}
	if err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
	}
	return nil
}

// isTmpfs tells whether a tmpfs is mounted on dir itself.
func isTmpfs(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && fs.Type == unix.TMPFS_MAGIC && isMountPoint(dir)
}

// isMountPoint compares devices: a mounted tmpfs lies on another than its parent.
func isMountPoint(dir string) bool {
	var here, above unix.Stat_t
	if unix.Lstat(dir, &here) != nil || unix.Lstat(filepath.Dir(dir), &above) != nil {
		return false
	}
	return here.Dev != above.Dev
}

// removeTree deletes dir after unmounting all below it. What is mounted there
// may be a directory of the host: while anything of it is left, nothing is
// deleted.
func removeTree(dir string) error {
	real, err := filepath.EvalSymlinks(dir) // the kernel names mounts without links
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	below, err := mountsBelow(real)
	if err != nil {
		return err
	}
	for _, point := range slices.Backward(below) {
		listenOnly(point)
	}
	for _, point := range below {
		if err := detach(point); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	if len(below) > 0 {
		if below, err = mountsBelow(real); err != nil {
			return err
		}
		if len(below) > 0 {
			return fmt.Errorf("%s is mounted again", below[0])
		}
	}
	return os.RemoveAll(real)
}

// detach takes away what is mounted on point.
func detach(point string) error {
	listenOnly(point)
	return unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

// listenOnly ends what the mounts at and below point tell others. A bind mount
// shares events with the place it was made from: mounts below that place, the
// host's own, would vanish along with ours.
func listenOnly(point string) {
	_ = unix.Mount("", point, "", unix.MS_SLAVE|unix.MS_REC, "") // fails where nothing is mounted
}

// mountsBelow gives the mount points at and below dir, the deepest first; one
// that covers another comes before it.
func mountsBelow(dir string) ([]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return pointsBelow(table, dir), nil
}

func pointsBelow(table []byte, dir string) []string {
	var points []string
	for line := range bytes.Lines(table) {
		// id, parent, device, root, mount point, …
		fields := bytes.SplitN(line, []byte(" "), 6)
		if len(fields) < 6 {
			continue
		}
		point := unescape(string(fields[4]))
		if point == dir || strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
	}
	slices.SortStableFunc(points, func(a, b string) int { return strings.Count(b, "/") - strings.Count(a, "/") })
	return points
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
