package store

import (
	"encoding/binary"
	"errors"
)

// A proposal is the payload of one Raft log entry: the Updates of many callers,
// which share its fsync. It is written by hand and not with a general encoder
// since each byte of it goes to disk and each write decodes it.
//
//	proposal = version(1) term origin(8, little-endian) sequence count update*
//	update   = count op*
//	op       = flags(1) key expect [value]     value only with flagValue
//
// Counts and lengths are uvarints, expect is a varint.
type proposal struct {
	// term is the only one in which the proposal counts: in the log under another
	// term it changes nothing. So who has seen an entry of a later term knows that
	// what is not in the log by then will never count, and may propose it again.
	term uint64
	// origin and sequence name the proposal for the process that made it, which
	// still has its ops in memory.
	origin   uint64
	sequence uint64
	updates  [][]Op
}

const (
	proposalVersion = 2
	flagValue       = 1 << 0
)

var errMalformed = errors.New("malformed proposal")

// size is an upper bound of the encoded length of one update.
func updateSize(ops []Op) int {
	n := binary.MaxVarintLen32
	for i := range ops {
		n += 1 + 2*binary.MaxVarintLen32 + binary.MaxVarintLen64 + len(ops[i].Key) + len(ops[i].Value)
	}
	return n
}

const proposalHeaderSize = 1 + 8 + 3*binary.MaxVarintLen64

func appendProposalHeader(b []byte, term, origin, sequence uint64, updates int) []byte {
	b = append(b, proposalVersion)
	b = binary.AppendUvarint(b, term)
	b = binary.LittleEndian.AppendUint64(b, origin)
	b = binary.AppendUvarint(b, sequence)
	return binary.AppendUvarint(b, uint64(updates))
}

func appendUpdate(b []byte, ops []Op) []byte {
	b = binary.AppendUvarint(b, uint64(len(ops)))
	for i := range ops {
		op := &ops[i]
		var flags byte
		if op.Value != nil {
			flags |= flagValue
		}
		b = append(b, flags)
		b = appendString(b, op.Key)
		b = binary.AppendVarint(b, op.Expect)
		if op.Value != nil {
			b = binary.AppendUvarint(b, uint64(len(op.Value)))
			b = append(b, op.Value...)
		}
	}
	return b
}

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// decodeProposalHeader gives the name of a proposal without its updates.
func decodeProposalHeader(data []byte) (proposal, int, *reader, error) {
	r := &reader{rest: data}
	if r.byte() != proposalVersion {
		return proposal{}, 0, nil, errMalformed
	}
	p := proposal{term: r.uvarint(), origin: r.uint64(), sequence: r.uvarint()}
	updates := r.count()
	if r.bad {
		return proposal{}, 0, nil, errMalformed
	}
	return p, updates, r, nil
}

// decodeProposal reads a whole proposal. Values point into data.
func decodeProposal(data []byte) (proposal, error) {
	p, updates, r, err := decodeProposalHeader(data)
	if err != nil {
		return proposal{}, err
	}
	for range updates {
		ops := make([]Op, r.count())
		for i := range ops {
			flags := r.byte()
			ops[i].Key = string(r.bytes())
			ops[i].Expect = r.varint()
			if flags&flagValue != 0 {
				ops[i].Value = r.bytes()
			}
			r.bad = r.bad || flags&^flagValue != 0 || ops[i].Key == "" || ops[i].Expect < Any
		}
		if r.bad {
			return proposal{}, errMalformed
		}
		p.updates = append(p.updates, ops)
	}
	if len(r.rest) > 0 {
		return proposal{}, errMalformed
	}
	return p, nil
}

// reader takes values off the front of a buffer. After a failure it is bad and
// gives zeros.
type reader struct {
	rest []byte
	bad  bool
}

func (r *reader) fail() { r.bad, r.rest = true, nil }

func (r *reader) byte() byte {
	if len(r.rest) < 1 {
		r.fail()
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *reader) uint64() uint64 {
	if len(r.rest) < 8 {
		r.fail()
		return 0
	}
	v := binary.LittleEndian.Uint64(r.rest)
	r.rest = r.rest[8:]
	return v
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.rest)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

// count reads the number of things that follow. Each takes a byte at least, so
// that a forged count cannot make us allocate more than the input's size.
func (r *reader) count() int {
	n := r.uvarint()
	if n > uint64(len(r.rest)) {
		r.fail()
		return 0
	}
	return int(n)
}

// bytes gives a slice of the buffer that is never nil.
func (r *reader) bytes() []byte {
	n := r.count()
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	if b == nil {
		b = []byte{}
	}
	return b
}
