package store

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

const crashWriters = 8

// crashTuning flushes and truncates all the time, so that kills hit that too.
var crashTuning = tuning{flushDelay: 5 * time.Millisecond, flushBytes: 8 << 10, logBytes: 256 << 10}

// TestMain also serves as the process that TestKill kills, or that loses its
// power.
func TestMain(m *testing.M) {
	if scenario := scenarios[os.Getenv("ORCH_STORE_SCENARIO")]; scenario != nil {
		if err := scenario(os.Getenv("ORCH_STORE_SCENARIO_DIR")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if dir := os.Getenv("ORCH_STORE_CRASH_DIR"); dir != "" {
		if err := writeUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// writeUntilKilled counts up one key per writer and tells of each write that
// was acknowledged.
func writeUntilKilled(dir string) error {
	s := New(Config{Dir: dir, tuning: crashTuning})
	failed := make(chan error, crashWriters+1)
	go func() { failed <- s.Run(context.Background()) }()
	select {
	case <-s.Ready():
	case err := <-failed:
		return err
	}
	for w := range crashWriters {
		key := crashKey(w)
		go func() {
			for n := crashCount(s, key) + 1; ; n++ {
				value := fmt.Appendf(nil, "%d %0*d", n, rand.IntN(2000), 0)
				if _, err := s.Update(context.Background(), Op{Key: key, Value: value, Expect: Any}); err != nil {
					failed <- err
					return
				}
				fmt.Printf("%d %d\n", w, n)
			}
		}()
	}
	return <-failed
}

func crashKey(writer int) string { return fmt.Sprintf("counters/%d", writer) }

func crashCount(s *Store, key string) int {
	e, _ := s.Get(key)
	if e == nil {
		return 0
	}
	var n int
	fmt.Sscan(string(e.Object.([]byte)), &n)
	return n
}

// TestKill kills a writing process with SIGKILL again and again. Whatever it
// had acknowledged must be there afterwards.
func TestKill(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 5
	}
	dir := t.TempDir()
	var acknowledged [crashWriters]int
	for round := range rounds {
		killWhileWriting(t, dir, &acknowledged)
		s, stop := launch(t, Config{Dir: dir, tuning: crashTuning})
		for w, n := range acknowledged {
			if got := crashCount(s, crashKey(w)); got < n {
				t.Errorf("round %d: writer %d is at %d, but %d was acknowledged", round, w, got, n)
			}
		}
		if err := s.Check(t.Context()); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		if err := stop(); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
	}
	if acknowledged[0] < rounds {
		t.Errorf("only %d writes: the test tests nothing", acknowledged[0])
	}
}

func killWhileWriting(t *testing.T, dir string, acknowledged *[crashWriters]int) {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "ORCH_STORE_CRASH_DIR="+dir)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for left := 50 + rand.IntN(1500); lines.Scan(); left-- {
		var w int
		var n string
		if _, err := fmt.Sscan(lines.Text(), &w, &n); err != nil {
			break // the line was cut off by the kill
		}
		if acknowledged[w], err = strconv.Atoi(n); err != nil {
			t.Fatal(err)
		}
		if left == 0 {
			child.Process.Kill()
		}
	}
	if child.Wait(); child.ProcessState.ExitCode() != -1 {
		t.Fatalf("the child ended by itself: %v", child.ProcessState)
	}
}
