package statefulset

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orch/server/controllers/harness"
)

func statefulSet(replicas int32) *appsv1.StatefulSet {
	partition := int32(0)
	return &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "web"},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas, ServiceName: "web", Selector: harness.Selector("web"), Template: harness.Template("web"),
			UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType,
				RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: &partition}},
		},
	}
}

func withClaims(set *appsv1.StatefulSet, whenDeleted, whenScaled appsv1.PersistentVolumeClaimRetentionPolicyType) *appsv1.StatefulSet {
	set.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{
		ObjectMeta: metav1.ObjectMeta{Name: "data"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}}
	set.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: whenDeleted, WhenScaled: whenScaled}
	return set
}

func start(t *testing.T) *harness.Harness {
	h := harness.New(t)
	h.AddNode("node")
	h.Run(Controller(h.Registry, h.Pods, h.Events, time.Now))
	return h
}

func settled(n int32) func(*appsv1.StatefulSet) bool {
	return func(s *appsv1.StatefulSet) bool {
		return s.Status.ObservedGeneration == s.Generation && s.Status.Replicas == n && s.Status.AvailableReplicas == n &&
			s.Status.UpdatedReplicas == n && s.Status.CurrentRevision == s.Status.UpdateRevision
	}
}

func podNames(h *harness.Harness) (names []string) {
	for _, p := range harness.List[*corev1.Pod](h) {
		names = append(names, p.Name)
	}
	return names
}

func TestIdentityAndOrder(t *testing.T) {
	h := start(t)
	set := withClaims(statefulSet(3), appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	set.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: 5}
	harness.Create(h, set)
	harness.WaitAll(h, "the first pod", func(pods []*corev1.Pod) bool { return len(pods) == 1 && pods[0].Name == "web-5" })
	h.Kubelet(nil)
	harness.Wait(h, "web", "three pods", settled(3))
	if got := fmt.Sprint(podNames(h)); got != "[web-5 web-6 web-7]" {
		t.Errorf("pods %s", got)
	}
	p := harness.Get[*corev1.Pod](h, "web-6")
	if p.Labels[appsv1.PodIndexLabel] != "6" || p.Labels[appsv1.StatefulSetPodNameLabel] != "web-6" || p.Labels[appsv1.StatefulSetRevisionLabel] == "" {
		t.Errorf("labels %v", p.Labels)
	}
	if p.Spec.Hostname != "web-6" || p.Spec.Subdomain != "web" || p.Spec.Volumes[0].PersistentVolumeClaim.ClaimName != "data-web-6" {
		t.Errorf("hostname %q, subdomain %q, volumes %v", p.Spec.Hostname, p.Spec.Subdomain, p.Spec.Volumes)
	}
	harness.Change(h, "web", func(s *appsv1.StatefulSet) { *s.Spec.Replicas = 1 })
	harness.Wait(h, "web", "one pod", settled(1))
	harness.WaitAll(h, "all claims kept", func(c []*corev1.PersistentVolumeClaim) bool { return len(c) == 3 && len(c[2].OwnerReferences) == 0 })
	made := h.Events.All()
	for _, want := range []string{
		"Normal SuccessfulCreate Create Claim data-web-5 Pod web-5 in StatefulSet web success",
		"Normal SuccessfulCreate Create Pod web-5 in StatefulSet web successful",
		"Normal SuccessfulDelete Delete Pod web-7 in StatefulSet web successful",
	} {
		if !slices.Contains(made, want) {
			t.Errorf("no event %q in\n%s", want, h.Events)
		}
	}
}

func TestRetention(t *testing.T) {
	h := start(t)
	h.Kubelet(nil)
	harness.Create(h, withClaims(statefulSet(2), appsv1.DeletePersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType))
	set := harness.Wait(h, "web", "two pods", settled(2))
	harness.WaitAll(h, "claims of the set", func(claims []*corev1.PersistentVolumeClaim) bool {
		return len(claims) == 2 && metav1.IsControlledBy(claims[0], set) && metav1.IsControlledBy(claims[1], set)
	})
	pod := harness.Get[*corev1.Pod](h, "web-1")
	harness.Change(h, "web", func(s *appsv1.StatefulSet) { *s.Spec.Replicas = 1 })
	harness.Wait(h, "data-web-1", "a claim of the condemned pod", func(c *corev1.PersistentVolumeClaim) bool { return metav1.IsControlledBy(c, pod) })
	harness.Wait(h, "web", "one pod", settled(1))
	// A new pod of that ordinal waits until its predecessor's claim has gone.
	harness.Change(h, "web", func(s *appsv1.StatefulSet) { *s.Spec.Replicas = 2 })
	harness.Wait(h, "web", "the change seen", func(s *appsv1.StatefulSet) bool { return s.Status.ObservedGeneration == s.Generation })
	if names := podNames(h); len(names) != 1 {
		t.Errorf("pods %v while the old claim is there", names)
	}
	harness.Change(h, "data-web-1", func(c *corev1.PersistentVolumeClaim) { c.Finalizers = nil })
	harness.Delete[*corev1.PersistentVolumeClaim](h, "data-web-1")
	harness.Wait(h, "web", "two pods again", settled(2))
}

