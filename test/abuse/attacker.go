// Package abuse attacks a server as hostile clients would, each attack from a
// process with half a core, and holds the server to what it promises everybody
// else meanwhile.
package abuse

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// orders are what an attacker's process is told.
type orders struct {
	Attack    string
	Address   string // of the server, "host:port"
	Token     string // of who attacks; "": of nobody known
	Namespace string // in which Token may do everything
	For       time.Duration
}

// ordersVariable carries orders, as JSON, to the test's own executable.
const ordersVariable = "ORCH_ABUSE"

// tally is what came of an attack.
type tally struct {
	Sent     int            // requests, or what the attack counts
	Answers  map[string]int // by status code, or how it ended
	Slowest  time.Duration  // between a hostile request and its answer
	Problems []string
}

// attacker is one attack under way.
type attacker struct {
	orders
	ctx context.Context

	mu    sync.Mutex // guards tally
	tally tally
}

// runAttacker does as the environment orders and prints the tally.
func runAttacker(text string) error {
	a := &attacker{tally: tally{Answers: map[string]int{}}}
	if err := json.Unmarshal([]byte(text), &a.orders); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), a.For)
	defer cancel()
	a.ctx = ctx
	for _, attack := range attacks {
		if attack.name == a.Attack {
			attack.run(a)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return json.NewEncoder(os.Stdout).Encode(&a.tally)
}

func (a *attacker) note(what string, took time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tally.Sent++
	a.tally.Answers[what]++
	a.tally.Slowest = max(a.tally.Slowest, took)
}

func (a *attacker) problem(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.tally.Problems) < 5 {
		a.tally.Problems = append(a.tally.Problems, fmt.Sprintf(format, args...))
	}
}

// crowd runs do in n goroutines, over and over until the time is up.
func (a *attacker) crowd(n int, do func(worker int)) {
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			for a.ctx.Err() == nil {
				do(i)
			}
		})
	}
	group.Wait()
}

var insecure = &tls.Config{InsecureSkipVerify: true} // attackers do not mind whom they attack

func tlsFor(protocol string) *tls.Config {
	config := insecure.Clone()
	config.NextProtos = []string{protocol}
	return config
}

// dial connects; nil: the server turns the attacker away.
func (a *attacker) dial(protocol string) *tls.Conn {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), answerTime)
	defer cancel()
	conn, err := (&tls.Dialer{Config: tlsFor(protocol)}).DialContext(ctx, "tcp", a.Address)
	if err != nil {
		a.note("turned away", 0)
		return nil
	}
	return conn.(*tls.Conn)
}

// client is an ordinary client with its own connections.
func (a *attacker) client() *http.Client {
	return &http.Client{Transport: &http2.Transport{TLSClientConfig: insecure}}
}

// answerTime is how long any hostile request may wait for its answer.
const answerTime = 10 * time.Second

// send sends a request and waits for its answer, also when the attack's time is
// up: the answer is owed.
func (a *attacker) send(client *http.Client, method, path, contentType string, body []byte) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), 2*answerTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "https://"+a.Address+path, bytes.NewReader(body))
	if err != nil {
		a.problem("%v", err)
		return
	}
	if a.Token != "" {
		req.Header.Set("Authorization", "Bearer "+a.Token)
	}
	req.Header.Set("Content-Type", contentType)
	began := time.Now()
	resp, err := client.Do(req)
	what := "broken off"
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		what = resp.Status
	}
	if errors.Is(err, context.DeadlineExceeded) {
		what = "no answer"
	}
	a.note(what, time.Since(began))
}
