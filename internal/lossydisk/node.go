package lossydisk

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// folder is a directory. What is in it now is kept by the library's tree.
type folder struct {
	fs.Inode
	disk *Disk
	id   int
}

var (
	_ fs.NodeCreater  = (*folder)(nil)
	_ fs.NodeMkdirer  = (*folder)(nil)
	_ fs.NodeUnlinker = (*folder)(nil)
	_ fs.NodeRmdirer  = (*folder)(nil)
	_ fs.NodeRenamer  = (*folder)(nil)
	_ fs.NodeFsyncer  = (*folder)(nil)
	_ fs.NodeStatfser = (*folder)(nil)
)

// Statfs tells how much room there is. A disk that was not filled up has 4 GiB.
func (f *folder) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	free := uint64(min(f.disk.capacity-f.disk.used, 4<<30)) / page
	out.Bsize, out.Bfree, out.Bavail, out.Blocks = page, free, free, free+uint64(f.disk.used)/page
	return 0
}

func (f *folder) add(ctx context.Context, name string, mode uint32, make func(id int) fs.InodeEmbedder) *fs.Inode {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	id := f.disk.newNode()
	f.disk.record(operation{kind: opLink, node: f.id, name: name, child: id, folder: mode == fuse.S_IFDIR})
	return f.NewPersistentInode(ctx, make(id), fs.StableAttr{Mode: mode})
}

// Create makes a file.
func (f *folder) Create(ctx context.Context, name string, _, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	out.Mode = mode
	node := f.add(ctx, name, fuse.S_IFREG, func(id int) fs.InodeEmbedder { return &file{disk: f.disk, id: id, mode: mode} })
	return node, nil, 0, 0
}

// Mkdir makes a directory.
func (f *folder) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	out.Mode = mode
	return f.add(ctx, name, fuse.S_IFDIR, func(id int) fs.InodeEmbedder { return &folder{disk: f.disk, id: id} }), 0
}

// Unlink removes a file's name.
func (f *folder) Unlink(_ context.Context, name string) syscall.Errno {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if child, ok := f.GetChild(name).Operations().(*file); ok {
		f.disk.used -= int64(len(child.content))
	}
	f.disk.record(operation{kind: opUnlink, node: f.id, name: name})
	return 0
}

// Rmdir removes an empty directory.
func (f *folder) Rmdir(_ context.Context, name string) syscall.Errno {
	if len(f.GetChild(name).Children()) > 0 {
		return syscall.ENOTEMPTY
	}
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	f.disk.record(operation{kind: opUnlink, node: f.id, name: name})
	return 0
}

// Rename moves a name, or exchanges two.
func (f *folder) Rename(_ context.Context, name string, to fs.InodeEmbedder, toName string, flags uint32) syscall.Errno {
	target := to.(*folder)
	there := target.GetChild(toName)
	switch {
	case flags&^(unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE) != 0:
		return syscall.EINVAL
	case flags&unix.RENAME_NOREPLACE != 0 && there != nil:
		return syscall.EEXIST
	case flags&unix.RENAME_EXCHANGE != 0 && there == nil:
		return syscall.ENOENT
	case flags == 0 && there != nil && there.IsDir() && len(there.Children()) > 0:
		return syscall.ENOTEMPTY
	}
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	f.disk.record(operation{
		kind: opRename, node: f.id, name: name, toNode: target.id, toName: toName, swap: flags&unix.RENAME_EXCHANGE != 0,
	})
	return 0
}

// Fsync makes the names in the directory durable.
func (f *folder) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	return f.disk.sync(f.id)
}

// file is a regular file.
type file struct {
	fs.Inode
	disk *Disk
	id   int

	mode    uint32 // guarded by disk.mu
	content image  // guarded by disk.mu
}

var (
	_ fs.NodeOpener    = (*file)(nil)
	_ fs.NodeReader    = (*file)(nil)
	_ fs.NodeWriter    = (*file)(nil)
	_ fs.NodeGetattrer = (*file)(nil)
	_ fs.NodeSetattrer = (*file)(nil)
	_ fs.NodeFsyncer   = (*file)(nil)
	_ fs.NodeFlusher   = (*file)(nil)
)

// Open lets the kernel keep the pages that it has: nobody else changes them.
func (f *file) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

// Flush is the closing of a descriptor, which makes nothing durable.
func (f *file) Flush(context.Context, fs.FileHandle) syscall.Errno { return 0 }

// Fsync makes what was written to the file durable, but not its name.
func (f *file) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return f.disk.sync(f.id) }

func (f *file) Read(_ context.Context, _ fs.FileHandle, b []byte, offset int64) (fuse.ReadResult, syscall.Errno) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if offset >= int64(len(f.content)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(b[:copy(b, f.content[offset:])]), 0
}

func (f *file) Write(_ context.Context, _ fs.FileHandle, data []byte, offset int64) (uint32, syscall.Errno) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if errno := f.disk.grow(max(offset+int64(len(data))-int64(len(f.content)), 0)); errno != 0 {
		return 0, errno
	}
	op := operation{kind: opWrite, node: f.id, offset: offset, data: append([]byte(nil), data...)}
	f.content.apply(op)
	f.disk.record(op)
	return uint32(len(data)), 0
}

func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	f.fill(out)
	return 0
}

func (f *file) fill(out *fuse.AttrOut) {
	out.Mode = f.mode
	out.Size = uint64(len(f.content))
	out.Blocks = (out.Size + sector - 1) / sector
}

func (f *file) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if mode, ok := in.GetMode(); ok {
		f.mode = mode
	}
	if size, ok := in.GetSize(); ok {
		if errno := f.disk.grow(int64(size) - int64(len(f.content))); errno != 0 {
			return errno
		}
		op := operation{kind: opTruncate, node: f.id, offset: int64(size)}
		f.content.apply(op)
		f.disk.record(op)
	}
	f.fill(out)
	return 0
}
