package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"orch/test/cluster"
)

// space is a test's own namespace on a node.
type space struct {
	*testing.T
	node *cluster.Node
	name string
}

// newSpace makes a namespace on the shared server; the test runs beside others.
func newSpace(t *testing.T) *space {
	t.Helper()
	t.Parallel()
	return spaceOn(t, box)
}

func spaceOn(t *testing.T, n *cluster.Node) *space {
	t.Helper()
	s := &space{t, n, strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))}
	s.run("create", "namespace", s.name)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if t.Failed() {
			out, _ := n.Kubectl(ctx, "-n", s.name, "get", "all,events", "-o", "wide")
			t.Logf("what is in %s:\n%s", s.name, out)
		}
		_, _ = n.Kubectl(ctx, "delete", "namespace", s.name, "--wait=false")
	})
	return s
}

// patience is how long anything may take that this machine needs to do.
const patience = 90 * time.Second

// try runs kubectl in the namespace and gives what it prints.
func (s *space) try(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	out, err := s.node.KubectlInput(ctx, strings.NewReader(stdin), append([]string{"-n", s.name}, args...)...)
	if ctx.Err() != nil {
		err = fmt.Errorf("no end after %s", patience)
	}
	return out, err
}

// run is kubectl that must succeed.
func (s *space) run(args ...string) string {
	s.Helper()
	return s.feed("", args...)
}

// feed is run with standard input.
func (s *space) feed(stdin string, args ...string) string {
	s.Helper()
	out, err := s.try(stdin, args...)
	if err != nil {
		s.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// refuse is kubectl that must fail, with all of the texts in what it prints.
func (s *space) refuse(args []string, texts ...string) string {
	s.Helper()
	out, err := s.try("", args...)
	if err == nil {
		s.Fatalf("kubectl %s succeeded:\n%s", strings.Join(args, " "), out)
	}
	s.contains(out, texts...)
	return out
}

func (s *space) contains(out string, texts ...string) {
	s.Helper()
	for _, text := range texts {
		if !strings.Contains(out, text) {
			s.Errorf("want %q in:\n%s", text, out)
		}
	}
}

// get gives one field of an object.
func (s *space) get(object, jsonpath string) string {
	s.Helper()
	return s.run("get", object, "-o", "jsonpath="+jsonpath)
}

// until asks again and again for what no watch tells, such as a web page.
func (s *space) until(what string, happened func() error) {
	s.Helper()
	ticks := time.NewTicker(100 * time.Millisecond)
	defer ticks.Stop()
	deadline := time.After(patience)
	for {
		err := happened()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			s.Fatalf("%s: not within %s: %v", what, patience, err)
		case <-ticks.C:
		}
	}
}

// fetch gets a page from the node's network.
func (s *space) fetch(url string) (string, error) {
	out, err := s.node.Exec(s.Context(), "curl", "-sS", "--max-time", "3", url)
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return out, nil
}

func (s *space) fetchContains(url, text string) {
	s.Helper()
	s.until("fetch "+url, func() error {
		out, err := s.fetch(url)
		if err == nil && !strings.Contains(out, text) {
			err = fmt.Errorf("want %q in %q", text, out)
		}
		return err
	})
}

// kubectl prepares a call that runs in the background.
func (s *space) kubectl(args ...string) *exec.Cmd {
	return s.node.Command(s.Context(), s.node.Orch, append([]string{"kubectl", "--kubeconfig", s.node.Kubeconfig, "-n", s.name}, args...)...)
}

// shell starts a pod that idles, to run commands in.
func (s *space) shell(name string) {
	s.Helper()
	s.run("run", name, "--image="+cluster.BusyboxRef, "--restart=Never", "--command", "--", "sleep", "3600")
	s.run("wait", "--for=condition=Ready", "pod/"+name, "--timeout=60s")
}
