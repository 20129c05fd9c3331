package ha

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"orch/internal/lossydisk"
	"orch/test/cluster"
)

// fault is one way in which a server is lost, and its return.
type fault struct {
	name     string
	do, undo func(n *cluster.Node, others servers) error
}

func faults() []fault {
	heal := func(n *cluster.Node, others servers) error {
		err := n.Heal()
		for _, o := range others {
			err = errors.Join(err, o.Heal())
		}
		return err
	}
	return []fault{
		{"kill", func(n *cluster.Node, _ servers) error { return n.Kill() }, func(n *cluster.Node, _ servers) error { return n.Start() }},
		{"pause", func(n *cluster.Node, _ servers) error { return n.Pause() }, func(n *cluster.Node, _ servers) error { return n.Resume() }},
		{"isolation", func(n *cluster.Node, _ servers) error { return n.Isolate() }, heal},
		{"deafness", func(n *cluster.Node, others servers) error { return n.CutFrom(others...) }, heal},
		{"muteness", func(n *cluster.Node, others servers) error {
			return errors.Join(others[0].CutFrom(n), others[1].CutFrom(n))
		}, heal},
	}
}

// TestAnyServerMayDie loses the leader in each way. Writes go on through each of
// the others, for clients that have been connected all along.
func TestAnyServerMayDie(t *testing.T) {
	all := start(t)
	clients := make(map[*cluster.Node]*kubernetes.Clientset)
	for i, n := range all {
		clients[n] = client(t, n)
		name := fmt.Sprintf("from-%d", i)
		made, err := clients[n].CoreV1().ConfigMaps("default").Create(t.Context(), configMap(name), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range all {
			got, err := client(t, other).CoreV1().ConfigMaps("default").Get(t.Context(), name, metav1.GetOptions{})
			if err != nil || got.ResourceVersion != made.ResourceVersion {
				t.Errorf("%s at %s: %v, %v instead of %v", name, other.Name, err, got.ResourceVersion, made.ResourceVersion)
			}
		}
	}
	all.await(t, "addresses of all servers", func() bool { return endpoints(t, all[0]) == 3 })
	for _, f := range faults() {
		leader := all.leader(t, all[0])
		rest := all.others(leader)
		if err := f.do(leader, rest); err != nil {
			t.Fatal(err)
		}
		took := make([]time.Duration, len(rest))
		var writing sync.WaitGroup
		for i, n := range rest {
			writing.Go(func() { took[i] = writeThrough(t, clients[n], n, fmt.Sprintf("after-%s-%d", f.name, i)) })
		}
		writing.Wait()
		t.Logf("%s of the leader %s: writes through the others after %v", f.name, leader.Name, took)
		all.await(t, "shrunk addresses", func() bool { return endpoints(t, rest[0]) == 2 })
		if err := f.undo(leader, rest); err != nil {
			t.Fatal(err)
		}
		awaitReady(t, leader)
		clients[leader] = client(t, leader)
		for i := range rest {
			name := fmt.Sprintf("after-%s-%d", f.name, i)
			if got, err := clients[leader].CoreV1().ConfigMaps("default").Get(t.Context(), name, metav1.GetOptions{}); err != nil {
				t.Errorf("%s is back and reads %v, %v", leader.Name, got, err)
			}
		}
		all.await(t, "full addresses", func() bool { return endpoints(t, rest[0]) == 3 })
	}
}

// TestMinority: a server without the others answers only who asks for whatever
// it has, and says that it is not ready; what it has is not lost.
func TestMinority(t *testing.T) {
	all := start(t)
	writeUntilTaken(t, all[0], "before")
	last := all[2]
	awaitRead(t, last, "before")
	for _, n := range all[:2] {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	c := client(t, last)
	all.await(t, "word from /readyz that the store is not in touch", func() bool {
		body, code := readyz(t, c)
		return code == http.StatusInternalServerError && strings.Contains(body, "[-]store failed")
	})
	maps := c.CoreV1().ConfigMaps("default")
	if _, err := maps.Get(t.Context(), "before", metav1.GetOptions{}); err == nil {
		t.Error("a read that may be stale is answered")
	}
	if _, err := maps.List(t.Context(), metav1.ListOptions{}); err == nil {
		t.Error("a list that may be stale is answered")
	}
	if _, err := maps.Create(t.Context(), configMap("alone"), metav1.CreateOptions{}); err == nil {
		t.Error("a write is taken")
	}
	if _, err := maps.Get(t.Context(), "before", metav1.GetOptions{ResourceVersion: "0"}); err != nil {
		t.Errorf("a read of whatever is there: %v", err)
	}
	if list, err := maps.List(t.Context(), metav1.ListOptions{ResourceVersion: "0"}); err != nil || len(list.Items) == 0 {
		t.Errorf("a list of whatever is there: %v", err)
	}
	if err := all[0].Start(); err != nil {
		t.Fatal(err)
	}
	awaitReady(t, last)
	writeUntilTaken(t, last, "after")
}

func awaitRead(t *testing.T, n *cluster.Node, name string) {
	t.Helper()
	if _, err := client(t, n).CoreV1().ConfigMaps("default").Get(t.Context(), name, metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
}

// readyz gives the answer and its status.
func readyz(t *testing.T, c *kubernetes.Clientset) (string, int) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	var code int
	body, _ := c.RESTClient().Get().AbsPath("/readyz").Do(ctx).StatusCode(&code).Raw()
	return string(body), code
}

// TestControllersFollow: controllers go on at the next leader, and what the one
// before had begun is not done twice, not even when it comes back to life.
func TestControllersFollow(t *testing.T) {
	const replicas = 30
	all := start(t)
	leader := all.leader(t, all[0])
	rest := all.others(leader)
	c := client(t, rest[0])
	seen := make(map[string]bool)
	w, err := watchPods(t, rest[0])
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for round := range 3 {
		name := fmt.Sprintf("set-%d", round)
		if _, err := c.AppsV1().ReplicaSets("default").Create(t.Context(), replicaSet(name, replicas), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := leader.Pause(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		writeThrough(t, c, rest[0], name)
		writes := time.Since(began)
		awaitPods(t, w, seen, (round+1)*replicas)
		t.Logf("leader paused: writes after %v, all pods after %v", writes, time.Since(began))
		if err := leader.Resume(); err != nil {
			t.Fatal(err)
		}
		awaitReady(t, leader)
		// Whoever led before has heard of its end once a read through it is fresh.
		awaitRead(t, leader, name)
		leader = all.leader(t, rest[0])
		rest = all.others(leader)
		if round == 2 {
			break
		}
		// The watch must be one that no pause holds up.
		w.Stop()
		c = client(t, rest[0])
		if w, err = watchPods(t, rest[0]); err != nil {
			t.Fatal(err)
		}
	}
	pods, err := c.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(pods.Items) != 3*replicas || len(seen) != 3*replicas {
		t.Errorf("%d pods are there and %d were made instead of %d: %v", len(pods.Items), len(seen), 3*replicas, err)
	}
}

// watchPods has no timeout, unlike client.
func watchPods(t *testing.T, n *cluster.Node) (watch.Interface, error) {
	t.Helper()
	config, err := n.Config()
	if err != nil {
		t.Fatal(err)
	}
	return kubernetes.NewForConfigOrDie(config).CoreV1().Pods("default").Watch(t.Context(), metav1.ListOptions{})
}

func replicaSet(name string, replicas int32) *appsv1.ReplicaSet {
	labels := map[string]string{"set": name}
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "orch.local/hello"}}},
			},
		},
	}
}

