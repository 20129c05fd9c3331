package cases

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"orch/test/cluster"
)

// bench is a server with a busybox image, the name of which is what the cases use.
type bench struct {
	*testing.T
	node *cluster.Node
}

const busybox = "local.test/bb:1"

func newBench(t *testing.T, args ...string) *bench {
	t.Helper()
	b := &bench{t, cluster.Start(t, args...)}
	rootfs := t.TempDir()
	if err := cluster.LayBusybox(rootfs); err != nil {
		t.Fatal(err)
	}
	if err := b.node.Import(cluster.Image{Ref: busybox, Rootfs: rootfs}); err != nil {
		t.Fatal(err)
	}
	return b
}

// kubectl must succeed.
func (b *bench) kubectl(args ...string) string {
	b.Helper()
	out, err := b.node.Kubectl(b.Context(), args...)
	if err != nil {
		b.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (b *bench) apply(manifest string) {
	b.Helper()
	if out, err := b.node.KubectlInput(b.Context(), strings.NewReader(manifest), "apply", "-f", "-"); err != nil {
		b.Fatalf("apply: %v\n%s", err, out)
	}
}

// becomes waits until what kubectl prints is so.
func (b *bench) becomes(what string, so func(out string) bool, args ...string) string {
	b.Helper()
	deadline := time.After(2 * time.Minute)
	for {
		out, err := b.node.Kubectl(b.Context(), args...)
		if err == nil && so(out) {
			return out
		}
		select {
		case <-deadline:
			b.Fatalf("%s: not so: %v\n%s", what, err, out)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func contains(parts ...string) func(string) bool {
	return func(out string) bool {
		for _, p := range parts {
			if !strings.Contains(out, p) {
				return false
			}
		}
		return true
	}
}

// pod gives a manifest of a pod with one container that runs a shell script.
// more is put into the container, and spec into the pod's.
func shellPod(name, script, more, spec string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: %q, command: [sh, -c, %q]%s}]
%s`, name, busybox, script, more, spec)
}

// memory gives the resident memory of the server, in bytes.
func (b *bench) memory() int64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.node.PID()))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return kib << 10
}

// A container prints one line of 300 MB: the log has pieces of it, and orch's
// memory does not grow by the line.
func TestNode01EndlessLine(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	before := b.memory()
	const size = 300_000_000
	b.apply(shellPod("longline", fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; echo; echo done; sleep 1000", size), ", resources: {limits: {memory: 32Mi}}", "  restartPolicy: Never"))
	b.becomes("the line is printed", contains("done"), "logs", "longline", "--tail=1")
	if grown := b.memory() - before; grown > size/2 {
		t.Errorf("orch grew by %d MB", grown>>20)
	}
	logs, err := filepath.Glob(filepath.Join(b.node.DataDir(), "agent/logs/default_longline_*/c/0.log*"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	file, err := os.Open(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	head := make([]byte, 17<<10)
	if n, err := file.ReadAt(head, 0); err != nil && n == 0 {
		t.Fatal(err)
	}
	line, _, cut := strings.Cut(string(head), "\n")
	if !cut || !strings.Contains(line, " stdout P x") {
		t.Errorf("the log begins with %.80s, %d bytes", line, len(line))
	}
	// Readers see one line.
	if out := b.kubectl("logs", "longline", "--tail=3", "--limit-bytes=100000"); strings.Count(out, "\n") > 2 {
		t.Errorf("%d lines", strings.Count(out, "\n"))
	}
}

// A container that crashes again and again: two attempts' logs at most are kept.
func TestNode02LogsOfDeadAttempts(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.apply(shellPod("crashlog", "head -c 200000 /dev/zero | tr '\\0' x | fold -w 100; exit 1", "", ""))
	b.becomes("it was started three times", func(out string) bool { n, _ := strconv.Atoi(out); return n >= 3 },
		"get", "pod", "crashlog", "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
	logs, err := filepath.Glob(filepath.Join(b.node.DataDir(), "agent/logs/default_crashlog_*/c/*"))
	if err != nil || len(logs) == 0 || len(logs) > 2 {
		t.Errorf("logs %v, %v", logs, err)
	}
	if out := b.kubectl("logs", "crashlog", "--previous", "--tail=1"); !strings.HasPrefix(out, "xxx") {
		t.Errorf("the previous attempt's log: %.100s", out)
	}
}

func TestNode03EphemeralStorageLimits(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const limit = ", resources: {limits: {ephemeral-storage: %s}}"
	ten := fmt.Sprintf(limit, "10Mi")
	b.apply(shellPod("layer", "dd if=/dev/zero of=/big bs=1M count=60; sleep 3600", ten, "  restartPolicy: Never") + "\n---" +
		shellPod("volume", "dd if=/dev/zero of=/e/big bs=1M count=60; sleep 3600", ten+", volumeMounts: [{name: e, mountPath: /e}]", "  volumes: [{name: e, emptyDir: {}}]") + "\n---" +
		shellPod("logs", "head -c 6000000 /dev/zero | tr '\\0' x | fold -w 100; sleep 3600", fmt.Sprintf(limit, "1Mi"), "") + "\n---" +
		shellPod("sized", "dd if=/dev/zero of=/e/big bs=1M count=60; sleep 3600", ", volumeMounts: [{name: e, mountPath: /e}]", "  volumes: [{name: e, emptyDir: {sizeLimit: 5Mi}}]") + "\n---" + fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: greedy, image: %[1]q, command: [sh, -c, "dd if=/dev/zero of=/big bs=1M count=20; sleep 3600"], resources: {limits: {ephemeral-storage: 10Mi}}}
  - {name: modest, image: %[1]q, command: [sleep, "3600"], resources: {limits: {ephemeral-storage: 100Mi}}}
`, busybox) + "\n---" + shellPod("fits", "dd if=/dev/zero of=/big bs=1M count=5; sleep 3600", ten, ""))
	for name, want := range map[string]string{
		"layer":  "Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. ",
		"volume": "Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. ",
		"logs":   "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ",
		"sized":  `Usage of EmptyDir volume "e" exceeds the limit "5Mi". `,
		"one":    `Container greedy exceeded its local ephemeral storage limit "10Mi". `,
	} {
		b.becomes(name+" is evicted", func(out string) bool { return out == "Failed Evicted "+strings.TrimSpace(want) },
			"get", "pod", name, "-o", "jsonpath={.status.phase} {.status.reason} {.status.message}")
	}
	if out := b.kubectl("get", "pod", "fits", "-o", "jsonpath={.status.phase}"); out != "Running" {
		t.Errorf("the pod within its limit: %s", out)
	}
}

// A restricted pod puts a FIFO in the place of its termination message.
func TestFileOfAContainerIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.apply(shellPod("fifo", "sleep 1; echo bye", `, terminationMessagePath: /v/log, volumeMounts: [{name: v, mountPath: /v/log, subPath: pipe}]`,
		`  restartPolicy: Never
  initContainers: [{name: make, image: `+busybox+`, command: [mkfifo, /v/pipe], volumeMounts: [{name: v, mountPath: /v}]}]
  volumes: [{name: v, emptyDir: {}}]`))
	b.becomes("the pod ends", contains("Succeeded"), "get", "pod", "fifo", "-o", "jsonpath={.status.phase}")
	b.kubectl("delete", "pod", "fifo", "--timeout=30s")
	if err := b.node.Stop(); err != nil {
		t.Error(err)
	}
}

