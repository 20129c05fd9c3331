package cases

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"orch/test/cluster"
)

// ward is a server whose pods are counted.
type ward struct {
	lab
	node *cluster.Node
	api  kubernetes.Interface
}

func newWard(test *testing.T) ward {
	t := lab{test}
	w := ward{lab: t, node: cluster.Start(test)}
	t.must(w.node.ImportBusybox())
	config, err := w.node.Config()
	t.must(err)
	w.api, err = kubernetes.NewForConfig(config)
	t.must(err)
	return w
}

// holdings is what a node's pods hold of the machine.
func (w ward) holdings() string {
	w.Helper()
	processes, err := w.node.Processes()
	w.must(err)
	mounts, err := w.node.Mounts()
	w.must(err)
	// What is secret lies in one file system, which stays once there was a pod.
	mounts = slices.DeleteFunc(mounts, func(path string) bool { return strings.HasSuffix(path, "/agent/secrets") })
	held := fmt.Sprintf("%d processes, %d mounts, %d links", len(processes), len(mounts), strings.Count(w.inside(w.node, "ip -o link"), "veth"))
	agent := filepath.Join(w.node.DataDir(), "agent")
	for _, dir := range []string{"pods", "logs", "containerd/state/io.containerd.runtime.v2.task/k8s.io"} {
		entries, _ := os.ReadDir(filepath.Join(agent, dir)) // none yet
		held += fmt.Sprintf(", %d in %s", len(entries), dir)
	}
	return held
}

// cgroups gives those of pods that are left of these.
func cgroups(uids []string) (left []string) {
	for _, uid := range uids {
		for _, pattern := range []string{"/sys/fs/cgroup/*/kubepods/pod%s", "/sys/fs/cgroup/*/kubepods/*/pod%s", "/sys/fs/cgroup/kubepods/pod%s", "/sys/fs/cgroup/kubepods/*/pod%s"} {
			found, _ := filepath.Glob(fmt.Sprintf(pattern, uid))
			left = append(left, found...)
		}
	}
	return left
}

// nothingLeft waits until the node holds what it held before the pods.
func (w ward) nothingLeft(before string, uids []string) {
	w.Helper()
	w.eventually(func() error {
		if now := w.holdings(); now != before {
			return fmt.Errorf("the node holds %s; before: %s", now, before)
		}
		if left := cgroups(uids); len(left) > 0 {
			return fmt.Errorf("%d cgroups are left, such as %s", len(left), left[0])
		}
		return nil
	})
}

// noPods waits until a namespace has none.
func (w ward) noPods(namespace string) {
	w.Helper()
	w.eventually(func() error {
		list, err := w.api.CoreV1().Pods(namespace).List(w.Context(), metav1.ListOptions{})
		if err == nil && len(list.Items) > 0 {
			p := list.Items[0]
			err = fmt.Errorf("%d pods are left, such as %s: %s %v", len(list.Items), p.Name, p.Status.Phase, p.Status.ContainerStatuses)
		}
		return err
	})
}

// TestNode06InitBackOffEnds: an init container that failed and then succeeded is
// shown as ended with 0.
func TestNode06InitBackOffEnds(test *testing.T) {
	test.Parallel()
	w := newWard(test)
	w.apply(w.node, `apiVersion: v1
kind: Pod
metadata: {name: ib}
spec:
  terminationGracePeriodSeconds: 1
  initContainers: [{name: i, image: "`+cluster.BusyboxRef+`", command: [sh, -c, "echo x >> /e/n; [ $(wc -l < /e/n) -ge 2 ]"], volumeMounts: [{name: e, mountPath: /e}]}]
  containers: [{name: c, image: "`+cluster.BusyboxRef+`", command: [sleep, "10000"]}]
  volumes: [{name: e, emptyDir: {}}]
`)
	var p *corev1.Pod
	w.eventually(func() (err error) {
		if p, err = w.api.CoreV1().Pods("default").Get(w.Context(), "ib", metav1.GetOptions{}); err == nil && p.Status.Phase != corev1.PodRunning {
			err = fmt.Errorf("phase %s", p.Status.Phase)
		}
		return err
	})
	init := p.Status.InitContainerStatuses[0]
	if end := init.State.Terminated; end == nil || end.ExitCode != 0 || !init.Ready || init.RestartCount == 0 {
		w.Errorf("init container: %+v", init)
	}
}

