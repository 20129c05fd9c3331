package store

import (
	"context"
	"errors"
	"testing"

	"github.com/hashicorp/raft"
)

func TestLead(t *testing.T) {
	s, stop := launch(t, Config{})
	if !s.IsLeader() {
		t.Error("a server that is alone does not lead")
	}
	ctx, cancel := context.WithCancel(t.Context())
	led := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- s.Lead(ctx, func(ctx context.Context) error {
			close(led)
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	<-led
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("lead, cancelled: %v", err)
	}
	failure := errors.New("failure")
	if err := s.Lead(t.Context(), func(context.Context) error { return failure }); !errors.Is(err, failure) {
		t.Errorf("lead, failing: %v", err)
	}
	cause := make(chan error, 1)
	led = make(chan struct{})
	go func() {
		ended <- s.Lead(t.Context(), func(ctx context.Context) error {
			close(led)
			<-ctx.Done()
			cause <- context.Cause(ctx)
			return nil
		})
	}()
	<-led
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := <-cause; !errors.Is(err, ErrNotLeader) {
		t.Errorf("cause of the end: %v", err)
	}
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("lead, closed: %v", err)
	}
}

// TestRestoreFails: a stream that is damaged on its way changes nothing.
func TestRestoreFails(t *testing.T) {
	s := run(t, Config{})
	mustUpdate(t, s, put("k/1", "v"), put("k/2", "v"))
	if err := s.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	stream := streamOf(t, s)
	for _, bad := range [][]byte{{}, stream[:len(stream)-1], append([]byte("x"), stream...), flipped(stream, len(stream)/2)} {
		k, _ := s.fsm.snapshots.Create(1, 100, 1, raft.Configuration{}, 1, nil)
		k.Write(bad)
		k.Close()
		_, source, err := s.fsm.snapshots.Open(k.ID())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.fsm.Restore(source); !errors.Is(err, errStream) {
			t.Errorf("restore of %d bytes: %v", len(bad), err)
		}
		if got := list(t, s, "k/", 0); got != "[k/1=v k/2=v]" {
			t.Errorf("state is %s", got)
		}
	}
}

func flipped(b []byte, at int) []byte {
	b = append([]byte{}, b...)
	b[at] ^= 1
	return b
}
