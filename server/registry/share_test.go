package registry

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// A write keeps the memory of what it leaves alone, and changes nothing of it.
func TestWritesShareWhatStays(t *testing.T) {
	f := newFixture(t)
	before := create(f, benchPod("a"))
	pristine := before.DeepCopy()
	out, _, err := f.Patch(f.ctx, f.pods, "", "default", "a", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"n":"1"}}}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	after := out.(*corev1.Pod)
	if &after.Spec.Containers[0] != &before.Spec.Containers[0] || &after.Spec.Tolerations[0] != &before.Spec.Tolerations[0] {
		t.Error("a patch of a label copied the spec")
	}
	if after.Generation != before.Generation || after.Labels["n"] != "1" {
		t.Errorf("generation %d, labels %v", after.Generation, after.Labels)
	}
	if !reflect.DeepEqual(before, pristine) {
		t.Error("the state before the patch has changed")
	}
}

// Objects of one workload share what they have in common, also in part.
func TestSiblingsShare(t *testing.T) {
	f := newFixture(t)
	first := create(f, benchPod("a"))
	pristine := first.DeepCopy()
	pod := benchPod("b")
	pod.Spec.Containers[0].VolumeMounts[0].Name = "other"
	pod.Spec.Volumes[0].Name = "other"
	mine := pod.Spec.Containers
	second := create(f, pod)
	if &second.Spec.Tolerations[0] != &first.Spec.Tolerations[0] || &second.Spec.Containers[0].Env[0] != &first.Spec.Containers[0].Env[0] {
		t.Error("equal lists are kept twice")
	}
	if &second.Spec.Containers[0] == &mine[0] || second.Spec.Containers[0].VolumeMounts[0].Name != "other" {
		t.Error("a list that others may know was changed")
	}
	value, err := marshal(f.entryOf(f.pods), second)
	if err != nil {
		t.Fatal(err)
	}
	read, err := f.codec.Decode("pods/default/b", value, 7)
	if err != nil {
		t.Fatal(err)
	}
	if &read.(*corev1.Pod).Spec.Volumes[0] != &second.Spec.Volumes[0] {
		t.Error("what is read from disk shares nothing")
	}
	if !reflect.DeepEqual(first, pristine) {
		t.Error("the first has changed")
	}
}

func TestIdentical(t *testing.T) {
	pod := benchPod("a")
	if !identical(reflect.ValueOf(pod), reflect.ValueOf(pod.DeepCopy())) {
		t.Error("a copy is not identical")
	}
	for what, change := range map[string]func(*corev1.Pod){
		"string":         func(p *corev1.Pod) { p.Spec.NodeName = "n" },
		"map entry":      func(p *corev1.Pod) { p.Labels["app"] = "other" },
		"map key":        func(p *corev1.Pod) { delete(p.Labels, "app"); p.Labels["other"] = "web" },
		"empty for nil":  func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{} },
		"nil pointer":    func(p *corev1.Pod) { p.Spec.SecurityContext = nil },
		"pointee":        func(p *corev1.Pod) { *p.Spec.TerminationGracePeriodSeconds++ },
		"list element":   func(p *corev1.Pod) { p.Spec.Containers[0].Env[1].Value = "3" },
		"longer list":    func(p *corev1.Pod) { p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{}) },
		"private fields": func(p *corev1.Pod) { p.CreationTimestamp.Time = p.CreationTimestamp.AddDate(1, 0, 0) },
	} {
		other := pod.DeepCopy()
		change(other)
		if identical(reflect.ValueOf(pod), reflect.ValueOf(other)) {
			t.Errorf("%s: identical", what)
		}
	}
}

// What a patch does not speak of is not taken apart; the outcome is the same.
func TestStrategicPatchByParts(t *testing.T) {
	f := newFixture(t)
	current := create(f, benchPod("a"))
	for _, body := range []string{
		`{"metadata":{"labels":{"app":null,"b":"c"},"annotations":{"x":"y"}}}`,
		`{"metadata":{"labels":null}}`,
		`{"metadata":{"labels":{"$patch":"replace","z":"1"}}}`,
		`{"spec":{"securityContext":{"$patch":"delete"}}}`,
		`{"metadata":{"ownerReferences":[{"uid":"0c1d","name":"other"}],"finalizers":["a.b/c"]}}`,
		`{"spec":{"containers":[{"name":"main","image":"x"},{"name":"second","image":"y"}],"$setElementOrder/containers":[{"name":"main"},{"name":"second"}]}}`,
		`{"spec":{"containers":[{"name":"main","env":[{"name":"A","$patch":"delete"}]}],"hostname":"h"}}`,
		`{"spec":{"securityContext":{"runAsUser":5},"terminationGracePeriodSeconds":null}}`,
		`{"status":{"conditions":[{"type":"Ready","status":"True"}],"phase":"Running"}}`,
		`{"status":null,"spec":{"activeDeadlineSeconds":7}}`,
	} {
		p := &patcher{r: f.Registry, e: f.entryOf(f.pods), kind: f.entryOf(f.pods).gvk, patchType: types.StrategicMergePatchType, body: []byte(body),
			make: func() runtime.Object { return f.pods.New() }}
		patch, odd, err := p.parseStrategic()
		if err != nil || len(odd) > 0 {
			t.Fatal(err, odd)
		}
		got := p.patchParts(current, patch)
		whole := *p
		whole.kind.Kind = "another" // of which the parts are not known
		want, err := whole.patchStrategic(f.ctx, current)
		if err != nil {
			t.Fatal(err)
		}
		if got == nil {
			t.Errorf("%s: not done by parts", body)
			continue
		}
		if !equality.Semantic.DeepEqual(got, want) {
			t.Errorf("%s:\n%v\nnot\n%v", body, got, want)
		}
	}
}

// A field may be a struct in Go and a string in JSON: times of an event are.
func TestStrategicPatchOfTimes(t *testing.T) {
	f := newFixture(t)
	event := create(f, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"},
		InvolvedObject: corev1.ObjectReference{Namespace: "default", Kind: "Pod", Name: "p"}, Count: 1})
	for range 10 { // of the patch's fields each may be looked at first
		out, _, err := f.Patch(f.ctx, f.events, "", "default", event.Name, types.StrategicMergePatchType, []byte(`{"count":2,"lastTimestamp":"2026-01-02T03:04:05Z"}`), nil)
		if err != nil {
			t.Fatal(err)
		}
		if patched := out.(*corev1.Event); patched.Count != 2 || patched.LastTimestamp.Year() != 2026 || patched.InvolvedObject.Name != "p" {
			t.Fatalf("patched to %v", patched)
		}
	}
}

// An object that is to share memory may have to be prepared and written again.
func TestSharedLeavesTheObject(t *testing.T) {
	var s siblings
	first, second := benchPod("a"), benchPod("b")
	s.remember(first)
	out := s.shared(second).(*corev1.Pod)
	if &out.Spec.Tolerations[0] != &first.Spec.Tolerations[0] {
		t.Error("nothing is shared")
	}
	second.Labels["app"], second.Spec.Tolerations[0].Key = "other", "other"
	if first.Labels["app"] == "other" || out.Labels["app"] == "other" || first.Spec.Tolerations[0].Key == "other" {
		t.Error("a change of the object is one of what is stored")
	}
}
