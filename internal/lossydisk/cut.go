package lossydisk

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

const (
	page   = 4096 // written back in any order
	sector = 512  // written wholly or not at all
)

// Cut is a loss of power.
type Cut struct {
	At int // after so many operations

	// Survives tells of a file or directory, by its path on the disk, that its
	// machine has kept its power. nil: none has.
	Survives func(path string) bool
}

// Leave writes into directory dir what the power cut may have left of the disk,
// with chance deciding among what is possible:
//
//   - a file's content as of its last sync, and of each page written since the
//     old or the new, or the first sectors of the new one;
//   - a directory's entries as of its last sync, and of the changes since the
//     first few, as a file system with a journal keeps their order.
//
// That a file was synced says nothing of its name.
func (d *Disk) Leave(dir string, cut Cut, chance *rand.Rand) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := newRemains(cut, chance)
	r.survivors(d.journal[:cut.At])
	for _, op := range d.journal[:cut.At] {
		r.take(op)
	}
	r.powerOff()
	return r.write(root, dir)
}

// image is the content of a file.
type image []byte

func (c *image) apply(op operation) {
	end := op.offset + int64(len(op.data))
	if n := int64(len(*c)); op.kind == opTruncate && end < n {
		clear((*c)[end:])
		*c = (*c)[:end]
	} else if end > n {
		*c = append(*c, make([]byte, end-n)...)
	}
	copy((*c)[op.offset:], op.data)
}

// remains is a disk that is being replayed.
type remains struct {
	Cut
	chance   *rand.Rand
	durable  map[int]image          // content of files, as of their last sync
	written  map[int][]operation    // since then
	entries  map[int]map[string]int // of directories, as of their last sync
	named    []operation            // changes of entries that were not synced yet, in order
	survives map[int]bool           // nodes whose machine kept its power
}

func newRemains(cut Cut, chance *rand.Rand) *remains {
	return &remains{
		Cut: cut, chance: chance, durable: make(map[int]image), written: make(map[int][]operation),
		entries: map[int]map[string]int{root: {}}, survives: make(map[int]bool),
	}
}

// survivors finds the nodes that survive, by the path at which they were made.
func (r *remains) survivors(journal []operation) {
	paths := map[int]string{root: ""}
	for _, op := range journal {
		if op.kind == opLink {
			paths[op.child] = filepath.Join(paths[op.node], op.name)
			r.survives[op.child] = r.Survives != nil && r.Survives(paths[op.child])
		}
	}
}

func (r *remains) take(op operation) {
	switch op.kind {
	case opWrite, opTruncate:
		r.written[op.node] = append(r.written[op.node], op)
	case opSync:
		r.sync(op.node)
	default:
		if op.kind == opLink && op.folder {
			r.entries[op.child] = make(map[string]int)
		}
		r.named = append(r.named, op)
	}
	if r.survives[op.node] || op.kind == opLink && r.survives[op.child] {
		r.sync(op.node)
	}
}

func (r *remains) sync(node int) {
	content := r.durable[node]
	for _, op := range r.written[node] {
		content.apply(op)
	}
	r.durable[node] = content
	delete(r.written, node)
	var later []operation
	for _, op := range r.named {
		if op.node == node || op.kind == opRename && op.toNode == node {
			r.rename(op)
		} else {
			later = append(later, op)
		}
	}
	r.named = later
}

// rename makes a change of entries durable.
func (r *remains) rename(op operation) {
	from := r.entries[op.node]
	switch op.kind {
	case opLink:
		from[op.name] = op.child
	case opUnlink:
		delete(from, op.name)
	case opRename:
		to := r.entries[op.toNode]
		moved, other := from[op.name], to[op.toName]
		delete(from, op.name)
		to[op.toName] = moved
		if op.swap {
			from[op.name] = other
		}
	}
}

// powerOff decides what becomes of all that was not synced.
func (r *remains) powerOff() {
	for _, op := range r.named[:r.chance.IntN(len(r.named)+1)] {
		r.rename(op)
	}
	r.named = nil
	for node := range r.nodesInOrder() {
		content := r.durable[node]
		// All, none, or any part of it.
		share := []float64{0, 0.5, 0.9, 1}[r.chance.IntN(4)]
		for _, op := range r.written[node] {
			r.lose(&content, op, share)
		}
		r.durable[node] = content
	}
}

// nodesInOrder gives the files with unsynced writes in the order of their
// making, so that the same chance leaves the same disk.
func (r *remains) nodesInOrder() func(yield func(int) bool) {
	last := root
	for node := range maps.Keys(r.written) {
		last = max(last, node)
	}
	return func(yield func(int) bool) {
		for node := root; node <= last; node++ {
			if _, ok := r.written[node]; ok && !yield(node) {
				return
			}
		}
	}
}

// lose applies the pages of op that have reached the disk.
func (r *remains) lose(content *image, op operation, share float64) {
	if op.kind == opTruncate {
		if r.chance.Float64() < share {
			content.apply(op)
		}
		return
	}
	for len(op.data) > 0 {
		n := min(page-int(op.offset%page), len(op.data))
		part := operation{kind: opWrite, offset: op.offset, data: op.data[:n]}
		if r.chance.Float64() < share {
			if r.chance.IntN(8) == 0 {
				part.data = part.data[:r.chance.IntN(n/sector+1)*sector]
			}
			content.apply(part)
		}
		op.offset, op.data = op.offset+int64(n), op.data[n:]
	}
}

// write writes a directory out to a real one.
func (r *remains) write(node int, dir string) error {
	for name, child := range r.entries[node] {
		path := filepath.Join(dir, name)
		if strings.ContainsRune(name, filepath.Separator) {
			return fmt.Errorf("entry %q", name)
		}
		if _, ok := r.entries[child]; ok {
			if err := os.MkdirAll(path, 0o700); err != nil {
				return err
			}
			if err := r.write(child, path); err != nil {
				return err
			}
			continue
		}
		if err := os.WriteFile(path, r.durable[child], 0o600); err != nil {
			return err
		}
	}
	return nil
}
