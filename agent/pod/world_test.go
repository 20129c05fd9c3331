package pod

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	clienttesting "k8s.io/client-go/testing"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// world is a node under test: an API, a runtime, a manager.
type world struct {
	t      *testing.T
	cfg    Config
	client *fake.Clientset
	events *journal
	m      *Manager
	stop   func()
	// watched gets word of every watch. The API in memory does not replay what
	// happened before one, as a real one does.
	watched chan struct{}
}

func newWorld(t *testing.T, cri runtimeapi.RuntimeServiceClient, images runtimeapi.ImageServiceClient, dir string) *world {
	t.Helper()
	w := &world{t: t, events: &journal{}, watched: make(chan struct{}, 1)}
	w.client = newAPI(w.watched)
	w.cfg = Config{
		NodeName: "node", Dir: dir, Client: w.client, Runtime: cri, Images: images,
		Volumes: &memoryVolumes{}, Events: w.events, HostIPs: func() []string { return []string{"192.0.2.1"} },
		ClusterDNS: []string{"10.43.0.10"}, ClusterDomain: "cluster.local", ResolvConf: dir + "/none",
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	return w
}

// run starts a manager; the one before must have been stopped.
func (w *world) run() {
	w.t.Helper()
	m, err := New(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.m = m
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	select {
	case <-w.watched:
	default:
	}
	go func() { ended <- m.Run(ctx) }()
	<-w.watched
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("manager: %v", err)
		}
	})
}

// pod makes a pod with one container of the test image.
func newPod(name string, command ...string) *corev1.Pod {
	grace := int64(2)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name + "-uid"), Generation: 1},
		Spec: corev1.PodSpec{
			NodeName: "node", RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace,
			DNSPolicy:  corev1.DNSClusterFirst,
			Containers: []corev1.Container{newSpec("main", command...)},
		},
	}
}

func newSpec(name string, command ...string) corev1.Container {
	return corev1.Container{
		Name: name, Image: testImage, Command: command, ImagePullPolicy: corev1.PullIfNotPresent,
		TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: corev1.TerminationMessageReadFile,
	}
}

const testImage = "docker.io/library/busybox:test"

func (w *world) create(pods ...*corev1.Pod) {
	w.t.Helper()
	for _, p := range pods {
		if _, err := w.client.CoreV1().Pods(p.Namespace).Create(w.t.Context(), p, metav1.CreateOptions{}); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) get(name string) *corev1.Pod {
	p, err := w.client.CoreV1().Pods("default").Get(w.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return p
}

// update changes a pod the way the API server would for a client.
func (w *world) update(name string, change func(*corev1.Pod)) {
	w.t.Helper()
	p := w.get(name).DeepCopy()
	change(p)
	if _, err := w.client.CoreV1().Pods("default").Update(w.t.Context(), p, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// remove begins a graceful deletion.
func (w *world) remove(name string, grace int64) {
	w.t.Helper()
	w.update(name, func(p *corev1.Pod) {
		at := metav1.NewTime(time.Now().Add(time.Duration(grace) * time.Second))
		p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &at, &grace
	})
}

// await waits until a pod is as ok wants it; nil stands for a deleted pod.
func (w *world) await(name, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Minute) // of fake time, as a rule
	defer cancel()
	news, err := w.client.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer news.Stop()
	for {
		p := w.get(name)
		if p == nil && ok == nil || p != nil && ok != nil && ok(p) {
			return p
		}
		select {
		case <-news.ResultChan():
		case <-ctx.Done():
			w.t.Fatalf("pod %s is never %s: %s", name, what, sketch(p))
		}
	}
}

func (w *world) awaitGone(name string) {
	w.t.Helper()
	w.await(name, "gone", nil)
	uid := types.UID(name + "-uid")
	for w.m.ByUID(uid) != nil { // the worker clears up after the API object
		<-time.After(time.Millisecond)
	}
}

func isReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func inPhase(phase corev1.PodPhase) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool { return p.Status.Phase == phase }
}

func waitsFor(container, reason string) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool {
		for _, cs := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			if cs.Name == container && cs.State.Waiting != nil && cs.State.Waiting.Reason == reason {
				return true
			}
		}
		return false
	}
}

