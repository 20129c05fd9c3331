package admission

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"golang.org/x/sync/errgroup"

	"orch/server/registry"
)

// amounts reads "cpu=1,memory=2Gi".
func amounts(pairs map[corev1.ResourceName]string) corev1.ResourceList {
	list := corev1.ResourceList{}
	for name, text := range pairs {
		list[name] = resource.MustParse(text)
	}
	return list
}

func cpu(text string) corev1.ResourceList {
	return amounts(map[corev1.ResourceName]string{corev1.ResourceCPU: text})
}

func using(requests, limits corev1.ResourceList) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: requests, Limits: limits}
	}
}

func TestLimitRanger(t *testing.T) {
	for name, test := range map[string]struct {
		item    corev1.LimitRangeItem
		pod     func(*corev1.Pod)
		refusal string
	}{
		"min":          {corev1.LimitRangeItem{Type: "Container", Min: cpu("100m")}, using(cpu("50m"), cpu("200m")), "minimum cpu usage per Container is 100m, but request is 50m"},
		"min missing":  {corev1.LimitRangeItem{Type: "Container", Min: cpu("100m")}, using(nil, nil), "minimum cpu usage per Container is 100m.  No request is specified"},
		"max":          {corev1.LimitRangeItem{Type: "Container", Max: cpu("1")}, using(cpu("1"), cpu("2")), "maximum cpu usage per Container is 1, but limit is 2"},
		"max missing":  {corev1.LimitRangeItem{Type: "Pod", Max: cpu("1")}, using(cpu("1"), nil), "maximum cpu usage per Pod is 1.  No limit is specified"},
		"ratio":        {corev1.LimitRangeItem{Type: "Container", MaxLimitRequestRatio: cpu("2")}, using(cpu("1"), cpu("3")), "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000"},
		"fits":         {corev1.LimitRangeItem{Type: "Container", Min: cpu("100m"), Max: cpu("2")}, using(cpu("1"), cpu("2")), ""},
		"pod together": {corev1.LimitRangeItem{Type: "Pod", Max: cpu("1500m")}, using(cpu("1"), cpu("2")), "maximum cpu usage per Pod is 1500m, but limit is 2"},
	} {
		t.Run(name, func(t *testing.T) {
			p := pod("a", test.pod)
			err := checkPod(&corev1.LimitRange{Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{test.item}}}, p)
			if got := fmt.Sprint(err); err == nil && test.refusal != "" || err != nil && got != test.refusal {
				t.Errorf("got %v, want %q", err, test.refusal)
			}
		})
	}
}

func TestLimitRangerDefaults(t *testing.T) {
	r := newRegistry(t, limitRanger{})
	create(t, r, &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "l"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{
		{Type: "Container", Default: cpu("500m"), DefaultRequest: cpu("100m")},
	}}})
	got := create(t, r, pod("a"))
	want := corev1.ResourceRequirements{Requests: cpu("100m"), Limits: cpu("500m")}
	if !equality.Semantic.DeepEqual(got.Spec.Containers[0].Resources, want) {
		t.Errorf("resources %v", got.Spec.Containers[0].Resources)
	}
	if note := got.Annotations["kubernetes.io/limit-ranger"]; note != "LimitRanger plugin set: cpu request for container c; cpu limit for container c" {
		t.Errorf("annotation %q", note)
	}
	claim := &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{Resources: corev1.VolumeResourceRequirements{
		Requests: amounts(map[corev1.ResourceName]string{corev1.ResourceStorage: "10Gi"})}}}
	err := checkClaim(&corev1.LimitRange{Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{
		{Type: "PersistentVolumeClaim", Max: amounts(map[corev1.ResourceName]string{corev1.ResourceStorage: "5Gi"})},
	}}}, claim)
	if fmt.Sprint(err) != "maximum storage usage per PersistentVolumeClaim is 5Gi, but request is 10Gi" {
		t.Errorf("claim: %v", err)
	}
}

