package deployment

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orch/server/controllers/harness"
	"orch/server/controllers/replicaset"
)

var start = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func deployment(replicas int32, surge, unavailable string) *appsv1.Deployment {
	s, u := intstr.Parse(surge), intstr.Parse(unavailable)
	deadline, limit := int32(600), int32(10)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "web", UID: "d", Generation: 1},
		Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: harness.Selector("web"), Template: harness.Template("web"),
			ProgressDeadlineSeconds: &deadline, RevisionHistoryLimit: &limit,
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &s, MaxUnavailable: &u}}},
	}
}

// set makes version n of a deployment's sets; version 0 has its present template.
func set(d *appsv1.Deployment, name string, replicas, available int32, age int) *appsv1.ReplicaSet {
	rs := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: d.Namespace, Name: name, CreationTimestamp: metav1.NewTime(start.Add(-time.Duration(age) * time.Hour)),
			Annotations: map[string]string{revisionAnnotation: strconv.Itoa(10 - age)}},
		Spec:   appsv1.ReplicaSetSpec{Replicas: &replicas, Template: *d.Spec.Template.DeepCopy()},
		Status: appsv1.ReplicaSetStatus{Replicas: replicas, ReadyReplicas: available, AvailableReplicas: available},
	}
	if age > 0 {
		rs.Spec.Template.Spec.Containers[0].Image = fmt.Sprint("v", age)
	}
	setReplicasAnnotations(d, rs)
	return rs
}

func sizes(sets []*appsv1.ReplicaSet, plan Plan) string {
	var out []string
	for _, rs := range sets {
		n := *rs.Spec.Replicas
		for _, s := range plan.Scale {
			if s.Set == rs {
				n = s.Replicas
			}
		}
		out = append(out, fmt.Sprintf("%s=%d", rs.Name, n))
	}
	return strings.Join(out, " ")
}

// TestProportional has upstream's cases of scaling in the middle of a rollout.
func TestProportional(t *testing.T) {
	for _, c := range []struct {
		from, to int32
		sets     string // newest first; "-" when there is no current set
		want     string
	}{
		{10, 12, "10", "v0=12"},
		{10, 5, "10", "v0=5"},
		{5, 10, "2 3", "v0=4 v1=6"},
		{5, 3, "2 3", "v0=1 v1=2"},
		{9, 4, "8 1", "v0=4 v1=0"},
		{7, 10, "2 3 2", "v0=3 v1=4 v2=3"},
		{13, 8, "2 8 3", "v0=1 v1=5 v2=2"},
		{3, 4, "1 1 1", "v0=2 v1=1 v2=1"},
		{3, 2, "1 1 1", "v0=1 v1=1 v2=0"},
		{4, 5, "- 2 2", "v1=3 v2=2"},
		{6, 0, "3 2 1", "v0=0 v1=0 v2=0"},
		{4, 6, "- 0 4", "v1=0 v2=6"},
		{0, 3, "- 0 0", "v1=3 v2=0"},
	} {
		t.Run(fmt.Sprintf("%d to %d of %s", c.from, c.to, c.sets), func(t *testing.T) {
			d := deployment(c.from, "0", "0")
			var sets []*appsv1.ReplicaSet
			for age, size := range strings.Fields(c.sets) {
				if n, err := strconv.Atoi(size); err == nil {
					sets = append(sets, set(d, fmt.Sprint("v", age), int32(n), 0, age))
				}
			}
			*d.Spec.Replicas = c.to
			plan := Reconcile(start, Snapshot{Deployment: d, Sets: sets})
			if c.from == 0 { // nothing is active: only a paused one scales without a rollout
				d.Spec.Paused = true
				plan = Reconcile(start, Snapshot{Deployment: d, Sets: sets})
			}
			if got := sizes(sets, plan); got != c.want || plan.Create != nil {
				t.Errorf("%s, want %s (create: %v)", got, c.want, plan.Create != nil)
			}
		})
	}
}

