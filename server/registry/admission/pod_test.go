package admission

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"golang.org/x/sync/errgroup"

	"orch/server/registry"
)

func TestNamespaceLifecycle(t *testing.T) {
	r := newRegistry(t, namespaceLifecycle{})
	pods := registry.Of[*corev1.Pod](r)

	p := pod("a")
	p.Namespace = "missing"
	if _, err := pods.Create(t.Context(), p); !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), `namespaces "missing" not found`) {
		t.Errorf("missing namespace: %v", err)
	}
	create(t, r, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	err := registry.Of[*corev1.Namespace](r).Delete(t.Context(), "", "default", metav1.DeleteOptions{})
	wantForbidden(t, err, `namespaces "default" is forbidden: this namespace may not be deleted`)

	// Its finalizer keeps the namespace while it is emptied.
	if err = registry.Of[*corev1.Namespace](r).Delete(t.Context(), "", "ns", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = pods.Create(t.Context(), pod("b"))
	wantForbidden(t, err, `pods "b" is forbidden: unable to create new content in namespace ns because it is being terminated`)
	if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		t.Errorf("no cause in %#v", err)
	}
}

func TestServiceAccount(t *testing.T) {
	r := newRegistry(t, serviceAccount{})
	create(t, r, &corev1.ServiceAccount{
		ObjectMeta:       metav1.ObjectMeta{Namespace: "ns", Name: "default"},
		ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull"}},
	})
	made := create(t, r, pod("a"))
	if made.Spec.ServiceAccountName != "default" || made.Spec.DeprecatedServiceAccount != "default" {
		t.Errorf("account %q %q", made.Spec.ServiceAccountName, made.Spec.DeprecatedServiceAccount)
	}
	if len(made.Spec.ImagePullSecrets) != 1 || made.Spec.ImagePullSecrets[0].Name != "pull" {
		t.Errorf("pull secrets %v", made.Spec.ImagePullSecrets)
	}
	if len(made.Spec.Volumes) != 1 || !strings.HasPrefix(made.Spec.Volumes[0].Name, "kube-api-access-") {
		t.Fatalf("volumes %v", made.Spec.Volumes)
	}
	if got := made.Spec.Volumes[0].Projected; !equality.Semantic.DeepEqual(got, tokenSource()) {
		t.Errorf("token volume %v", got)
	}
	want := corev1.VolumeMount{Name: made.Spec.Volumes[0].Name, ReadOnly: true, MountPath: tokenPath}
	if got := made.Spec.Containers[0].VolumeMounts; len(got) != 1 || !equality.Semantic.DeepEqual(got[0], want) {
		t.Errorf("mounts %v", got)
	}

	without := create(t, r, pod("b", func(p *corev1.Pod) { p.Spec.AutomountServiceAccountToken = ptr.To(false) }))
	if len(without.Spec.Volumes) != 0 {
		t.Errorf("volumes of a pod that wants no token: %v", without.Spec.Volumes)
	}
	_, err := registry.Of[*corev1.Pod](r).Create(t.Context(), pod("c", func(p *corev1.Pod) { p.Spec.ServiceAccountName = "robot" }))
	wantForbidden(t, err, `pods "c" is forbidden: error looking up service account ns/robot: serviceaccount "robot" not found`)
}

// A pod made right after its namespace finds the account that comes a moment later.
func TestServiceAccountWaits(t *testing.T) {
	waiting := make(chan struct{})
	r := newRegistry(t, signal(waiting), serviceAccount{})
	var creating errgroup.Group
	creating.Go(func() error {
		_, err := registry.Of[*corev1.Pod](r).Create(context.Background(), pod("a"))
		return err
	})
	<-waiting
	create(t, r, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "default"}})
	if err := creating.Wait(); err != nil {
		t.Error(err)
	}
}

// signal tells when the first pod is on its way.
type signal chan struct{}

func (s signal) Admit(_ context.Context, a *registry.Attempt) error {
	if newPod(a) != nil {
		close(s)
	}
	return nil
}