// newQuota makes a quota whose status a controller has filled in.
func newQuota(t *testing.T, r *registry.Registry, spec corev1.ResourceQuotaSpec) {
	t.Helper()
	create(t, r, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "q"}, Spec: spec})
	_, err := registry.Of[*corev1.ResourceQuota](r).MutateStatus(t.Context(), "ns", "q", func(q *corev1.ResourceQuota) error {
		used, err := CountQuota(r, q, testTime)
		q.Status = corev1.ResourceQuotaStatus{Hard: q.Spec.Hard, Used: used}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func usedOf(t *testing.T, r *registry.Registry, name corev1.ResourceName) string {
	t.Helper()
	q, err := registry.Of[*corev1.ResourceQuota](r).Get("ns", "q")
	if err != nil {
		t.Fatal(err)
	}
	quantity := q.Status.Used[name]
	return quantity.String()
}

func TestResourceQuota(t *testing.T) {
	r := newRegistry(t, resourceQuota{now})
	newQuota(t, r, corev1.ResourceQuotaSpec{Hard: amounts(map[corev1.ResourceName]string{
		"pods": "2", "requests.cpu": "1", "count/configmaps": "1", "services.nodeports": "1",
	})})
	pods := registry.Of[*corev1.Pod](r)
	if _, err := pods.Create(t.Context(), pod("a", using(cpu("600m"), nil))); err != nil {
		t.Fatal(err)
	}
	if got := usedOf(t, r, "requests.cpu"); got != "600m" {
		t.Errorf("used cpu %s", got)
	}
	_, err := pods.Create(t.Context(), pod("b", using(cpu("500m"), nil)))
	wantForbidden(t, err, `pods "b" is forbidden: exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1`)
	_, err = pods.Create(t.Context(), pod("c"))
	wantForbidden(t, err, `failed quota: q: must specify requests.cpu for: c`)

	maps := registry.Of[*corev1.ConfigMap](r)
	if _, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "m1"}}); err != nil {
		t.Fatal(err)
	}
	_, err = maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "m2"}})
	wantForbidden(t, err, `exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=1, limited: count/configmaps=1`)

	_, err = registry.Of[*corev1.Service](r).Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Name: "a", Port: 80}, {Name: "b", Port: 81}}}})
	wantForbidden(t, err, `exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=0, limited: services.nodeports=1`)
}

