package registry

import (
	"fmt"
	"reflect"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// benchPod is a pod as a ReplicaSet makes it.
func benchPod(name string) *corev1.Pod {
	yes, grace := true, int64(30)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", GenerateName: "web-5d4f8c7b9-",
			Labels:          map[string]string{"app": "web", "pod-template-hash": "5d4f8c7b9"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-5d4f8c7b9", UID: "0c1d", Controller: &yes, BlockOwnerDeletion: &yes}}},
		Spec: corev1.PodSpec{
			ServiceAccountName: "default", TerminationGracePeriodSeconds: &grace, DNSPolicy: corev1.DNSClusterFirst, SchedulerName: "default-scheduler",
			SecurityContext: &corev1.PodSecurityContext{}, EnableServiceLinks: &yes,
			Containers: []corev1.Container{{Name: "main", Image: "nginx:1.27", TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: "File",
				Ports:        []corev1.ContainerPort{{Name: "http", ContainerPort: 80, Protocol: "TCP"}},
				Env:          []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}},
				Resources:    corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("64Mi")}},
				VolumeMounts: []corev1.VolumeMount{{Name: "token", MountPath: "/var/run/secrets", ReadOnly: true}},
			}},
			Volumes:     []corev1.Volume{{Name: "token", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
			Tolerations: []corev1.Toleration{{Key: "node.kubernetes.io/not-ready", Operator: "Exists", Effect: "NoExecute", TolerationSeconds: &grace}},
		},
	}
}

func BenchmarkCreatePod(b *testing.B) {
	f := newFixture(b)
	var n atomic.Int64
	b.SetParallelism(25)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := f.Create(f.ctx, f.pods, "default", benchPod(fmt.Sprint("p", n.Add(1))), nil); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
}

func BenchmarkPatchStatus(b *testing.B) {
	f := newFixture(b)
	for i := range 100 {
		create(f, benchPod(fmt.Sprint("p", i)))
	}
	var n atomic.Int64
	b.SetParallelism(25)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := n.Add(1)
			body := fmt.Appendf(nil, `{"status":{"phase":"Running","message":"%d","conditions":[{"type":"Ready","status":"True"}]}}`, i)
			if _, _, err := f.Patch(f.ctx, f.pods, "status", "default", fmt.Sprint("p", i%100), types.StrategicMergePatchType, body, nil); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "patches/s")
}

func BenchmarkMutateStatus(b *testing.B) {
	f := newFixture(b)
	for i := range 100 {
		create(f, benchPod(fmt.Sprint("p", i)))
	}
	pods := Of[*corev1.Pod](f.Registry)
	var n atomic.Int64
	b.SetParallelism(25)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := n.Add(1)
			if _, err := pods.MutateStatus(f.ctx, "default", fmt.Sprint("p", i%100), func(p *corev1.Pod) error {
				p.Status.Message = fmt.Sprint(i)
				return nil
			}); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "mutates/s")
}

func BenchmarkList5000(b *testing.B) {
	f := newFixture(b)
	for i := range 5000 {
		create(f, f.configMap(fmt.Sprint("cm", i)))
	}
	b.ReportAllocs()
	for b.Loop() {
		out, err := f.List(f.ctx, f.cms, Selection{}, nil)
		if err != nil || len(out.Items) != 5000 {
			b.Fatal(err)
		}
	}
}

func BenchmarkOwnCreate(b *testing.B) {
	r, err := New(Config{Resources: []*Resource{pods()}})
	if err != nil {
		b.Fatal(err)
	}
	e := r.entries[r.resources[0]]
	empty := e.New()
	e.setKind(empty)
	pod := benchPod("p")
	e.setKind(pod)
	for name, manage := range map[string]func(){
		"quick": func() {
			if pod.ManagedFields = nil; !r.own(e, "", pod, empty, "m") {
				b.Error("not the quick way")
			}
		},
		"general": func() { pod.ManagedFields = nil; r.manageGenerally(e, "", pod, empty, "m") },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				manage()
			}
		})
	}
}

func BenchmarkPatchLabel(b *testing.B) {
	f := newFixture(b)
	for i := range 100 {
		create(f, benchPod(fmt.Sprint("p", i)))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		body := fmt.Appendf(nil, `{"metadata":{"labels":{"n":"%d"}}}`, i)
		if _, _, err := f.Patch(f.ctx, f.pods, "", "default", fmt.Sprint("p", i%100), types.StrategicMergePatchType, body, nil); err != nil {
			b.Error(err)
		}
	}
}

func BenchmarkShare(b *testing.B) {
	first, second := benchPod("a"), benchPod("b")
	second.Spec.Volumes[0].Name, second.Spec.Containers[0].VolumeMounts[0].Name = "other", "other"
	b.ReportAllocs()
	for b.Loop() {
		shallow := *second
		share(reflect.ValueOf(&shallow).Elem(), reflect.ValueOf(first).Elem())
	}
}
