package harness

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"orch/server/controllers/loop"
	"orch/server/registry"
)

// AddNode makes a ready node.
func (h *Harness) AddNode(name string, change ...func(*corev1.Node)) *corev1.Node {
	h.t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	for _, c := range change {
		c(n)
	}
	return Create(h, n)
}

// Kubelet stands in for scheduler and nodes: it binds pods to the node that
// they are pinned to (else to "node"), reports what behave says (nil: running
// and ready) and confirms deletions at once.
func (h *Harness) Kubelet(behave func(*corev1.Pod) *corev1.PodStatus) {
	pods := registry.Of[*corev1.Pod](h.Registry)
	if behave == nil {
		behave = func(*corev1.Pod) *corev1.PodStatus { return Running() }
	}
	binding := func(p *corev1.Pod) error {
		target := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name},
			Target: corev1.ObjectReference{Kind: "Node", Name: pinned(p)}}
		_, err := h.Registry.Act(h.ctx, pods.Resource(), "binding", p.Namespace, p.Name, target, nil)
		return err
	}
	h.Run(&loop.Controller{
		Name: "kubelet", Workers: 4, Sources: []loop.Source{loop.Each[*corev1.Pod](h.Registry)},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			p, err := pods.Get(key.Namespace, key.Name)
			switch {
			case err != nil:
				return 0, nil
			case p.DeletionTimestamp != nil:
				zero := int64(0)
				err := pods.Delete(ctx, p.Namespace, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero})
				if apierrors.IsNotFound(err) {
					return 0, nil
				}
				return 0, err
			case p.Spec.NodeName == "":
				return 0, binding(p)
			}
			status := behave(p)
			if status == nil || p.Status.Phase == status.Phase && len(p.Status.Conditions) > 1 {
				return 0, nil
			}
			_, err = pods.MutateStatus(ctx, p.Namespace, p.Name, func(p *corev1.Pod) error {
				if p.Status.Phase != status.Phase || len(p.Status.Conditions) <= 1 {
					status.DeepCopyInto(&p.Status)
				}
				return nil
			})
			return 0, err
		},
	})
}

func pinned(p *corev1.Pod) string {
	if a := p.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
			for _, f := range term.MatchFields {
				return f.Values[0]
			}
		}
	}
	return "node"
}

// Running is the status of a pod that is up and ready.
func Running() *corev1.PodStatus { return statusOf(corev1.PodRunning, corev1.ConditionTrue, 0) }

// Unready is the status of a pod that is up but not ready.
func Unready() *corev1.PodStatus { return statusOf(corev1.PodRunning, corev1.ConditionFalse, 0) }

// Succeeded is the status of a pod that has ended well.
func Succeeded() *corev1.PodStatus { return statusOf(corev1.PodSucceeded, corev1.ConditionFalse, 0) }

// Failed is the status of a pod that has ended with an exit code.
func Failed(code int32) *corev1.PodStatus {
	return statusOf(corev1.PodFailed, corev1.ConditionFalse, code)
}

func statusOf(phase corev1.PodPhase, ready corev1.ConditionStatus, code int32) *corev1.PodStatus {
	now := metav1.Now().Rfc3339Copy()
	status := &corev1.PodStatus{Phase: phase, Conditions: []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: now},
		{Type: corev1.PodReady, Status: ready, LastTransitionTime: now},
	}}
	if phase == corev1.PodSucceeded || phase == corev1.PodFailed {
		status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{
			Terminated: &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: now},
		}}}
	}
	return status
}

// Template is that of a pod with one container, labelled app=app.
func Template(app string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "orch.local/hello"}}},
	}
}

// Selector selects app=app.
func Selector(app string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
}

// Recorder keeps the events that controllers record.
type Recorder struct {
	mu   sync.Mutex
	said []string
	more chan struct{} // closed by the next event; nil while nobody waits
}

func (r *Recorder) add(kind, reason, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, kind+" "+reason+" "+message)
	if r.more != nil {
		close(r.more)
		r.more = nil
	}
}

// next is closed by the next event.
func (r *Recorder) next() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.more == nil {
		r.more = make(chan struct{})
	}
	return r.more
}

// WaitEvent waits until an event that contains part was recorded.
func WaitEvent(h *Harness, part string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.ctx, patience)
	defer cancel()
	for {
		more := h.Events.next()
		if h.Events.Has(part) {
			return
		}
		select {
		case <-more:
		case <-ctx.Done():
			h.t.Fatalf("no event %q in\n%s", part, h.Events)
		}
	}
}

// Event records an event.
func (r *Recorder) Event(_ runtime.Object, kind, reason, message string) {
	r.add(kind, reason, message)
}

// Eventf records an event.
func (r *Recorder) Eventf(_ runtime.Object, kind, reason, format string, args ...any) {
	r.add(kind, reason, fmt.Sprintf(format, args...))
}

// AnnotatedEventf records an event.
func (r *Recorder) AnnotatedEventf(_ runtime.Object, _ map[string]string, kind, reason, format string, args ...any) {
	r.add(kind, reason, fmt.Sprintf(format, args...))
}

// Has tells whether an event that contains part was recorded.
func (r *Recorder) Has(part string) bool {
	return slices.ContainsFunc(r.All(), func(e string) bool { return strings.Contains(e, part) })
}

// All gives what was recorded, in order.
func (r *Recorder) All() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.said)
}

func (r *Recorder) String() string { return strings.Join(r.All(), "\n") }

func describe[T registry.Object](all []T) string {
	var out strings.Builder
	for _, obj := range all {
		fmt.Fprintf(&out, "\n%s: %+v", obj.GetName(), obj)
	}
	return out.String()
}
