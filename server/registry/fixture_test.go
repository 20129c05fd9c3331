package registry

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"orch/store"
)

// The test table: small entries that use every hook once.

func configMaps() *Resource {
	return &Resource{
		Version: "v1", Kind: "ConfigMap", Plural: "configmaps", Singular: "configmap", Namespaced: true,
		New: func() Object { return &corev1.ConfigMap{} }, NewList: func() runtime.Object { return &corev1.ConfigMapList{} },
		Strategy: Strategy{UnconditionalUpdate: true, CreateOnUpdate: true},
	}
}

func secrets() *Resource {
	return &Resource{
		Version: "v1", Kind: "Secret", Plural: "secrets", Singular: "secret", Namespaced: true,
		New: func() Object { return &corev1.Secret{} }, NewList: func() runtime.Object { return &corev1.SecretList{} },
		Strategy: Strategy{Encrypt: true, UnconditionalUpdate: true},
	}
}

func pods() *Resource {
	return &Resource{
		Version: "v1", Kind: "Pod", Plural: "pods", Singular: "pod", Namespaced: true,
		New: func() Object { return &corev1.Pod{} }, NewList: func() runtime.Object { return &corev1.PodList{} },
		Strategy: Strategy{
			UnconditionalUpdate: true,
			Default: func(obj Object) {
				pod := obj.(*corev1.Pod)
				if pod.Spec.RestartPolicy == "" {
					pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
				}
				for i := range pod.Spec.Containers {
					c := &pod.Spec.Containers[i]
					if c.ImagePullPolicy == "" {
						c.ImagePullPolicy = corev1.PullIfNotPresent
					}
					for j := range c.Ports {
						if c.Ports[j].Protocol == "" {
							c.Ports[j].Protocol = corev1.ProtocolTCP
						}
					}
				}
			},
			PrepareCreate: func(_ context.Context, _ *Registry, obj Object) error {
				obj.(*corev1.Pod).Status = corev1.PodStatus{Phase: corev1.PodPending}
				return nil
			},
			PrepareUpdate: func(_ context.Context, _ *Registry, obj, old Object) error {
				obj.(*corev1.Pod).Status = old.(*corev1.Pod).Status
				return nil
			},
			Spec: func(obj Object) any { return &obj.(*corev1.Pod).Spec },
			Validate: func(obj Object) field.ErrorList {
				if len(obj.(*corev1.Pod).Spec.Containers) == 0 {
					return field.ErrorList{field.Required(field.NewPath("spec", "containers"), "")}
				}
				return nil
			},
			Fields: func(obj Object) fields.Set {
				pod := obj.(*corev1.Pod)
				return fields.Set{"spec.nodeName": pod.Spec.NodeName, "status.phase": string(pod.Status.Phase)}
			},
			Lane:      func(obj Object) string { return obj.(*corev1.Pod).Spec.NodeName },
			LaneField: "spec.nodeName",
			BeginDelete: func(_ context.Context, _ *Registry, obj Object, o *metav1.DeleteOptions) (bool, error) {
				grace := int64(30)
				if o.GracePeriodSeconds != nil {
					grace = *o.GracePeriodSeconds
				}
				if obj.(*corev1.Pod).Spec.NodeName == "" {
					grace = 0
				}
				o.GracePeriodSeconds = &grace
				return true, nil
			},
		},
		Subresources: []*Subresource{{Name: "status", Update: &View{
			Prepare: func(_ context.Context, obj, old Object) {
				obj.(*corev1.Pod).Spec = old.(*corev1.Pod).Spec
			},
		}}},
	}
}