// An image has FIFOs for the files of its users, which containerd reads.
func TestUserFilesOfAnImageAreNotWaitedFor(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	rootfs := t.TempDir()
	if err := cluster.LayBusybox(rootfs); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(rootfs, "etc/passwd"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := b.node.Import(cluster.Image{Ref: "local.test/fifo:1", Rootfs: rootfs}); err != nil {
		t.Fatal(err)
	}
	b.apply(strings.ReplaceAll(shellPod("fifo", "sleep 1000", "", "  securityContext: {runAsUser: 1000}\n"), busybox, "local.test/fifo:1"))
	b.becomes("it says what is wrong", contains("ImageInspectError", "/etc/passwd is not a regular file"), "get", "pod", "fifo", "-o", "jsonpath={.status.containerStatuses[0].state.waiting}")
	b.kubectl("delete", "pod", "fifo", "--timeout=30s")
}

// A claim that does not exist keeps its pod Pending, and a node that is named
// refuses it.
func TestApi08ResourceClaims(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const claim = "  resourceClaims: [{name: gpu, resourceClaimName: no-such-claim}]\n"
	b.apply(shellPod("wants-device", "sleep 1000", ", resources: {claims: [{name: gpu}]}", claim) + "\n---" +
		shellPod("bound", "sleep 1000", ", resources: {claims: [{name: gpu}]}", claim+"  nodeName: "+b.node.Name+"\n"))
	b.becomes("it says why it waits", contains("Pending", "Unschedulable", `resourceclaim "no-such-claim" not found`),
		"get", "pod", "wants-device", "-o", `jsonpath={.status.phase} {.status.conditions[0].reason} {.status.conditions[0].message}`)
	b.becomes("the node refuses it", contains("Failed", "UnexpectedAdmissionError", "resource claims"), "get", "pod", "bound", "-o", "jsonpath={.status}")
}

// Commands end although nobody reads their input, with their own exit code.
func TestApi10InputThatNobodyReads(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.apply(shellPod("p", "sleep 100000", "", ""))
	b.kubectl("wait", "--for=condition=Ready", "pod/p", "--timeout=60s")
	input := strings.Repeat("x", 400_000)
	run := func(want string, args ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		out, err := b.node.KubectlInput(ctx, strings.NewReader(input), args...)
		if ctx.Err() != nil || !strings.Contains(fmt.Sprint(out, err), want) {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	for range 8 {
		run("<nil>", "exec", "-i", "p", "--", "true")
		run("exit code 3", "exec", "-i", "p", "--", "sh", "-c", "exit 3")
	}
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, []byte(strings.Repeat(input, 10)), 0o600); err != nil {
		t.Fatal(err)
	}
	run("no/such", "cp", big, "p:/no/such/dir/x")
}

func TestSysctls(t *testing.T) {
	t.Parallel()
	b := newBench(t, "--allowed-unsafe-sysctls", "net.core.*")
	pod := func(name, sysctl string) string {
		return shellPod(name, "sleep 1000", "", "  nodeName: "+b.node.Name+"\n  securityContext: {sysctls: [{name: "+sysctl+", value: \"1\"}]}\n")
	}
	b.apply(pod("safe", "net.ipv4.tcp_syncookies") + "\n---" + pod("allowed", "net.core.somaxconn") + "\n---" + pod("unsafe", "kernel.msgmax"))
	for _, name := range []string{"safe", "allowed"} {
		b.kubectl("wait", "--for=condition=Ready", "pod/"+name, "--timeout=60s")
	}
	b.becomes("it is refused", contains("Failed", "SysctlForbidden", `forbidden sysctl: "kernel.msgmax" not allowlisted`), "get", "pod", "unsafe", "-o", "jsonpath={.status.phase} {.status.reason} {.status.message}")
}

func TestLogLinks(t *testing.T) {
	t.Parallel()
	links := t.TempDir()
	b := newBench(t, "--log-links", links)
	b.apply(shellPod("talks", "echo hello; sleep 1000", "", ""))
	b.becomes("it talks", contains("hello"), "logs", "talks")
	for _, pattern := range []string{"pods/default_talks_*/c/0.log", "containers/talks_default_c-*.log"} {
		found, err := filepath.Glob(filepath.Join(links, pattern))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %v, %v", pattern, found, err)
		}
		if text, err := os.ReadFile(found[0]); err != nil || !strings.Contains(string(text), "stdout F hello") {
			t.Errorf("%s: %q, %v", found[0], text, err)
		}
	}
	b.kubectl("delete", "pod", "talks")
	deadline := time.After(time.Minute)
	for {
		left, err := filepath.Glob(filepath.Join(links, "*/*talks*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("left: %v", left)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
