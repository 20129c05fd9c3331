package kinds

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/registry"
)

func ptr[T any](v T) *T { return &v }

func testPod(change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "nginx:1"}}},
	}
	if change != nil {
		change(p)
	}
	return p
}

func amounts(pairs ...string) corev1.ResourceList {
	list := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		list[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return list
}

// refused checks that err is Invalid and has the cause want, "" being no error.
func refused(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	list := causes(err)
	for _, c := range list {
		if strings.HasPrefix(c, want) {
			return
		}
	}
	t.Fatalf("got %q (%v), want %q", list, err, want)
}

func TestPodCreate(t *testing.T) {
	f := newFixture(t)
	for _, test := range []struct {
		name   string
		change func(*corev1.Pod)
		want   string
	}{
		{"minimal", func(*corev1.Pod) {}, ""},
		{"no containers", func(p *corev1.Pod) { p.Spec.Containers = nil }, "spec.containers: Required value"},
		{"no image", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "" }, "spec.containers[0].image: Required value"},
		{"blank image", func(p *corev1.Pod) { p.Spec.Containers[0].Image = " nginx" },
			`spec.containers[0].image: Invalid value: " nginx": must not have leading or trailing whitespace`},
		{"bad name", func(p *corev1.Pod) { p.Name = "Web" }, `metadata.name: Invalid value: "Web": a lowercase RFC 1123 subdomain`},
		{"same container twice", func(p *corev1.Pod) { p.Spec.Containers = append(p.Spec.Containers, p.Spec.Containers[0]) },
			`spec.containers[1].name: Duplicate value: "main"`},
		{"unknown volume", func(p *corev1.Pod) {
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
		}, `spec.containers[0].volumeMounts[0].name: Not found: "data"`},
		{"request over limit", func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: amounts("cpu", "2"), Limits: amounts("cpu", "1")}
		}, `spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1`},
		{"restart policy", func(p *corev1.Pod) { p.Spec.RestartPolicy = "Sometimes" },
			`spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"`},
		{"port twice", func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "a", ContainerPort: 80}, {Name: "a", ContainerPort: 81}}
		}, `spec.containers[0].ports[1].name: Duplicate value: "a"`},
		{"host port", func(p *corev1.Pod) {
			p.Spec.HostNetwork = true
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 81}}
		}, "spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true"},
		{"ephemeral containers", func(p *corev1.Pod) {
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "d", Image: "busybox"}}}
		}, `spec.ephemeralContainers: Forbidden: cannot be set on create`},
		{"gated and bound", func(p *corev1.Pod) {
			p.Spec.NodeName, p.Spec.SchedulingGates = "node", []corev1.PodSchedulingGate{{Name: "wait"}}
		}, `spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared`},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := registry.Of[*corev1.Pod](f.Registry).Create(f.ctx, testPod(test.change))
			refused(t, err, test.want)
		})
	}
}

func TestPodUpdate(t *testing.T) {
	f := newFixture(t)
	start := put(f, testPod(func(p *corev1.Pod) {
		p.Spec.NodeName = "node"
		p.Spec.TerminationGracePeriodSeconds = ptr(int64(-5))
	}))
	const only = "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
	for _, test := range []struct {
		name   string
		change func(*corev1.Pod)
		want   string
	}{
		{"nothing", func(*corev1.Pod) {}, ""},
		{"image", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "nginx:2" }, ""},
		{"toleration added", func(p *corev1.Pod) {
			p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: "a", Operator: corev1.TolerationOpExists})
		}, ""},
		{"toleration removed", func(p *corev1.Pod) { p.Spec.Tolerations = nil }, "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"},
		{"grace period of one", func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = ptr(int64(1)) }, ""},
		{"deadline", func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = ptr(int64(100)) }, ""},
		{"longer deadline", func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = ptr(int64(200)) },
			"spec.activeDeadlineSeconds: Invalid value: 200: must be less than or equal to previous value"},
		{"command", func(p *corev1.Pod) { p.Spec.Containers[0].Command = []string{"sh"} }, only},
		{"node", func(p *corev1.Pod) { p.Spec.NodeName = "other" }, only},
		{"another container", func(p *corev1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "b", Image: "b", TerminationMessagePolicy: "File"})
		}, "spec.containers: Forbidden: pod updates may not add or remove containers"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := registry.Of[*corev1.Pod](f.Registry).Mutate(f.ctx, "default", start.Name, func(p *corev1.Pod) error {
				test.change(p)
				return nil
			})
			refused(t, err, test.want)
		})
	}
}

