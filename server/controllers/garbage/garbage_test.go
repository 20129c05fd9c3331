package garbage

import (
	"fmt"
	"slices"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/server/controllers/harness"
	"orch/server/registry"
)

func start(t *testing.T) *harness.Harness {
	h := harness.New(t)
	h.Go(New(h.Registry, harness.Logger(), h.Events).Run)
	return h
}

// ref is a reference that blocks the owner's foreground deletion.
func ref(kind, name string, uid types.UID) metav1.OwnerReference {
	yes := true
	return metav1.OwnerReference{APIVersion: "v1", Kind: kind, Name: name, UID: uid, BlockOwnerDeletion: &yes}
}

func owned(h *harness.Harness, name string, owners ...*corev1.ConfigMap) *corev1.ConfigMap {
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: name}}
	for _, o := range owners {
		m.OwnerReferences = append(m.OwnerReferences, ref("ConfigMap", o.Name, o.UID))
	}
	return harness.Create(h, m)
}

func remove(t *testing.T, h *harness.Harness, name string, policy metav1.DeletionPropagation) {
	t.Helper()
	if err := registry.Of[*corev1.ConfigMap](h.Registry).Delete(h.Context(), harness.Namespace, name, metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil {
		t.Fatal(err)
	}
}

func left(h *harness.Harness, what string, names ...string) {
	harness.WaitAll(h, what, func(all []*corev1.ConfigMap) bool {
		var got []string
		for _, m := range all {
			got = append(got, m.Name)
		}
		return slices.Equal(got, names)
	})
}

func TestBackground(t *testing.T) {
	h := start(t)
	owner, other := owned(h, "owner"), owned(h, "other")
	child := owned(h, "child", owner)
	owned(h, "grandchild", child)
	owned(h, "shared", owner, other)
	remove(t, h, "owner", metav1.DeletePropagationBackground)
	left(h, "all but what has another owner gone", "other", "shared")
	harness.Wait(h, "shared", "one owner left", func(m *corev1.ConfigMap) bool {
		return len(m.OwnerReferences) == 1 && m.OwnerReferences[0].Name == "other"
	})
}

func TestForeground(t *testing.T) {
	h := start(t)
	owner := owned(h, "owner")
	owned(h, "a", owner)
	held := owned(h, "held", owner)
	harness.Change(h, "held", func(m *corev1.ConfigMap) { m.Finalizers = []string{"example.com/hold"} })
	remove(t, h, "owner", metav1.DeletePropagationForeground)
	left(h, "the owner to wait for one that is held", "held", "owner")
	harness.Wait(h, "held", "its deletion", func(m *corev1.ConfigMap) bool { return m.DeletionTimestamp != nil })
	harness.Change(h, held.Name, func(m *corev1.ConfigMap) { m.Finalizers = nil })
	left(h, "all gone")
}

func TestForegroundEndsWhenADependentIsLetGo(t *testing.T) {
	h := start(t)
	owner := owned(h, "owner")
	owned(h, "held", owner)
	harness.Change(h, "held", func(m *corev1.ConfigMap) { m.Finalizers = []string{"example.com/hold"} })
	remove(t, h, "owner", metav1.DeletePropagationForeground)
	harness.Wait(h, "held", "its deletion", func(m *corev1.ConfigMap) bool { return m.DeletionTimestamp != nil })
	harness.Change(h, "held", func(m *corev1.ConfigMap) { m.OwnerReferences = nil })
	left(h, "the owner gone", "held")
}

func TestOrphan(t *testing.T) {
	h := start(t)
	owner := owned(h, "owner")
	for _, name := range []string{"a", "b", "c"} { // the graph may not know them yet
		owned(h, name, owner)
	}
	remove(t, h, "owner", metav1.DeletePropagationOrphan)
	left(h, "the dependents left", "a", "b", "c")
	for _, m := range harness.List[*corev1.ConfigMap](h) {
		if len(m.OwnerReferences) > 0 {
			t.Errorf("%s has owners %v", m.Name, m.OwnerReferences)
		}
	}
}

func TestCircle(t *testing.T) {
	h := start(t)
	a := owned(h, "a")
	b := owned(h, "b", a)
	c := owned(h, "c", b)
	harness.Change(h, "a", func(m *corev1.ConfigMap) { m.OwnerReferences = []metav1.OwnerReference{ref("ConfigMap", "c", c.UID)} })
	remove(t, h, "a", metav1.DeletePropagationForeground)
	left(h, "the circle gone")
}

func TestDoubtfulOwners(t *testing.T) {
	h := start(t)
	with := func(name string, r metav1.OwnerReference) {
		harness.Create(h, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: name, OwnerReferences: []metav1.OwnerReference{r}}})
	}
	owner := owned(h, "owner")
	with("never-was", ref("ConfigMap", "nobody", "u"))
	with("same-name", ref("ConfigMap", "owner", "another-uid"))
	with("unknown-kind", ref("Gadget", "g", "u"))
	harness.Create(h, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "wide", OwnerReferences: []metav1.OwnerReference{ref("ConfigMap", "nobody", "u")}}})
	left(h, "those whose owner is not there gone", owner.Name, "unknown-kind")
	if _, err := registry.Of[*rbacv1.ClusterRole](h.Registry).Get("", "wide"); err != nil {
		t.Errorf("a cluster-wide object with a namespaced owner: %v", err)
	}
}

