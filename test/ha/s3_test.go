package ha

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/internal/s3server"
	"orch/test/cluster"
)

// TestS3 loses a machine for good: another one, which has never heard of the
// cluster, goes on with the snapshot in S3.
func TestS3(t *testing.T) {
	n := single(t)
	network := n.Network()
	storage := s3server.Start(t, "10.99.0.1:7443", "nsenter", "--net=/run/netns/"+network.Namespace)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(s3server.SecretKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []string{
		"--snapshot-s3-endpoint", storage.Address, "--snapshot-s3-bucket", s3server.Bucket, "--snapshot-s3-region", s3server.Region,
		"--snapshot-s3-folder", "home", "--snapshot-s3-access-key", s3server.AccessKey, "--snapshot-s3-secret-key-file", secret,
		"--snapshot-s3-ca-file", storage.CAFile, "--snapshot-s3-timeout", "20s",
	}
	all := servers{n}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	n.Args = append(n.Args, flags...)
	all.with(t, n)
	makeSecret(t, client(t, n))

	storage.Kill(t)
	out, err := n.Command(t.Context(), n.Orch, "snapshot", "save", "--name", "early", "--kubeconfig", n.Kubeconfig).CombinedOutput()
	for _, part := range []string{"saved early", "goes on trying", storage.Address, s3server.Bucket} {
		if err == nil || !strings.Contains(string(out), part) {
			t.Errorf("without the storage: %v: %s lacks %q", err, out, part)
		}
	}
	events, err := n.Kubectl(t.Context(), "get", "events", "-A", "--field-selector", "reason=SnapshotFailed")
	if err != nil || !strings.Contains(events, storage.Address) {
		t.Errorf("no event tells of it: %s, %v", events, err)
	}
	storage.Run(t)
	all.run(t, n, "snapshot", "save", "--name", "one", "--kubeconfig", n.Kubeconfig)
	list := append([]string{"snapshot", "list", "--data-dir", n.DataDir()}, flags...)
	all.await(t, "early snapshot in S3", func() bool { // the next save has woken its upload
		out := all.run(t, n, list...)
		return strings.Count(out, "s3://snapshots/home/one.orch") == 1 && strings.Count(out, "s3://snapshots/home/early.orch") == 1 &&
			strings.Count(out, n.DataDir()) == 2
	})
	metrics, err := n.Kubectl(t.Context(), "get", "--raw", "/metrics")
	if success := `orch_snapshots_total{result="success",where="s3"} 2`; err != nil || !strings.Contains(metrics, success) {
		t.Errorf("metrics lack %s, %v", success, err)
	}
	if strings.Contains(metrics, `orch_snapshots_total{result="failure",where="s3"} 0`) {
		t.Error("metrics do not tell of the failure")
	}
	all.run(t, n, append(append([]string{"snapshot", "delete", "--data-dir", n.DataDir()}, flags...), "early")...)
	if out := all.run(t, n, list...); strings.Contains(out, "early") {
		t.Errorf("still there:\n%s", out)
	}
	writeUntilTaken(t, n, "late")
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}

	next := another(t, network, flags...)
	servers{next}.with(t, next, "--recover", "--from", "one")
	if got := secretOf(t, client(t, next)); got != "hidden" {
		t.Errorf("the secret is %q", got)
	}
	if _, err := client(t, next).CoreV1().ConfigMaps("default").Get(t.Context(), "late", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("what came after the snapshot: %v", err)
	}
}

func another(t *testing.T, network *cluster.Network, args ...string) *cluster.Node {
	t.Helper()
	n, err := network.NewNode(append([]string{"--disable-agent"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNode(t, n) })
	return n
}
