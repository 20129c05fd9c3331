package pod

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// quiet is a manager that only computes.
func quiet(t *testing.T) *Manager {
	t.Helper()
	w := newWorld(t, newFakeRuntime(), newFakeRuntime(), t.TempDir())
	w.cfg.CgroupFS = t.TempDir()
	m, err := New(w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestExpand(t *testing.T) {
	values := map[string]string{"A": "1", "B": "$(A)", "EMPTY": ""}
	lookup := func(name string) (string, bool) { v, ok := values[name]; return v, ok }
	for in, want := range map[string]string{
		"": "", "plain": "plain", "$(A)": "1", "x$(A)y$(A)": "x1y1", "$(B)": "$(A)", "$$(A)": "$(A)", "$$$(A)": "$1",
		"$(NONE)": "$(NONE)", "$(EMPTY)": "", "$(A": "$(A", "$": "$", "$A": "$A", "a$": "a$", "$()": "$()",
	} {
		if got := expand(in, lookup); got != want {
			t.Errorf("%q gives %q, want %q", in, got, want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	m := quiet(t)
	optional := true
	m.cfg.Services = func(ns string) []*corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: ns}, Spec: corev1.ServiceSpec{
			ClusterIP: "10.43.0.1", Ports: []corev1.ServicePort{{Name: "https", Port: 443}}}}
		if ns == "default" {
			return []*corev1.Service{s}
		}
		other := s.DeepCopy()
		other.Name = "my-db"
		return []*corev1.Service{other}
	}
	m.cfg.Objects = memoryObjects{
		"settings": {"a": "1", "b": "2"}, "private": {"p": "secret"},
	}
	m.cfg.Node = func() *corev1.Node {
		return &corev1.Node{Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("8Gi")}}}
	}
	p := newPod("pod")
	p.Namespace, p.Labels, p.Annotations = "shop", map[string]string{"app": "x"}, map[string]string{"note/y": "z"}
	c := &p.Spec.Containers[0]
	c.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m")}
	c.EnvFrom = []corev1.EnvFromSource{
		{Prefix: "CM_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}},
		{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "private"}}},
		{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "absent"}, Optional: &optional}},
	}
	field := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	amount := func(name, divisor string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: name, Divisor: resource.MustParse(divisor)}}
	}
	c.Env = []corev1.EnvVar{
		{Name: "CM_a", Value: "over"}, {Name: "REF", Value: "$(CM_b)-$(KUBERNETES_SERVICE_PORT)-$(LATER)"}, {Name: "LATER", Value: "x"},
		{Name: "NAME", ValueFrom: field("metadata.name")}, {Name: "IP", ValueFrom: field("status.podIP")},
		{Name: "NODE", ValueFrom: field("spec.nodeName")}, {Name: "APP", ValueFrom: field("metadata.labels['app']")},
		{Name: "NOTE", ValueFrom: field("metadata.annotations['note/y']")}, {Name: "HOST", ValueFrom: field("status.hostIP")},
		{Name: "CPU", ValueFrom: amount("requests.cpu", "1m")}, {Name: "MEMORY", ValueFrom: amount("limits.memory", "1Gi")},
		{Name: "MAYBE", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}, Key: "none", Optional: &optional}}},
	}
	o := launchOrder{pod: p, unit: unit{Container: c}, ips: []string{"10.42.0.7"}}
	got, err := m.environ(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"CM_a": "over", "CM_b": "2", "p": "secret", "REF": "2-443-$(LATER)", "NAME": "pod", "IP": "10.42.0.7", "NODE": "node",
		"APP": "x", "NOTE": "z", "HOST": "192.0.2.1", "CPU": "1500", "MEMORY": "8", "KUBERNETES_SERVICE_HOST": "10.43.0.1",
		"KUBERNETES_SERVICE_PORT_HTTPS": "443", "MY_DB_PORT_443_TCP_ADDR": "10.43.0.1", "MY_DB_PORT": "tcp://10.43.0.1:443",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if v, ok := got["MAYBE"]; ok {
		t.Errorf("an absent optional key is set to %q", v)
	}
	for _, bad := range []struct {
		from corev1.EnvVarSource
		want string
	}{
		{corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}}}, `secret "none" not found`},
		{corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "private"}, Key: "q"}}, "couldn't find key q in Secret shop/private"},
	} {
		c.Env = []corev1.EnvVar{{Name: "X", ValueFrom: &bad.from}}
		if _, err := m.environ(t.Context(), o); err == nil || err.Error() != bad.want {
			t.Errorf("got %v, want %s", err, bad.want)
		}
	}
}

