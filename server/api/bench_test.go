package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/registry"
)

// fillPods makes n pods that look like scheduled and running ones.
func fillPods(tb testing.TB, reg *registry.Registry, n int) {
	tb.Helper()
	for i := range n {
		fillPod(tb, reg, i)
	}
}

func fillPod(tb testing.TB, reg *registry.Registry, i int) {
	res := reg.Lookup("", "v1", "pods")
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("web-6f7c8d9b5d-%05d", i), Labels: map[string]string{"app": "web", "pod-template-hash": "6f7c8d9b5d"}},
		Spec: corev1.PodSpec{
			NodeName: "node-1", ServiceAccountName: "default", RestartPolicy: corev1.RestartPolicyAlways,
			Containers: []corev1.Container{{
				Name: "web", Image: "orch.local/hello", ImagePullPolicy: corev1.PullIfNotPresent,
				Ports:        []corev1.ContainerPort{{ContainerPort: 80, Protocol: corev1.ProtocolTCP}},
				VolumeMounts: []corev1.VolumeMount{{Name: "kube-api-access-abcde", ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}},
			}},
			Volumes: []corev1.Volume{{Name: "kube-api-access-abcde"}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.42.0.7", HostIP: "192.168.0.1",
			Conditions:        []corev1.PodCondition{{Type: "Ready", Status: "True"}, {Type: "PodScheduled", Status: "True"}, {Type: "Initialized", Status: "True"}, {Type: "ContainersReady", Status: "True"}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "web", Ready: true, Image: "orch.local/hello", ContainerID: "containerd://" + strings.Repeat("ab", 32)}},
		},
	}
	if _, err := reg.Create(context.Background(), res, "default", pod, &metav1.CreateOptions{FieldManager: "test"}); err != nil {
		tb.Fatal(err)
	}
}

// discard is a response writer that keeps nothing.
type discard struct {
	header http.Header
	size   int
}

func (d *discard) Header() http.Header { return d.header }
func (d *discard) WriteHeader(int)     {}
func (d *discard) Write(p []byte) (int, error) {
	d.size += len(p)
	return len(p), nil
}

func BenchmarkServer(b *testing.B) {
	reg := newTestRegistry(b, testTable())
	fillPods(b, reg, 5000)
	s := New(Config{Registry: reg})
	for _, c := range []struct{ name, path, accept string }{
		{"get/json", "/api/v1/namespaces/default/pods/web-6f7c8d9b5d-00007", contentJSON},
		{"get/protobuf", "/api/v1/namespaces/default/pods/web-6f7c8d9b5d-00007", contentProtobuf},
		{"list/json", "/api/v1/pods", contentJSON},
		{"list/protobuf", "/api/v1/pods", contentProtobuf},
		{"list/table", "/api/v1/pods", "application/json;as=Table;v=v1;g=meta.k8s.io"},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := httptest.NewRequest(http.MethodGet, c.path, nil)
				r.Header.Set("Accept", c.accept)
				w := &discard{header: make(http.Header)}
				s.ServeHTTP(w, r)
				b.ReportMetric(float64(w.size), "bytes")
			}
		})
	}
}

// BenchmarkWatchers makes objects while 100 clients watch them over HTTPS.
func BenchmarkWatchers(b *testing.B) {
	for _, accept := range []string{contentJSON, contentProtobuf} {
		b.Run(accept, func(b *testing.B) { benchmarkWatchers(b, accept, 100) })
	}
}

func benchmarkWatchers(b *testing.B, accept string, watchers int) {
	s := newTestServer(b)
	var reading sync.WaitGroup
	for range watchers {
		req, err := http.NewRequest("GET", s.URL+"/api/v1/pods?watch=1", nil)
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("Accept", accept)
		transport := s.Client().Transport.(*http.Transport).Clone() // a connection each
		resp, err := transport.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		reading.Go(func() {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			transport.CloseIdleConnections()
		})
	}
	var next atomic.Int64
	b.SetParallelism(25)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			fillPod(b, s.reg, int(next.Add(1)))
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
	s.api.Close()
	reading.Wait()
}
