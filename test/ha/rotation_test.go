package ha

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"orch/test/cluster"
)

// TestRotationKilled kills the server that rotates the tokens, or the leader
// behind it, at moments spread over the time it takes: afterwards either the old
// tokens or the new ones are good, and the files of all servers have them. Who
// has joined does not notice.
func TestRotationKilled(t *testing.T) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprintf("of %d", size), func(t *testing.T) {
			var all servers
			if size == 1 {
				all = servers{single(t)}
			} else {
				all = start(t)
			}
			killRotations(t, all)
		})
	}
}

func killRotations(t *testing.T, all servers) {
	agent, err := all[0].Network().NewAgent(all[0])
	agent = launchAgent(t, agent, err)
	began := time.Now()
	if err := rotate(t, all[0]); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	outcomes := map[string]int{}
	const rounds = 4
	for i := range rounds {
		old, asked := tokenFile(t, all[0]), all[i%len(all)] // the leader, or another one
		rotateKilling(t, asked, all.leader(t, all[0]), took*time.Duration(i)/2)
		outcomes[settled(t, all, old)]++
	}
	t.Logf("a rotation takes %v; tokens afterwards: %v", took, outcomes)
	if err := rotate(t, all[0]); err != nil {
		t.Fatal(err)
	}
	if err := agent.Restart(); err != nil { // with a token that is void by now
		t.Fatal(err)
	}
	if err := agent.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func rotate(t *testing.T, asked *cluster.Node) error {
	t.Helper()
	c, err := clientOf(asked)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return c.RESTClient().Post().AbsPath("/v1-orch/tokens/rotate").Body([]byte(`{"server":true,"agent":true}`)).Do(ctx).Error()
}

// rotateKilling kills the victim some time after asked was asked for new tokens,
// and starts it again.
func rotateKilling(t *testing.T, asked, victim *cluster.Node, after time.Duration) {
	t.Helper()
	var asking sync.WaitGroup
	asking.Go(func() {
		if err := rotate(t, asked); err != nil {
			t.Logf("killed after %v: %v", after, err)
		}
	})
	<-time.After(after)
	err := victim.Kill()
	asking.Wait()
	if err = errors.Join(err, victim.Start()); err != nil {
		t.Fatal(err)
	}
	awaitReady(t, victim)
}

// settled tells which token is good at all servers, and is in their files.
func settled(t *testing.T, all servers, old string) (outcome string) {
	t.Helper()
	var now string
	all.await(t, "one token in the files of all servers", func() bool {
		now = tokenFile(t, all[0])
		for _, n := range all {
			if tokenFile(t, n) != now || !admits(t, n, now) {
				return false
			}
		}
		return true
	})
	if now == old {
		return "old"
	}
	for _, n := range all {
		if admits(t, n, old) {
			t.Errorf("%s takes the old token as well", n.Name)
		}
	}
	return "new"
}

func tokenFile(t *testing.T, n *cluster.Node) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(n.DataDir(), "server", "token"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// admits tells whether the server lets a further one in with the token.
func admits(t *testing.T, n *cluster.Node, token string) bool {
	t.Helper()
	transport := &http.Transport{DialContext: n.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://127.0.0.1:6443/v1-orch/server/join", bytes.NewReader([]byte(`{"name":"x"}`)))
	if err != nil {
		t.Fatal(err)
	}
	request.SetBasicAuth("server", token[strings.LastIndexByte(token, ':')+1:])
	answer, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	// What else it says is of the request's version, asked after once the token is good.
	return answer.StatusCode != http.StatusUnauthorized && answer.StatusCode != http.StatusServiceUnavailable
}