func TestPriority(t *testing.T) {
	r := newRegistry(t, podPriority{})
	create(t, r, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "high"}, Value: 1000, PreemptionPolicy: ptr.To(corev1.PreemptNever)})
	for name, test := range map[string]struct {
		class    string
		priority *int32
		want     int32
		policy   corev1.PreemptionPolicy
		refusal  string
	}{
		"none":    {want: 0, policy: corev1.PreemptLowerPriority},
		"class":   {class: "high", want: 1000, policy: corev1.PreemptNever},
		"same":    {class: "high", priority: ptr.To[int32](1000), want: 1000, policy: corev1.PreemptNever},
		"other":   {class: "high", priority: ptr.To[int32](7), refusal: "the integer value of priority (7) must not be provided in pod spec; priority admission controller computed 1000 from the given PriorityClass name"},
		"unknown": {class: "low", refusal: "no PriorityClass with name low was found"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := registry.Of[*corev1.Pod](r).Create(t.Context(), pod(name, func(p *corev1.Pod) {
				p.Spec.PriorityClassName, p.Spec.Priority = test.class, test.priority
			}))
			if test.refusal != "" {
				wantForbidden(t, err, test.refusal)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if *got.Spec.Priority != test.want || *got.Spec.PreemptionPolicy != test.policy {
				t.Errorf("priority %d, policy %s", *got.Spec.Priority, *got.Spec.PreemptionPolicy)
			}
		})
	}
	create(t, r, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "usual"}, Value: 5, GlobalDefault: true})
	if got := create(t, r, pod("default")); got.Spec.PriorityClassName != "usual" || *got.Spec.Priority != 5 {
		t.Errorf("default class gives %q %d", got.Spec.PriorityClassName, *got.Spec.Priority)
	}
	_, err := registry.Of[*schedulingv1.PriorityClass](r).Create(t.Context(), &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "second"}, GlobalDefault: true})
	wantForbidden(t, err, "PriorityClass usual is already marked as default. Only one default can exist")
}

func TestDefaultTolerations(t *testing.T) {
	r := newRegistry(t, defaultTolerations{})
	own := corev1.Toleration{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](5)}
	unreachable := corev1.Toleration{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](30)}
	got := create(t, r, pod("a", func(p *corev1.Pod) { p.Spec.Tolerations = []corev1.Toleration{own} })).Spec.Tolerations
	if !equality.Semantic.DeepEqual(got, []corev1.Toleration{own, unreachable}) {
		t.Errorf("tolerations %v", got)
	}
	all := corev1.Toleration{Operator: corev1.TolerationOpExists}
	got = create(t, r, pod("b", func(p *corev1.Pod) { p.Spec.Tolerations = []corev1.Toleration{all} })).Spec.Tolerations
	if !equality.Semantic.DeepEqual(got, []corev1.Toleration{all}) {
		t.Errorf("tolerations beside a wildcard %v", got)
	}
}

func TestMergeTolerations(t *testing.T) {
	a := corev1.Toleration{Key: "a", Operator: corev1.TolerationOpEqual, Value: "1", Effect: corev1.TaintEffectNoSchedule}
	anyA := corev1.Toleration{Key: "a", Operator: corev1.TolerationOpExists}
	b := corev1.Toleration{Key: "b", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](5)}
	longB := corev1.Toleration{Key: "b", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}
	if got := mergeTolerations([]corev1.Toleration{a, b}, []corev1.Toleration{anyA, a, longB}); !equality.Semantic.DeepEqual(got, []corev1.Toleration{anyA, longB}) {
		t.Errorf("merged %v", got)
	}
}

func TestRuntimeClass(t *testing.T) {
	r := newRegistry(t, runtimeClass{})
	cost := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m")}
	create(t, r, &nodev1.RuntimeClass{
		ObjectMeta: metav1.ObjectMeta{Name: "vm"}, Handler: "vm",
		Overhead:   &nodev1.Overhead{PodFixed: cost},
		Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{"kvm": "yes"}},
	})
	use := func(class string, change func(*corev1.Pod)) (*corev1.Pod, error) {
		return registry.Of[*corev1.Pod](r).Create(t.Context(), pod(class+"-pod", func(p *corev1.Pod) {
			p.Spec.RuntimeClassName = ptr.To(class)
			change(p)
		}))
	}
	_, err := use("none", func(*corev1.Pod) {})
	wantForbidden(t, err, `pod rejected: RuntimeClass "none" not found`)
	_, err = use("vm", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"kvm": "no"} })
	wantForbidden(t, err, "conflict: runtimeClass.scheduling.nodeSelector[kvm] = yes; pod.spec.nodeSelector[kvm] = no")
	got, err := use("vm", func(*corev1.Pod) {})
	if err != nil {
		t.Fatal(err)
	}
	if !equality.Semantic.DeepEqual(got.Spec.Overhead, cost) || got.Spec.NodeSelector["kvm"] != "yes" {
		t.Errorf("overhead %v, selector %v", got.Spec.Overhead, got.Spec.NodeSelector)
	}
	_, err = registry.Of[*corev1.Pod](r).Create(t.Context(), pod("x", func(p *corev1.Pod) { p.Spec.Overhead = cost }))
	wantForbidden(t, err, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
}