// TestRollKeepsItsBounds rolls with pods that come up in any order, and looks at
// the number of pods after each step.
func TestRollKeepsItsBounds(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for round := range 200 {
		want := int32(random.IntN(12) + 1)
		d := deployment(want, fmt.Sprint(random.IntN(4)), fmt.Sprint(random.IntN(4)))
		old, current := set(d, "old", want, want, 1), set(d, "new", 0, 0, 0)
		surge, unavailable := bounds(d)
		sets := []*appsv1.ReplicaSet{old, current}
		for step := 0; ; step++ {
			plan := Reconcile(start, Snapshot{Deployment: d, Sets: sets})
			for _, s := range plan.Scale {
				*s.Set.Spec.Replicas = s.Replicas
			}
			if n := total(sets); n > want+surge {
				t.Fatalf("round %d: %d pods of %d with surge %d", round, n, want, surge)
			}
			for _, rs := range sets { // removed pods are gone at once, the available ones last
				rs.Status.Replicas = *rs.Spec.Replicas
				rs.Status.AvailableReplicas = min(rs.Status.AvailableReplicas, *rs.Spec.Replicas)
			}
			if n := old.Status.AvailableReplicas + current.Status.AvailableReplicas; n < want-unavailable {
				t.Fatalf("round %d: %d available of %d with %d unavailable", round, n, want, unavailable)
			}
			if *old.Spec.Replicas == 0 && current.Status.AvailableReplicas == want {
				break
			}
			if step > 200 {
				t.Fatalf("round %d: no end; old %d, new %d", round, *old.Spec.Replicas, *current.Spec.Replicas)
			}
			if missing := *current.Spec.Replicas - current.Status.AvailableReplicas; missing > 0 && random.IntN(2) == 0 {
				current.Status.AvailableReplicas++
			}
		}
	}
}

func TestReconcile(t *testing.T) {
	recreate := func(d *appsv1.Deployment) {
		d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	}
	d := deployment(4, "1", "1")
	for _, c := range []struct {
		name    string
		change  func(*appsv1.Deployment)
		sets    []*appsv1.ReplicaSet
		oldPods bool
		create  int32 // replicas of a new set; -1: none
		want    string
	}{
		{"first", nil, nil, false, 4, ""},
		{"a new template", nil, []*appsv1.ReplicaSet{set(d, "old", 4, 4, 1)}, false, 1, "old=4"},
		{"room for the new", nil, []*appsv1.ReplicaSet{set(d, "old", 3, 3, 1), set(d, "new", 1, 0, 0)}, false, -1, "old=3 new=2"},
		{"unhealthy go first", nil, []*appsv1.ReplicaSet{set(d, "older", 2, 0, 2), set(d, "old", 2, 2, 1), set(d, "new", 1, 1, 0)}, false, -1, "older=0 old=2 new=1"},
		{"waits for the new", nil, []*appsv1.ReplicaSet{set(d, "old", 3, 3, 1), set(d, "new", 2, 0, 0)}, false, -1, "old=3 new=2"},
		{"too many", nil, []*appsv1.ReplicaSet{set(d, "new", 6, 6, 0)}, false, -1, "new=4"},
		{"paused", func(d *appsv1.Deployment) { d.Spec.Paused = true }, []*appsv1.ReplicaSet{set(d, "old", 4, 4, 1)}, false, -1, "old=4"},
		{"recreate: first down", recreate, []*appsv1.ReplicaSet{set(d, "old", 4, 4, 1)}, true, -1, "old=0"},
		{"recreate: then wait", recreate, []*appsv1.ReplicaSet{set(d, "old", 0, 0, 1)}, true, -1, "old=0"},
		{"recreate: then up", recreate, []*appsv1.ReplicaSet{set(d, "old", 0, 0, 1)}, false, 4, "old=0"},
		{"recreate: back again", recreate, []*appsv1.ReplicaSet{set(d, "old", 0, 0, 1), set(d, "new", 0, 0, 0)}, false, -1, "old=0 new=4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := deployment(4, "1", "1")
			if c.change != nil {
				c.change(d)
			}
			plan := Reconcile(start, Snapshot{Deployment: d, Sets: c.sets, OldPods: func([]*appsv1.ReplicaSet) bool { return c.oldPods }})
			create := int32(-1)
			if plan.Create != nil {
				create = *plan.Create.Spec.Replicas
			}
			if got := sizes(c.sets, plan); got != c.want || create != c.create {
				t.Errorf("%q and a new one of %d; want %q and %d", got, create, c.want, c.create)
			}
		})
	}
}

