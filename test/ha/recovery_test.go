package ha

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"orch/test/cluster"
)

// with starts a stopped server with further arguments, this time only.
func (s servers) with(t *testing.T, n *cluster.Node, args ...string) {
	t.Helper()
	usual := n.Args
	n.Args = append(slices.Clone(usual), args...)
	defer func() { n.Args = usual }()
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	awaitReady(t, n)
}

func (s servers) awaitVoters(t *testing.T, at *cluster.Node, voters int) {
	t.Helper()
	s.await(t, fmt.Sprintf("%d servers with a vote", voters), func() bool {
		out := s.members(t, at)
		return strings.Count(out, "voter")+strings.Count(out, "leader") == voters
	})
}

// restore runs `orch snapshot restore` with the flags of a stopped server.
func restore(t *testing.T, n *cluster.Node, args ...string) (string, error) {
	t.Helper()
	flags := append([]string{"snapshot", "restore"}, n.Args[1:]...) // Args[0] is "server"
	out, err := n.Command(t.Context(), n.Orch, append(flags, args...)...).CombinedOutput()
	return string(out), err
}

func secretOf(t *testing.T, c *kubernetes.Clientset) string {
	t.Helper()
	secret, err := c.CoreV1().Secrets("default").Get(t.Context(), "sealed", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return string(secret.Data["a"])
}

func makeSecret(t *testing.T, c *kubernetes.Clientset) {
	t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "sealed"}, Data: map[string][]byte{"a": []byte("hidden")}}
	if _, err := c.CoreV1().Secrets("default").Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestRecoverSurvivor loses two servers of three. The third goes on alone with
