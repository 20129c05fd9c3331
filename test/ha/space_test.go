package ha

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/test/cluster"
)

// TestSnapshotFullDisk: a snapshot that does not fit says so and leaves nothing
// behind; the server goes on, for the last space is kept for its own files.
func TestSnapshotFullDisk(t *testing.T) {
	n := onSmallDisk(t, 100)
	makeNoise(t, n, 12<<20)
	for _, left := range []int64{34 << 20, 4 << 20, 0} { // of it, 32 MiB are kept
		if err := n.FillDisk(left); err != nil {
			t.Fatal(err)
		}
		out, err := n.Command(t.Context(), n.Orch, "snapshot", "save", "--name", "one", "--kubeconfig", n.Kubeconfig).CombinedOutput()
		for _, part := range []string{"no space left on device", "delete old snapshots", n.DataDir()} {
			if err == nil || strings.Count(string(out), part) != 1 {
				t.Errorf("with %d bytes left: %v: %s does not say once %q", left, err, out, part)
			}
		}
		entries, err := os.ReadDir(filepath.Join(n.DataDir(), "server", "snapshots"))
		if err != nil || len(entries) > 0 {
			t.Errorf("left are %v, %v", entries, err)
		}
		awaitRead(t, n, "noise-0")
	}
	if err := n.FreeDisk(); err != nil {
		t.Fatal(err)
	}
	writeUntilTaken(t, n, "after")
	servers{n}.run(t, n, "snapshot", "save", "--name", "one", "--kubeconfig", n.Kubeconfig)
	if list := (servers{n}).run(t, n, "snapshot", "list", "--data-dir", n.DataDir()); strings.Count(list, "one.orch") != 1 {
		t.Errorf("the list is:\n%s", list)
	}
}

func onSmallDisk(t *testing.T, megabytes int) *cluster.Node {
	t.Helper()
	n, err := cluster.StartNetwork(t).NewNode("--disable-agent")
	if err == nil {
		err = n.SmallDisk(megabytes)
	}
	return launch(t, n, err)
}

// makeNoise makes objects of so many bytes in all, of which half are left when
// they are compressed.
func makeNoise(t *testing.T, n *cluster.Node, bytes int) {
	t.Helper()
	c := client(t, n)
	const each = 900 << 10
	for i := range bytes / each {
		noise := make([]byte, each/2)
		rand.Read(noise) // never fails
		m := configMap(fmt.Sprintf("noise-%d", i))
		m.Data["a"] = fmt.Sprintf("%x", noise)
		if _, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), m, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}