// TestNode24PodsDeletedWhileStartingGo: pods that are deleted in the moment their
// container starts go, and so does their namespace.
func TestNode24PodsDeletedWhileStartingGo(test *testing.T) {
	test.Parallel()
	w := newWard(test)
	_, err := w.api.CoreV1().Namespaces().Create(w.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "fast"}}, metav1.CreateOptions{})
	w.must(err)
	before := w.holdings()
	one := int64(1)
	var deletions sync.WaitGroup
	var uids []string
	for i := range 60 {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("p", i), Namespace: "fast"},
			Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: &one,
				Containers: []corev1.Container{{Name: "fail", Image: cluster.BusyboxRef, Command: []string{"/bin/false"}}}},
		}
		w.eventually(func() error { // the default service account takes a moment
			made, err := w.api.CoreV1().Pods("fast").Create(w.Context(), p, metav1.CreateOptions{})
			if err == nil {
				uids = append(uids, string(made.UID))
			}
			return err
		})
		deletions.Go(func() {
			<-time.After(time.Duration((i*37)%90+5) * 10 * time.Millisecond) // at any moment of its start
			if err := w.api.CoreV1().Pods("fast").Delete(w.Context(), p.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				w.Error(err)
			}
		})
	}
	deletions.Wait()
	w.must(w.api.CoreV1().Namespaces().Delete(w.Context(), "fast", metav1.DeleteOptions{}))
	w.noPods("fast")
	w.eventually(func() error {
		_, err := w.api.CoreV1().Namespaces().Get(w.Context(), "fast", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("the namespace is still there: %w", err)
	})
	w.nothingLeft(before, uids)
}

// TestNode25NothingLeaksFromStarts: pods that are deleted while they start leave
// no shims, mounts, links or cgroups.
func TestNode25NothingLeaksFromStarts(test *testing.T) {
	test.Parallel()
	w := newWard(test)
	w.apply(w.node, strings.ReplaceAll(`apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec:
  replicas: 0
  selector: {matchLabels: {app: d}}
  template:
    metadata: {labels: {app: d}}
    spec:
      terminationGracePeriodSeconds: 1
      initContainers: [{name: i, image: "bb:1", command: [sh, -c, "sleep 0.1"]}]
      containers:
      - {name: c, image: "bb:1", command: [sh, -c, "sleep 1000"], lifecycle: {postStart: {exec: {command: [sh, -c, "sleep 0.2"]}}, preStop: {exec: {command: ["true"]}}}}
      - {name: c2, image: "bb:1", command: [sh, -c, "sleep 0.5; exit 1"]}
`, "bb:1", cluster.BusyboxRef))
	before := w.holdings()
	for r := range 12 {
		w.kubectl(w.node, "scale", "deployment", "d", "--replicas=10")
		<-time.After(time.Duration(500+((r+1)*7%10)*250) * time.Millisecond)
		w.kubectl(w.node, "scale", "deployment", "d", "--replicas=0")
		<-time.After(time.Duration((r+1)%5) * 100 * time.Millisecond)
	}
	w.noPods("default")
	w.nothingLeft(before, nil)
}

