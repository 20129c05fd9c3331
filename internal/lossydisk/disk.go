// Package lossydisk is a file system for tests that knows which writes were
// synced, so that a test can make the disks that a power cut may leave behind.
// It can also be slow or full. It is mounted by FUSE: programs under test use
// plain files on it, also mapped into memory.
package lossydisk

import (
	"errors"
	"fmt"
	"math"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Disk is a mounted file system, empty at first and held in memory. The process
// that has mounted it must not itself use files on it, nor start a program in it
// (exec.Cmd.Dir): a thread that waits inside the kernel for a page may keep the
// others from providing that page.
type Disk struct {
	server *fuse.Server

	mu       sync.Mutex
	journal  []operation   // guarded by mu
	nodes    int           // so many nodes were made; guarded by mu
	used     int64         // bytes of all files; guarded by mu
	capacity int64         // bytes; guarded by mu
	delay    time.Duration // of each sync; guarded by mu
}

// operation is what a program did, in the order in which it was done.
type operation struct {
	kind operationKind
	node int // the file, or the directory of name

	offset int64  // of a write, or a file's new size
	data   []byte // written

	name   string // of a directory's entry
	child  int    // the node that it names
	folder bool   // child is a directory
	toNode int    // directory that a rename moves to
	toName string
	swap   bool // the rename exchanges both
}

type operationKind int

const (
	opWrite operationKind = iota
	opTruncate
	opSync // of a file or directory
	opLink // a new entry
	opUnlink
	opRename
)

// root is the node of the mounted directory.
const root = 0

// Mount mounts an empty disk at directory dir. An error that is ErrUnavailable
// says that this machine has no FUSE.
func Mount(dir string) (*Disk, error) {
	d := &Disk{capacity: math.MaxInt64, nodes: root + 1}
	// The kernel asks each time: what it remembers itself would not be seen here.
	now := time.Duration(0)
	server, err := fs.Mount(dir, &folder{disk: d, id: root}, &fs.Options{
		EntryTimeout: &now, AttrTimeout: &now, NegativeTimeout: &now,
		MountOptions: fuse.MountOptions{
			FsName: "lossydisk", DirectMountStrict: true, DisableXAttrs: true, MaxWrite: 1 << 20,
		},
	})
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err != nil {
		return nil, err
	}
	d.server = server
	return d, nil
}

// ErrUnavailable says that no disk can be mounted here.
var ErrUnavailable = errors.New("FUSE file systems cannot be mounted here")

// Close unmounts the disk. Nobody may use it any more.
func (d *Disk) Close() error {
	d.SlowSync(0)
	return d.server.Unmount()
}

// Length is the number of operations so far: the place of a power cut after all
// of them.
func (d *Disk) Length() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.journal)
}

// SlowSync makes each sync take delay longer.
func (d *Disk) SlowSync(delay time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.delay = delay
}

// Fill lets files grow by so many more bytes only.
func (d *Disk) Fill(left int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.capacity = d.used + left
}

// Free ends Fill.
func (d *Disk) Free() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.capacity = math.MaxInt64
}

// Written gives what programs had written to the file by operation at, synced
// or not. The file must never have been renamed.
func (d *Disk) Written(name string, at int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	folders := map[int]string{root: ""}
	files := make(map[int]bool)
	var content image
	for _, op := range d.journal[:at] {
		if op.kind == opLink {
			at := path.Join(folders[op.node], op.name)
			if op.folder {
				folders[op.child] = at
			} else if at == name {
				files[op.child], content = true, nil
			}
		}
		if files[op.node] && (op.kind == opWrite || op.kind == opTruncate) {
			content.apply(op)
		}
	}
	return content
}

// record appends op to the journal; the caller holds mu.
func (d *Disk) record(op operation) { d.journal = append(d.journal, op) }

func (d *Disk) newNode() int {
	d.nodes++
	return d.nodes - 1
}

// grow takes by bytes of the free space; the caller holds mu.
func (d *Disk) grow(by int64) syscall.Errno {
	if by > 0 && d.used+by > d.capacity {
		return syscall.ENOSPC
	}
	d.used += by
	return 0
}

func (d *Disk) sync(id int) syscall.Errno {
	d.mu.Lock()
	delay := d.delay
	d.mu.Unlock()
	if delay > 0 {
		<-time.After(delay)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.record(operation{kind: opSync, node: id})
	return 0
}

// String lists the operations from one to another, for the log of a test that
// fails.
func (d *Disk) String(from, to int) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b strings.Builder
	for i := max(from, 0); i < min(to, len(d.journal)); i++ {
		fmt.Fprintf(&b, "%d: %s\n", i, d.journal[i])
	}
	return b.String()
}

func (op operation) String() string {
	switch op.kind {
	case opWrite:
		return fmt.Sprintf("write %d bytes at %d of node %d", len(op.data), op.offset, op.node)
	case opTruncate:
		return fmt.Sprintf("truncate node %d to %d", op.node, op.offset)
	case opSync:
		return fmt.Sprintf("sync node %d", op.node)
	case opLink:
		return fmt.Sprintf("make node %d as %q in %d", op.child, op.name, op.node)
	case opUnlink:
		return fmt.Sprintf("unlink %q in %d", op.name, op.node)
	}
	return fmt.Sprintf("rename %q in %d to %q in %d, exchange %t", op.name, op.node, op.toName, op.toNode, op.swap)
}
