package job

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/server/controllers/harness"
)

func ptr[T any](v T) *T { return &v }

func newJob(change ...func(*batchv1.JobSpec)) *batchv1.Job {
	template := harness.Template("j")
	template.Spec.RestartPolicy = corev1.RestartPolicyNever
	j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "j"}, Spec: batchv1.JobSpec{Template: template}}
	for _, c := range change {
		c(&j.Spec)
	}
	return j
}

func start(t *testing.T, behave func(*corev1.Pod) *corev1.PodStatus) *harness.Harness {
	h := harness.New(t)
	h.AddNode("node")
	h.Run(Controller(h.Registry, h.Pods, h.Events, time.Now), Orphans(h.Registry, h.Pods))
	h.Kubelet(behave)
	return h
}

func succeed(*corev1.Pod) *corev1.PodStatus { return harness.Succeeded() }

func is(kind batchv1.JobConditionType) func(*batchv1.Job) bool {
	return func(j *batchv1.Job) bool { return holds(j.Status.Conditions, kind) != nil }
}

func parallel(completions, parallelism int32) func(*batchv1.JobSpec) {
	return func(s *batchv1.JobSpec) { s.Completions, s.Parallelism = &completions, &parallelism }
}

func byIndex(completions, parallelism int32) func(*batchv1.JobSpec) {
	return func(s *batchv1.JobSpec) {
		parallel(completions, parallelism)(s)
		s.CompletionMode = ptr(batchv1.IndexedCompletion)
	}
}

func conditions(j *batchv1.Job) string {
	var out []string
	for _, c := range j.Status.Conditions {
		out = append(out, fmt.Sprintf("%s=%s/%s", c.Type, c.Status, c.Reason))
	}
	return strings.Join(out, " ")
}

func TestRunsToCompletion(t *testing.T) {
	for _, c := range []struct {
		name string
		spec func(*batchv1.JobSpec)
		want int32
	}{
		{"once", func(*batchv1.JobSpec) {}, 1},
		{"five, two at a time", parallel(5, 2), 5},
		{"by index", byIndex(5, 3), 5},
		{"a work queue", func(s *batchv1.JobSpec) { s.Parallelism = ptr(int32(3)) }, 3},
		{"nothing", parallel(0, 1), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := start(t, succeed)
			harness.Create(h, newJob(c.spec))
			j := harness.Wait(h, "j", "completion", is(batchv1.JobComplete))
			s := j.Status
			if s.Succeeded != c.want || s.Failed != 0 || s.Active != 0 || s.CompletionTime == nil || s.StartTime == nil {
				t.Errorf("status %+v", s)
			}
			if got := conditions(j); got != "SuccessCriteriaMet=True/CompletionsReached Complete=True/CompletionsReached" {
				t.Errorf("conditions %s", got)
			}
			for _, p := range harness.List[*corev1.Pod](h) {
				if tracked(p) {
					t.Errorf("pod %s kept its finalizer", p.Name)
				}
			}
		})
	}
}

func TestIndexedPods(t *testing.T) {
	h := start(t, succeed)
	harness.Create(h, newJob(byIndex(3, 3)))
	j := harness.Wait(h, "j", "completion", is(batchv1.JobComplete))
	if j.Status.CompletedIndexes != "0-2" {
		t.Errorf("completed indexes %q", j.Status.CompletedIndexes)
	}
	for i, p := range harness.List[*corev1.Pod](h) {
		want := fmt.Sprint(i)
		if p.Labels[batchv1.JobCompletionIndexAnnotation] != want || p.Annotations[batchv1.JobCompletionIndexAnnotation] != want ||
			p.Spec.Hostname != "j-"+want || !strings.HasPrefix(p.Name, "j-"+want+"-") || p.Spec.Containers[0].Env[0].Name != completionIndexEnv {
			t.Errorf("pod %d: %s %v %v %s", i, p.Name, p.Labels, p.Annotations, p.Spec.Hostname)
		}
	}
}

