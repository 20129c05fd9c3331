package ha

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestRestoreBesideHungLeader: a leader that hung while the others went back to a
// snapshot does not bring back what came after it. It refuses a restore on its own
// machine, for it is not stopped, and joins the others when it goes on.
func TestRestoreBesideHungLeader(t *testing.T) {
	all := start(t)
	leader := all.leader(t, all[0])
	rest := all.others(leader)
	all.run(t, rest[0], "snapshot", "save", "--name", "one", "--kubeconfig", rest[0].Kubeconfig)
	writeUntilTaken(t, leader, "late")
	if err := errors.Join(leader.Pause(), rest[0].Kill(), rest[1].Kill()); err != nil {
		t.Fatal(err)
	}
	snapshot := filepath.Join(rest[0].DataDir(), "server", "snapshots", "one.orch")
	if out, err := restore(t, leader, snapshot); err == nil || !strings.Contains(out, "in use by another orch process") {
		t.Errorf("under a hung server: %v: %s", err, out)
	}
	if out, err := restore(t, rest[0], "one"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, n := range rest {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		awaitReady(t, n)
	}
	all.awaitVoters(t, rest[0], 2)
	c := client(t, leader)
	if err := leader.Resume(); err != nil {
		t.Fatal(err)
	}
	all.await(t, "return of the leader of before", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.CoreV1().ConfigMaps("default").Get(ctx, "late", metav1.GetOptions{})
		if err == nil {
			t.Error("it shows what came after the snapshot")
		}
		return apierrors.IsNotFound(err)
	})
	all.awaitVoters(t, rest[0], 3)
	if log := leader.LogTail(); !strings.Contains(log, "the cluster was recovered without this server") {
		t.Errorf("it does not say what happened:\n%s", log)
	}
	writeUntilTaken(t, leader, "again")
	for _, n := range all {
		if _, err := client(t, n).CoreV1().ConfigMaps("default").Get(t.Context(), "late", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("what came after the snapshot, at %s: %v", n.Name, err)
		}
		awaitRead(t, n, "again")
	}
}