func TestRollingUpdate(t *testing.T) {
	h := start(t)
	h.Kubelet(nil)
	set := statefulSet(4)
	*set.Spec.UpdateStrategy.RollingUpdate.Partition = 2
	set.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
	harness.Create(h, set)
	first := harness.Wait(h, "web", "four pods", settled(4))
	harness.Change(h, "web", func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = "orch.local/other" })
	half := harness.Wait(h, "web", "the pods above the partition", func(s *appsv1.StatefulSet) bool {
		return s.Status.UpdatedReplicas == 2 && s.Status.CurrentReplicas == 2 && s.Status.AvailableReplicas == 4
	})
	if half.Status.CurrentRevision != first.Status.CurrentRevision || half.Status.UpdateRevision == half.Status.CurrentRevision {
		t.Errorf("revisions %s and %s, before %s", half.Status.CurrentRevision, half.Status.UpdateRevision, first.Status.CurrentRevision)
	}
	// One below the partition comes back as it was.
	harness.Delete[*corev1.Pod](h, "web-0")
	harness.Wait(h, "web-0", "its successor", func(p *corev1.Pod) bool {
		return p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodRunning && revisionOf(p) == first.Status.CurrentRevision
	})
	harness.Change(h, "web", func(s *appsv1.StatefulSet) { *s.Spec.UpdateStrategy.RollingUpdate.Partition = 0 })
	harness.Wait(h, "web", "all pods", settled(4))
	harness.Change(h, "web", func(s *appsv1.StatefulSet) { s.Spec.Template = first.Spec.Template })
	back := harness.Wait(h, "web", "the rollback", func(s *appsv1.StatefulSet) bool {
		return settled(4)(s) && s.Status.UpdateRevision == first.Status.UpdateRevision
	})
	if newest := harness.Get[*appsv1.ControllerRevision](h, back.Status.UpdateRevision); newest.Revision != 3 {
		t.Errorf("the revision went back to has number %d", newest.Revision)
	}
}

func replica(name, revision string, status *corev1.PodStatus) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: *status}
	identify(p)
	p.Labels[appsv1.StatefulSetRevisionLabel] = revision
	return p
}

func TestReconcile(t *testing.T) {
	running := func(ordinal int, revision string) *corev1.Pod {
		return replica(fmt.Sprintf("web-%d", ordinal), revision, harness.Running())
	}
	unready := func(ordinal int, revision string) *corev1.Pod {
		return replica(fmt.Sprintf("web-%d", ordinal), revision, harness.Unready())
	}
	going := running(1, "new")
	going.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	parallel := func(s *appsv1.StatefulSet) { s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement }
	two := intstr.FromInt32(2)
	for _, c := range []struct {
		name     string
		replicas int32
		change   func(*appsv1.StatefulSet)
		pods     []*corev1.Pod
		create   string
		remove   string
	}{
		{"first only", 3, nil, nil, "[web-0]", "[]"},
		{"all at once", 3, parallel, nil, "[web-0 web-1 web-2]", "[]"},
		{"waits for readiness", 3, nil, []*corev1.Pod{unready(0, "new")}, "[]", "[]"},
		{"fills a gap", 3, nil, []*corev1.Pod{running(0, "new"), running(2, "new")}, "[web-1]", "[]"},
		{"waits for the end", 2, nil, []*corev1.Pod{running(0, "new"), going}, "[]", "[]"},
		{"replaces the failed", 1, nil, []*corev1.Pod{replica("web-0", "new", harness.Failed(1))}, "[]", "[web-0]"},
		{"highest goes first", 1, nil, []*corev1.Pod{running(0, "new"), running(1, "new"), running(2, "new")}, "[]", "[web-2]"},
		{"all go at once", 1, parallel, []*corev1.Pod{running(0, "new"), running(1, "new"), running(2, "new")}, "[]", "[web-2 web-1]"},
		{"a healthy one goes while a lower one is sick", 1, nil, []*corev1.Pod{running(0, "new"), unready(1, "new"), running(2, "new")}, "[]", "[web-2]"},
		{"a sick one waits for a lower sick one", 0, nil, []*corev1.Pod{unready(0, "new"), unready(1, "new")}, "[]", "[]"},
		{"updates from the top", 2, nil, []*corev1.Pod{running(0, "old"), running(1, "old")}, "[]", "[web-1]"},
		{"updates one at a time", 2, nil, []*corev1.Pod{running(0, "old"), unready(1, "new")}, "[]", "[]"},
		{"updates in parallel sets too", 2, parallel, []*corev1.Pod{running(0, "old"), unready(1, "new")}, "[]", "[]"},
		{"updates two", 3, func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = &two },
			[]*corev1.Pod{running(0, "old"), running(1, "old"), running(2, "old")}, "[]", "[web-2 web-1]"},
		{"replaces all broken ones in parallel", 2, parallel, []*corev1.Pod{unready(0, "old"), unready(1, "old")}, "[]", "[web-1 web-0]"},
		{"broken ones first, no others while too many are", 3, parallel, []*corev1.Pod{unready(0, "old"), running(1, "old"), running(2, "old")}, "[]", "[web-0]"},
		{"broken ones and as many as are allowed", 3, func(s *appsv1.StatefulSet) {
			parallel(s)
			s.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = &two
		}, []*corev1.Pod{unready(0, "old"), running(1, "old"), running(2, "old")}, "[]", "[web-0 web-2]"},
		{"broken ones below the partition stay", 2, func(s *appsv1.StatefulSet) {
			parallel(s)
			*s.Spec.UpdateStrategy.RollingUpdate.Partition = 1
		}, []*corev1.Pod{unready(0, "old"), unready(1, "old")}, "[]", "[web-1]"},
		{"an ordered set waits for its broken ones", 2, nil, []*corev1.Pod{unready(0, "old"), unready(1, "old")}, "[]", "[]"},
		{"updates without settings", 2, func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.RollingUpdate = nil },
			[]*corev1.Pod{running(0, "old"), running(1, "old")}, "[]", "[web-1]"},
		{"on delete", 2, func(s *appsv1.StatefulSet) {
			s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
		}, []*corev1.Pod{running(0, "old"), running(1, "old")}, "[]", "[]"},
		{"is being deleted", 2, func(s *appsv1.StatefulSet) { s.DeletionTimestamp = &metav1.Time{Time: time.Now()} }, nil, "[]", "[]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			set := statefulSet(c.replicas)
			if c.change != nil {
				c.change(set)
			}
			template := harness.Template("web")
			plan := Reconcile(time.Now().Add(time.Second), Snapshot{Set: set, Pods: c.pods, Current: Revision{"old", &template}, Update: Revision{"new", &template},
				Claim: func(string) *corev1.PersistentVolumeClaim { return nil }})
			names := func(pods []*corev1.Pod) string {
				out := []string{}
				for _, p := range pods {
					out = append(out, p.Name)
				}
				return fmt.Sprint(out)
			}
			if create, remove := names(plan.Create), names(plan.Delete); create != c.create || remove != c.remove {
				t.Errorf("create %s, delete %s; want %s, %s", create, remove, c.create, c.remove)
			}
		})
	}
}

