package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"orch/test/cluster"
)

func TestLogs(t *testing.T) {
	s := newSpace(t)
	s.run("run", "talker", "--image="+cluster.BusyboxRef, "--command", "--", "sh", "-c",
		"echo one; echo two >&2; sleep 2; echo three; trap 'exit 0' TERM; while :; do sleep 0.2; done")
	s.run("wait", "--for=condition=Ready", "pod/talker", "--timeout=60s")
	follow := s.kubectl("logs", "-f", "talker")
	out, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var seen []string
	for len(seen) < 3 && lines.Scan() {
		seen = append(seen, lines.Text())
	}
	// The two streams have a pipe each: what was said at once comes in either order.
	slices.Sort(seen[:min(2, len(seen))])
	if want := []string{"one", "two", "three"}; !slices.Equal(seen, want) {
		t.Fatalf("log lines %q, want %q (%v)", seen, want, lines.Err())
	}
	// The stream ends with the pod.
	s.run("delete", "pod", "talker", "--wait=false")
	for lines.Scan() {
	}
	if err := follow.Wait(); err != nil {
		t.Errorf("logs -f of a deleted pod: %v", err)
	}
}

func TestLogsOfEarlierContainer(t *testing.T) {
	s := newSpace(t)
	s.run("run", "loop", "--image="+cluster.BusyboxRef, "--command", "--", "sh", "-c", "echo run at $(cat /proc/uptime); exit 3")
	s.until("it was restarted with back-off", func() error {
		if out := s.run("get", "pod", "loop"); !strings.Contains(out, "CrashLoopBackOff") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	s.contains(s.run("logs", "loop", "--previous"), "run at")
	s.contains(s.run("logs", "loop", "--tail=1", "--timestamps"), "run at", "T")
	s.contains(s.run("describe", "pod", "loop"), "Exit Code:", "3", "BackOff")
}

func TestExec(t *testing.T) {
	s := newSpace(t)
	s.shell("box")
	s.contains(s.feed("from stdin", "exec", "-i", "box", "--", "cat"), "from stdin")
	out, err := s.try("", "exec", "box", "--", "sh", "-c", "exit 7")
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 7 {
		t.Errorf("exit code of a command: %v\n%s", err, out)
	}
	s.refuse([]string{"exec", "box", "--", "no-such-program"}, "no-such-program")
	// script gives kubectl a terminal.
	line := strings.Join(s.kubectl("exec", "-it", "box", "--", "sh").Args, " ")
	terminal := exec.CommandContext(t.Context(), "script", "-qec", line, "/dev/null")
	terminal.Stdin = strings.NewReader("tty; stty size; echo sum $((40 + 2)); exit 5\n")
	printed, err := terminal.CombinedOutput()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 5 {
		t.Errorf("exit code in a terminal: %v\n%s", err, printed)
	}
	s.contains(string(printed), "/dev/pts/", "sum 42")
}

func TestCopy(t *testing.T) {
	s := newSpace(t)
	s.shell("box")
	dir := t.TempDir()
	content := bytes.Repeat([]byte("orch copies files\n"), 100_000)
	if err := os.WriteFile(filepath.Join(dir, "up"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	s.run("cp", filepath.Join(dir, "up"), "box:/tmp/up")
	s.run("cp", "box:/tmp/up", filepath.Join(dir, "down"))
	if got, err := os.ReadFile(filepath.Join(dir, "down")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("copied there and back: %d bytes of %d, %v", len(got), len(content), err)
	}
}

func TestPortForward(t *testing.T) {
	s := newSpace(t)
	s.hello(1)
	s.run("expose", "deployment", "hello", "--port=80", "--target-port=8080")
	for _, target := range []string{"deployment/hello :8080", "service/hello :80"} {
		forward := s.kubectl(append([]string{"port-forward"}, strings.Fields(target)...)...)
		out, err := forward.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := forward.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		address := strings.Fields(line)[2] // Forwarding from 127.0.0.1:34567 -> 8080
		client := http.Client{Transport: &http.Transport{DialContext: s.node.Dial}}
		for range 3 {
			answer, err := client.Get("http://" + address)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			if answer.StatusCode != http.StatusOK {
				t.Errorf("through %s: %s", target, answer.Status)
			}
		}
		client.CloseIdleConnections()
		_ = forward.Process.Kill()
		_ = forward.Wait()
	}
}

func TestDebug(t *testing.T) {
	s := newSpace(t)
	s.hello(1)
	pod := s.run("get", "pods", "-l", "app=hello", "-o", "name")
	s.run("debug", pod, "--image="+cluster.BusyboxRef, "-c", "look", "--target=hello", "--", "sleep", "3600")
	s.run("wait", "--for=jsonpath={.status.ephemeralContainerStatuses[0].state.running.startedAt}", pod, "--timeout=60s")
	s.contains(s.run("exec", pod, "-c", "look", "--", "wget", "-qO-", "http://127.0.0.1:8080"), "Hello from")
	// --target shares the process namespace of the container.
	s.contains(s.run("exec", pod, "-c", "look", "--", "ps"), "hello")
	s.run("debug", pod, "--copy-to=copy", "--image="+cluster.BusyboxRef, "-c", "look", "--", "sleep", "3600")
	s.run("wait", "--for=condition=Ready", "pod/copy", "--timeout=60s")
}

func TestDescribe(t *testing.T) {
	s := newSpace(t)
	s.hello(1)
	s.contains(s.run("describe", "pods"), "Successfully assigned", "Started", "Node:", s.node.Name)
	s.contains(s.run("describe", "node", s.node.Name), "Allocatable:", "Ready", "KubeletReady", "hello-")
	s.contains(s.run("explain", "deployment.spec.strategy"), "rollingUpdate", "DESCRIPTION")
	s.contains(s.run("explain", "pod.spec.containers", "--recursive"), "livenessProbe")
	s.contains(s.run("api-resources"), "deployments", "networkpolicies", "CronJob")
	s.contains(s.run("auth", "can-i", "--list"), "*.*")
	s.contains(s.run("top", "--help"), "top")
}