func TestRollbackRemembersRevisions(t *testing.T) {
	d := deployment(1, "1", "0")
	current, other := set(d, "current", 0, 0, 0), set(d, "other", 1, 1, 1)
	current.Annotations[revisionAnnotation], other.Annotations[revisionAnnotation] = "1", "2"
	plan := Reconcile(start, Snapshot{Deployment: d, Sets: []*appsv1.ReplicaSet{current, other}})
	if len(plan.Annotate) != 1 || plan.Revision != "3" {
		t.Fatalf("annotates %d sets, revision %q", len(plan.Annotate), plan.Revision)
	}
	if a := plan.Annotate[0].Annotations; a[revisionAnnotation] != "3" || a[historyAnnotation] != "1" {
		t.Errorf("annotations %v", a)
	}
	if got := remember(strings.Repeat("12345,", 400)+"7", "8"); len(got) > maxHistory || !strings.HasSuffix(got, ",7,8") {
		t.Errorf("history of %d characters ends with %s", len(got), got[len(got)-5:])
	}
}

func TestProgress(t *testing.T) {
	condition := func(d *appsv1.Deployment, reason string, age time.Duration) {
		setCondition(&d.Status, appsv1.DeploymentProgressing, corev1.ConditionTrue, reason, "", start.Add(-age))
	}
	for _, c := range []struct {
		name   string
		change func(*appsv1.Deployment)
		sets   func(*appsv1.Deployment) []*appsv1.ReplicaSet
		want   string // reason
		again  time.Duration
	}{
		{"a new set", nil, nil, reasonCreated, 601 * time.Second},
		{"complete", func(d *appsv1.Deployment) { condition(d, reasonUpdated, time.Minute) }, func(d *appsv1.Deployment) []*appsv1.ReplicaSet {
			return []*appsv1.ReplicaSet{set(d, "new", 2, 2, 0)}
		}, reasonAvailable, 0},
		{"some progress", func(d *appsv1.Deployment) { condition(d, reasonUpdated, time.Minute) }, func(d *appsv1.Deployment) []*appsv1.ReplicaSet {
			return []*appsv1.ReplicaSet{set(d, "new", 2, 1, 0)}
		}, reasonUpdated, 601 * time.Second},
		{"none, in time", func(d *appsv1.Deployment) {
			condition(d, reasonCreated, time.Minute)
			d.Status.UpdatedReplicas, d.Status.Replicas = 2, 2
		},
			func(d *appsv1.Deployment) []*appsv1.ReplicaSet { return []*appsv1.ReplicaSet{set(d, "new", 2, 0, 0)} }, reasonCreated, 541 * time.Second},
		{"none, too late", func(d *appsv1.Deployment) {
			condition(d, reasonCreated, time.Hour)
			d.Status.UpdatedReplicas, d.Status.Replicas = 2, 2
		},
			func(d *appsv1.Deployment) []*appsv1.ReplicaSet { return []*appsv1.ReplicaSet{set(d, "new", 2, 0, 0)} }, reasonTimedOut, 0},
		{"lost pods after the end", func(d *appsv1.Deployment) {
			condition(d, reasonAvailable, time.Hour)
			d.Status.UpdatedReplicas, d.Status.Replicas = 2, 2
		},
			func(d *appsv1.Deployment) []*appsv1.ReplicaSet { return []*appsv1.ReplicaSet{set(d, "new", 2, 0, 0)} }, reasonAvailable, 0},
		{"paused", func(d *appsv1.Deployment) { condition(d, reasonUpdated, time.Hour); d.Spec.Paused = true }, nil, reasonPaused, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := deployment(2, "1", "0")
			if c.change != nil {
				c.change(d)
			}
			s := Snapshot{Deployment: d}
			if c.sets != nil {
				s.Sets = c.sets(d)
			}
			plan := Reconcile(start, s)
			if got := findCondition(&plan.Status, appsv1.DeploymentProgressing).Reason; got != c.want || plan.Again != c.again {
				t.Errorf("reason %s, again in %s; want %s, %s", got, plan.Again, c.want, c.again)
			}
			d.Status = plan.Status
			if again := Reconcile(start, s); plan.Create == nil && !equality.Semantic.DeepEqual(again.Status, plan.Status) {
				t.Errorf("a second look gives\n%+v, the first\n%+v", again.Status, plan.Status)
			}
		})
	}
}