// what it has, a node's pods do not notice, and the others join by themselves:
// one as it was, one installed anew.
func TestRecoverSurvivor(t *testing.T) {
	all := start(t)
	survivor, former, fresh := all[1], all[0], all[2]
	agent, err := survivor.Network().NewAgent(survivor)
	agent = launchAgent(t, agent, err)
	runHello(t, survivor, agent)
	processes := sorted(t, agent)
	makeSecret(t, client(t, survivor))
	account := tokenOf(t, survivor)
	before, err := client(t, survivor).CoreV1().ConfigMaps("default").Create(t.Context(), configMap("before"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range all {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	all.with(t, survivor, "--recover")
	c := client(t, survivor)
	if _, err := c.CoreV1().ConfigMaps("default").Get(t.Context(), "before", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	if got := secretOf(t, c); got != "hidden" {
		t.Errorf("the secret is %q", got)
	}
	stillKnown(t, survivor, account)
	expired(t, c, before.ResourceVersion)
	all.awaitVoters(t, survivor, 1)

	// A service manager that repeats the command must not throw the others out.
	if err := former.Start(); err != nil {
		t.Fatal(err)
	}
	awaitReady(t, former)
	all.awaitVoters(t, survivor, 2)
	if kept, _ := filepath.Glob(filepath.Join(former.DataDir(), "server", "store.old*")); len(kept) != 1 {
		t.Errorf("its state of before is not kept: %v", kept)
	}
	if err := survivor.Kill(); err != nil {
		t.Fatal(err)
	}
	all.with(t, survivor, "--recover")
	all.awaitVoters(t, survivor, 2)
	writeUntilTaken(t, former, "with-two")

	if err := os.RemoveAll(fresh.DataDir()); err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(survivor.DataDir(), "server", "token"))
	if err != nil {
		t.Fatal(err)
	}
	all.with(t, fresh, "--join", "https://"+survivor.IP+":6443", "--token", strings.TrimSpace(string(token)))
	all.awaitVoters(t, survivor, 3)
	writeUntilTaken(t, fresh, "with-three")
	for _, n := range all {
		maps, err := client(t, n).CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name!=kube-root-ca.crt"})
		if err != nil || len(maps.Items) != 3 {
			t.Errorf("%s has %d of 3 objects, %v", n.Name, len(maps.Items), err)
		}
	}
	if err := agent.WaitReady(t.Context()); err != nil {
		t.Error(err)
	}
	if now := sorted(t, agent); !slices.Equal(now, processes) {
		t.Errorf("processes of the pods were %v and are %v", processes, now)
	}
}

func launchAgent(t *testing.T, n *cluster.Node, err error) *cluster.Node {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the log of %s:\n%s", n.Name, n.LogTail())
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if err := n.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

func runHello(t *testing.T, server, on *cluster.Node) {
	t.Helper()
	if out, err := server.Kubectl(t.Context(), "run", "hello", "--image=orch.local/hello",
		`--overrides={"spec":{"nodeName":"`+on.Name+`"}}`); err != nil {
		t.Fatal(out)
	}
	if out, err := server.Kubectl(t.Context(), "wait", "--for=condition=Ready", "pod/hello", "--timeout=120s"); err != nil {
		t.Fatal(out)
	}
}

func sorted(t *testing.T, n *cluster.Node) []int {
	t.Helper()
	pids, err := n.Processes()
	if err != nil || len(pids) == 0 {
		t.Fatalf("processes %v, %v", pids, err)
	}
	slices.Sort(pids)
	return pids
}

func tokenOf(t *testing.T, n *cluster.Node) string {
	t.Helper()
	out, err := n.Kubectl(t.Context(), "create", "token", "default")
	if err != nil {
		t.Fatal(out)
	}
	return out
}

// stillKnown asks the server whose token this is.
func stillKnown(t *testing.T, n *cluster.Node, token string) {
	t.Helper()
	config, err := n.Config()
	if err != nil {
		t.Fatal(err)
	}
	config = rest.AnonymousClientConfig(config)
	config.Dial, config.BearerToken = n.Dial, token
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	review, err := c.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || review.Status.UserInfo.Username != "system:serviceaccount:default:default" {
		t.Errorf("the service account's token is not good: %v, %v", review, err)
	}
}

// expired: what a client remembers from before a recovery is of no use, so that
// it begins anew instead of going on with a state that others have not seen.
func expired(t *testing.T, c *kubernetes.Clientset, version string) {
	t.Helper()
	w, err := c.CoreV1().ConfigMaps("default").Watch(t.Context(), metav1.ListOptions{ResourceVersion: version})
	if err == nil {
		defer w.Stop()
		event := <-w.ResultChan()
		if event.Type != watch.Error {
			t.Errorf("a watch from before goes on with %v", event)
			return
		}
		err = apierrors.FromObject(event.Object)
	}
	if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
		t.Errorf("a watch from before ends with %v", err)
	}
}

// TestRecoverSnapshot goes back to a snapshot on a machine that was never a
// server, and refuses what is none or another cluster's.
func TestRecoverSnapshot(t *testing.T) {
	first := single(t)
	makeSecret(t, client(t, first))
	account := tokenOf(t, first)
	servers{first}.run(t, first, "snapshot", "save", "--name", "one", "--kubeconfig", first.Kubeconfig)
	snapshot := filepath.Join(first.DataDir(), "server", "snapshots", "one.orch")
	if out := (servers{first}).run(t, first, "snapshot", "list", "--data-dir", first.DataDir()); !strings.Contains(out, snapshot) {
		t.Errorf("the list lacks the snapshot:\n%s", out)
	}
	late, err := client(t, first).CoreV1().ConfigMaps("default").Create(t.Context(), configMap("late"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := restore(t, first, "one"); err == nil || !strings.Contains(out, "in use by another orch process") {
		t.Errorf("under a running server: %v: %s", err, out)
	}
	writeUntilTaken(t, first, "still-there")
	if err := first.Kill(); err != nil {
		t.Fatal(err)
	}

	second := another(t, first.Network())
	servers{second}.with(t, second, "--recover", "--from", snapshot)
	c := client(t, second)
	if got := secretOf(t, c); got != "hidden" {
		t.Errorf("the secret is %q", got)
	}
	if _, err := c.CoreV1().ConfigMaps("default").Get(t.Context(), "late", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("what came after the snapshot: %v", err)
	}
	stillKnown(t, second, account)
	expired(t, c, late.ResourceVersion)
	same(t, first, second, "token", "agent-token", "tls/ca.crt", "tls/ca.key", "tls/encryption.keys", "tls/servers/ca.key")

	third, err := first.Network().NewNode("--disable-agent")
	foreign := launch(t, third, err)
	writeUntilTaken(t, foreign, "own")
	if err := foreign.Kill(); err != nil {
		t.Fatal(err)
	}
	for what, args := range map[string][]string{
		"is of another cluster":          {snapshot},
		"not a whole and sound snapshot": {damaged(t, snapshot)},
		"there is no snapshot":           {"two"},
	} {
		if out, err := restore(t, foreign, args...); err == nil || !strings.Contains(out, what) {
			t.Errorf("restore %v: %v: %s", args, err, out)
		}
	}
	if err := foreign.Start(); err != nil {
		t.Fatal(err)
	}
	awaitReady(t, foreign)
	if _, err := client(t, foreign).CoreV1().ConfigMaps("default").Get(t.Context(), "own", metav1.GetOptions{}); err != nil {
		t.Errorf("after refused restores: %v", err)
	}
}

func single(t *testing.T) *cluster.Node {
	t.Helper()
	n, err := cluster.StartNetwork(t).NewNode("--disable-agent")
	return launch(t, n, err)
}

func closeNode(t *testing.T, n *cluster.Node) {
	t.Helper()
	if t.Failed() {
		t.Logf("end of the log of %s:\n%s", n.Name, n.LogTail())
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

func same(t *testing.T, a, b *cluster.Node, files ...string) {
	t.Helper()
	for _, name := range files {
		one, err := os.ReadFile(filepath.Join(a.DataDir(), "server", name))
		other, otherErr := os.ReadFile(filepath.Join(b.DataDir(), "server", name))
		if err = errors.Join(err, otherErr); err != nil || string(one) != string(other) {
			t.Errorf("%s differs: %v", name, err)
		}
	}
}

func damaged(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	bad := filepath.Join(t.TempDir(), "bad.orch")
	if err := os.WriteFile(bad, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return bad
}

// TestOneRestore: two restores at once would build the next state in the same
// place.
func TestOneRestore(t *testing.T) {
	n := single(t)
	servers{n}.run(t, n, "snapshot", "save", "--name", "one", "--kubeconfig", n.Kubeconfig)
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	folder, err := os.Open(filepath.Join(n.DataDir(), "server"))
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	if err := syscall.Flock(int(folder.Fd()), syscall.LOCK_EX); err != nil { // as another one does
		t.Fatal(err)
	}
	if out, err := restore(t, n, "one"); err == nil || !strings.Contains(out, "another recovery or restore") {
		t.Errorf("beside another one: %v: %s", err, out)
	}
	if err := folder.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := restore(t, n, "one"); err != nil {
		t.Errorf("after the other one: %v: %s", err, out)
	}
}

// TestRestoreKilled kills restores at moments spread over the time they take: the
// server then has its old state or the snapshot's, keys and all.
func TestRestoreKilled(t *testing.T) {
	n := single(t)
	c := client(t, n)
	for i := range 200 {
		big := configMap(fmt.Sprintf("big-%d", i))
		big.Data["a"] = strings.Repeat(fmt.Sprint(i), 10_000)
		if _, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), big, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	servers{n}.run(t, n, "snapshot", "save", "--name", "one", "--kubeconfig", n.Kubeconfig)
	writeUntilTaken(t, n, "late")
	stop := func() {
		t.Helper()
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	const rounds = 8
	var took time.Duration
	seen := map[string]int{}
	for i := range rounds + 1 {
		if i == 0 { // how long it takes, on a copy
			took = timeRestore(t, n)
			continue
		}
		killRestore(t, n, 2*took*time.Duration(i)/rounds)
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		awaitReady(t, n)
		c := client(t, n)
		maps, err := c.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name!=kube-root-ca.crt"})
		if err != nil {
			t.Fatal(err)
		}
		switch len(maps.Items) {
		case 201:
			seen["old"]++
		case 200:
			seen["snapshot"]++
			writeUntilTaken(t, n, "late")
		default:
			t.Errorf("killed after %d of %d: %d objects", i, rounds, len(maps.Items))
		}
		stop()
	}
	t.Logf("a restore takes %v; after kills the server had: %v", took.Round(time.Millisecond), seen)
}

// timeRestore restores into an empty folder.
func timeRestore(t *testing.T, n *cluster.Node) time.Duration {
	t.Helper()
	began := time.Now()
	dir := t.TempDir()
	out, err := n.Command(t.Context(), n.Orch, "snapshot", "restore", "--config", filepath.Join(n.Dir, "config.yaml"), "--node-ip", n.IP,
		"--data-dir", dir, filepath.Join(n.DataDir(), "server", "snapshots", "one.orch")).CombinedOutput()
	if err != nil {
		t.Fatalf("restore: %v: %s", err, out)
	}
	return time.Since(began)
}

func killRestore(t *testing.T, n *cluster.Node, after time.Duration) {
	t.Helper()
	flags := append([]string{"snapshot", "restore"}, n.Args[1:]...)
	cmd := n.Command(t.Context(), n.Orch, append(flags, "one")...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-time.After(after)
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed, or done
}

// TestRestoreKnowsLaterNodes: a node that joined after the snapshot is a node of
// the restored cluster by itself, while a deleted one stays away.
func TestRestoreKnowsLaterNodes(t *testing.T) {
	n := single(t)
	servers{n}.run(t, n, "snapshot", "save", "--name", "one", "--kubeconfig", n.Kubeconfig)
	agent, err := n.Network().NewAgent(n)
	agent = launchAgent(t, agent, err)
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if out, err := restore(t, n, "one"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	awaitReady(t, n)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := agent.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if out, err := n.Kubectl(ctx, "delete", "node", agent.Name); err != nil {
		t.Fatal(out)
	}
	for !strings.Contains(agent.LogTail(), "this node was deleted from the cluster") {
		select {
		case <-ctx.Done():
			t.Fatal("a deleted node does not notice")
		case <-time.After(100 * time.Millisecond):
		}
	}
}