// sketch tells a pod's status in a line.
func sketch(p *corev1.Pod) string {
	if p == nil {
		return "absent"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s%s", p.Name, p.Status.Phase, p.Status.Reason)
	for _, cs := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		fmt.Fprintf(&b, " %s:", cs.Name)
		switch {
		case cs.State.Running != nil:
			fmt.Fprintf(&b, "running(ready=%v)", cs.Ready)
		case cs.State.Terminated != nil:
			fmt.Fprintf(&b, "terminated(%d %s %q)", cs.State.Terminated.ExitCode, cs.State.Terminated.Reason, cs.State.Terminated.Message)
		case cs.State.Waiting != nil:
			fmt.Fprintf(&b, "waiting(%s %q)", cs.State.Waiting.Reason, cs.State.Waiting.Message)
		}
		fmt.Fprintf(&b, "×%d", cs.RestartCount)
	}
	return b.String()
}

func cpu(request, limit string) corev1.ResourceRequirements {
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(request)},
		Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(limit)},
	}
}

// journal keeps events as "reason: message".
type journal struct {
	mu  sync.Mutex
	all []string
}

func (j *journal) Event(_ kruntime.Object, _, reason, message string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.all = append(j.all, reason+": "+message)
}

func (j *journal) has(text string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.ContainsFunc(j.all, func(e string) bool { return strings.Contains(e, text) })
}

func (j *journal) write(to io.Writer) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.all {
		fmt.Fprintln(to, e)
	}
}

// memoryVolumes prepares nothing.
type memoryVolumes struct {
	mu      sync.Mutex
	fail    error
	removed []types.UID
}

func (v *memoryVolumes) Prepare(context.Context, *corev1.Pod) (map[string]Mount, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return nil, v.fail
}

func (v *memoryVolumes) Remove(_ context.Context, uid types.UID) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.removed = append(v.removed, uid)
	return nil
}

func (v *memoryVolumes) Subpath(_ context.Context, _ *corev1.Pod, _ string, _ int, m Mount, path string) (string, error) {
	return m.HostPath + "/" + path, nil
}

// newAPI is an API in memory that numbers its writes.
func newAPI(watched chan<- struct{}) *fake.Clientset {
	tracker := &numbered{ObjectTracker: clienttesting.NewObjectTracker(scheme.Scheme, scheme.Codecs.UniversalDecoder())}
	c := &fake.Clientset{}
	c.AddReactor("*", "*", clienttesting.ObjectReaction(tracker))
	c.AddWatchReactor("*", func(a clienttesting.Action) (bool, watch.Interface, error) {
		w, err := tracker.Watch(a.GetResource(), a.GetNamespace())
		select {
		case watched <- struct{}{}:
		default:
		}
		return true, w, err
	})
	return c
}

type numbered struct {
	clienttesting.ObjectTracker
	mu   sync.Mutex
	last int
}

func (n *numbered) number(obj kruntime.Object) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last++
	obj.(metav1.Object).SetResourceVersion(fmt.Sprint(1000 + n.last))
}

func (n *numbered) Create(r schema.GroupVersionResource, obj kruntime.Object, ns string, o ...metav1.CreateOptions) error {
	n.number(obj)
	return n.ObjectTracker.Create(r, obj, ns, o...)
}

func (n *numbered) Update(r schema.GroupVersionResource, obj kruntime.Object, ns string, o ...metav1.UpdateOptions) error {
	n.number(obj)
	return n.ObjectTracker.Update(r, obj, ns, o...)
}

func (n *numbered) Patch(r schema.GroupVersionResource, obj kruntime.Object, ns string, o ...metav1.PatchOptions) error {
	n.number(obj)
	return n.ObjectTracker.Patch(r, obj, ns, o...)
}