func deployments() *Resource {
	return &Resource{
		Group: "apps", Version: "v1", Kind: "Deployment", Plural: "deployments", Singular: "deployment", Namespaced: true,
		New: func() Object { return &appsv1.Deployment{} }, NewList: func() runtime.Object { return &appsv1.DeploymentList{} },
		Strategy: Strategy{
			UnconditionalUpdate: true,
			Default: func(obj Object) {
				d := obj.(*appsv1.Deployment)
				if d.Spec.Replicas == nil {
					one := int32(1)
					d.Spec.Replicas = &one
				}
			},
			PrepareUpdate: func(_ context.Context, _ *Registry, obj, old Object) error {
				obj.(*appsv1.Deployment).Status = old.(*appsv1.Deployment).Status
				return nil
			},
			Spec: func(obj Object) any { return &obj.(*appsv1.Deployment).Spec },
		},
		Subresources: []*Subresource{
			{Name: "status", Update: &View{Prepare: func(_ context.Context, obj, old Object) {
				obj.(*appsv1.Deployment).Spec = old.(*appsv1.Deployment).Spec
			}}},
			{Name: "scale", Kind: schema.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"},
				New: func() runtime.Object { return &autoscalingv1.Scale{} },
				Project: &Projection{
					Get: func(obj Object) (runtime.Object, error) {
						d := obj.(*appsv1.Deployment)
						return &autoscalingv1.Scale{
							ObjectMeta: metav1.ObjectMeta{Name: d.Name, Namespace: d.Namespace, UID: d.UID, ResourceVersion: d.ResourceVersion, CreationTimestamp: d.CreationTimestamp},
							Spec:       autoscalingv1.ScaleSpec{Replicas: *d.Spec.Replicas},
							Status:     autoscalingv1.ScaleStatus{Replicas: d.Status.Replicas},
						}, nil
					},
					Set: func(obj Object, body runtime.Object) error {
						replicas := body.(*autoscalingv1.Scale).Spec.Replicas
						obj.(*appsv1.Deployment).Spec.Replicas = &replicas
						return nil
					},
				}},
		},
	}
}

// services claim a cluster address each, out of four.
func services() *Resource {
	return &Resource{
		Version: "v1", Kind: "Service", Plural: "services", Singular: "service", Namespaced: true,
		New: func() Object { return &corev1.Service{} }, NewList: func() runtime.Object { return &corev1.ServiceList{} },
		Strategy: Strategy{
			UnconditionalUpdate: true,
			PrepareCreate: func(_ context.Context, r *Registry, obj Object) error {
				svc := obj.(*corev1.Service)
				for i := 1; svc.Spec.ClusterIP == "" && i <= 4; i++ {
					if ip := fmt.Sprintf("10.0.0.%d", i); !r.Claimed("clusterip/" + ip) {
						svc.Spec.ClusterIP = ip
					}
				}
				if svc.Spec.ClusterIP == "" {
					return errors.New("no address left")
				}
				return nil
			},
			Claims: func(obj Object) []string {
				if ip := obj.(*corev1.Service).Spec.ClusterIP; ip != "" {
					return []string{"clusterip/" + ip}
				}
				return nil
			},
		},
	}
}

// namespaces have finalizers of their own.
func namespaces() *Resource {
	return &Resource{
		Version: "v1", Kind: "Namespace", Plural: "namespaces", Singular: "namespace",
		New: func() Object { return &corev1.Namespace{} }, NewList: func() runtime.Object { return &corev1.NamespaceList{} },
		Strategy: Strategy{
			UnconditionalUpdate: true,
			PrepareCreate: func(_ context.Context, _ *Registry, obj Object) error {
				obj.(*corev1.Namespace).Spec.Finalizers = []corev1.FinalizerName{corev1.FinalizerKubernetes}
				return nil
			},
			PrepareUpdate: func(_ context.Context, _ *Registry, obj, old Object) error {
				obj.(*corev1.Namespace).Spec.Finalizers = old.(*corev1.Namespace).Spec.Finalizers
				return nil
			},
			Held: func(obj Object) bool { return len(obj.(*corev1.Namespace).Spec.Finalizers) > 0 },
			BeginDelete: func(_ context.Context, _ *Registry, obj Object, _ *metav1.DeleteOptions) (bool, error) {
				obj.(*corev1.Namespace).Status.Phase = corev1.NamespaceTerminating
				return false, nil
			},
		},
		Subresources: []*Subresource{{Name: "finalize", Update: &View{}}},
	}
}