// Many at once cannot together exceed a quota.
func TestResourceQuotaConcurrent(t *testing.T) {
	r := newRegistry(t, resourceQuota{now})
	newQuota(t, r, corev1.ResourceQuotaSpec{Hard: amounts(map[corev1.ResourceName]string{"pods": "5"})})
	var group errgroup.Group
	made := make([]bool, 20)
	for i := range made {
		group.Go(func() error {
			_, err := registry.Of[*corev1.Pod](r).Create(context.Background(), pod(fmt.Sprintf("p%d", i)))
			made[i] = err == nil
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, ok := range made {
		if ok {
			count++
		}
	}
	if count != 5 || usedOf(t, r, "pods") != "5" {
		t.Errorf("%d pods made, used %s", count, usedOf(t, r, "pods"))
	}
}

// overtaking recounts the quota while a pod is between its admission and its
// write, as the controller may.
type overtaking struct{ first *atomic.Bool }

func (o overtaking) Admit(ctx context.Context, a *registry.Attempt) error {
	if a.Resource.Plural != "pods" || a.Operation != registry.OperationCreate || o.first.Swap(true) {
		return nil
	}
	_, err := registry.Of[*corev1.ResourceQuota](a.Registry).MutateStatus(ctx, "ns", "q", func(q *corev1.ResourceQuota) error {
		used, err := CountQuota(a.Registry, q, testTime)
		q.Status = corev1.ResourceQuotaStatus{Hard: q.Spec.Hard, Used: used}
		return err
	})
	return err
}

// A recount that does not see a pod which is just being written must not make
// room for one more, however new the quota is.
func TestResourceQuotaRecount(t *testing.T) {
	for _, counted := range []bool{true, false} {
		t.Run(fmt.Sprintf("counted before: %v", counted), func(t *testing.T) {
			r := newRegistry(t, resourceQuota{now}, overtaking{&atomic.Bool{}})
			spec := corev1.ResourceQuotaSpec{Hard: amounts(map[corev1.ResourceName]string{"pods": "1"})}
			if counted {
				newQuota(t, r, spec)
			} else {
				create(t, r, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "q"}, Spec: spec})
			}
			pods := registry.Of[*corev1.Pod](r)
			if _, err := pods.Create(t.Context(), pod("a")); err != nil {
				t.Fatal(err)
			}
			if got := usedOf(t, r, "pods"); got != "1" {
				t.Errorf("used are %s of 1", got)
			}
			_, err := pods.Create(t.Context(), pod("b"))
			wantForbidden(t, err, "exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1")
		})
	}
}

// What is refused after its admission is not charged.
func TestResourceQuotaRefused(t *testing.T) {
	r := newRegistry(t, resourceQuota{now})
	newQuota(t, r, corev1.ResourceQuotaSpec{Hard: amounts(map[corev1.ResourceName]string{"pods": "3"})})
	pods := registry.Of[*corev1.Pod](r)
	if _, err := pods.Create(t.Context(), pod("a")); err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Create(t.Context(), pod("a")); !apierrors.IsAlreadyExists(err) {
		t.Errorf("made twice: %v", err)
	}
	if got := usedOf(t, r, "pods"); got != "1" {
		t.Errorf("used are %s", got)
	}
}

func TestQuotaScopes(t *testing.T) {
	best, burst := pod("best"), pod("burst", using(cpu("1"), nil))
	deadline := pod("deadline", func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = ptr.To[int64](5) })
	high := pod("high", func(p *corev1.Pod) { p.Spec.PriorityClassName = "high" })
	priority := func(op corev1.ScopeSelectorOperator, values ...string) corev1.ResourceQuotaSpec {
		return corev1.ResourceQuotaSpec{ScopeSelector: &corev1.ScopeSelector{MatchExpressions: []corev1.ScopedResourceSelectorRequirement{
			{ScopeName: corev1.ResourceQuotaScopePriorityClass, Operator: op, Values: values},
		}}}
	}
	scopes := func(s ...corev1.ResourceQuotaScope) corev1.ResourceQuotaSpec {
		return corev1.ResourceQuotaSpec{Scopes: s}
	}
	for i, test := range []struct {
		spec corev1.ResourceQuotaSpec
		in   []*corev1.Pod
		out  []*corev1.Pod
	}{
		{scopes(corev1.ResourceQuotaScopeBestEffort), []*corev1.Pod{best, deadline}, []*corev1.Pod{burst}},
		{scopes(corev1.ResourceQuotaScopeNotBestEffort), []*corev1.Pod{burst}, []*corev1.Pod{best}},
		{scopes(corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeBestEffort), []*corev1.Pod{deadline}, []*corev1.Pod{best, burst}},
		{scopes(corev1.ResourceQuotaScopeNotTerminating), []*corev1.Pod{best, burst}, []*corev1.Pod{deadline}},
		{priority(corev1.ScopeSelectorOpIn, "high"), []*corev1.Pod{high}, []*corev1.Pod{best}},
		{priority(corev1.ScopeSelectorOpNotIn, "high"), []*corev1.Pod{best}, []*corev1.Pod{high}},
		{priority(corev1.ScopeSelectorOpExists), []*corev1.Pod{high}, []*corev1.Pod{best}},
	} {
		quota := &corev1.ResourceQuota{Spec: test.spec}
		for _, p := range test.in {
			if !podQuota().inScope(quota, p) {
				t.Errorf("%d: %s is not in scope", i, p.Name)
			}
		}
		for _, p := range test.out {
			if podQuota().inScope(quota, p) {
				t.Errorf("%d: %s is in scope", i, p.Name)
			}
		}
	}
}