func TestFailures(t *testing.T) {
	fail := func(*corev1.Pod) *corev1.PodStatus { return harness.Failed(42) }
	rule := func(action batchv1.PodFailurePolicyAction) *batchv1.PodFailurePolicy {
		return &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{Action: action,
			OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{42}}}}}
	}
	odd := func(p *corev1.Pod) *corev1.PodStatus {
		if indexOf(p)%2 == 1 {
			return harness.Failed(1)
		}
		return harness.Succeeded()
	}
	for _, c := range []struct {
		name          string
		behave        func(*corev1.Pod) *corev1.PodStatus
		spec          []func(*batchv1.JobSpec)
		conditions    string
		failedIndexes string
		message       string
	}{
		{"backoff limit", fail, []func(*batchv1.JobSpec){func(s *batchv1.JobSpec) { s.BackoffLimit = ptr(int32(0)) }},
			"FailureTarget=True/BackoffLimitExceeded Failed=True/BackoffLimitExceeded", "", "Job has reached the specified backoff limit"},
		{"policy fails the job", fail, []func(*batchv1.JobSpec){func(s *batchv1.JobSpec) { s.PodFailurePolicy = rule(batchv1.PodFailurePolicyActionFailJob) }},
			"FailureTarget=True/PodFailurePolicy Failed=True/PodFailurePolicy", "", "failed with exit code 42 matching FailJob rule at index 0"},
		{"per index", odd, []func(*batchv1.JobSpec){byIndex(4, 4), func(s *batchv1.JobSpec) { s.BackoffLimitPerIndex = ptr(int32(0)) }},
			"FailureTarget=True/FailedIndexes Failed=True/FailedIndexes", "1,3", "Job has failed indexes"},
		{"too many indexes", fail, []func(*batchv1.JobSpec){byIndex(4, 4), func(s *batchv1.JobSpec) {
			s.BackoffLimitPerIndex, s.MaxFailedIndexes = ptr(int32(0)), ptr(int32(1))
		}}, "FailureTarget=True/MaxFailedIndexesExceeded Failed=True/MaxFailedIndexesExceeded", "", ""},
		{"policy fails an index", fail, []func(*batchv1.JobSpec){byIndex(1, 1), func(s *batchv1.JobSpec) {
			s.BackoffLimitPerIndex, s.PodFailurePolicy = ptr(int32(5)), rule(batchv1.PodFailurePolicyActionFailIndex)
		}}, "FailureTarget=True/FailedIndexes Failed=True/FailedIndexes", "0", ""},
		{"success policy", odd, []func(*batchv1.JobSpec){byIndex(4, 4), func(s *batchv1.JobSpec) {
			s.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: ptr("0,2")}}}
		}}, "SuccessCriteriaMet=True/SuccessPolicy Complete=True/SuccessPolicy", "", "Matched rules at index 0"},
		{"deadline", func(*corev1.Pod) *corev1.PodStatus { return harness.Running() }, []func(*batchv1.JobSpec){func(s *batchv1.JobSpec) { s.ActiveDeadlineSeconds = ptr(int64(1)) }},
			"FailureTarget=True/DeadlineExceeded Failed=True/DeadlineExceeded", "", "Job was active longer than specified deadline"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := start(t, c.behave)
			harness.Create(h, newJob(c.spec...))
			j := harness.Wait(h, "j", "its end", func(j *batchv1.Job) bool { return finished(j) != nil })
			if got := conditions(j); got != c.conditions {
				t.Errorf("conditions %s, want %s", got, c.conditions)
			}
			if c.failedIndexes != "" && (j.Status.FailedIndexes == nil || *j.Status.FailedIndexes != c.failedIndexes) {
				t.Errorf("failed indexes %v, want %s", j.Status.FailedIndexes, c.failedIndexes)
			}
			if end := finished(j); !strings.Contains(end.Message, c.message) {
				t.Errorf("message %q", end.Message)
			}
			if u := j.Status.UncountedTerminatedPods; j.Status.Active != 0 || *j.Status.Terminating != 0 || len(u.Failed)+len(u.Succeeded) > 0 {
				t.Errorf("status %+v", j.Status)
			}
		})
	}
}

func TestSuspendAndResume(t *testing.T) {
	h := start(t, nil)
	harness.Create(h, newJob(parallel(2, 2)))
	harness.Wait(h, "j", "two pods", func(j *batchv1.Job) bool { return j.Status.Active == 2 && *j.Status.Ready == 2 })
	harness.Change(h, "j", func(j *batchv1.Job) { j.Spec.Suspend = ptr(true) })
	harness.WaitAll(h, "no pods", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
	j := harness.Wait(h, "j", "suspension", func(j *batchv1.Job) bool {
		return is(batchv1.JobSuspended)(j) && j.Status.Active == 0 && *j.Status.Terminating == 0 && j.Status.StartTime == nil
	})
	if j.Status.Failed != 0 {
		t.Errorf("%d pods count as failed", j.Status.Failed)
	}
	harness.Change(h, "j", func(j *batchv1.Job) { j.Spec.Suspend = ptr(false) })
	harness.Wait(h, "j", "two pods again", func(j *batchv1.Job) bool { return j.Status.Active == 2 && j.Status.StartTime != nil })
	for _, e := range []string{"Normal Suspended Job suspended", "Normal Resumed Job resumed"} {
		if !slices.Contains(h.Events.All(), e) {
			t.Errorf("no event %q in\n%s", e, h.Events)
		}
	}
}

func TestOrphansLoseTheirFinalizer(t *testing.T) {
	h := start(t, nil)
	harness.Create(h, newJob())
	harness.Wait(h, "j", "a pod", func(j *batchv1.Job) bool { return j.Status.Active == 1 })
	harness.Delete[*batchv1.Job](h, "j")
	harness.WaitAll(h, "a pod without finalizer", func(pods []*corev1.Pod) bool { return len(pods) == 1 && !tracked(pods[0]) })
}

func pod(name string, status *corev1.PodStatus, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Finalizers: []string{batchv1.JobTrackingFinalizer}}, Status: *status}
	for _, c := range change {
		c(p)
	}
	return p
}

