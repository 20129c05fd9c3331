// Command client asks web servers over and over from inside a pod, each time
// over a connection of its own, and tells on :9090 what became of it.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"orch/test/load/stats"
)

// accountDir is where a pod finds its service account.
const accountDir = "/var/run/secrets/kubernetes.io/serviceaccount/"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	pool := x509.NewCertPool()
	if ca, err := os.ReadFile(accountDir + "ca.crt"); err == nil {
		pool.AppendCertsFromPEM(ca)
	}
	http.DefaultTransport = &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}}
	var targets []*target
	var asking sync.WaitGroup
	for _, t := range []struct {
		name, url string
		workers   int
		every     time.Duration
	}{
		{stats.Service, os.Getenv("TARGET"), 10, 50 * time.Millisecond},
		{stats.API, os.Getenv("API"), 2, 100 * time.Millisecond},
	} {
		one := &target{name: t.name, url: t.url}
		targets = append(targets, one)
		for range t.workers {
			asking.Go(func() { one.askAlways(ctx, t.every) })
		}
	}
	server := &http.Server{Addr: ":9090", ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		all := stats.ByTarget{}
		for _, t := range targets {
			all[t.name] = t.result()
		}
		_ = json.NewEncoder(w).Encode(all) // whoever asked went away
	})}
	asking.Go(func() { <-ctx.Done(); _ = server.Close() })
	err := server.ListenAndServe()
	asking.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// target is what is asked, and what came of it.
type target struct {
	name, url string

	mu       sync.Mutex // guards what follows
	requests int
	took     []time.Duration // of the requests that succeeded
	failures []stats.Failure
}

func (t *target) result() stats.Result {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := stats.Result{Requests: t.requests, Failures: slices.Clone(t.failures)}
	if sorted := slices.Sorted(slices.Values(t.took)); len(sorted) > 0 {
		r.P50, r.P99 = sorted[len(sorted)/2], sorted[len(sorted)*99/100]
	}
	return r
}

func (t *target) askAlways(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for ctx.Err() == nil {
		began := time.Now()
		err := t.ask(ctx)
		took := time.Since(began)
		if ctx.Err() != nil {
			return
		}
		t.mu.Lock()
		t.requests++
		if err == nil {
			t.took = append(t.took, took)
		} else {
			t.failures = append(t.failures, stats.Failure{Began: began, Took: took, Error: err.Error()})
		}
		t.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

func (t *target) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stats.Patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url, nil)
	if err != nil {
		return err
	}
	if t.name == stats.API {
		token, err := os.ReadFile(accountDir + "token")
		if err != nil {
			return err
		}
		request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", answer.Status)
	}
	return nil
}
