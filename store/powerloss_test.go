package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"orch/internal/lossydisk"
)

// A power-loss test runs a scenario in a process of its own, on a disk that
// knows what was synced. Then it starts stores on what may be left of that disk
// after a power cut at one moment of the scenario or another. What the scenario
// was promised it writes down on the disk itself, so that it stands in the order
// of things.

// scenarios are what a child of the test does in the mounted folder.
var scenarios = map[string]func(dir string) error{
	"single":    singleScenario,
	"trio":      trioScenario,
	"restore":   restoreScenario,
	"recover":   recoverScenario,
	"supersede": supersedeScenario,
}

// promises is the file in which a scenario notes what it was promised.
const promises = "promises"

type promiser struct {
	mu   sync.Mutex
	file *os.File
}

func newPromiser(dir string) (*promiser, error) {
	file, err := os.OpenFile(filepath.Join(dir, promises), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return &promiser{file: file}, err
}

func (p *promiser) note(format string, args ...any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := fmt.Fprintf(p.file, format+"\n", args...)
	return err
}

// promised gives the lines noted before the cut.
func promised(d *lossydisk.Disk, at int) []string {
	lines := strings.Split(string(d.Written(promises, at)), "\n")
	return lines[:len(lines)-1]
}

// stage runs a scenario until it ends or, when enough is set, has been promised
// so much, and gives its disk.
func stage(t *testing.T, scenario string, enough int) *lossydisk.Disk {
	t.Helper()
	dir := t.TempDir()
	disk, err := lossydisk.Mount(dir)
	if errors.Is(err, lossydisk.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "ORCH_STORE_SCENARIO="+scenario, "ORCH_STORE_SCENARIO_DIR="+dir)
	var output strings.Builder
	child.Stdout, child.Stderr = &output, &output
	if err := child.Start(); err != nil {
		t.Fatal(errors.Join(err, disk.Close()))
	}
	done := make(chan error, 1)
	go func() { done <- child.Wait() }()
	t.Cleanup(func() {
		child.Process.Kill() // it may have ended
		<-done
		if err := disk.Close(); err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(5 * time.Minute); ; {
		select {
		case err := <-done:
			done <- err
			if err != nil || enough > 0 {
				t.Fatalf("scenario %s ended: %v: %s", scenario, err, output.String())
			}
			return disk
		case <-time.After(50 * time.Millisecond):
		}
		// The disk's own record of it takes ever longer to read.
		noted, err := os.ReadFile(filepath.Join(dir, promises))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if enough > 0 && bytes.Count(noted, []byte("\n")) >= enough {
			child.Process.Kill()
			done <- <-done
			return disk
		}
		if time.Now().After(deadline) {
			t.Fatalf("scenario %s does not end: %s", scenario, output.String())
		}
	}
}

// cuts are moments at which the power may go: each of the first ones, when files
// come to be, and others at random.
func cuts(disk *lossydisk.Disk, first, random int, chance *rand.Rand) []int {
	var at []int
	for i := range first {
		at = append(at, i*min(disk.Length(), 3*first)/first)
	}
	for range random {
		at = append(at, chance.IntN(disk.Length()+1))
	}
	return append(at, disk.Length())
}

// afterwards checks what a cut leaves.
func afterwards(t *testing.T, disk *lossydisk.Disk, cut lossydisk.Cut, chance *rand.Rand, check func(t *testing.T, dir string, promised []string)) {
	t.Helper()
	dir := t.TempDir()
	if err := disk.Leave(dir, cut, chance); err != nil {
		t.Fatal(err)
	}
	t.Run(fmt.Sprint(cut.At), func(t *testing.T) {
		check(t, dir, promised(disk, cut.At))
		if t.Failed() {
			t.Logf("before the cut:\n%s", disk.String(cut.At-20, cut.At))
		}
	})
}

func chanceOf(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// count counts up key through s and notes each write that was acknowledged.
func count(s *Store, key string, note *promiser) error {
	for n := crashCount(s, key) + 1; ; n++ {
		value := fmt.Appendf(nil, "%d %0*d", n, rand.IntN(2000), 0)
		_, err := s.Update(context.Background(), Op{Key: key, Value: value, Expect: Any})
		if errors.Is(err, ErrUnknownOutcome) || errors.Is(err, ErrNotLeader) {
			n-- // counting the same again is as good
			continue
		}
		if err == nil {
			err = note.note("%s %d", key, n)
		}
		if err != nil {
			return err
		}
	}
}

// counted checks that s has counted as far as was promised.
func counted(t *testing.T, s *Store, promised []string) {
	t.Helper()
	last := make(map[string]int)
	for _, line := range promised {
		var key string
		var n int
		if _, err := fmt.Sscan(line, &key, &n); err == nil {
			last[key] = n
		}
	}
	for key, n := range last {
		if got := crashCount(s, key); got < n {
			t.Errorf("%s is at %d at %s, but %d was acknowledged", key, got, s.cfg.Name, n)
		}
	}
}

func singleScenario(dir string) error {
	note, err := newPromiser(dir)
	if err != nil {
		return err
	}
	s := New(Config{Dir: filepath.Join(dir, "a"), tuning: crashTuning})
	failed := make(chan error, crashWriters+1)
	go func() { failed <- s.Run(context.Background()) }()
	select {
	case <-s.Ready():
	case err := <-failed:
		return err
	}
	for w := range crashWriters {
		go func() { failed <- count(s, crashKey(w), note) }()
	}
	return <-failed
}

// TestPowerLoss: a single server has every acknowledged write after a power cut
// at any moment, and starts as if nothing had been.
func TestPowerLoss(t *testing.T) {
	random := 40
	if testing.Short() {
		random = 15
	}
	disk, chance := stage(t, "single", 1500), chanceOf(t)
	for _, at := range cuts(disk, 20, random, chance) {
		afterwards(t, disk, lossydisk.Cut{At: at}, chance, func(t *testing.T, dir string, promised []string) {
			s, stop := launch(t, Config{Dir: filepath.Join(dir, "a"), tuning: crashTuning})
			counted(t, s, promised)
			mustUpdate(t, s, put("k", "v"))
			if err := errors.Join(s.Check(t.Context()), stop()); err != nil {
				t.Error(err)
			}
		})
	}
}

func trioConfigs(dir string) map[string]Config {
	cfgs := map[string]Config{"a": {Name: "a"}, "b": {Name: "b", Join: []string{"a"}}, "c": {Name: "c", Join: []string{"a"}}}
	for name, cfg := range cfgs {
		cfg.Dir, cfg.tuning = filepath.Join(dir, name), crashTuning
		cfgs[name] = cfg
	}
	return cfgs
}

// trioScenario writes through three servers, of which one stops now and then for
// so long that it needs the state as a stream.
func trioScenario(dir string) error {
	note, err := newPromiser(dir)
	if err != nil {
		return err
	}
	failed := make(chan error, 16)
	net, cfgs := newNetwork(), trioConfigs(dir)
	start := func(name string) (s *Store, stop func() error, err error) {
		cfg := cfgs[name]
		if cfg.Raft, err = net.listen(name, "/raft"); err == nil {
			cfg.Peers, err = net.listen(name, "/peers")
		}
		if err != nil {
			return nil, nil, err
		}
		s, stop = launchAside(nil, cfg)
		select {
		case <-s.Ready():
		case <-s.memory.closed:
			err = stop()
		}
		return s, stop, err
	}
	var stopLast func() error
	for _, name := range []string{"a", "b", "c"} {
		s, stop, err := start(name)
		if err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
		for w := range 3 {
			if name != "c" {
				go func() { failed <- count(s, fmt.Sprintf("counters/%s%d", name, w), note) }()
			}
		}
		stopLast = stop
	}
	go func() {
		for {
			<-time.After(300 * time.Millisecond)
			if err := stopLast(); err != nil {
				failed <- err
			}
			<-time.After(500 * time.Millisecond)
			var err error
			if _, stopLast, err = start("c"); err != nil {
				failed <- err
			}
		}
	}()
	return <-failed
}

// TestPowerLossOfThree: so have three servers, when one of them, two or all lose
// their power.
func TestPowerLossOfThree(t *testing.T) {
	random := 8
	if testing.Short() {
		random = 4
	}
	disk, chance := stage(t, "trio", 2000), chanceOf(t)
	for i, at := range cuts(disk, 3, random, chance) {
		lost := []string{"abc", "ab", "c", "abc", "a"}[i%5]
		survives := func(path string) bool { return !strings.Contains(lost, path[:1]) }
		afterwards(t, disk, lossydisk.Cut{At: at, Survives: survives}, chance, func(t *testing.T, dir string, promised []string) {
			t.Logf("power lost by %s, %d promises", lost, len(promised))
			c := &trio{
				t: t, network: newNetwork(), cfgs: trioConfigs(dir), stores: make(map[string]*Store),
				stops: make(map[string]func() error),
			}
			t.Cleanup(func() {
				for name := range c.stops {
					c.stop(name)
				}
			})
			// A majority may be needed before any is ready.
			for name := range c.cfgs {
				c.launch(name)
			}
			for name := range c.cfgs {
				c.awaitReady(name)
			}
			c.awaitVoters(3)
			mustUpdate(t, c.stores["b"], put("k", "v"))
			c.same()
			for _, s := range c.stores {
				counted(t, s, promised)
			}
		})
	}
}

// before and after are what the scenarios below leave of a state that is
// replaced by another.
const (
	stateBefore = "[k/1=v k/2=v]"
	stateAfter  = "[k/1=v]"
)

// beforeScenario makes a store with the state before, and gives a backup of the
// state after.
func beforeScenario(dir string) (s *Store, stop func() error, backup *strings.Reader, err error) {
	s, stop = launchAside(nil, Config{Dir: filepath.Join(dir, "a"), Name: "a"})
	select {
	case <-s.Ready():
	case <-s.memory.closed:
		return nil, nil, nil, stop()
	}
	var stream strings.Builder
	_, err = s.Update(context.Background(), put("k/1", "v"))
	if err == nil {
		_, err = s.Backup(context.Background(), &stream, nil)
	}
	if err == nil {
		_, err = s.Update(context.Background(), put("k/2", "v"))
	}
	return s, stop, strings.NewReader(stream.String()), err
}

// restoreScenario takes in another server's snapshot.
func restoreScenario(dir string) error {
	note, err := newPromiser(dir)
	if err != nil {
		return err
	}
	s, _, backup, err := beforeScenario(dir)
	if err != nil {
		return err
	}
	if err := note.note("before"); err != nil {
		return err
	}
	k, err := s.fsm.snapshots.Create(1, 100, 1, s.configuration(), 1, nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(k, backup); err != nil {
		return err
	}
	if err := k.Close(); err != nil {
		return err
	}
	_, source, err := s.fsm.snapshots.Open(k.ID())
	if err == nil {
		err = s.fsm.Restore(source)
	}
	return errors.Join(err, note.note("after"))
}

// recoverScenario makes a cluster of its own from a backup.
func recoverScenario(dir string) error {
	note, err := newPromiser(dir)
	if err != nil {
		return err
	}
	_, stop, backup, err := beforeScenario(dir)
	if err == nil {
		err = errors.Join(stop(), note.note("before"))
	}
	if err == nil {
		_, err = Recover(context.Background(), Recovery{Dir: filepath.Join(dir, "a"), Name: "a", From: backup})
	}
	return errors.Join(err, note.note("after"))
}

// TestPowerLossWhileReplaced: when the state is replaced by another one, it is
// the old or the new that is there after a power cut, as soon and as long as
// promised.
func TestPowerLossWhileReplaced(t *testing.T) {
	for _, scenario := range []string{"restore", "recover"} {
		t.Run(scenario, func(t *testing.T) {
			disk, chance := stage(t, scenario, 0), chanceOf(t)
			from := 0
			for len(promised(disk, from)) == 0 {
				from++
			}
			for at := from; at <= disk.Length(); at++ {
				afterwards(t, disk, lossydisk.Cut{At: at}, chance, func(t *testing.T, dir string, promised []string) {
					s, stop := launch(t, Config{Dir: filepath.Join(dir, "a"), Name: "a"})
					got := list(t, s, "k/", 0)
					if got != stateAfter && (got != stateBefore || len(promised) > 1) {
						t.Errorf("%s after %v", got, promised)
					}
					mustUpdate(t, s, put("k/3", "v"))
					if err := errors.Join(s.Check(t.Context()), stop()); err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
}

// supersedeScenario makes way for a recovered cluster.
func supersedeScenario(dir string) error {
	note, err := newPromiser(dir)
	if err != nil {
		return err
	}
	s, stop, _, err := beforeScenario(dir)
	if err == nil {
		err = errors.Join(stop(), note.note("before"))
	}
	if err == nil {
		err = s.supersede([]raft.ServerAddress{"b:6443", "c:6443"})
	}
	return errors.Join(err, note.note("after"))
}

// TestPowerLossWhileSuperseded: a server whose state is of no more use has it
// still, or knows whom to join: it never founds a cluster of its own.
func TestPowerLossWhileSuperseded(t *testing.T) {
	disk, chance := stage(t, "supersede", 0), chanceOf(t)
	from := 0
	for len(promised(disk, from)) == 0 {
		from++
	}
	for at := from; at <= disk.Length(); at++ {
		afterwards(t, disk, lossydisk.Cut{At: at}, chance, func(t *testing.T, dir string, promised []string) {
			s := New(Config{Dir: filepath.Join(dir, "a"), Name: "a"})
			if err := errors.Join(s.open(), s.close()); err != nil {
				t.Fatal(err)
			}
			joins := strings.Join(s.cfg.Join, " ") == "b:6443 c:6443"
			if old := s.fsm.current().index > 0; old == joins || old && len(promised) > 1 {
				t.Errorf("has its old state: %t; joins %v", old, s.cfg.Join)
			}
		})
	}
}
