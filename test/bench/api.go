package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"orch/test/cluster"
)

const (
	clients  = 50
	watchers = 100
)

// apiRates loads a server that has no node, scheduler or controllers.
func (b *bench) apiRates(ctx context.Context) error {
	return b.with(ctx, func(node *cluster.Node) error {
		crowd, err := newCrowd(node, clients)
		if err != nil {
			return err
		}
		for _, namespace := range []string{"warm", "list", "rates", "watched"} {
			if err := prepare(ctx, crowd[0], namespace, true); err != nil {
				return err
			}
		}
		if _, err := crowd.createPods(ctx, "warm", 2000); err != nil {
			return err
		}
		return errors.Join(b.listing(ctx, node, crowd), b.rates(ctx, node, crowd), b.watched(ctx, node, crowd), b.loaded(ctx, node))
	}, "--disable-agent", "--disable", "scheduler,controllers")
}

func podPath(namespace string, i int) string {
	return fmt.Sprintf("/api/v1/namespaces/%s/pods/p%d", namespace, i)
}

func (c crowd) createPods(ctx context.Context, namespace string, count int) (float64, error) {
	return c.each(ctx, count, createPod(namespace))
}

func createPod(namespace string) func(context.Context, *client, int) error {
	return func(ctx context.Context, c *client, i int) error {
		return c.create(ctx, "/api/v1/namespaces/"+namespace+"/pods", samplePod(namespace, fmt.Sprint("p", i)))
	}
}

func (b *bench) rates(ctx context.Context, node *cluster.Node, crowd crowd) error {
	const count = 20_000
	one := func(method, contentType string, body func(i int) []byte) func(context.Context, *client, int) error {
		return func(ctx context.Context, c *client, i int) error {
			_, err := c.do(ctx, method, podPath("rates", i%count), protobufType, contentType, body(i))
			return err
		}
	}
	nothing := func(int) []byte { return nil }
	label := func(i int) []byte { return fmt.Appendf(nil, `{"metadata":{"labels":{"n":"%d"}}}`, i) }
	for _, load := range []struct {
		name, budget string
		count        int
		call         func(context.Context, *client, int) error
	}{
		{"create", "5,000", count, createPod("rates")},
		{"patch", "4,000", count, one(http.MethodPatch, "application/strategic-merge-patch+json", label)},
		{"get", "10,000", 2 * count, one(http.MethodGet, "", nothing)},
		{"delete", "4,000", count, one(http.MethodDelete, "", nothing)},
	} {
		var rate float64
		cost, err := b.cost(ctx, node, crowd[0], load.name, load.count, func() (err error) {
			rate, err = crowd.each(ctx, load.count, load.call)
			return err
		})
		if err != nil {
			return err
		}
		b.add("pod "+load.name+"/s, 50 clients", load.budget, "%.0f (server CPU %d µs each)", rate, cost.Microseconds())
	}
	return nil
}

func (b *bench) listing(ctx context.Context, node *cluster.Node, crowd crowd) error {
	const count = 15
	if _, err := crowd.createPods(ctx, "list", 5000); err != nil {
		return err
	}
	for _, form := range []struct{ name, accept, budget string }{
		{"protobuf", protobufType, "30 ms"}, {"JSON", "application/json", "80 ms"},
	} {
		var times []time.Duration
		cost, err := b.cost(ctx, node, crowd[0], "list "+form.name, count, func() error {
			for range count {
				begin := time.Now()
				if _, err := crowd[0].do(ctx, http.MethodGet, "/api/v1/namespaces/list/pods", form.accept, "", nil); err != nil {
					return err
				}
				times = append(times, time.Since(begin))
			}
			return nil
		})
		if err != nil {
			return err
		}
		b.add("list 5,000 pods, "+form.name+" (median)", form.budget, "%.0f ms (server CPU %d)", median(times).Seconds()*1000, cost.Milliseconds())
	}
	return nil
}

// stamp is the time that a watched pod carries, of constant length so that it
// is found without decoding.
const stamp = "2006-01-02T15:04:05.000000000Z07:00"

// watched creates pods while many watch them.
func (b *bench) watched(ctx context.Context, node *cluster.Node, crowd crowd) error {
	const count = 5000
	ctx, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	lags := make([][]time.Duration, watchers)
	opened := make(chan error, watchers)
	var seen sync.WaitGroup
	seen.Add(watchers)
	for w := range watchers {
		watching.Go(func() {
			c, err := newClient(node)
			if err != nil {
				opened <- err
				return
			}
			stream, err := c.open(ctx, http.MethodGet, "/api/v1/namespaces/watched/pods?watch=1&resourceVersion=0", protobufType+";stream=watch", "", nil)
			opened <- err
			if err != nil {
				return
			}
			defer stream.Close()
			lags[w] = follow(stream, count)
			seen.Done()
		})
	}
	defer watching.Wait()
	defer stop()
	for range watchers {
		if err := <-opened; err != nil {
			return err
		}
	}
	var created float64
	cost, err := b.cost(ctx, node, crowd[0], "watched", count, func() (err error) {
		created, err = crowd.createPods(ctx, "watched", count)
		if err == nil {
			seen.Wait()
		}
		return err
	})
	if err != nil {
		return err
	}
	var all []time.Duration
	for _, l := range lags {
		all = append(all, l...)
	}
	b.add("pod create/s with 100 watchers", "2,500", "%.0f (server CPU %d µs each)", created, cost.Microseconds())
	b.add("watch lag p99, creation to each of them", "50 ms", "%.0f ms", percentile(all, 99).Seconds()*1000)
	return nil
}

// follow reads count events from a watch in protobuf, each after its length in
// four bytes, and gives how old they were.
func follow(stream io.Reader, count int) []time.Duration {
	in := bufio.NewReaderSize(stream, 64<<10)
	lags := make([]time.Duration, 0, count)
	var buffer []byte
	var length [4]byte
	for len(lags) < count {
		if _, err := io.ReadFull(in, length[:]); err != nil {
			return lags
		}
		n := int(binary.BigEndian.Uint32(length[:]))
		if cap(buffer) < n {
			buffer = make([]byte, n)
		}
		buffer = buffer[:n]
		if _, err := io.ReadFull(in, buffer); err != nil {
			return lags
		}
		now := time.Now()
		// The annotation "at" in protobuf: key, then the value with its length.
		at := bytes.Index(buffer, []byte("\n\x02at\x12"))
		if at < 0 || at+6+len(stamp) > n {
			continue
		}
		size := int(buffer[at+5])
		if created, err := time.Parse(stamp, string(buffer[at+6:at+6+size])); err == nil {
			lags = append(lags, now.Sub(created))
		}
	}
	return lags
}

// loaded tells what the server holds after all that, ten seconds later and a
// minute after that.
func (b *bench) loaded(ctx context.Context, node *cluster.Node) error {
	for _, when := range []struct {
		name, budget string
		wait         time.Duration
	}{{"after that load", "250 MB", 0}, {"ten seconds later", "", 10 * time.Second}, {"a minute later", "", time.Minute}} {
		select {
		case <-time.After(when.wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		u, err := measureProcess(node.PID())
		if err != nil {
			return err
		}
		b.add("API process RSS "+when.name, when.budget, "%.0f MB (anonymous %.0f)", float64(u.rss)/1e6, float64(u.anonymous)/1e6)
	}
	return nil
}
