package store

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"

	"github.com/hashicorp/raft"
)

func FuzzProposal(f *testing.F) {
	whole := appendProposalHeader(nil, 3, 7, 1, 2)
	whole = appendUpdate(whole, []Op{{Key: "pods/a", Value: []byte("v"), Expect: Any}, {Key: "pods/b"}})
	whole = appendUpdate(whole, []Op{{Key: "c", Value: []byte{}, Expect: 1 << 60}})
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add(appendProposalHeader(nil, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := decodeProposal(data)
		if err != nil {
			return
		}
		again := appendProposalHeader(nil, p.term, p.origin, p.sequence, len(p.updates))
		for _, ops := range p.updates {
			again = appendUpdate(again, ops)
		}
		q, err := decodeProposal(again)
		if err != nil || !reflect.DeepEqual(p, q) {
			t.Errorf("%+v became %+v, %v", p, q, err)
		}
	})
}

func FuzzLog(f *testing.F) {
	key := logKey(5)
	f.Add(encodeLog(&raft.Log{Index: 5, Term: 2, Data: []byte("data"), Extensions: []byte("x")})[sumSize:])
	f.Fuzz(func(t *testing.T, data []byte) {
		log, err := decodeLog(key, data)
		if err != nil {
			return
		}
		again, err := decodeLog(key, encodeLog(&log)[sumSize:])
		if err != nil || !reflect.DeepEqual(log, again) {
			t.Errorf("%+v became %+v, %v", log, again, err)
		}
	})
}

func FuzzStream(f *testing.F) {
	s := run(f, Config{})
	mustUpdate(f, s, put("k/1", "v"), put("k/2", "v"))
	f.Add(streamOf(f, s))
	f.Add([]byte(streamMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &streamReader{source: bufio.NewReader(bytes.NewReader(data))}
		if _, err := r.head(); err != nil {
			return
		}
		for more := true; more; {
			_, _, more = r.record()
		}
		if r.err != nil && !errors.Is(r.err, errStream) {
			t.Errorf("error is %v", r.err)
		}
	})
}

// streamOf is the state of s on file as a stream.
func streamOf(t testing.TB, s *Store) []byte {
	t.Helper()
	if err := s.fsm.flush(); err != nil {
		t.Fatal(err)
	}
	meta, stream, err := s.fsm.state.open()
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	b, err := io.ReadAll(stream)
	if err != nil || int64(len(b)) != meta.Size {
		t.Fatalf("%d bytes instead of %d, %v", len(b), meta.Size, err)
	}
	return b
}
