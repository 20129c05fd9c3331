package pod

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// unruly is a runtime whose calls are slow, fail before or after they had their
// effect, and leave what they made to nobody when they are cut short.
type unruly struct {
	*fakeRuntime
	dice *dice
}

// dice are rolled by many at once.
type dice struct {
	mu   sync.Mutex
	rand *rand.Rand
}

func (d *dice) n(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rand.IntN(n)
}

func (d *dice) upTo(most time.Duration) time.Duration { return time.Duration(d.n(int(most))) }

func disturb[In, Out any](ctx context.Context, d *dice, in In, to call[In, Out]) (Out, error) {
	var none Out
	roll := d.n(100)
	if roll < 10 {
		return none, status.Error(codes.Unavailable, "not today")
	}
	if roll < 50 {
		select {
		case <-time.After(d.upTo(4 * time.Second)):
		case <-ctx.Done(): // half-way: something comes of it later
			time.AfterFunc(d.upTo(10*time.Second), func() { _, _ = to(context.WithoutCancel(ctx), in) })
			return none, status.FromContextError(ctx.Err()).Err()
		}
	}
	out, err := to(ctx, in)
	if roll < 20 && err == nil {
		return none, status.Error(codes.DeadlineExceeded, "the answer was lost")
	}
	return out, err
}

func (u unruly) RunPodSandbox(ctx context.Context, in *runtimeapi.RunPodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.RunPodSandboxResponse, error) {
	return disturb(ctx, u.dice, in, u.fakeRuntime.RunPodSandbox)
}

func (u unruly) StopPodSandbox(ctx context.Context, in *runtimeapi.StopPodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.StopPodSandboxResponse, error) {
	return disturb(ctx, u.dice, in, u.fakeRuntime.StopPodSandbox)
}

func (u unruly) RemovePodSandbox(ctx context.Context, in *runtimeapi.RemovePodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.RemovePodSandboxResponse, error) {
	return disturb(ctx, u.dice, in, u.fakeRuntime.RemovePodSandbox)
}

func (u unruly) CreateContainer(ctx context.Context, in *runtimeapi.CreateContainerRequest, _ ...grpc.CallOption) (*runtimeapi.CreateContainerResponse, error) {
	return disturb(ctx, u.dice, in, u.fakeRuntime.CreateContainer)
}

func (u unruly) StartContainer(ctx context.Context, in *runtimeapi.StartContainerRequest, _ ...grpc.CallOption) (*runtimeapi.StartContainerResponse, error) {
	return disturb(ctx, u.dice, in, u.fakeRuntime.StartContainer)
}

func (u unruly) StopContainer(ctx context.Context, in *runtimeapi.StopContainerRequest, _ ...grpc.CallOption) (*runtimeapi.StopContainerResponse, error) {
	return disturb(ctx, u.dice, in, u.fakeRuntime.StopContainer)
}

func (u unruly) RemoveContainer(ctx context.Context, in *runtimeapi.RemoveContainerRequest, _ ...grpc.CallOption) (*runtimeapi.RemoveContainerResponse, error) {
	return disturb(ctx, u.dice, in, u.fakeRuntime.RemoveContainer)
}

func (u unruly) ContainerStatus(ctx context.Context, in *runtimeapi.ContainerStatusRequest, _ ...grpc.CallOption) (*runtimeapi.ContainerStatusResponse, error) {
	return disturb(ctx, u.dice, in, u.fakeRuntime.ContainerStatus)
}

func (u unruly) PodSandboxStatus(ctx context.Context, in *runtimeapi.PodSandboxStatusRequest, _ ...grpc.CallOption) (*runtimeapi.PodSandboxStatusResponse, error) {
	return disturb(ctx, u.dice, in, u.fakeRuntime.PodSandboxStatus)
}

func (u unruly) ExecSync(ctx context.Context, in *runtimeapi.ExecSyncRequest, _ ...grpc.CallOption) (*runtimeapi.ExecSyncResponse, error) {
	return disturb(ctx, u.dice, in, u.fakeRuntime.ExecSync)
}

func (u unruly) PullImage(ctx context.Context, in *runtimeapi.PullImageRequest, _ ...grpc.CallOption) (*runtimeapi.PullImageResponse, error) {
	return disturb(ctx, u.dice, in, u.fakeRuntime.PullImage)
}

// strict refuses statuses that go backwards, as the API does, and now and then
// any. It is a reactor of the API in memory.
func (s *story) strict(d *dice, wrong func(string)) {
	told := make(map[string]*corev1.Pod) // the client reacts to one request at a time
	s.client.PrependReactor("patch", "pods", func(a clienttesting.Action) (bool, kruntime.Object, error) {
		patch := a.(clienttesting.PatchAction)
		if d.n(10) == 0 {
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, patch.GetName(), errors.New("not now"))
		}
		for _, r := range s.client.ReactionChain[1:] {
			if handled, obj, err := r.React(a); handled {
				if now, ok := obj.(*corev1.Pod); ok && err == nil {
					if before := told[now.Name]; before != nil {
						backwards(before, now, wrong)
					}
					told[now.Name] = now.DeepCopy()
				}
				return handled, obj, err
			}
		}
		return false, nil, nil
	})
}

