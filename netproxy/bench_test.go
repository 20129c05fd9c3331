package netproxy

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
)

// BenchmarkServiceChange measures from an event (an endpoint came or went) to
// its rules in the kernel, on a node with 1,000 services.
func BenchmarkServiceChange(b *testing.B) {
	if !isolated(b) {
		return
	}
	var objects []runtime.Object
	pods := []*pod{{ip: podAddress(2)}, {ip: podAddress(3)}, {ip: podAddress(4)}}
	for i := range 1000 {
		name := fmt.Sprintf("svc-%d", i)
		clusterIP := fmt.Sprintf("10.43.%d.%d", 1+i/200, 1+i%200)
		objects = append(objects, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec: corev1.ServiceSpec{ClusterIP: clusterIP, ClusterIPs: []string{clusterIP},
				Ports: []corev1.ServicePort{{Name: "web", Protocol: corev1.ProtocolTCP, Port: 80}}}})
		objects = append(objects, endpointSlice(name, pods[:2]...))
	}
	began := time.Now()
	n := newNode(b, fake.NewClientset(objects...))
	b.Logf("ready after %s with 1,000 services", time.Since(began))
	defer func() { n.stop() }()
	ctx := context.Background()
	changed := make(chan struct{}, 1)
	n.proxy.store.OnChange(func(types.NamespacedName) { changed <- struct{}{} })
	var took []time.Duration
	turn := 0
	for b.Loop() {
		turn++
		name := fmt.Sprintf("svc-%d", turn*7%1000)
		slice := endpointSlice(name, pods[turn%2:]...)
		start := time.Now()
		_, err := n.client.DiscoveryV1().EndpointSlices("default").Update(ctx, slice, metav1.UpdateOptions{})
		must(b, err)
		<-changed
		must(b, n.proxy.engine.Flush(ctx))
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// BenchmarkAttach measures ADD and DEL as the agent's side of the socket sees
// them, the making of the sandbox's namespace left out.
func BenchmarkAttach(b *testing.B) {
	if !isolated(b) {
		return
	}
	n := newNode(b, nil)
	defer func() { n.stop() }()
	n.namespace("pod")
	var add, del time.Duration
	count := 0
	for b.Loop() {
		count++
		start := time.Now()
		response, err := n.call("ADD", "pod")
		must(b, err)
		if response.Error != nil {
			b.Fatal(response.Error)
		}
		attached := time.Now()
		_, err = n.call("DEL", "pod")
		must(b, err)
		add, del = add+attached.Sub(start), del+time.Since(attached)
	}
	b.ReportMetric(float64(add.Microseconds())/1000/float64(count), "ADD-ms")
	b.ReportMetric(float64(del.Microseconds())/1000/float64(count), "DEL-ms")
}