func coreEvents() *Resource {
	return &Resource{
		Version: "v1", Kind: "Event", Plural: "events", Singular: "event", Namespaced: true,
		New: func() Object { return &corev1.Event{} }, NewList: func() runtime.Object { return &corev1.EventList{} },
		Strategy: Strategy{UnconditionalUpdate: true, Fields: func(obj Object) fields.Set {
			return fields.Set{"reason": obj.(*corev1.Event).Reason}
		}},
	}
}

// newEvents are kept as core events.
func newEvents() *Resource {
	return &Resource{
		Group: "events.k8s.io", Version: "v1", Kind: "Event", Plural: "events", Singular: "event", Namespaced: true,
		New: func() Object { return &eventsv1.Event{} }, NewList: func() runtime.Object { return &eventsv1.EventList{} },
		Strategy: Strategy{UnconditionalUpdate: true},
		Stored: &Conversion{Resource: "events/v1",
			To: func(obj Object) (Object, error) {
				in := obj.(*eventsv1.Event)
				return &corev1.Event{ObjectMeta: in.ObjectMeta, InvolvedObject: in.Regarding, Reason: in.Reason, Message: in.Note}, nil
			},
			From: func(obj Object) (Object, error) {
				in := obj.(*corev1.Event)
				return &eventsv1.Event{ObjectMeta: in.ObjectMeta, Regarding: in.InvolvedObject, Reason: in.Reason, Note: in.Message}, nil
			}},
	}
}

// clock is a settable Now.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// fixture is a registry over a real store in a temporary folder.
type fixture struct {
	*Registry
	t                                                                        testing.TB
	ctx                                                                      context.Context
	clock                                                                    *clock
	cms, pods, deployments, services, namespaces, secrets, events, newEvents *Resource
}

type xorSealer byte

func (x xorSealer) Encrypt(_ string, plain []byte) ([]byte, error)  { return x.turn(plain), nil }
func (x xorSealer) Decrypt(_ string, sealed []byte) ([]byte, error) { return x.turn(sealed), nil }
func (x xorSealer) turn(in []byte) []byte {
	out := make([]byte, len(in))
	for i := range in {
		out[i] = in[i] ^ byte(x)
	}
	return out
}

func newFixture(t testing.TB, admission ...Admission) *fixture {
	t.Helper()
	f := &fixture{t: t, clock: &clock{now: time.Now()}, cms: configMaps(), pods: pods(), deployments: deployments(),
		services: services(), namespaces: namespaces(), secrets: secrets(), events: coreEvents(), newEvents: newEvents()}
	r, err := New(Config{Now: f.clock.Now, Admission: admission, Encryption: xorSealer(0x5a),
		Resources: []*Resource{f.cms, f.pods, f.deployments, f.services, f.namespaces, f.secrets, f.events, f.newEvents}})
	if err != nil {
		t.Fatal(err)
	}
	f.Registry = r
	s := store.New(store.Config{Dir: t.TempDir(), Codec: r.StoreCodec(), Lane: r.StoreLane})
	r.UseStore(s)
	ctx, cancel := context.WithCancelCause(context.Background())
	f.ctx = ctx
	stopped := make(chan error, 1)
	go func() { stopped <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-stopped:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Check(context.Background()); err != nil {
			t.Error(err)
		}
		cancel(errors.New("test over"))
		<-stopped
	})
	return f
}

func (f *fixture) configMap(name string, data ...string) *corev1.ConfigMap {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}}
	for i := 0; i+1 < len(data); i += 2 {
		if cm.Data == nil {
			cm.Data = map[string]string{}
		}
		cm.Data[data[i]] = data[i+1]
	}
	return cm
}

func (f *fixture) pod(name, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "main", Image: "nginx",
			Ports: []corev1.ContainerPort{{ContainerPort: 80}}}}},
	}
}

// create stores obj or ends the test.
func create[T Object](f *fixture, obj T) T {
	f.t.Helper()
	out, err := Of[T](f.Registry).Create(f.ctx, obj)
	if err != nil {
		f.t.Fatalf("create %s: %v", obj.GetName(), err)
	}
	return out
}