// backwards tells what a pod's status takes back of what it told before.
func backwards(before, now *corev1.Pod, wrong func(string)) {
	if terminal(before.Status.Phase) && now.Status.Phase != before.Status.Phase {
		wrong(fmt.Sprintf("phase %s after %s", now.Status.Phase, before.Status.Phase))
	}
	for _, u := range units(now) {
		old, cs := findStatus(&before.Status, u.Name), findStatus(&now.Status, u.Name)
		if old == nil || cs == nil {
			continue
		}
		if cs.RestartCount < old.RestartCount {
			wrong(fmt.Sprintf("%s: restart count %d after %d", u.Name, cs.RestartCount, old.RestartCount))
		}
		end := old.State.Terminated
		if end == nil || cs.State.Terminated != nil && (cs.State.Terminated.ExitCode == end.ExitCode || !terminal(before.Status.Phase)) {
			continue
		}
		if terminal(before.Status.Phase) || !u.restarts(now, end.ExitCode) {
			wrong(fmt.Sprintf("%s: no longer ended with %d: %s, then %s", u.Name, end.ExitCode, sketch(before), sketch(now)))
		}
	}
}

// anyPod makes a pod of any shape.
func anyPod(d *dice, name string) *corev1.Pod {
	commands := [][]string{nil, {"true"}, {"false"}, {"exit", "0", "after", "2s"}, {"exit", "3", "after", "700ms"}}
	p := newPod(name)
	grace := int64(d.n(20))
	p.Spec.TerminationGracePeriodSeconds = &grace
	p.Spec.RestartPolicy = []corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}[d.n(3)]
	p.Spec.Containers = nil
	for i := range 1 + d.n(2) {
		p.Spec.Containers = append(p.Spec.Containers, newSpec(fmt.Sprint("main", i), commands[d.n(len(commands))]...))
	}
	for i := range d.n(3) {
		c := newSpec(fmt.Sprint("init", i), commands[1+d.n(len(commands)-1)]...)
		if d.n(2) == 0 {
			always := corev1.ContainerRestartPolicyAlways
			c.RestartPolicy = &always
		}
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
	c := &p.Spec.Containers[0]
	handler := []*corev1.LifecycleHandler{nil, {Exec: &corev1.ExecAction{Command: []string{"greet"}}}, {Sleep: &corev1.SleepAction{Seconds: 2}}}
	c.Lifecycle = &corev1.Lifecycle{PostStart: handler[d.n(3)], PreStop: handler[d.n(3)]}
	if d.n(3) == 0 {
		c.StartupProbe, c.LivenessProbe, c.ReadinessProbe = execProbe("started", 3), execProbe("alive", 1), execProbe("ready", 1)
	}
	if d.n(4) == 0 {
		c.Image = "other:1" // to be pulled
	}
	return p
}

// live creates a pod, does to it what may happen, and deletes it. The API in
// memory forgets what changes while an agent begins to watch it: turn is had by
// whoever changes something, or begins.
func (s *story) live(d *dice, name string, turn chan struct{}) {
	time.Sleep(d.upTo(5 * time.Second))
	turn <- struct{}{}
	s.create(anyPod(d, name))
	<-turn
	time.Sleep(d.upTo(12 * time.Second))
	turn <- struct{}{}
	defer func() { <-turn }()
	switch d.n(6) {
	case 0:
		s.cri.kill("main0", 137)
	case 1:
		s.update(name, func(p *corev1.Pod) {
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
				Name: "debug", Image: testImage, Command: []string{"true"}, ImagePullPolicy: corev1.PullIfNotPresent}}}
		})
	case 2: // by force
		_ = s.client.CoreV1().Pods("default").Delete(s.t.Context(), name, metav1.DeleteOptions{})
		return
	}
	s.remove(name, int64(d.n(10)))
}

// TestRandomOrders lets pods of any shape live, die and be deleted in any order
// on an unruly runtime, with an agent that is started anew meanwhile: no status
// goes backwards, each pod ends, and nothing of it is left.
func TestRandomOrders(t *testing.T) {
	lives := 60
	if testing.Short() {
		lives = 10
	}
	for seed := range lives {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			dir, fs := t.TempDir(), machine(t)
			synctest.Test(t, func(t *testing.T) { randomOrder(t, &dice{rand: rand.New(rand.NewPCG(1, uint64(seed)))}, dir, fs) })
		})
	}
}

// employs counts the pods that are dealt with, known to the API or not.
func (m *Manager) employs() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.workers)
}

func randomOrder(t *testing.T, d *dice, dir, fs string) {
	cri := newFakeRuntime()
	restless := unruly{cri, d}
	s := &story{world: newWorld(t, restless, restless, dir), cri: cri, begin: time.Now()}
	s.cfg.CgroupFS = fs
	s.strict(d, func(what string) { t.Error(what) })
	s.run()
	defer func() { s.stop() }()
	var lives sync.WaitGroup
	var names []string
	turn := make(chan struct{}, 1)
	for i := range 4 {
		name := fmt.Sprint("p", i)
		names = append(names, name)
		lives.Go(func() { s.live(d, name, turn) })
	}
	for range 2 { // the agent ends and starts
		time.Sleep(d.upTo(10 * time.Second))
		turn <- struct{}{}
		s.stop()
		s.run()
		<-turn
	}
	lives.Wait()
	for _, name := range names {
		s.await(name, "gone", nil)
	}
	for deadline := time.Now().Add(time.Hour); s.m.employs() > 0; time.Sleep(time.Second) {
		if time.Now().After(deadline) {
			t.Fatalf("%d pods are not cleared away within an hour", s.m.employs())
		}
	}
	synctest.Wait()
	cri.mu.Lock()
	defer cri.mu.Unlock()
	if len(cri.boxes)+len(cri.containers) > 0 {
		t.Errorf("left in the runtime: %d sandboxes, %d containers", len(cri.boxes), len(cri.containers))
	}
	for _, left := range []string{"pods", "logs"} {
		if entries, _ := os.ReadDir(filepath.Join(dir, left)); len(entries) > 0 {
			t.Errorf("left on the disk: %s/%s", left, entries[0].Name())
		}
	}
}