// TestExactCounting walks through a crash after each write of the accounting.
func TestExactCounting(t *testing.T) {
	j := newJob(parallel(2, 2))
	j.Spec.BackoffLimit = ptr(int32(6))
	good, bad := pod("good", harness.Succeeded()), pod("bad", harness.Failed(1))
	now := time.Now()
	first := Reconcile(now, Snapshot{Job: j, Pods: []*corev1.Pod{good, bad}})
	uncounted := func(s batchv1.JobStatus) string {
		return fmt.Sprintf("%v %v counted %d %d", s.UncountedTerminatedPods.Succeeded, s.UncountedTerminatedPods.Failed, s.Succeeded, s.Failed)
	}
	if got := uncounted(first.Status); got != "[good] [bad] counted 0 0" || len(first.Untrack) != 2 {
		t.Fatalf("first look: %s, finalizers of %d pods", got, len(first.Untrack))
	}
	// The status was written, no finalizer was removed.
	j.Status = first.Status
	again := Reconcile(now, Snapshot{Job: j, Pods: []*corev1.Pod{good, bad}})
	if got := uncounted(again.Status); got != "[good] [bad] counted 0 0" || len(again.Untrack) != 2 {
		t.Fatalf("second look: %s, finalizers of %d pods", got, len(again.Untrack))
	}
	// One finalizer was removed.
	good = pod("good", harness.Succeeded(), func(p *corev1.Pod) { p.Finalizers = nil })
	again = Reconcile(now, Snapshot{Job: j, Pods: []*corev1.Pod{good, bad}})
	if got := uncounted(again.Status); got != "[] [bad] counted 1 0" || len(again.Untrack) != 1 {
		t.Fatalf("third look: %s, finalizers of %d pods", got, len(again.Untrack))
	}
	// The other pod has gone altogether.
	j.Status = again.Status
	again = Reconcile(now, Snapshot{Job: j, Pods: []*corev1.Pod{good}})
	if got := uncounted(again.Status); got != "[] [] counted 1 1" || len(again.Untrack) != 0 {
		t.Fatalf("fourth look: %s, finalizers of %d pods", got, len(again.Untrack))
	}
}

func TestBackoff(t *testing.T) {
	now := time.Now()
	failedAt := func(name string, ago time.Duration) *corev1.Pod {
		return pod(name, harness.Failed(1), func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].State.Terminated.FinishedAt = metav1.NewTime(now.Add(-ago))
		})
	}
	for _, c := range []struct {
		name string
		f    Failures
		want time.Duration
	}{
		{"none", Failures{}, 0},
		{"one", Failures{}.after(nil, []*corev1.Pod{failedAt("a", 4*time.Second)}), 6 * time.Second},
		{"two", Failures{}.after(nil, []*corev1.Pod{failedAt("a", 9*time.Second), failedAt("b", time.Second)}), 19 * time.Second},
		{"after a success", Failures{Count: 5, Last: now}.after([]*corev1.Pod{pod("s", harness.Succeeded())}, nil), 0},
		{"long ago", Failures{Count: 1, Last: now.Add(-time.Hour)}, 0},
		{"at most", Failures{Count: 30, Last: now}, maxBackoff},
	} {
		if got := c.f.wait(now).Round(time.Second); got != c.want {
			t.Errorf("%s: wait %s, want %s", c.name, got, c.want)
		}
	}
}

func TestIntervals(t *testing.T) {
	in := parseIndexes("1,3-5,7,99,x", 9)
	if in.String() != "1,3-5,7" || in.total() != 5 || !in.has(4) || in.has(6) {
		t.Errorf("parsed %s, total %d", in, in.total())
	}
	if got := in.with(map[int]bool{2: true, 6: true}).String(); got != "1-7" {
		t.Errorf("with 2 and 6: %s", got)
	}
	if got := parseIndexes("0,1", 9).String(); got != "0,1" {
		t.Errorf("a pair: %s", got)
	}
	if got := fmt.Sprint(in.missing(3, 9)); got != "[0 2 6]" {
		t.Errorf("missing %s", got)
	}
	if got := in.overlap(parseIndexes("4-8", 9)); got != 3 {
		t.Errorf("overlap %d", got)
	}
}

func FuzzParseIndexes(f *testing.F) {
	f.Add("1,3-5,7", 9)
	f.Fuzz(func(t *testing.T, text string, completions int) {
		in := parseIndexes(text, completions)
		if again := parseIndexes(in.String(), completions); in.String() != again.String() {
			t.Errorf("%q reads as %s, and then as %s", text, in, again)
		}
	})
}
