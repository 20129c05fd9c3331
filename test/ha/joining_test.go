package ha

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"orch/test/cluster"
)

// joinFault is a moment at which a joining server is killed, and how it starts
// again.
type joinFault struct {
	name string
	file string // that it has written; "": it is a member
	anew bool   // the machine is installed anew meanwhile
	bare bool   // without --join
}

// TestJoinKilled kills a server at each step of its joining. The others go on,
// and when it is started again it gets its vote under its name by itself; so does
// a machine that was installed anew meanwhile.
func TestJoinKilled(t *testing.T) {
	first := single(t)
	second, err := first.Network().NewServer(first, "--disable-agent")
	second = launch(t, second, err)
	joining, err := first.Network().NewServer(first, "--disable-agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNode(t, joining) })
	all := servers{first, second, joining}
	all.awaitVoters(t, first, 2)
	makeBig(t, first, 10) // so that catching up takes a moment
	for _, f := range []joinFault{
		{name: "settings", file: "cluster.json"},
		{name: "keys", file: "tls/ca.crt"},
		{name: "log", file: "store/raft.db"},
		{name: "log, and no --join", file: "store/raft.db", bare: true},
		{name: "state", file: "store/state.db"},
		{name: "member"},
		{name: "member, installed anew", anew: true},
	} {
		t.Run(f.name, func(t *testing.T) { killJoining(t, all, joining, f) })
	}
}

func killJoining(t *testing.T, all servers, joining *cluster.Node, f joinFault) {
	c := client(t, all[0])
	if err := joining.Start(); err != nil {
		t.Fatal(err)
	}
	awaitMoment(t, joining, func() bool {
		if f.file == "" {
			return slices.Contains(membersOf(c), joining.Name)
		}
		_, err := os.Stat(filepath.Join(joining.DataDir(), "server", f.file))
		return err == nil
	})
	if err := joining.Kill(); err != nil {
		t.Fatal(err)
	}
	writeUntilTaken(t, all[1], "without")
	if f.anew {
		if err := joining.Wipe(); err != nil {
			t.Fatal(err)
		}
	}
	usual := joining.Args
	defer func() { joining.Args = usual }()
	if f.bare {
		i := slices.Index(usual, "--join")
		joining.Args = slices.Delete(slices.Clone(usual), i, i+4) // --token and both values as well
	}
	if err := joining.Start(); err != nil {
		t.Fatal(err)
	}
	awaitReady(t, joining)
	all.awaitVoters(t, all[0], 3)
	if members := membersOf(c); len(members) != 3 {
		t.Errorf("the members are %v", members)
	}
	awaitRead(t, joining, "without")
	if err := c.CoreV1().ConfigMaps("default").Delete(t.Context(), "without", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	all.run(t, all[0], "member", "remove", "--kubeconfig", all[0].Kubeconfig, joining.Name)
	if err := errors.Join(joining.Kill(), joining.Wipe()); err != nil {
		t.Fatal(err)
	}
}

// awaitMoment waits for what lasts a few milliseconds only.
func awaitMoment(t *testing.T, n *cluster.Node, come func() bool) {
	t.Helper()
	for deadline := time.After(patience); !come(); {
		select {
		case <-time.After(2 * time.Millisecond):
		case <-n.Exited():
			t.Fatalf("%s ended:\n%s", n.Name, n.LogTail())
		case <-deadline:
			t.Fatalf("the moment does not come:\n%s", n.LogTail())
		}
	}
}

// membersOf gives the names of the members, none when they cannot be told now.
func membersOf(c *kubernetes.Clientset) (names []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var members []struct{ Name string }
	if data, err := c.RESTClient().Get().AbsPath("/v1-orch/members").DoRaw(ctx); err == nil {
		_ = json.Unmarshal(data, &members)
	}
	for _, m := range members {
		names = append(names, m.Name)
	}
	return names
}

// makeBig makes so many objects of almost a mebibyte.
func makeBig(t *testing.T, n *cluster.Node, count int) {
	t.Helper()
	c := client(t, n)
	for i := range count {
		big := configMap(fmt.Sprintf("big-%d", i))
		big.Data["a"] = strings.Repeat(fmt.Sprint(i%10), 900<<10)
		if _, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), big, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}