func TestPodQOS(t *testing.T) {
	for _, test := range []struct {
		name             string
		requests, limits corev1.ResourceList
		want             corev1.PodQOSClass
	}{
		{"nothing", nil, nil, corev1.PodQOSBestEffort},
		{"limits alone", nil, amounts("cpu", "1", "memory", "1Gi"), corev1.PodQOSGuaranteed},
		{"one limit", nil, amounts("cpu", "1"), corev1.PodQOSBurstable},
		{"less requested", amounts("cpu", "500m"), amounts("cpu", "1", "memory", "1Gi"), corev1.PodQOSBurstable},
		{"zero", amounts("cpu", "0"), nil, corev1.PodQOSBestEffort},
		{"other resources", amounts("ephemeral-storage", "1Gi"), nil, corev1.PodQOSBestEffort},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := testPod(nil)
			p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: test.requests, Limits: test.limits}
			defaultPod(p)
			if got := qosClass(p); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestPullPolicy(t *testing.T) {
	for image, want := range map[string]corev1.PullPolicy{
		"nginx": "Always", "nginx:latest": "Always", "nginx:1.2": "IfNotPresent", "host:5000/nginx": "Always",
		"host:5000/nginx:1": "IfNotPresent", "nginx@sha256:" + strings.Repeat("a", 64): "IfNotPresent",
	} {
		if got := pullPolicy(image); got != want {
			t.Errorf("%s: got %s, want %s", image, got, want)
		}
	}
}

func TestPodRow(t *testing.T) {
	ended := func(code int32, reason string, ago time.Duration) *corev1.ContainerStateTerminated {
		return &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason, FinishedAt: metav1.NewTime(testTime.Add(-ago))}
	}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	one := func(s corev1.ContainerStatus) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodRunning
			p.Status.ContainerStatuses = []corev1.ContainerStatus{s}
		}
	}
	for _, test := range []struct {
		name   string
		change func(*corev1.Pod)
		want   string
	}{
		{"pending", func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }, "web | 0/1 | Pending | 0"},
		{"running", one(corev1.ContainerStatus{Ready: true, State: running}), "web | 1/1 | Running | 0"},
		{"restarted", one(corev1.ContainerStatus{Ready: true, State: running, RestartCount: 3,
			LastTerminationState: corev1.ContainerState{Terminated: ended(1, "Error", 2*time.Minute)}}), "web | 1/1 | Running | 3 (2m ago)"},
		{"crash loop", one(corev1.ContainerStatus{RestartCount: 5,
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}}), "web | 0/1 | CrashLoopBackOff | 5"},
		{"completed", one(corev1.ContainerStatus{State: corev1.ContainerState{Terminated: ended(0, "Completed", 0)}}), "web | 0/1 | Completed | 0"},
		{"signal", one(corev1.ContainerStatus{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Signal: 9}}}),
			"web | 0/1 | Signal:9 | 0"},
		{"going", func(p *corev1.Pod) {
			p.Status.Phase, p.DeletionTimestamp = corev1.PodRunning, &metav1.Time{Time: testTime}
		}, "web | 0/1 | Terminating | 0"},
		{"evicted", func(p *corev1.Pod) { p.Status.Phase, p.Status.Reason = corev1.PodFailed, "Evicted" }, "web | 0/1 | Evicted | 0"},
		{"initializing", func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodPending
			p.Spec.InitContainers = []corev1.Container{{Name: "a"}, {Name: "b"}}
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{
				{Name: "a", State: corev1.ContainerState{Terminated: ended(0, "Completed", 0)}}, {Name: "b", State: running}}
		}, "web | 0/1 | Init:1/2 | 0"},
		{"sidecar", func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodRunning
			p.Spec.InitContainers = []corev1.Container{{Name: "side", RestartPolicy: ptr(corev1.ContainerRestartPolicyAlways)}}
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "side", Started: ptr(true), Ready: true, State: running}}
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Ready: true, State: running}}
		}, "web | 2/2 | Running | 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := testPod(test.change)
			if got := cells(podRow(p, testTime)[:4]); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestPodDelete(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*corev1.Pod)
		ask    *int64
		grace  int64
	}{
		{"unscheduled", func(p *corev1.Pod) { p.Spec.NodeName = "" }, nil, 0},
		{"scheduled", nil, nil, 30},
		{"asked for", nil, ptr(int64(7)), 7},
		{"negative", nil, ptr(int64(-7)), 1},
		{"forced", nil, ptr(int64(0)), 0},
		{"over already", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, nil, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := testPod(func(p *corev1.Pod) { p.Spec.NodeName = "node" })
			defaultPod(p)
			if test.change != nil {
				test.change(p)
			}
			options := &metav1.DeleteOptions{GracePeriodSeconds: test.ask}
			graceful, err := beginPodDelete(t.Context(), nil, p, options)
			if err != nil || graceful != (test.grace > 0) || *options.GracePeriodSeconds != test.grace {
				t.Errorf("got %v %d %v, want %d", graceful, *options.GracePeriodSeconds, err, test.grace)
			}
		})
	}
}

