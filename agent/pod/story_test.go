package pod

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata")

// story is a world with a fake runtime in fake time, and a transcript.
type story struct {
	*world
	cri   *fakeRuntime
	begin time.Time
	text  bytes.Buffer
}

// tell writes what has happened since, and the state of the pods.
func (s *story) tell(title string, pods ...string) {
	synctest.Wait()
	fmt.Fprintf(&s.text, "# %s (%v)\n", title, time.Since(s.begin).Truncate(100*time.Millisecond))
	for _, line := range s.cri.lines() {
		fmt.Fprintln(&s.text, "  "+line)
	}
	for _, name := range pods {
		fmt.Fprintln(&s.text, "= "+sketch(s.get(name)))
	}
}

// settle leaves out of the story what is being done.
func (s *story) settle() {
	synctest.Wait()
	s.cri.lines()
}

func (s *story) pass(d time.Duration) {
	time.Sleep(d) // fake time
	synctest.Wait()
}

func (s *story) events() {
	synctest.Wait()
	s.text.WriteString("# events\n")
	s.world.events.write(&s.text)
}

// stories are told in testdata, one file each.
var stories = map[string]func(*story){
	"run and delete": func(s *story) {
		s.create(newPod("a"))
		s.await("a", "ready", isReady)
		s.tell("created", "a")
		s.remove("a", 30)
		s.awaitGone("a")
		s.tell("deleted", "a")
		s.events()
	},
	"crash back-off": func(s *story) {
		s.create(newPod("a", "exit", "1", "after", "1s"))
		for _, until := range []time.Duration{2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second, 60 * time.Second} {
			s.pass(until)
			s.tell(fmt.Sprint("later by ", until), "a")
		}
		s.events()
	},
	"restart policies": func(s *story) {
		never, onFailure := newPod("never", "false"), newPod("once", "true")
		never.Spec.RestartPolicy, onFailure.Spec.RestartPolicy = corev1.RestartPolicyNever, corev1.RestartPolicyOnFailure
		s.create(never, onFailure)
		s.await("never", "failed", inPhase(corev1.PodFailed))
		s.await("once", "succeeded", inPhase(corev1.PodSucceeded))
		s.settle() // two pods at once have no order
		s.tell("done", "never", "once")
	},
	"init containers and sidecars": func(s *story) {
		p := newPod("a")
		always := corev1.ContainerRestartPolicyAlways
		side1, side2 := newSpec("side1"), newSpec("side2")
		side1.RestartPolicy, side2.RestartPolicy = &always, &always
		p.Spec.InitContainers = []corev1.Container{newSpec("first", "true"), side1, newSpec("second", "exit", "0", "after", "3s"), side2}
		s.create(p)
		s.await("a", "ready", isReady)
		s.tell("created", "a")
		s.cri.kill("side1", 1)
		s.pass(time.Second)
		s.tell("sidecar killed", "a")
		s.remove("a", 30)
		s.awaitGone("a")
		s.tell("deleted")
	},
	"failed init container": func(s *story) {
		p := newPod("a")
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.InitContainers = []corev1.Container{newSpec("first", "false")}
		s.create(p)
		s.await("a", "failed", inPhase(corev1.PodFailed))
		s.pass(time.Second)
		s.tell("created", "a")
	},
	"sandbox dies": func(s *story) {
		p := newPod("a")
		p.Spec.InitContainers = []corev1.Container{newSpec("first", "true")}
		s.create(p)
		s.await("a", "ready", isReady)
		s.tell("created", "a")
		s.cri.mu.Lock()
		for id := range s.cri.boxes {
			s.cri.downBox(id)
		}
		s.cri.mu.Unlock()
		s.pass(20 * time.Second)
		s.tell("killed", "a")
		s.events()
	},
	"image troubles": func(s *story) {
		never, missing, bad := newPod("never"), newPod("missing"), newPod("bad")
		never.Spec.Containers[0].Image, never.Spec.Containers[0].ImagePullPolicy = "missing:1", corev1.PullNever
		missing.Spec.Containers[0].Image = "missing"
		bad.Spec.Containers[0].Image = "UPPER CASE"
		s.create(never)
		s.await("never", "waiting", waitsFor("main", "ErrImageNeverPull"))
		s.create(bad)
		s.await("bad", "waiting", waitsFor("main", "InvalidImageName"))
		s.create(missing)
		s.await("missing", "waiting", waitsFor("main", "ErrImagePull"))
		s.await("missing", "backing off", waitsFor("main", "ImagePullBackOff"))
		s.tell("failed", "never", "missing", "bad")
		s.cri.mu.Lock()
		s.cri.images["missing:latest"] = true
		s.cri.mu.Unlock()
		s.await("missing", "ready", isReady)
		s.tell("mended", "missing")
	},
	"failing steps are repeated": func(s *story) {
		s.cri.fail["RunPodSandbox"] = status.Error(codes.Unknown, "no network")
		s.cri.fail["CreateContainer"] = status.Error(codes.Unknown, "no space")
		s.cri.fail["StartContainer"] = status.Error(codes.Unknown, "exec: not found")
		s.create(newPod("a"))
		s.await("a", "failing", waitsFor("main", "CreateContainerError"))
		s.tell("cannot create", "a")
		s.await("a", "failing", waitsFor("main", "RunContainerError"))
		s.tell("cannot start", "a")
		s.await("a", "ready", isReady)
		s.tell("works", "a")
		s.events()
	},
	"configuration is missing": func(s *story) {
		p := newPod("a")
		p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}}
		p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}, Key: "a"}}}}
		s.create(p)
		s.await("a", "waiting", waitsFor("main", "CreateContainerConfigError"))
		s.tell("no map", "a")
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "settings"}}
		if _, err := s.client.CoreV1().ConfigMaps("default").Create(s.t.Context(), cm, metav1.CreateOptions{}); err != nil {
			s.t.Fatal(err)
		}
		s.pass(5 * time.Second)
		s.tell("no key", "a")
		cm.Data = map[string]string{"a": "1"}
		if _, err := s.client.CoreV1().ConfigMaps("default").Update(s.t.Context(), cm, metav1.UpdateOptions{}); err != nil {
			s.t.Fatal(err)
		}
		s.await("a", "ready", isReady)
		s.tell("mended", "a")
	},
	"deadline": func(s *story) {
		p := newPod("a")
		seconds := int64(60)
		p.Spec.ActiveDeadlineSeconds = &seconds
		s.create(p)
		s.await("a", "failed", inPhase(corev1.PodFailed))
		s.pass(time.Second)
		s.tell("late", "a")
		s.text.WriteString(s.get("a").Status.Reason + ": " + s.get("a").Status.Message + "\n")
	},
	"hooks": func(s *story) {
		p := newPod("a")
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{
			PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"greet"}}},
			PreStop:   &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 5}},
		}
		s.create(p)
		s.await("a", "ready", isReady)
		s.remove("a", 30)
		s.awaitGone("a")
		s.tell("good hooks")
		synctest.Wait()
		s.cri.exec = func(string, []string) (int32, string) { return 3, "sorry" }
		q := newPod("b")
		q.Spec.Containers[0].Lifecycle = p.Spec.Containers[0].Lifecycle.DeepCopy()
		q.Spec.Containers[0].Lifecycle.PreStop = nil
		s.create(q)
		s.await("b", "failing", waitsFor("main", "PostStartHookError"))
		s.tell("failing hook", "b")
		s.events()
	},
	"probes": func(s *story) {
		var sick atomic.Bool
		s.cri.exec = func(_ string, command []string) (int32, string) {
			if command[0] == "started" {
				sick.Store(false)
			}
			if command[0] == "alive" && sick.Load() || command[0] == "ready" && time.Since(s.begin) < 12*time.Second {
				return 1, "not " + command[0]
			}
			return 0, ""
		}
		p := newPod("a")
		p.Spec.Containers[0].StartupProbe = execProbe("started", 1)
		p.Spec.Containers[0].LivenessProbe = execProbe("alive", 3)
		p.Spec.Containers[0].ReadinessProbe = execProbe("ready", 1)
		p.Spec.Containers[0].ReadinessProbe.InitialDelaySeconds = 2 // so that the two have an order
		s.create(p)
		s.await("a", "running", inPhase(corev1.PodRunning))
		s.pass(3 * time.Second)
		s.tell("started", "a")
		s.await("a", "ready", isReady)
		s.settle()
		s.tell("ready", "a")
		sick.Store(true)
		s.await("a", "restarted", func(p *corev1.Pod) bool {
			return p.Status.ContainerStatuses[0].RestartCount == 1 && p.Status.ContainerStatuses[0].State.Running != nil
		})
		s.tell("not alive", "a")
		s.events()
	},
	"a panic stays within its pod": func(s *story) {
		var calm atomic.Bool
		s.cri.exec = func(string, []string) (int32, string) {
			if !calm.Load() {
				panic("what now")
			}
			return 0, ""
		}
		p := newPod("a")
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"greet"}}}}
		s.create(p)
		s.pass(time.Second)
		s.create(newPod("b"))
		s.await("b", "ready", isReady)
		s.tell("after a second", "a", "b")
		calm.Store(true)
		s.await("a", "ready", isReady)
		s.tell("later", "a")
	},
	"ephemeral container": func(s *story) {
		s.create(newPod("a"))
		s.await("a", "ready", isReady)
		s.update("a", func(p *corev1.Pod) {
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{TargetContainerName: "main", EphemeralContainerCommon: corev1.EphemeralContainerCommon{
				Name: "debug", Image: testImage, Command: []string{"true"}, ImagePullPolicy: corev1.PullIfNotPresent}}}
		})
		s.await("a", "debugged", func(p *corev1.Pod) bool {
			return len(p.Status.EphemeralContainerStatuses) == 1 && p.Status.EphemeralContainerStatuses[0].State.Terminated != nil
		})
		s.pass(time.Minute)
		s.tell("debugged", "a")
	},
	"image of a running container changes": func(s *story) {
		s.create(newPod("a"))
		s.await("a", "ready", isReady)
		s.update("a", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "busybox:other"; p.Generation++ })
		s.await("a", "restarted", func(p *corev1.Pod) bool { return isReady(p) && p.Status.ContainerStatuses[0].RestartCount == 1 })
		s.tell("changed", "a")
		s.events()
	},
	"restart all containers": func(s *story) {
		p := newPod("a")
		onFailure := corev1.ContainerRestartPolicyOnFailure
		trigger := newSpec("trigger", "exit", "42", "after", "5s")
		trigger.RestartPolicy = &onFailure
		trigger.RestartPolicyRules = []corev1.ContainerRestartRule{{
			Action:    corev1.ContainerRestartRuleActionRestartAllContainers,
			ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
		}}
		p.Spec.InitContainers = []corev1.Container{newSpec("first", "true")}
		p.Spec.Containers = append(p.Spec.Containers, trigger)
		s.create(p)
		s.await("a", "ready", isReady)
		s.tell("created", "a")
		s.pass(6 * time.Second)
		s.tell("restarted", "a")
	},
	"grace is shortened": func(s *story) {
		p := newPod("a")
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 500}}}
		s.create(p)
		s.await("a", "ready", isReady)
		s.remove("a", 600)
		s.pass(10 * time.Second)
		s.tell("waiting", "a")
		s.remove("a", 5)
		s.awaitGone("a")
		s.tell("deleted at once")
	},
	"volumes come late": func(s *story) {
		volumes := s.cfg.Volumes.(*memoryVolumes)
		volumes.fail = errors.New(`MountVolume.SetUp failed for volume "v" : configmap "c" not found`)
		s.create(newPod("a"))
		s.pass(3 * time.Second)
		s.tell("no volumes", "a")
		volumes.mu.Lock()
		volumes.fail = nil
		volumes.mu.Unlock()
		s.await("a", "ready", isReady)
		s.tell("volumes", "a")
		s.events()
	},
	"agent restarts": func(s *story) {
		s.create(newPod("stays"), newPod("crashes", "exit", "1", "after", "1s"))
		s.await("stays", "ready", isReady)
		s.await("crashes", "backing off", waitsFor("main", "CrashLoopBackOff"))
		s.pass(time.Second)
		s.settle()
		s.create(newPod("vanishes"))
		s.await("vanishes", "ready", isReady)
		s.settle()
		s.stop()
		s.tell("stopped", "stays", "crashes")
		if err := s.client.CoreV1().Pods("default").Delete(s.t.Context(), "vanishes", metav1.DeleteOptions{}); err != nil {
			s.t.Fatal(err)
		}
		s.run()
		s.pass(3 * time.Second)
		s.tell("started again", "stays", "crashes", "vanishes")
		s.await("crashes", "restarted", func(p *corev1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount == 2 })
		s.tell("after the back-off", "crashes")
	},
	"resize": func(s *story) {
		node := &corev1.Node{Status: corev1.NodeStatus{Allocatable: cpu("2", "2").Limits}}
		s.stop()
		s.cfg.Node = func() *corev1.Node { return node }
		s.run()
		p := newPod("a")
		p.Spec.Containers[0].Resources = cpu("500m", "1")
		s.create(p)
		s.await("a", "ready", isReady)
		s.tell("created", "a")
		for _, want := range []corev1.ResourceRequirements{cpu("500m", "1500m"), cpu("3", "3")} {
			s.update("a", func(p *corev1.Pod) { p.Spec.Containers[0].Resources = want; p.Generation++ })
			s.pass(time.Second)
			s.tell("asked for "+want.Limits.Cpu().String(), "a")
			cs := s.get("a").Status.ContainerStatuses[0]
			fmt.Fprintf(&s.text, "allocated %v limit %v\n", cs.AllocatedResources.Cpu(), cs.Resources.Limits.Cpu())
			for _, c := range s.get("a").Status.Conditions {
				if strings.HasPrefix(string(c.Type), "PodResize") {
					fmt.Fprintf(&s.text, "%s %s %s\n", c.Type, c.Reason, c.Message)
				}
			}
		}
		q := newPod("big")
		q.Spec.Containers[0].Resources = cpu("1700m", "2")
		s.create(q)
		s.await("big", "rejected", inPhase(corev1.PodFailed))
		s.tell("no room", "big")
		s.text.WriteString(s.get("big").Status.Message + "\n")
	},
}

func execProbe(command string, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{command}}},
		PeriodSeconds: 5, FailureThreshold: failures, SuccessThreshold: 1, TimeoutSeconds: 1,
	}
}

// machine gives the cgroups of a machine whose only controller counts processes.
func machine(t *testing.T) string {
	t.Helper()
	fs := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(fs, "pids"), 0o755), os.WriteFile(filepath.Join(fs, "pids", "cgroup.procs"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	return fs
}

func TestStories(t *testing.T) {
	for title, tell := range stories {
		t.Run(title, func(t *testing.T) {
			dir, fs := t.TempDir(), machine(t)
			synctest.Test(t, func(t *testing.T) {
				cri := newFakeRuntime()
				s := &story{world: newWorld(t, cri, cri, dir), cri: cri, begin: time.Now()}
				s.cfg.CgroupFS = fs
				s.run()
				defer func() { s.stop() }()
				tell(s)
				compare(t, title, s.text.Bytes())
			})
		})
	}
}

func compare(t *testing.T, title string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", strings.ReplaceAll(title, " ", "-")+".txt")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s has changed; run with -update if that is right\n--- got\n%s--- want\n%s", path, got, want)
	}
}
