package pod

import (
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestUserNamespaces(t *testing.T) {
	m := &Manager{}
	own := func(name string) *corev1.Pod {
		p, no := newPod(name), false
		p.Spec.HostUsers = &no
		return p
	}
	first := func(p *corev1.Pod) uint32 {
		t.Helper()
		users, err := m.userNamespace(p)
		if err != nil || users.GetMode() != runtimeapi.NamespaceMode_POD || users.Uids[0].Length != 65536 || users.Gids[0].HostId != users.Uids[0].HostId {
			t.Fatalf("%s: %v, %v", p.Name, users, err)
		}
		return users.Uids[0].HostId
	}
	if users, err := m.userNamespace(newPod("host")); users != nil || err != nil {
		t.Errorf("the machine's users: %v, %v", users, err)
	}
	// What an earlier agent gave away is known from the runtime.
	m.users.adopt("adopted-uid", &runtimeapi.PodSandboxStatus{Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{
		Options: &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: []*runtimeapi.IDMapping{{HostId: 65536, Length: 65536}}}},
	}}})
	m.users.adopt("host-uid", &runtimeapi.PodSandboxStatus{})
	if got := first(own("adopted")); got != 65536 {
		t.Errorf("the adopted pod's users begin at %d", got)
	}
	a, b := first(own("a")), first(own("b"))
	if a != 2*65536 || b != 3*65536 || first(own("a")) != a {
		t.Errorf("users begin at %d and %d", a, b)
	}
	m.users.free("a-uid")
	if got := first(own("c")); got != a {
		t.Errorf("the block of a pod that is gone was not given again: %d", got)
	}
	mounts := []*runtimeapi.Mount{{}}
	users, _ := m.userNamespace(own("b"))
	if mapUsers(mounts, users); mounts[0].UidMappings[0].HostId != b || mounts[0].GidMappings[0].HostId != b {
		t.Errorf("mounts are mapped to %v", mounts[0].UidMappings)
	}
}

// A pod with users of its own is root in there and nobody outside; its volumes
// show owners as they are.
func TestInsideUsers(t *testing.T) {
	if raw, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err != nil || strings.TrimSpace(string(raw)) == "0" {
		t.Skip("the kernel has no user namespaces")
	}
	w := realWorld(t)
	no := false
	for _, name := range []string{"one", "two"} {
		p := shell(name, "cat /proc/self/uid_map; stat -c owner=%u /etc/hosts; touch /x && stat -c made=%u /x; echo end; sleep 1000")
		p.Spec.HostUsers = &no
		w.create(p)
	}
	for _, name := range []string{"one", "two"} {
		w.awaitLog(name, "main", "end")
		said := strings.Join(strings.Fields(w.said(name, "main", 0)), " ")
		if !strings.HasPrefix(said, "0 65536 65536") && !strings.HasPrefix(said, "0 131072 65536") || !strings.Contains(said, "owner=0 made=0") {
			t.Errorf("%s says %q", name, said)
		}
	}
	if w.said("one", "main", 0) == w.said("two", "main", 0) {
		t.Error("two pods have the same users")
	}
	for _, name := range []string{"one", "two"} {
		w.remove(name, 0)
		w.awaitGone(name)
	}
}
