package abuse

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"orch/test/cluster"
)

var duration = flag.Duration("for", time.Second, "how long the attacks last together; each takes a second at least")

var only = flag.String("only", "", "run only attacks whose name contains this")

// TestMain is an attacker where the environment says so.
func TestMain(m *testing.M) {
	if text := os.Getenv(ordersVariable); text != "" {
		if err := runAttacker(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	os.Exit(m.Run())
}

// What memory may come to on top of what an idle server has, in bytes: at any
// time, and some time after the last attack.
const (
	memoryDuring = 768 << 20
	memoryAfter  = 256 << 20
	recovery     = 2 * time.Minute
)

// arena is a server under attack.
type arena struct {
	t      *testing.T
	server *cluster.Node
	pen    *pen
	tokens map[who]string
	out    *witness
}

// TestAbuse attacks a server in every way that the table has, and prints what
// each costs another user. Asserted is only what does not depend on how fast this
// machine is.
func TestAbuse(t *testing.T) {
	a := newArena(t)
	idle, err := resident(a.server.PID())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		a.out.run(ctx)
	}()
	each := max(*duration/time.Duration(len(attacks)), time.Second)
	t.Logf("%-26s %9s %9s  %s", "attack", "p99", "memory", "answers")
	for _, attack := range attacks {
		if !strings.Contains(attack.name, *only) {
			continue
		}
		tally, saw := a.attack(attack, each)
		t.Logf("%-26s %9v %6d MB  %v", attack.name, saw.p99().Round(time.Millisecond), saw.memory>>20, tally.Answers)
		if saw.memory > idle+memoryDuring {
			t.Errorf("%s: the server has %d MB, %d when idle", attack.name, saw.memory>>20, idle>>20)
		}
		for _, p := range slices.Concat(saw.problems, tally.Problems) {
			t.Errorf("%s: %s", attack.name, p)
		}
		if tally.Sent == 0 {
			t.Errorf("%s: nothing was sent", attack.name)
		}
		if tally.Slowest > answerTime || tally.Answers["no answer"] > 0 {
			t.Errorf("%s: a hostile request waited %v for its answer", attack.name, tally.Slowest)
		}
	}
	cancel()
	<-watching
	a.recovers(idle)
}

// recovers waits until the memory is back.
func (a *arena) recovers(idle int64) {
	began := time.Now()
	for tick := time.NewTicker(time.Second); ; <-tick.C {
		now, err := resident(a.server.PID())
		switch {
		case err != nil:
			a.t.Error(err)
			return
		case now < idle+memoryAfter:
			a.t.Logf("memory: %d MB when idle, %d MB %v after the last attack", idle>>20, now>>20, time.Since(began).Round(time.Second))
			return
		case time.Since(began) > recovery:
			a.t.Errorf("memory: %d MB when idle, %d MB still %v after the last attack", idle>>20, now>>20, recovery)
			return
		}
	}
}

func newArena(t *testing.T) *arena {
	t.Helper()
	a := &arena{t: t, server: cluster.Start(t), tokens: make(map[who]string)}
	pen, err := newPen()
	if err != nil {
		t.Fatal(err)
	}
	a.pen = pen
	t.Cleanup(func() {
		if err := pen.close(); err != nil {
			t.Error(err)
		}
	})
	for _, words := range [][]string{
		{"create", "namespace", "tenant"},
		{"create", "serviceaccount", "nobody", "-n", "tenant"},
		{"create", "serviceaccount", "tenant", "-n", "tenant"},
		{"create", "serviceaccount", "witness", "-n", "default"},
		{"create", "rolebinding", "tenant", "-n", "tenant", "--clusterrole=admin", "--serviceaccount=tenant:tenant"},
		{"create", "rolebinding", "witness", "-n", "default", "--clusterrole=edit", "--serviceaccount=default:witness"},
		{"create", "configmap", "witness", "-n", "default"},
	} {
		a.kubectl(words...)
	}
	a.tokens[nobody] = a.kubectl("create", "token", "nobody", "-n", "tenant")
	a.tokens[tenant] = a.kubectl("create", "token", "tenant", "-n", "tenant")
	config, err := a.server.Config()
	if err != nil {
		t.Fatal(err)
	}
	other := rest.AnonymousClientConfig(config)
	other.BearerToken, other.Dial, other.QPS = a.kubectl("create", "token", "witness", "-n", "default"), config.Dial, -1
	a.out = &witness{client: a.client(other), admin: a.client(config), node: a.server.Name, pid: a.server.PID()}
	return a
}

func (a *arena) client(config *rest.Config) kubernetes.Interface {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		a.t.Fatal(err)
	}
	return client
}

func (a *arena) kubectl(args ...string) string {
	a.t.Helper()
	out, err := a.server.Kubectl(a.t.Context(), args...)
	if err != nil {
		a.t.Fatalf("kubectl %v: %v: %s", args, err, out)
	}
	return out
}

// attack lets the attacker's process do its work, and gives what came of it and
// what the witness saw meanwhile.
func (a *arena) attack(attack attack, long time.Duration) (tally, seen) {
	a.t.Helper()
	text, err := json.Marshal(orders{
		Attack: attack.name, Address: a.server.IP + ":6443", Token: a.tokens[attack.as], Namespace: "tenant", For: long,
	})
	if err != nil {
		a.t.Fatal(err)
	}
	program, err := filepath.Abs(os.Args[0])
	if err != nil {
		a.t.Fatal(err)
	}
	cmd := a.pen.command(a.server.Network().Namespace, program)
	cmd.Env = append(os.Environ(), ordersVariable+"="+string(text))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	a.out.take()
	if err := cmd.Run(); err != nil {
		a.t.Fatalf("%s: %v", attack.name, err)
	}
	saw := a.out.take()
	var result tally
	if err := json.Unmarshal(out.Bytes(), &result); err != nil {
		a.t.Fatalf("%s: %v: %s", attack.name, err, &out)
	}
	return result, saw
}