// TestRandomPods lets pods of any shape be created, live and be deleted at random
// moments, with orch killed meanwhile; all are gone in the end, and the node
// holds what it held before. PODS says how many; 0: 150.
func TestRandomPods(test *testing.T) {
	test.Parallel()
	number, _ := strconv.Atoi(os.Getenv("PODS"))
	if number == 0 {
		number = 150
	}
	w := newWard(test)
	before := w.holdings()
	var lives sync.WaitGroup
	var mu sync.Mutex
	var uids []string
	const beds = 10
	done := make(chan struct{}, number)
	for bed := range beds {
		lives.Go(func() {
			for i := bed; i < number; i += beds {
				if uid := w.live(fmt.Sprint("r", i), i); uid != "" {
					mu.Lock()
					uids = append(uids, uid)
					mu.Unlock()
				}
				done <- struct{}{}
			}
		})
	}
	for i := range number {
		<-done
		if i%200 == 75 {
			w.must(w.node.Restart())
			w.must(w.node.WaitReady(w.Context()))
		}
	}
	lives.Wait()
	w.noPods("default")
	w.nothingLeft(before, uids)
	w.Logf("%d pods", number)
}

// live creates a pod, lets it live for a moment and deletes it. The API may be
// away for a while.
func (w ward) live(name string, seed int) (uid string) {
	dice := rand.New(rand.NewPCG(2, uint64(seed)))
	pods, ctx := w.api.CoreV1().Pods("default"), w.Context()
	p := randomPod(name, dice)
	for ctx.Err() == nil {
		made, err := pods.Create(ctx, p, metav1.CreateOptions{})
		if err == nil {
			uid = string(made.UID)
			break
		}
		if apierrors.IsAlreadyExists(err) {
			break
		}
		<-time.After(200 * time.Millisecond)
	}
	<-time.After(time.Duration(dice.IntN(3000)) * time.Millisecond)
	options := metav1.DeleteOptions{}
	if dice.IntN(5) == 0 {
		options = *metav1.NewDeleteOptions(0)
	}
	for ctx.Err() == nil {
		if err := pods.Delete(ctx, name, options); err == nil || apierrors.IsNotFound(err) {
			break
		}
		<-time.After(200 * time.Millisecond)
	}
	return uid
}

// randomPod makes a pod of any shape.
func randomPod(name string, dice *rand.Rand) *corev1.Pod {
	grace := int64(1)
	commands := [][]string{{"sleep", "1000"}, {"true"}, {"false"}, {"sh", "-c", "sleep 0.5; exit 3"}, {"sh", "-c", "trap '' TERM; sleep 1000"}}
	container := func(name string, command []string) corev1.Container {
		return corev1.Container{Name: name, Image: cluster.BusyboxRef, Command: command}
	}
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			RestartPolicy:                 []corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}[dice.IntN(3)],
			Containers:                    []corev1.Container{container("c", commands[dice.IntN(len(commands))])},
		},
	}
	hooks := []*corev1.LifecycleHandler{nil, {Exec: &corev1.ExecAction{Command: []string{"sleep", "0.3"}}}, {Sleep: &corev1.SleepAction{Seconds: 1}}}
	c := &p.Spec.Containers[0]
	c.Lifecycle = &corev1.Lifecycle{PostStart: hooks[dice.IntN(3)], PreStop: hooks[dice.IntN(3)]}
	if c.Lifecycle.PostStart == nil && c.Lifecycle.PreStop == nil {
		c.Lifecycle = nil
	}
	if dice.IntN(3) == 0 {
		probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sleep", "0.2"}}}, PeriodSeconds: 1}
		c.ReadinessProbe, c.LivenessProbe = probe, probe
	}
	if dice.IntN(3) == 0 {
		p.Spec.InitContainers = append(p.Spec.InitContainers, container("i", []string{"sleep", "0.1"}))
	}
	if dice.IntN(3) == 0 {
		always, side := corev1.ContainerRestartPolicyAlways, container("s", commands[0])
		side.RestartPolicy = &always
		p.Spec.InitContainers = append(p.Spec.InitContainers, side)
	}
	if dice.IntN(3) == 0 {
		p.Spec.Containers = append(p.Spec.Containers, container("c2", commands[dice.IntN(len(commands))]))
	}
	return p
}