func TestFailureOfASetShows(t *testing.T) {
	d := deployment(2, "1", "0")
	rs := set(d, "new", 2, 0, 0)
	rs.Status.Conditions = []appsv1.ReplicaSetCondition{{Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: "no quota", LastTransitionTime: metav1.NewTime(start)}}
	d.Status = statusOf(d, []*appsv1.ReplicaSet{rs}, start)
	if c := findCondition(&d.Status, appsv1.DeploymentReplicaFailure); c == nil || c.Message != "no quota" {
		t.Fatalf("condition %+v", c)
	}
	if again := statusOf(d, []*appsv1.ReplicaSet{rs}, start.Add(time.Hour)); !equality.Semantic.DeepEqual(again, d.Status) {
		t.Errorf("a later look changes it to %+v", again)
	}
	refused := withFailure(d, d.Status, "web-1", errors.New("full"), start)
	if c := findCondition(&refused, appsv1.DeploymentProgressing); c.Reason != reasonRefused || c.Message != `Failed to create new replica set "web-1": full` {
		t.Errorf("condition %+v", c)
	}
}

func run(t *testing.T, behave func(*corev1.Pod) *corev1.PodStatus) *harness.Harness {
	h := harness.New(t)
	h.AddNode("node")
	h.Run(Controller(h.Registry, h.Pods, h.Events, time.Now), replicaset.Controller(h.Registry, h.Pods, h.Events, time.Now))
	h.Kubelet(behave)
	return h
}

func rolledOut(n int32) func(*appsv1.Deployment) bool {
	return func(d *appsv1.Deployment) bool {
		c := findCondition(&d.Status, appsv1.DeploymentProgressing)
		return d.Status.ObservedGeneration == d.Generation && complete(d, &d.Status) && d.Status.Replicas == n && c != nil && c.Reason == reasonAvailable
	}
}

func TestRolloutUndoAndScale(t *testing.T) {
	for _, strategy := range []appsv1.DeploymentStrategyType{appsv1.RollingUpdateDeploymentStrategyType, appsv1.RecreateDeploymentStrategyType} {
		t.Run(string(strategy), func(t *testing.T) {
			h := run(t, nil)
			d := deployment(3, "1", "0")
			d.UID, d.Generation = "", 0
			if d.Spec.Strategy.Type = strategy; strategy == appsv1.RecreateDeploymentStrategyType {
				d.Spec.Strategy.RollingUpdate = nil
			}
			harness.Create(h, d)
			first := harness.Wait(h, "web", "three pods", rolledOut(3))
			harness.Change(h, "web", func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "orch.local/other" })
			harness.Wait(h, "web", "the rollout", func(d *appsv1.Deployment) bool { return rolledOut(3)(d) && d.Annotations[revisionAnnotation] == "2" })
			harness.Change(h, "web", func(d *appsv1.Deployment) { d.Spec.Template = first.Spec.Template })
			harness.Wait(h, "web", "the rollback", func(d *appsv1.Deployment) bool { return rolledOut(3)(d) && d.Annotations[revisionAnnotation] == "3" })
			harness.Change(h, "web", func(d *appsv1.Deployment) { *d.Spec.Replicas = 5 })
			harness.Wait(h, "web", "five pods", rolledOut(5))
			harness.Change(h, "web", func(d *appsv1.Deployment) { *d.Spec.Replicas, *d.Spec.RevisionHistoryLimit = 0, 0 })
			harness.Wait(h, "web", "no pods", rolledOut(0))
			harness.WaitAll(h, "only the current set", func(all []*appsv1.ReplicaSet) bool { return len(all) == 1 })
			if !h.Events.Has("Normal ScalingReplicaSet Scaled up replica set web-") || !h.Events.Has("from 3 to 5") {
				t.Errorf("events:\n%s", h.Events)
			}
		})
	}
}

func TestStuckRolloutKeepsOldPods(t *testing.T) {
	h := run(t, func(p *corev1.Pod) *corev1.PodStatus {
		if p.Spec.Containers[0].Image == "bad" {
			return harness.Unready()
		}
		return harness.Running()
	})
	d := deployment(3, "1", "0")
	d.UID, d.Generation = "", 0
	*d.Spec.ProgressDeadlineSeconds = 1
	harness.Create(h, d)
	harness.Wait(h, "web", "three pods", rolledOut(3))
	harness.Change(h, "web", func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "bad" })
	stuck := harness.Wait(h, "web", "the deadline", func(d *appsv1.Deployment) bool {
		c := findCondition(&d.Status, appsv1.DeploymentProgressing)
		return c.Reason == reasonTimedOut && c.Status == corev1.ConditionFalse && d.Status.UpdatedReplicas == 1
	})
	if stuck.Status.AvailableReplicas != 3 {
		t.Errorf("status %+v", stuck.Status)
	}
	harness.Change(h, "web", func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "good" })
	harness.Wait(h, "web", "the repair", rolledOut(3))
}
