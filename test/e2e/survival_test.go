package e2e

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"orch/test/cluster"
)

// TestKilledUnderWrites kills orch at random moments while clients write and
// pods come and go. Every acknowledged write must be there afterwards, and the
// containers must not have noticed.
func TestKilledUnderWrites(t *testing.T) {
	t.Parallel()
	s := spaceOn(t, ownNode(t))
	s.hello(2)
	s.run("expose", "deployment", "hello", "--port=80", "--target-port=8080")
	clusterIP := s.get("service/hello", "{.spec.clusterIP}")
	s.fetchContains("http://"+clusterIP, "Hello from")
	running := s.containers()
	before := s.inventory()

	acknowledged := &sync.Map{}
	for round := range 4 {
		ctx, stop := context.WithCancel(t.Context())
		var writers sync.WaitGroup
		for w := range 4 {
			writers.Go(func() { s.write(ctx, fmt.Sprintf("r%d-w%d", round, w), acknowledged) })
		}
		writers.Go(func() { // pods come and go meanwhile
			for i := 0; ctx.Err() == nil; i++ {
				_, _ = s.node.Kubectl(ctx, "-n", s.name, "create", "deployment", fmt.Sprintf("churn-%d-%d", round, i), "--image=orch.local/hello")
				_, _ = s.node.Kubectl(ctx, "-n", s.name, "delete", "deployments", "-l", fmt.Sprintf("app=churn-%d-%d", round, max(0, i-1)), "--wait=false")
			}
		})
		select { // some moment of the work
		case <-time.After(time.Duration(500+rand.IntN(2500)) * time.Millisecond):
		case <-t.Context().Done():
		}
		if err := s.node.Kill(); err != nil {
			t.Fatal(err)
		}
		stop()
		writers.Wait()
		// Rules stay in the kernel while orch is away.
		if out, err := s.fetch("http://" + clusterIP); err != nil || !strings.Contains(out, "Hello from") {
			t.Errorf("the service does not answer while orch is down: %v %s", err, out)
		}
		start(t, s.node)
	}
	s.checkWrites(acknowledged)
	if now := s.containers(); !maps.Equal(now, running) {
		t.Errorf("containers before and after:\n%v\n%v", running, now)
	}
	var churned []string
	for _, name := range strings.Fields(s.run("get", "deployments", "-o", "name")) {
		if strings.Contains(name, "churn-") {
			churned = append(churned, name)
		}
	}
	if len(churned) > 0 {
		s.run(append([]string{"delete", "--cascade=foreground"}, churned...)...)
	}
	s.until("everything of the killed runs is cleaned up", func() error {
		after := s.inventory()
		for what, want := range before {
			if got := after[what]; got != want {
				return fmt.Errorf("%s: %d before, %d after; processes:\n%s", what, want, got, s.processes())
			}
		}
		return nil
	})
	s.fetchContains("http://"+clusterIP, "Hello from")
	s.run("delete", "deployment", "hello", "--cascade=foreground")
}

// write creates ConfigMaps until ctx ends and notes those the server acknowledged.
func (s *space) write(ctx context.Context, name string, acknowledged *sync.Map) {
	client := s.client()
	for i := 0; ctx.Err() == nil; i++ {
		object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", name, i)}, Data: map[string]string{"i": fmt.Sprint(i)}}
		if got, err := client.CoreV1().ConfigMaps(s.name).Create(ctx, object, metav1.CreateOptions{}); err == nil {
			acknowledged.Store(got.Name, got.ResourceVersion)
		}
	}
}

func (s *space) checkWrites(acknowledged *sync.Map) {
	s.Helper()
	list, err := s.client().CoreV1().ConfigMaps(s.name).List(s.Context(), metav1.ListOptions{})
	if err != nil {
		s.Fatal(err)
	}
	found := map[string]string{}
	for _, item := range list.Items {
		found[item.Name] = item.ResourceVersion
	}
	count := 0
	acknowledged.Range(func(name, revision any) bool {
		count++
		if got := found[name.(string)]; got != revision {
			s.Errorf("acknowledged %s at revision %s, found %q", name, revision, got)
		}
		return true
	})
	s.Logf("%d acknowledged writes", count)
	if count == 0 {
		s.Error("nothing was written")
	}
}

