package store

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

func BenchmarkUpdate(b *testing.B) {
	value := make([]byte, 1024)
	for _, callers := range []int{1, 50} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			s := run(b, Config{})
			took := make([]time.Duration, b.N)
			var wait sync.WaitGroup
			b.ResetTimer()
			for c := range callers {
				wait.Go(func() {
					for i := c; i < b.N; i += callers {
						began := time.Now()
						op := Op{Key: fmt.Sprintf("pods/default/pod-%d", i%20_000), Value: value, Expect: Any}
						if _, err := s.Update(b.Context(), op); err != nil {
							b.Error(err)
							return
						}
						took[i] = time.Since(began)
					}
				})
			}
			wait.Wait()
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}

func BenchmarkScan(b *testing.B) {
	s := run(b, Config{})
	ops := make([]Op, 5000)
	for i := range ops {
		ops[i] = put(fmt.Sprintf("pods/default/pod-%05d", i), "value")
	}
	mustUpdate(b, s, ops...)
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		if _, err := s.Scan("pods/", "", 0, func(*Entry) bool { n++; return true }); err != nil || n != len(ops) {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkSync(b *testing.B) {
	s := run(b, Config{})
	for b.Loop() {
		if _, err := s.Sync(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkThree writes to three servers in one process, through the leader and
// through a follower.
func BenchmarkThree(b *testing.B) {
	value := make([]byte, 1024)
	for _, through := range []string{"leader", "follower"} {
		for _, callers := range []int{1, 50} {
			b.Run(fmt.Sprintf("%s/callers=%d", through, callers), func(b *testing.B) {
				c := newTrio(b)
				s := c.leader()
				if through == "follower" {
					s = c.stores[c.others(s.cfg.Name)[0]]
				}
				took := make([]time.Duration, b.N)
				var wait sync.WaitGroup
				b.ResetTimer()
				for caller := range callers {
					wait.Go(func() {
						for i := caller; i < b.N; i += callers {
							began := time.Now()
							if _, err := s.Update(b.Context(), Op{Key: fmt.Sprintf("pods/default/pod-%d", i%20_000), Value: value, Expect: Any}); err != nil {
								b.Error(err)
								return
							}
							took[i] = time.Since(began)
						}
					})
				}
				wait.Wait()
				b.StopTimer()
				slices.Sort(took)
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
				b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			})
		}
	}
}