// TestOnDeleteCompletes: whatever the strategy, an update is complete, and the
// revision the current one, when all pods have it.
func TestOnDeleteCompletes(t *testing.T) {
	set := statefulSet(2)
	set.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
	plan := func(revisions ...string) appsv1.StatefulSetStatus {
		var pods []*corev1.Pod
		for i, r := range revisions {
			pods = append(pods, replica(fmt.Sprintf("web-%d", i), r, harness.Running()))
		}
		return Reconcile(time.Now().Add(time.Second), Snapshot{Set: set, Pods: pods, Current: Revision{"old", nil}, Update: Revision{"new", nil}}).Status
	}
	if s := plan("new", "old"); s.CurrentRevision != "old" || s.CurrentReplicas != 1 || s.UpdatedReplicas != 1 {
		t.Errorf("half-way: %+v", s)
	}
	if s := plan("new", "new"); s.CurrentRevision != "new" || s.CurrentReplicas != 2 || s.UpdatedReplicas != 2 {
		t.Errorf("complete: %+v", s)
	}
}

// TestAnyNumberOfReplicas: a step costs what it does, not what the set asks for.
func TestAnyNumberOfReplicas(t *testing.T) {
	set := statefulSet(math.MaxInt32)
	set.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
	set.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: math.MaxInt32 - 1}
	template := harness.Template("web")
	high := replica(fmt.Sprint("web-", math.MaxInt32), "new", harness.Running())
	plan := Reconcile(time.Now().Add(time.Second), Snapshot{Set: set, Pods: []*corev1.Pod{high}, Current: Revision{"old", &template}, Update: Revision{"new", &template}})
	if n := len(plan.Create); n != maxNew || plan.Create[0].Name != fmt.Sprint("web-", math.MaxInt32-1) {
		t.Errorf("%d pods to make", n)
	}
	if len(plan.Delete) > 0 {
		t.Errorf("deletes %d", len(plan.Delete))
	}
}

// TestNegativeHistory keeps every revision, as upstream, and does not panic.
func TestNegativeHistory(t *testing.T) {
	h := start(t)
	h.Kubelet(nil)
	set := statefulSet(1)
	limit := int32(-1)
	set.Spec.RevisionHistoryLimit = &limit
	harness.Create(h, set)
	harness.Wait(h, "web", "its pod", settled(1))
	for _, image := range []string{"b", "c", "d"} {
		harness.Change(h, "web", func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = image })
		harness.Wait(h, "web", "the update", settled(1))
	}
	if n := len(harness.List[*appsv1.ControllerRevision](h)); n != 4 {
		t.Errorf("%d revisions kept", n)
	}
}