func TestDefaultClasses(t *testing.T) {
	r := newRegistry(t, defaultStorageClass{}, defaultIngressClass{})
	claim := func(name string) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		}}
	}
	if got := create(t, r, claim("none")); got.Spec.StorageClassName != nil {
		t.Errorf("class %q without a default", *got.Spec.StorageClassName)
	}
	create(t, r, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "local",
		Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}}, Provisioner: "orch.io/local"})
	if got := create(t, r, claim("some")); ptr.Deref(got.Spec.StorageClassName, "") != "local" {
		t.Errorf("class %v", got.Spec.StorageClassName)
	}
	create(t, r, &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "web",
		Annotations: map[string]string{networkingv1.AnnotationIsDefaultIngressClass: "true"}}, Spec: networkingv1.IngressClassSpec{Controller: "orch.io/web"}})
	ingress := create(t, r, &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "i"}, Spec: networkingv1.IngressSpec{
		DefaultBackend: &networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "s", Port: networkingv1.ServiceBackendPort{Number: 80}}},
	}})
	if ptr.Deref(ingress.Spec.IngressClassName, "") != "web" {
		t.Errorf("ingress class %v", ingress.Spec.IngressClassName)
	}
}

func TestNodeTaintAndTopology(t *testing.T) {
	r := newRegistry(t, nodeTaint{}, topologyLabels{})
	node := create(t, r, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "z"}}})
	want := []corev1.Taint{{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}}
	if !equality.Semantic.DeepEqual(node.Spec.Taints, want) {
		t.Errorf("taints %v", node.Spec.Taints)
	}
	bound := create(t, r, pod("a", func(p *corev1.Pod) { p.Spec.NodeName = "n1" }))
	if bound.Labels[corev1.LabelTopologyZone] != "z" {
		t.Errorf("labels %v", bound.Labels)
	}
}

func TestPodSecurity(t *testing.T) {
	chain, err := Chain(Config{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	var security registry.Admission
	for _, plugin := range chain {
		if p, ok := plugin.(podSecurityStandards); ok {
			security = p
		}
	}
	r := newRegistry(t, security)
	var warnings []string
	ctx := registry.WithWarnings(t.Context(), func(text string) { warnings = append(warnings, text) })
	pods := registry.Of[*corev1.Pod](r)
	hostPod := func(name string) *corev1.Pod {
		return pod(name, func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	}
	create(t, r, hostPod("before"))
	_, err = registry.Of[*corev1.Namespace](r).Mutate(ctx, "", "ns", func(n *corev1.Namespace) error {
		n.Labels["pod-security.kubernetes.io/enforce"] = "baseline"
		n.Labels["pod-security.kubernetes.io/warn"] = "restricted"
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := `existing pods in namespace "ns" violate the new PodSecurity enforce level "baseline:latest"`; len(warnings) != 2 || warnings[0] != want || !strings.HasPrefix(warnings[1], "before: host namespaces") {
		t.Errorf("warnings %q", warnings)
	}
	_, err = pods.Create(ctx, hostPod("after"))
	wantForbidden(t, err, `pods "after" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)`)
	warnings = nil
	if _, err = pods.Create(ctx, pod("plain")); err != nil {
		t.Fatal(err)
	}
	if len(warnings) != 1 || !strings.HasPrefix(warnings[0], `would violate PodSecurity "restricted:latest": allowPrivilegeEscalation != false`) {
		t.Errorf("warnings %q", warnings)
	}
	_, err = registry.Of[*corev1.Namespace](r).Mutate(ctx, "", "ns", func(n *corev1.Namespace) error {
		n.Labels["pod-security.kubernetes.io/enforce"] = "strict"
		return nil
	})
	if !apierrors.IsInvalid(err) {
		t.Errorf("invalid level: %v", err)
	}
}
