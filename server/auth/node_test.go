package auth

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// memory is Objects over maps, by "namespace/name".
type memory struct {
	accounts map[string]*corev1.ServiceAccount
	secrets  map[string]*corev1.Secret
	pods     map[string]*corev1.Pod
	nodes    map[string]*corev1.Node
	claims   map[string]*corev1.PersistentVolumeClaim
	volumes  map[string]*corev1.PersistentVolume
}

func find[T any](m map[string]*T, kind, namespace, name string) (*T, error) {
	if o := m[namespace+"/"+name]; o != nil {
		return o, nil
	}
	return nil, fmt.Errorf("%s %q not found", kind, name)
}

func (m *memory) ServiceAccount(ns, name string) (*corev1.ServiceAccount, error) {
	return find(m.accounts, "serviceaccounts", ns, name)
}
func (m *memory) Secret(ns, name string) (*corev1.Secret, error) {
	return find(m.secrets, "secrets", ns, name)
}
func (m *memory) Pod(ns, name string) (*corev1.Pod, error) { return find(m.pods, "pods", ns, name) }
func (m *memory) Node(name string) (*corev1.Node, error)   { return find(m.nodes, "nodes", "", name) }
func (m *memory) PersistentVolume(name string) (*corev1.PersistentVolume, error) {
	return find(m.volumes, "persistentvolumes", "", name)
}
func (m *memory) PersistentVolumeClaim(ns, name string) (*corev1.PersistentVolumeClaim, error) {
	return find(m.claims, "persistentvolumeclaims", ns, name)
}

func TestNodes(t *testing.T) {
	n := NewNodes(&memory{
		claims: map[string]*corev1.PersistentVolumeClaim{"shop/data": {Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv1"}}},
		volumes: map[string]*corev1.PersistentVolume{"/pv1": {Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
			CSI: &corev1.CSIPersistentVolumeSource{NodeStageSecretRef: &corev1.SecretReference{Namespace: "shop", Name: "stage"}}}}}},
	})
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.PodSpec{
		NodeName: "n1", ServiceAccountName: "robot",
		ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull"}},
		Containers: []corev1.Container{{Env: []corev1.EnvVar{
			{ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "env"}}}},
		}, EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}}}},
		Volumes: []corev1.Volume{
			{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "tls"}}},
			{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}},
		},
	}}
	mirror := pod.DeepCopy()
	mirror.Name, mirror.Spec.NodeName = "static", "n2"
	mirror.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	n.OnPod(nil, pod, false)
	n.OnPod(nil, mirror, false)

	none := "no relationship found between node 'n2' and this object"
	for _, test := range []struct {
		question string
		selector string
		allowed  bool
		reason   string
	}{
		{"system:node:n1,system:nodes get shop:secrets=tls", "", true, ""},
		{"system:node:n1,system:nodes get shop:secrets=env", "", true, ""},
		{"system:node:n1,system:nodes get shop:secrets=pull", "", true, ""},
		{"system:node:n1,system:nodes get shop:secrets=stage", "", true, ""},
		{"system:node:n1,system:nodes watch shop:secrets", "metadata.name=tls", true, ""},
		{"system:node:n1,system:nodes watch shop:secrets", "", false, "No Object name found"},
		{"system:node:n1,system:nodes get other:secrets=tls", "", false, "no relationship found between node 'n1' and this object"},
		{"system:node:n1,system:nodes update shop:secrets=tls", "", false, "can only read resources of this type"},
		{"system:node:n2,system:nodes get shop:secrets=tls", "", false, none},
		{"system:node:n1,system:nodes get shop:configmaps=settings", "", true, ""},
		{"system:node:n2,system:nodes get shop:configmaps=settings", "", false, none},
		{"system:node:n1,system:nodes get shop:persistentvolumeclaims=data", "", true, ""},
		{"system:node:n1,system:nodes get persistentvolumes=pv1", "", true, ""},
		{"system:node:n1,system:nodes get persistentvolumes=pv2", "", false, "no relationship found between node 'n1' and this object"},
		{"system:node:n1,system:nodes create shop:serviceaccounts/token=robot", "", true, ""},
		{"system:node:n1,system:nodes create shop:serviceaccounts/token=boss", "", false, "no relationship found between node 'n1' and this object"},
		{"system:node:n1,system:nodes list pods", "spec.nodeName=n1", true, ""},
		{"system:node:n1,system:nodes list pods", "spec.nodeName=n2", false, "can only list/watch pods with spec.nodeName field selector"},
		{"system:node:n1,system:nodes update shop:pods/status=web", "", true, ""},
		{"system:node:n1,system:nodes create shop:pods/exec=web", "", false, ""},
		{"system:node:n1,system:nodes get nodes=n1", "", true, ""},
		{"system:node:n1,system:nodes get nodes=n2", "", false, "node 'n1' cannot read 'n2', only its own Node object"},
		{"system:node:n1,system:nodes update kube-node-lease:leases.coordination.k8s.io=n1", "", true, ""},
		{"system:node:n1,system:nodes update kube-node-lease:leases.coordination.k8s.io=n2", "", false, "can only access node lease with the same name as the requesting node"},
		{"system:node:n1,system:nodes update default:leases.coordination.k8s.io=n1", "", false, `can only access leases in the "kube-node-lease" system namespace`},
		{"system:node:n1,system:nodes create shop:events", "", true, ""},
		{"system:node:n1,system:nodes list services", "", true, ""},
		{"system:node:n1,system:nodes delete nodes=n1", "", false, ""},
		{"system:node:n1 get nodes=n1", "", false, ""}, // not in the group
	} {
		a := parseQuestion(test.question)
		a.FieldSelector = test.selector
		allowed, reason, err := n.Authorize(t.Context(), a)
		if err != nil || allowed != test.allowed || reason != test.reason {
			t.Errorf("%s (%s): %v %q %v", test.question, test.selector, allowed, reason, err)
		}
	}

	moved := pod.DeepCopy()
	moved.Spec.NodeName = "n3"
	n.OnPod(pod, moved, false)
	n.OnPod(mirror, mirror, true)
	if len(n.pods) != 1 || len(n.pods["n3"]) != 1 {
		t.Errorf("index %v", n.pods)
	}
}

func (m *memory) ResourceSliceNode(name string) (string, error) {
	if name == "mine" {
		return "n1", nil
	}
	return "n2", nil
}

func TestNodeResourceSlices(t *testing.T) {
	nodes := NewNodes(&memory{})
	for _, test := range []struct {
		verb, name, selector string
		allowed              bool
	}{
		{"create", "", "", true}, {"get", "mine", "", true}, {"update", "theirs", "", false}, {"delete", "mine", "", true}, {"patch", "theirs", "", false},
		{"list", "", "spec.nodeName=n1", true}, {"list", "", "", false}, {"deletecollection", "", "spec.nodeName=n2", false},
	} {
		ok, reason, _ := nodes.Authorize(t.Context(), &Attributes{User: &User{Name: "system:node:n1", Groups: []string{GroupNodes}}, Verb: test.verb, Name: test.name,
			Group: "resource.k8s.io", Resource: "resourceslices", ResourceRequest: true, FieldSelector: test.selector})
		if ok != test.allowed {
			t.Errorf("%+v: %t, %s", test, ok, reason)
		}
	}
}
