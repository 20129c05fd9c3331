package robustness

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"orch/test/cluster"
)

var (
	lasting = flag.Duration("for", 20*time.Second, "how long faults are injected")
	seed    = flag.Uint64("seed", 0, "of the schedule of faults and calls; 0: a new one")
	out     = flag.String("out", "", "folder for the histories of rounds that fail; empty: a temporary one")
	again   = flag.String("again", "", "history.json of an earlier run to check once more")
)

// longestRound bounds what is checked at a time.
const longestRound = time.Minute

// TestRobustness injects faults into three servers while clients read, write
// and watch, and holds what they saw against what the API promises.
func TestRobustness(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces are real here")
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	t.Logf("seed %d: repeat with make robustness FOR=%s SEED=%d", *seed, *lasting, *seed)
	began := time.Now()
	var s servers
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := newNemesis(&s, *seed, func(format string, args ...any) {
		t.Logf("%6.1f s  %s", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	})
	total := newTally()
	for number, left := 1, *lasting; left > 0; number++ {
		p := round{number: number, seed: *seed + uint64(number), lasting: min(left, longestRound), servers: &s, nemesis: n}
		left -= p.lasting
		h, err := p.play(t.Context())
		var broken []string
		if err != nil {
			broken = append(broken, err.Error())
		}
		broken = append(broken, n.complaints()...)
		broken = append(broken, panics(s.all)...)
		if h != nil {
			broken = append(broken, h.check()...)
			total.add(h)
		}
		t.Logf("round %d: %d violations; %s", number, len(broken), total)
		if len(broken) > 0 {
			keep(t, h, &s, number, broken)
			break
		}
	}
	t.Logf("faults: %s; %d times a server was sent the whole state", n.summary(), snapshots(s.all))
	total.enough(t)
}

// panics finds in the servers' logs what must never be there.
func panics(nodes []*cluster.Node) (broken []string) {
	for _, n := range nodes {
		log, err := os.ReadFile(n.LogFile())
		if err != nil {
			continue
		}
		for _, sign := range []string{"\npanic: ", "\nfatal error: ", "DATA RACE", "\nSIG"} {
			if i := strings.Index(string(log), sign); i >= 0 {
				broken = append(broken, fmt.Sprintf("the log of %s:%s", n.Name, log[i:min(len(log), i+2000)]))
			}
		}
	}
	return broken
}

// snapshots counts how often a server that was away was sent a snapshot.
func snapshots(nodes []*cluster.Node) (n int) {
	for _, on := range nodes {
		log, _ := os.ReadFile(on.LogFile()) // none before the first start
		n += strings.Count(string(log), "state taken over from the leader")
	}
	return n
}

// keep reports violations and keeps what is needed to understand them.
func keep(t *testing.T, h *history, s *servers, number int, broken []string) {
	dir := *out
	var err error
	if dir == "" {
		dir, err = os.MkdirTemp("", "robustness-")
	} else {
		dir = filepath.Join(dir, fmt.Sprintf("seed-%d-round-%d", *seed, number))
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		t.Error(err)
	}
	for i, b := range broken {
		if i == 20 {
			t.Errorf("and %d more", len(broken)-i)
			break
		}
		t.Error(b)
	}
	all := strings.Join(broken, "\n") + "\n"
	if err := os.WriteFile(filepath.Join(dir, "violations.txt"), []byte(all), 0o644); err != nil {
		t.Error(err)
	}
	for _, n := range s.all {
		if log, err := os.ReadFile(n.LogFile()); err == nil {
			_ = os.WriteFile(filepath.Join(dir, n.Name+".log"), log, 0o644)
		}
	}
	t.Logf("kept in %s", dir)
	if h == nil {
		return
	}
	if err := h.save(dir); err != nil {
		t.Error(err)
	}
	draw(t, h, dir)
}

func draw(t *testing.T, h *history, dir string) {
	result, info, m := h.linearizable(h.settled(h.commitments()), patience)
	if result == porcupine.Ok {
		return
	}
	if err := porcupine.VisualizePath(m, info, filepath.Join(dir, "linearizability.html")); err != nil {
		t.Error(err)
	}
}

// TestAgain checks a history that was kept.
func TestAgain(t *testing.T) {
	if *again == "" {
		t.Skip("-again names no history")
	}
	h, err := loadHistory(*again)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range h.check() {
		t.Error(b)
	}
	draw(t, h, filepath.Dir(*again))
}

// tally counts what clients did.
type tally struct {
	outcomes, failures     map[string]int
	calls, lists           int
	streams, events, fresh int
	expired                int // streams told that what they asked for is forgotten
	rounds, whole          int // whole: the streams together tell of every revision
}

func newTally() *tally { return &tally{outcomes: make(map[string]int), failures: make(map[string]int)} }

func (y *tally) add(h *history) {
	for _, c := range h.Calls {
		y.calls++
		y.outcomes[fmt.Sprintf("%s %s", c.Kind, c.Outcome)]++
		if c.Failure != "" {
			y.failures[c.failure()]++
		}
	}
	y.lists += len(h.Listings)
	y.rounds++
	if h.commitments().knows(h.Base, h.last()) {
		y.whole++
	}
	for _, s := range h.Streams {
		y.streams++
		y.events += len(s.Changes)
		if s.Resumed {
			y.fresh++
		}
		if s.Expired {
			y.expired++
		}
	}
}

func (y *tally) String() string {
	return fmt.Sprintf("%d calls (%s; without an answer: %s), %d lists, %d watches (%d from a random revision, %d expired) with %d events, which leave nothing out in %d of %d rounds",
		y.calls, counts(y.outcomes), counts(y.failures), y.lists, y.streams, y.fresh, y.expired, y.events, y.whole, y.rounds)
}

// enough: a run in which hardly anything succeeded has shown nothing.
func (y *tally) enough(t *testing.T) {
	for _, name := range []string{"create done", "update done", "get done", "delete done"} {
		if y.outcomes[name] < 5 {
			t.Errorf("too little was done: %s", y)
		}
	}
}