func TestFileKey(t *testing.T) {
	m, dir := quiet(t), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "env"), []byte("# note\nA='quoted value'\n B = \"2\"\nC=3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := &environment{m: m, o: launchOrder{pod: newPod("a"), mounts: map[string]Mount{"v": {HostPath: dir}}}}
	for key, want := range map[string]string{"A": "quoted value", "B": "2", "C": "3"} {
		if got, ok, err := e.fileKey(&corev1.FileKeySelector{VolumeName: "v", Path: "env", Key: key}); got != want || !ok || err != nil {
			t.Errorf("%s is %q, %v, %v", key, got, ok, err)
		}
	}
	for _, path := range []string{"../env", "none"} {
		if _, _, err := e.fileKey(&corev1.FileKeySelector{VolumeName: "v", Path: path, Key: "A"}); err == nil {
			t.Errorf("%s was read", path)
		}
	}
}

// memoryObjects are config maps and secrets at once.
type memoryObjects map[string]map[string]string

func (m memoryObjects) ConfigMap(_ ctx, ns, name string) (*corev1.ConfigMap, error) {
	if m[name] == nil {
		return nil, missing(name)
	}
	return &corev1.ConfigMap{Data: m[name]}, nil
}

func (m memoryObjects) Secret(_ ctx, ns, name string) (*corev1.Secret, error) {
	if m[name] == nil {
		return nil, missing(name)
	}
	s := &corev1.Secret{Data: map[string][]byte{}, Type: corev1.SecretTypeDockerConfigJson}
	for k, v := range m[name] {
		s.Data[k] = []byte(v)
	}
	return s, nil
}

func TestResolverConfig(t *testing.T) {
	host := "# made by hand\nnameserver 192.0.2.53\nsearch old.example\nsearch example.com. lan\noptions ndots:1 timeout:3\n"
	value := "2"
	own := &corev1.PodDNSConfig{Nameservers: []string{"198.51.100.1"}, Searches: []string{"extra", "lan"},
		Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &value}, {Name: "edns0"}}}
	for _, c := range []struct {
		name        string
		policy      corev1.DNSPolicy
		hostNetwork bool
		own         *corev1.PodDNSConfig
		want        string
	}{
		{"cluster", corev1.DNSClusterFirst, false, nil, "10.43.0.10|ns.svc.c.local svc.c.local c.local example.com lan|ndots:5"},
		{"cluster and own", corev1.DNSClusterFirst, false, own, "10.43.0.10 198.51.100.1|ns.svc.c.local svc.c.local c.local example.com lan extra|ndots:2 edns0"},
		{"host network", corev1.DNSClusterFirst, true, nil, "192.0.2.53|example.com lan|ndots:1 timeout:3"},
		{"host network with cluster", corev1.DNSClusterFirstWithHostNet, true, nil, "10.43.0.10|ns.svc.c.local svc.c.local c.local example.com lan|ndots:5"},
		{"default", corev1.DNSDefault, false, nil, "192.0.2.53|example.com lan|ndots:1 timeout:3"},
		{"none", corev1.DNSNone, false, own, "198.51.100.1|extra lan|ndots:2 edns0"},
	} {
		p := &corev1.Pod{Spec: corev1.PodSpec{DNSPolicy: c.policy, HostNetwork: c.hostNetwork, DNSConfig: c.own}}
		p.Namespace = "ns"
		got := resolverConfig(host, p, []string{"10.43.0.10"}, "c.local")
		text := strings.Join([]string{strings.Join(got.Servers, " "), strings.Join(got.Searches, " "), strings.Join(got.Options, " ")}, "|")
		if text != c.want {
			t.Errorf("%s gives\n%s, want\n%s", c.name, text, c.want)
		}
	}
}