func (s *space) client() *kubernetes.Clientset {
	s.Helper()
	config, err := s.node.Config()
	if err != nil {
		s.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		s.Fatal(err)
	}
	return client
}

// containers gives the process ids of the pods' containers.
func (s *space) containers() map[string]string {
	s.Helper()
	pids := map[string]string{}
	for _, pod := range strings.Fields(s.run("get", "pods", "-l", "app=hello", "-o", "name")) {
		pids[pod] = s.pid(pod, "hello")
	}
	return pids
}

// inventory counts what may leak.
func (s *space) inventory() map[string]int {
	s.Helper()
	mounts, err := s.node.Mounts()
	if err != nil {
		s.Fatal(err)
	}
	processes, err := s.node.Processes()
	if err != nil {
		s.Fatal(err)
	}
	lines := func(args ...string) int {
		s.Helper()
		out, err := s.node.Exec(s.Context(), args...)
		if err != nil {
			s.Fatalf("%v: %v %s", args, err, out)
		}
		return len(slices.DeleteFunc(strings.Split(out, "\n"), func(line string) bool {
			return line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ":")
		}))
	}
	pods, _ := filepath.Glob(filepath.Join(s.node.DataDir(), "agent", "pods", "*"))
	logs, _ := filepath.Glob(filepath.Join(s.node.DataDir(), "agent", "logs", "pods", "*"))
	return map[string]int{
		"iptables rules": lines("iptables-save", "-t", "nat") + lines("iptables-save", "-t", "filter"),
		"links":          lines("ip", "-o", "link"),
		"mounts":         len(mounts),
		"processes":      len(processes),
		"pod folders":    len(pods),
		"log folders":    len(logs),
	}
}

// processes lists the shims and containers, for a message.
func (s *space) processes() string {
	pids, err := s.node.Processes()
	if err != nil {
		return err.Error()
	}
	var out strings.Builder
	for _, pid := range pids {
		command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		fmt.Fprintln(&out, pid, strings.ReplaceAll(string(command), "\x00", " "))
	}
	return out.String()
}

// TestRestart stops orch in order and starts it again.
func TestRestart(t *testing.T) {
	t.Parallel()
	s := spaceOn(t, ownNode(t))
	s.hello(1)
	running, before := s.containers(), s.inventory()
	for range 2 {
		if err := s.node.Stop(); err != nil {
			t.Fatal(err)
		}
		if code := s.node.ExitCode(); code != 0 {
			t.Errorf("exit code %d after SIGTERM", code)
		}
		start(t, s.node)
	}
	if now := s.containers(); !maps.Equal(now, running) {
		t.Errorf("containers before and after:\n%v\n%v", running, now)
	}
	s.until("nothing more than before", func() error {
		if after := s.inventory(); !maps.Equal(before, after) {
			return fmt.Errorf("%v before, %v after", before, after)
		}
		return nil
	})
	// A pod deleted while orch was away is ended when it is back.
	pod := s.run("get", "pods", "-l", "app=hello", "-o", "name")
	s.run("delete", pod, "--wait=false")
	if err := s.node.Kill(); err != nil {
		t.Fatal(err)
	}
	start(t, s.node)
	s.run("wait", "--for=delete", pod, "--timeout=60s")
	s.run("rollout", "status", "deployment/hello", "--timeout=60s")
}

