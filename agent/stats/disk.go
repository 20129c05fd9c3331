package stats

import (
	"io/fs"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// usage of a directory tree: disk blocks in bytes, and files.
type usage struct{ bytes, inodes uint64 }

func (u usage) plus(v usage) usage { return usage{u.bytes + v.bytes, u.inodes + v.inodes} }

// diskUsage walks dir, counting a file with several names once. What cannot be
// read, or went away meanwhile, counts as nothing.
func diskUsage(dir string) usage {
	var u usage
	if dir == "" || dir == "." {
		return u
	}
	type inode struct{ device, number uint64 }
	seen := map[inode]bool{}
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if id := (inode{stat.Dev, stat.Ino}); stat.Nlink > 1 && !d.IsDir() {
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		u.bytes += uint64(stat.Blocks) * 512
		u.inodes++
		return nil
	})
	return u
}

// fileSystem describes the file system that holds dir, nil when there is none.
func fileSystem(at metav1.Time, dir string) *FsStats {
	var f unix.Statfs_t
	if err := unix.Statfs(dir, &f); err != nil {
		return nil
	}
	size := uint64(f.Bsize)
	capacity, available, used := f.Blocks*size, f.Bavail*size, (f.Blocks-f.Bfree)*size
	inodes, free, taken := f.Files, f.Ffree, f.Files-f.Ffree
	return &FsStats{
		Time: at, CapacityBytes: &capacity, AvailableBytes: &available, UsedBytes: &used,
		Inodes: &inodes, InodesFree: &free, InodesUsed: &taken,
	}
}