func TestSandboxConfig(t *testing.T) {
	m := quiet(t)
	p := newPod("a-name")
	user, group := int64(7), int64(9)
	yes := true
	p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user, FSGroup: &group, SupplementalGroups: []int64{3},
		Sysctls: []corev1.Sysctl{{Name: "net/ipv4/conf/eth0.5/forwarding", Value: "1"}, {Name: "kernel.shm_rmid_forced", Value: "0"}}}
	p.Spec.Subdomain, p.Spec.SetHostnameAsFQDN, p.Spec.ShareProcessNamespace = "sub", &yes, &yes
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 53, HostPort: 5353, Protocol: corev1.ProtocolUDP}, {ContainerPort: 80}}
	got, err := m.sandboxConfig(p, 2)
	if err != nil {
		t.Fatal(err)
	}
	if got.Hostname != "a-name.sub.default.svc.cluster.local" || got.Metadata.Attempt != 2 || got.Linux.CgroupParent != "/kubepods/besteffort/poda-name-uid" {
		t.Errorf("%v", got)
	}
	if len(got.PortMappings) != 1 || got.PortMappings[0].Protocol != runtimeapi.Protocol_UDP || got.PortMappings[0].HostPort != 5353 {
		t.Errorf("ports %v", got.PortMappings)
	}
	if want := map[string]string{"net.ipv4.conf.eth0/5.forwarding": "1", "kernel.shm_rmid_forced": "0"}; !reflect.DeepEqual(got.Linux.Sysctls, want) {
		t.Errorf("sysctls %v", got.Linux.Sysctls)
	}
	sc := got.Linux.SecurityContext
	if sc.RunAsUser.GetValue() != 7 || !reflect.DeepEqual(sc.SupplementalGroups, []int64{9, 3}) || sc.NamespaceOptions.Pid != runtimeapi.NamespaceMode_POD {
		t.Errorf("security %v", sc)
	}
}