// TestForeignOwners: an owner in another namespace counts as none, and an event
// says so.
func TestForeignOwners(t *testing.T) {
	h := start(t)
	harness.Create(h, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "elsewhere"}})
	owner := owned(h, "owner")
	refs := []metav1.OwnerReference{ref("ConfigMap", owner.Name, owner.UID)}
	// The collector sees all objects of a kind in order: the owner is known by now.
	harness.Create(h, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "elsewhere", Name: "child", OwnerReferences: refs}})
	harness.WaitEvent(h, fmt.Sprintf(`Warning OwnerRefInvalidNamespace ownerRef [v1/ConfigMap, namespace: elsewhere, name: owner, uid: %s] does not exist in namespace "elsewhere"`, owner.UID))
	harness.Create(h, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "wide", OwnerReferences: refs}})
	harness.WaitEvent(h, fmt.Sprintf(`Warning OwnerRefInvalidNamespace ownerRef [v1/ConfigMap, namespace: , name: owner, uid: %s] does not exist in namespace ""`, owner.UID))
}

// TestUncertainOwners: while one owner's kind is not served nothing is certain,
// so nothing is taken away.
func TestUncertainOwners(t *testing.T) {
	h := start(t)
	owner := owned(h, "owner")
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "child", OwnerReferences: []metav1.OwnerReference{
		ref("ConfigMap", owner.Name, owner.UID), ref("Gadget", "g", "u"),
	}}}
	harness.Create(h, m)
	owned(h, "other", owner)
	remove(t, h, "owner", metav1.DeletePropagationBackground)
	left(h, "the certain one gone", "child")
	if refs := harness.Get[*corev1.ConfigMap](h, "child").OwnerReferences; len(refs) != 2 {
		t.Errorf("owners left: %v", refs)
	}
}

func TestFinishedJobs(t *testing.T) {
	h := harness.New(t)
	h.Run(FinishedJobs(h.Registry, time.Now))
	zero, hour := int32(0), int32(3600)
	for name, ttl := range map[string]*int32{"now": &zero, "later": &hour, "never": nil} {
		template := harness.Template("j")
		template.Spec.RestartPolicy = corev1.RestartPolicyNever
		harness.Create(h, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: name}, Spec: batchv1.JobSpec{TTLSecondsAfterFinished: ttl, Template: template}})
		harness.ChangeStatus(h, name, func(j *batchv1.Job) {
			at := metav1.Now().Rfc3339Copy()
			j.Status.StartTime, j.Status.CompletionTime = &at, &at
			j.Status.Conditions = []batchv1.JobCondition{
				{Type: batchv1.JobSuccessCriteriaMet, Status: corev1.ConditionTrue, LastTransitionTime: at},
				{Type: batchv1.JobComplete, Status: corev1.ConditionTrue, LastTransitionTime: at},
			}
		})
	}
	harness.Wait(h, "now", "its deletion", func(j *batchv1.Job) bool { return j.DeletionTimestamp != nil })
	if j := harness.Get[*batchv1.Job](h, "later"); j.DeletionTimestamp != nil {
		t.Error("one whose time has not come is deleted")
	}
}
