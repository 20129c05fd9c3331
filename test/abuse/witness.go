package abuse

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// witness is another user, who reads and writes all the while and notes how that
// goes; and a look at the node and at the server's memory.
type witness struct {
	client kubernetes.Interface // as the other user
	admin  kubernetes.Interface
	node   string
	pid    int

	mu    sync.Mutex // guards seen
	seen  seen
	count int
}

// seen is what a witness noted during a phase.
type seen struct {
	reads    []time.Duration
	problems []string
	memory   int64 // bytes, the most
}

const (
	readEvery  = 20 * time.Millisecond
	writeEvery = 250 * time.Millisecond
	lookEvery  = 500 * time.Millisecond
)

// run notes until ctx ends.
func (w *witness) run(ctx context.Context) {
	var group sync.WaitGroup
	repeat := func(every time.Duration, do func(context.Context) error) {
		group.Go(func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				w.try(ctx, do)
			}
		})
	}
	repeat(readEvery, w.read)
	repeat(writeEvery, w.write)
	repeat(lookEvery, w.look)
	group.Wait()
}

// try does one thing, which must succeed within the time for answers.
func (w *witness) try(ctx context.Context, do func(context.Context) error) {
	one, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if err := do(one); err != nil && ctx.Err() == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.seen.problems) < 5 {
			w.seen.problems = append(w.seen.problems, err.Error())
		}
	}
}

func (w *witness) read(ctx context.Context) error {
	began := time.Now()
	_, err := w.client.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("another user reads: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen.reads = append(w.seen.reads, time.Since(began))
	return nil
}

func (w *witness) write(ctx context.Context) error {
	w.count++
	of := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "witness"}, Data: map[string]string{"count": strconv.Itoa(w.count)}}
	if _, err := w.client.CoreV1().ConfigMaps("default").Update(ctx, of, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("another user writes: %w", err)
	}
	return nil
}

func (w *witness) look(ctx context.Context) error {
	memory, err := resident(w.pid)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.seen.memory = max(w.seen.memory, memory)
	w.mu.Unlock()
	node, err := w.admin.CoreV1().Nodes().Get(ctx, w.node, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("look at the node: %w", err)
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			return fmt.Errorf("the node is not Ready: %s: %s", c.Reason, c.Message)
		}
	}
	return nil
}

// take gives what was seen since the last time.
func (w *witness) take() seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.seen
	w.seen = seen{}
	return s
}

// p99 of the reads.
func (s *seen) p99() time.Duration {
	if len(s.reads) == 0 {
		return 0
	}
	slices.Sort(s.reads)
	return s.reads[len(s.reads)*99/100]
}

// resident is how much memory a process has, in bytes.
func resident(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("the server is gone: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("no VmRSS of process %d", pid)
}