func TestContainerSecurity(t *testing.T) {
	m := quiet(t)
	yes, no, root, user := true, false, int64(0), int64(1000)
	unmasked := corev1.UnmaskedProcMount
	o := launchOrder{pod: newPod("a"), target: "c9"}
	o.pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: &yes, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
	o.unit = unit{Container: &o.pod.Spec.Containers[0]}
	for _, c := range []struct {
		name string
		own  *corev1.SecurityContext
		user imageUser
		want string
	}{
		{"image user", nil, imageUser{uid: &user}, ""},
		{"image root", nil, imageUser{uid: &root}, `container has runAsNonRoot and image will run as root (pod: "a_default(a-uid)", container: main)`},
		{"image name", nil, imageUser{name: "www"}, `container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root (pod: "a_default(a-uid)", container: main)`},
		{"own root", &corev1.SecurityContext{RunAsUser: &root}, imageUser{}, `container's runAsUser breaks non-root policy (pod: "a_default(a-uid)", container: main)`},
		{"own override", &corev1.SecurityContext{RunAsNonRoot: &no}, imageUser{uid: &root}, ""},
		{"own user", &corev1.SecurityContext{RunAsUser: &user, AllowPrivilegeEscalation: &no, ProcMount: &unmasked,
			Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}, Drop: []corev1.Capability{"ALL"}}}, imageUser{uid: &root}, ""},
	} {
		o.unit.SecurityContext = c.own
		got, err := m.containerSecurity(o, c.user)
		if c.want != "" {
			if err == nil || err.Error() != c.want {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got.Seccomp.ProfileType != runtimeapi.SecurityProfile_RuntimeDefault || got.NamespaceOptions.TargetId != "c9" {
			t.Errorf("%s: %v", c.name, got)
		}
		if c.name == "own user" && (!got.NoNewPrivs || len(got.MaskedPaths) > 0 || got.RunAsUser.GetValue() != 1000 || got.Capabilities.DropCapabilities[0] != "ALL") {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestSubPath(t *testing.T) {
	env := map[string]string{"NAME": "x"}
	for _, c := range []struct{ sub, expr, want string }{
		{"a/b", "", "a/b"}, {"", "$(NAME)/y", "x/y"}, {"/a", "", "!"}, {"a/../../b", "", "!"}, {"", "$(NONE)", "!"}, {"a..b", "", "a..b"},
	} {
		got, err := subPath(corev1.VolumeMount{SubPath: c.sub, SubPathExpr: c.expr}, env)
		if (err != nil) != (c.want == "!") || err == nil && got != c.want {
			t.Errorf("%q %q gives %q, %v", c.sub, c.expr, got, err)
		}
	}
}

func TestRestarts(t *testing.T) {
	never, always, onFailure := corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyOnFailure
	rule := func(op corev1.ContainerRestartRuleOnExitCodesOperator, code int32) []corev1.ContainerRestartRule {
		return []corev1.ContainerRestartRule{{Action: corev1.ContainerRestartRuleActionRestart, ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: op, Values: []int32{code}}}}
	}
	for _, c := range []struct {
		pod   corev1.RestartPolicy
		own   *corev1.ContainerRestartPolicy
		rules []corev1.ContainerRestartRule
		code  int32
		want  bool
	}{
		{corev1.RestartPolicyAlways, nil, nil, 0, true}, {corev1.RestartPolicyOnFailure, nil, nil, 0, false},
		{corev1.RestartPolicyOnFailure, nil, nil, 1, true}, {corev1.RestartPolicyNever, nil, nil, 1, false},
		{corev1.RestartPolicyNever, &always, nil, 0, true}, {corev1.RestartPolicyAlways, &never, nil, 1, false},
		{corev1.RestartPolicyAlways, &onFailure, nil, 0, false},
		{corev1.RestartPolicyNever, &never, rule(corev1.ContainerRestartRuleOnExitCodesOpIn, 42), 42, true},
		{corev1.RestartPolicyNever, &never, rule(corev1.ContainerRestartRuleOnExitCodesOpIn, 42), 1, false},
		{corev1.RestartPolicyNever, &never, rule(corev1.ContainerRestartRuleOnExitCodesOpNotIn, 42), 1, true},
	} {
		u := unit{Container: &corev1.Container{RestartPolicy: c.own, RestartPolicyRules: c.rules}}
		if got := u.restarts(&corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: c.pod}}, c.code); got != c.want {
			t.Errorf("%+v gives %v", c, got)
		}
	}
}

func TestBackoff(t *testing.T) {
	at := time.Unix(1_000_000, 0)
	dead := func(ran, delay time.Duration) *container {
		return &container{Created: at, Finished: at.Add(ran), Backoff: delay}
	}
	for _, c := range []struct {
		dead       *container
		wait, then time.Duration
	}{
		{dead(time.Second, 0), 0, 10 * time.Second}, {dead(time.Second, 10*time.Second), 10 * time.Second, 20 * time.Second},
		{dead(time.Second, 160*time.Second), 160 * time.Second, 300 * time.Second}, {dead(time.Second, 300*time.Second), 300 * time.Second, 300 * time.Second},
		{dead(11*time.Minute, 300*time.Second), 0, 10 * time.Second},
	} {
		if wait, then := backoffAfter(c.dead), backoffFor(c.dead); wait != c.wait || then != c.then {
			t.Errorf("after %v with %v: waits %v, then %v", c.dead.Finished.Sub(at), c.dead.Backoff, wait, then)
		}
	}
}

func TestObserved(t *testing.T) {
	labels := map[string]string{labelContainer: "main"}
	at := func(state runtimeapi.ContainerState) report {
		return report{containers: []containerReport{{"box", &runtimeapi.ContainerStatus{Id: "c1", Labels: labels, State: state}}}}
	}
	var o observed
	o.merge(at(runtimeapi.ContainerState_CONTAINER_RUNNING))
	o.merge(at(runtimeapi.ContainerState_CONTAINER_CREATED)) // late news
	if !o.latest("main").running() {
		t.Error("a late report put the container back")
	}
	o.merge(at(runtimeapi.ContainerState_CONTAINER_EXITED))
	o.merge(at(runtimeapi.ContainerState_CONTAINER_RUNNING))
	if !o.latest("main").exited() {
		t.Error("a late report revived the container")
	}
	o.forget("c1")
	o.merge(at(runtimeapi.ContainerState_CONTAINER_EXITED))
	if o.latest("main") != nil {
		t.Error("a late report brought back what was removed")
	}
	o.merge(report{sandboxes: []*runtimeapi.PodSandboxStatus{{Id: "b1", CreatedAt: 1, Metadata: &runtimeapi.PodSandboxMetadata{}}}})
	o.merge(report{whole: true})
	if o.box() != nil || len(o.sandboxes) != 0 {
		t.Error("a whole report left what is gone")
	}
}

func TestLogins(t *testing.T) {
	m := quiet(t)
	file, err := json.Marshal(map[string]any{"auths": map[string]any{
		"https://registry.example:5000/v1/": map[string]string{"auth": "dTE6cDE="}, "registry.example:5000/team": map[string]string{"username": "u2", "password": "p2"},
		"*.mirror.example": map[string]string{"username": "u3"}, "https://index.docker.io/v1/": map[string]string{"username": "hub"}, "bad": map[string]string{"auth": "%"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	m.cfg.Objects = memoryObjects{"pull": {corev1.DockerConfigJsonKey: string(file)}}
	p := newPod("a")
	p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "none"}, {Name: "pull"}}
	for image, want := range map[string]string{
		"registry.example:5000/app:1": "u1", "registry.example:5000/team/app": "u2 u1", "eu.mirror.example/x": "u3",
		"a.eu.mirror.example/x": "", "busybox": "hub", "docker.io/library/busybox": "hub", "other.example/x": "", "bad/x": "hub",
	} {
		all, err := m.logins(t.Context(), p, image)
		var names []string
		for _, l := range all {
			names = append(names, l.Username)
		}
		if got := strings.Join(names, " "); got != want || err != nil {
			t.Errorf("%s gives %q, %v; want %q", image, got, err, want)
		}
	}
}

func TestFits(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"disk": "ssd"}}, Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourcePods: resource.MustParse("2")}}}
	tainted := node.DeepCopy()
	tainted.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoExecute}}
	with := func(change func(*corev1.Pod)) *corev1.Pod { p := newPod("a"); change(p); return p }
	port := func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: 80, Protocol: "TCP"}}
	}
	for _, c := range []struct {
		name   string
		pod    *corev1.Pod
		node   *corev1.Node
		others []*corev1.Pod
		want   string
	}{
		{"fits", newPod("a"), node, nil, ""},
		{"cpu", with(func(p *corev1.Pod) { p.Spec.Containers[0].Resources = cpu("2", "2") }), node, nil, "OutOfcpu"},
		{"pods", newPod("a"), node, []*corev1.Pod{newPod("b"), newPod("c")}, "OutOfpods"},
		{"selector", with(func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "hdd"} }), node, nil, "NodeAffinity"},
		{"port", with(port), node, []*corev1.Pod{with(port)}, "NodePorts"},
		{"taint", newPod("a"), tainted, nil, "TaintToleration"},
		{"tolerated", with(func(p *corev1.Pod) {
			p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		}), tainted, nil, ""},
		{"system", with(func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }), node, nil, "PodOSNotSupported"},
	} {
		got := ""
		if r := fits(c.pod, c.node, c.others); r != nil {
			got = r.reason
		}
		if got != c.want {
			t.Errorf("%s gives %q, want %q", c.name, got, c.want)
		}
	}
}