// awaitPods takes events until so many pods have been seen, and notes them.
func awaitPods(t *testing.T, w watch.Interface, seen map[string]bool, count int) {
	t.Helper()
	deadline := time.After(patience)
	for len(seen) < count {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				t.Fatal("the watch has ended")
			}
			if pod, ok := e.Object.(*corev1.Pod); ok && e.Type == watch.Added {
				seen[string(pod.UID)] = true
			}
		case <-deadline:
			t.Fatalf("%d pods instead of %d", len(seen), count)
		}
	}
}

// slowOrFull starts three servers of which each has its store on a disk of its
// own that the test rules.
func slowOrFull(t *testing.T) (servers, map[*cluster.Node]*lossydisk.Disk) {
	t.Helper()
	disks := make(map[*cluster.Node]*lossydisk.Disk)
	return startPrepared(t, func(n *cluster.Node) {
		t.Helper()
		mount := t.TempDir()
		disk, err := lossydisk.Mount(mount)
		if errors.Is(err, lossydisk.ErrUnavailable) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := disk.Close(); err != nil {
				t.Error(err)
			}
		})
		folder := filepath.Join(n.DataDir(), "server")
		if err := errors.Join(os.MkdirAll(folder, 0o700), os.Symlink(mount, filepath.Join(folder, "store"))); err != nil {
			t.Fatal(err)
		}
		disks[n] = disk
	}), disks
}

// TestSlowDisk: when the leader's disk hangs another server leads, and one that
// is slow elsewhere holds up nobody.
func TestSlowDisk(t *testing.T) {
	all, disks := slowOrFull(t)
	leader := all.leader(t, all[0])
	rest := all.others(leader)
	disks[leader].SlowSync(5 * time.Second)
	began := time.Now()
	var writing sync.WaitGroup
	for i, n := range rest {
		writing.Go(func() { writeUntilTaken(t, n, fmt.Sprintf("slow-%d", i)) })
	}
	writing.Wait()
	t.Logf("the leader's disk hangs: writes again after %v", time.Since(began))
	next := all.leader(t, rest[0])
	if next == leader {
		t.Error("it still leads")
	}
	began = time.Now()
	for i := range 20 {
		writeUntilTaken(t, rest[i%2], fmt.Sprintf("beside-%d", i))
	}
	t.Logf("20 writes beside a slow disk took %v", time.Since(began))
	disks[leader].SlowSync(0)
	awaitReady(t, leader)
	awaitRead(t, leader, "beside-19")
}

// TestFullDisk: a leader whose disk is full says so and gives the lead to one that
// can write; it goes on reading, and takes part again when there is room.
func TestFullDisk(t *testing.T) {
	all, disks := slowOrFull(t)
	leader := all.leader(t, all[0])
	rest := all.others(leader)
	disks[leader].Fill(0)
	big := configMap("big")
	big.Data["big"] = strings.Repeat("x", 900<<10)
	began := time.Now()
	for i := 0; !strings.Contains(leader.LogTail(), "no space left"); i++ {
		big.Name = fmt.Sprintf("big-%d", i)
		_, _ = client(t, rest[0]).CoreV1().ConfigMaps("default").Create(t.Context(), big, metav1.CreateOptions{}) // may fail with the leader
		if time.Since(began) > patience {
			t.Fatalf("the leader does not notice that its disk is full:\n%s", leader.LogTail())
		}
	}
	if body, code := readyz(t, client(t, leader)); code == http.StatusOK {
		t.Errorf("the server with the full disk calls itself ready: %s", body)
	}
	for i, n := range rest {
		writeUntilTaken(t, n, fmt.Sprintf("after-%d", i))
	}
	if now := all.leader(t, rest[0]); now == leader {
		t.Error("the server with the full disk still leads")
	}
	disks[leader].Free()
	awaitReady(t, leader)
	awaitRead(t, leader, "after-1")
}