func TestAssignPod(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*corev1.Pod)
		want   string
	}{
		{"free", nil, ""},
		{"bound", func(p *corev1.Pod) { p.Spec.NodeName = "a" }, `pod web is already assigned to node "a"`},
		{"gated", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "g"}} },
			"pod web has non-empty .spec.schedulingGates"},
		{"going", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: testTime} },
			"pod web is being deleted, cannot be assigned to a host"},
		{"another pod", func(p *corev1.Pod) { p.UID = "new" }, "Precondition failed: UID in precondition: old, UID in object meta: new"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := testPod(func(p *corev1.Pod) { p.UID = "old" })
			if test.change != nil {
				test.change(p)
			}
			b := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{UID: "old"}, Target: corev1.ObjectReference{Name: "node"}}
			err := assignPod(p, b, metav1.NewTime(testTime))
			if test.want == "" {
				if err != nil || p.Spec.NodeName != "node" || podCondition(p, corev1.PodScheduled) == nil {
					t.Errorf("got %v, node %q", err, p.Spec.NodeName)
				}
				return
			}
			if !apierrors.IsConflict(err) || !strings.HasSuffix(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}

func TestBinding(t *testing.T) {
	f := newFixture(t)
	pod := put(f, testPod(nil))
	b := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: pod.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: "node"}}
	dry := &metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	if _, err := f.Create(f.ctx, f.Lookup("", "v1", "bindings"), "default", b.DeepCopy(), dry); err != nil {
		t.Fatal(err)
	}
	if p, err := registry.Of[*corev1.Pod](f.Registry).Get("default", pod.Name); err != nil || p.Spec.NodeName != "" {
		t.Fatalf("a dry run bound the pod: %v", err)
	}
	if _, err := createBinding(f.ctx, f.Registry, "default", pod.Name, b, &metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := registry.Of[*corev1.Pod](f.Registry).Get("default", pod.Name)
	if err != nil {
		t.Fatal(err)
	}
	if got.Spec.NodeName != "node" || got.Generation != 1 {
		t.Errorf("node %q, generation %d", got.Spec.NodeName, got.Generation)
	}
	if _, err := createBinding(f.ctx, f.Registry, "default", pod.Name, b, &metav1.CreateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("bound twice: %v", err)
	}
}