// A machine without cgroups is refused at the start, not pod by pod.
func TestNoCgroups(t *testing.T) {
	fs := t.TempDir()
	if err := newCgroups(fs, "/kubepods").open(); err == nil || !strings.Contains(err.Error(), fs) {
		t.Errorf("opened: %v", err)
	}
}

func TestCgroupsV2(t *testing.T) {
	fs := t.TempDir()
	if err := os.WriteFile(filepath.Join(fs, "cgroup.controllers"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c := newCgroups(fs, "/kubepods")
	if err := c.open(); err != nil {
		t.Fatal(err)
	}
	p := newPod("a")
	p.Spec.Containers[0].Resources = cpu("500m", "1")
	p.Spec.Containers[0].Resources.Limits[corev1.ResourceMemory] = resource.MustParse("64Mi")
	if err := c.ensure(p); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(fs, "kubepods/burstable/poda-uid")
	for file, want := range map[string]string{"cpu.weight": "20", "cpu.max": "100000 100000", "memory.max": "67108864", "../cpu.weight": "20", "../../besteffort/cpu.weight": "1"} {
		if got, err := os.ReadFile(filepath.Join(dir, file)); string(got) != want || err != nil {
			t.Errorf("%s is %q, %v; want %q", file, got, err, want)
		}
	}
}

func TestAttemptAfterLogs(t *testing.T) {
	dir := t.TempDir()
	if got := attemptAfterLogs(filepath.Join(dir, "none")); got != 0 {
		t.Error(got)
	}
	for _, name := range []string{"0.log", "3.log", "2.log.20260101-000000.gz", "notes"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := attemptAfterLogs(dir); got != 4 {
		t.Errorf("got %d", got)
	}
}

func TestRotate(t *testing.T) {
	m := quiet(t)
	reopened := 0
	m.cfg.Runtime = reopening{call: func() { reopened++ }}
	path := filepath.Join(t.TempDir(), "0.log")
	now := time.Unix(1_700_000_000, 0)
	m.cfg.Now = func() time.Time { return now }
	for range 8 {
		if err := os.WriteFile(path, []byte("line\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Second)
		if err := m.rotate(t.Context(), "c1", path); err != nil {
			t.Fatal(err)
		}
	}
	all, err := filepath.Glob(path + ".*")
	if err != nil || len(all) != logFiles-1 || reopened != 8 {
		t.Errorf("%v, %v, reopened %d times", all, err, reopened)
	}
	for i, name := range all {
		if strings.HasSuffix(name, ".gz") != (i < len(all)-1) {
			t.Errorf("file %d of %d is %s", i, len(all), name)
		}
	}
}

func TestWithDefaultTag(t *testing.T) {
	for in, want := range map[string]string{
		"busybox": "busybox:latest", "busybox:1": "busybox:1", "r.example:5000/x": "r.example:5000/x:latest",
		"x@sha256:" + strings.Repeat("0", 64): "x@sha256:" + strings.Repeat("0", 64),
	} {
		if got, err := withDefaultTag(in); got != want || err != nil {
			t.Errorf("%s gives %s, %v", in, got, err)
		}
	}
	if _, err := withDefaultTag("Bad Name"); err == nil {
		t.Error("a bad name passes")
	}
}

func FuzzTexts(f *testing.F) {
	f.Add("nameserver 1.2.3.4\noptions a:b\n", "2026-01-01T00:00:00Z stdout F text")
	f.Add("A='x'\n$(B)$$", `{"auths":{"x":{"auth":"YTpi"}}}`)
	f.Fuzz(func(t *testing.T, a, b string) {
		parseResolvConf(a)
		envFileValue(a, "A")
		logLine(b)
		dotted(a)
		expand(a, func(string) (string, bool) { return b, true })
		for registry := range secretLogins(&corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(b)}}) {
			registryMatches(registryKey(registry), a)
		}
	})
}
