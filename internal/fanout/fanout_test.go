package fanout

import (
	"testing"
	"time"
)

func TestRest(t *testing.T) {
	for nodes, want := range map[int]time.Duration{1: 100 * time.Millisecond, 500: 500 * time.Millisecond, 5000: time.Second} {
		if got := Rest(nodes); got != want {
			t.Errorf("with %d nodes, %v", nodes, got)
		}
	}
}