func TestDrain(t *testing.T) {
	t.Parallel()
	s := spaceOn(t, ownNode(t))
	s.hello(2)
	s.run("create", "poddisruptionbudget", "hello", "--selector=app=hello", "--min-available=2")
	s.run("wait", "--for=jsonpath={.status.currentHealthy}=2", "pdb/hello", "--timeout=60s")
	s.refuse([]string{"drain", s.node.Name, "--ignore-daemonsets", "--timeout=2s"}, "disruption budget")
	s.run("delete", "pdb", "hello")
	s.run("drain", s.node.Name, "--ignore-daemonsets", "--timeout=60s")
	s.contains(s.run("get", "nodes"), "SchedulingDisabled")
	s.until("the new pods cannot be placed", func() error {
		out := s.run("describe", "pods", "--show-events=true")
		if !strings.Contains(out, "0/1 nodes are available: 1 node(s) were unschedulable") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	s.run("uncordon", s.node.Name)
	s.run("rollout", "status", "deployment/hello", "--timeout=60s")
}

// TestNamespaceGoes deletes a namespace with all that is in it.
func TestNamespaceGoes(t *testing.T) {
	s := newSpace(t)
	s.hello(1)
	s.run("create", "configmap", "x")
	s.run("create", "namespace", s.name+"-other")
	s.run("delete", "namespace", s.name+"-other", "--timeout=60s")
	s.run("delete", "namespace", s.name, "--timeout=60s")
	if _, err := s.client().CoreV1().ConfigMaps(s.name).Get(t.Context(), "x", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("content of a deleted namespace: %v", err)
	}
}

// TestImagesCommand goes the way of an operator without a registry.
func TestImagesCommand(t *testing.T) {
	s := newSpace(t)
	orch := func(args ...string) (string, error) {
		return s.node.Exec(t.Context(), append([]string{s.node.Orch}, args...)...)
	}
	out, err := orch("images", "list", "--data-dir", s.node.DataDir())
	if err != nil {
		t.Fatal(out)
	}
	s.contains(out, "orch.local/hello", cluster.BusyboxRef)
	// An archive laid into the images folder is imported by itself.
	rootfs := filepath.Join(t.TempDir(), "rootfs")
	if err := cluster.LayBusybox(rootfs); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "laid.tar")
	image := cluster.Image{Ref: "test.local/laid:1", Rootfs: rootfs, Entrypoint: []string{"/bin/sleep", "3600"}}
	if err := image.WriteArchive(archive); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.node.DataDir(), "images", "laid.tar"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	s.until("the archive is imported", func() error {
		if out, err := orch("images", "list", "--data-dir", s.node.DataDir()); err != nil || !strings.Contains(out, "test.local/laid:1") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	s.run("run", "laid", "--image=test.local/laid:1")
	s.run("wait", "--for=condition=Ready", "pod/laid", "--timeout=60s")
	s.run("delete", "pod", "laid", "--now")
	if out, err := orch("images", "remove", "--data-dir", s.node.DataDir(), "test.local/laid:1"); err != nil {
		t.Error(out)
	}
	if out, err := orch("images", "remove", "--data-dir", s.node.DataDir(), "test.local/laid:1"); err == nil {
		t.Errorf("removed twice: %s", out)
	}
	if out, err := orch("images", "list", "--data-dir", t.TempDir()); err == nil || !strings.Contains(out, "is orch running") {
		t.Errorf("images of a folder without a node: %s", out)
	}
}

func TestTokenCommand(t *testing.T) {
	s := newSpace(t)
	orch := func(args ...string) string {
		t.Helper()
		out, err := s.node.Exec(t.Context(), append([]string{s.node.Orch, "token"}, args...)...)
		if err != nil {
			t.Fatalf("orch token %v: %v %s", args, err, out)
		}
		return out
	}
	token := orch("create", "--kubeconfig", s.node.Kubeconfig, "--description", "for a test")
	secret := token[strings.LastIndex(token, ":")+1:]
	id, _, _ := strings.Cut(secret, ".")
	if !strings.HasPrefix(token, "K10") || len(id) != 6 {
		t.Errorf("token %q", token)
	}
	s.contains(orch("list", "--kubeconfig", s.node.Kubeconfig), id, "for a test")
	orch("delete", "--kubeconfig", s.node.Kubeconfig, token)
	if out := orch("list", "--kubeconfig", s.node.Kubeconfig); strings.Contains(out, id) {
		t.Errorf("a deleted token is listed: %s", out)
	}
}
