package kernel

import "testing"

func TestConnectionRoom(t *testing.T) {
	for cores, want := range map[int]int{1: 128 << 10, 4: 128 << 10, 8: 256 << 10, 64: 1 << 20} {
		if got := connectionRoom(cores); got != want {
			t.Errorf("%d cores: %d, want %d", cores, got, want)
		}
	}
}
