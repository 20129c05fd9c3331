package quota

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/harness"
)

func used(q *corev1.ResourceQuota, name corev1.ResourceName) string {
	quantity, ok := q.Status.Used[name]
	if !ok {
		return "unknown"
	}
	return quantity.String()
}

func TestRecount(t *testing.T) {
	h := harness.New(t)
	h.AddNode("node")
	h.Run(Controller(h.Registry, time.Now))
	h.Kubelet(nil)
	pod := func(name string) *corev1.Pod {
		template := harness.Template("web")
		template.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")}
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: name}, Spec: template.Spec}
	}
	harness.Create(h, pod("before"))
	harness.Create(h, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "q"},
		Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{
			"pods": resource.MustParse("5"), "requests.cpu": resource.MustParse("1"), "count/configmaps": resource.MustParse("3"),
		}}})
	is := func(pods, cpu, maps string) func(*corev1.ResourceQuota) bool {
		return func(q *corev1.ResourceQuota) bool {
			return fmt.Sprint(used(q, "pods"), used(q, "requests.cpu"), used(q, "count/configmaps")) == fmt.Sprint(pods, cpu, maps) && len(q.Status.Hard) == 3
		}
	}
	harness.Wait(h, "q", "the first count", is("1", "100m", "0"))
	// The harness has no admission that charges, so the recount finds these.
	harness.Create(h, pod("after"))
	harness.Create(h, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "m"}})
	harness.Wait(h, "q", "new objects", is("2", "200m", "1"))
	harness.Delete[*corev1.Pod](h, "before")
	harness.Delete[*corev1.ConfigMap](h, "m")
	harness.Wait(h, "q", "what was freed", is("1", "100m", "0"))
	harness.Change(h, "q", func(q *corev1.ResourceQuota) { q.Spec.Hard["secrets"] = resource.MustParse("1") })
	harness.Wait(h, "q", "another limit", func(q *corev1.ResourceQuota) bool { return used(q, "secrets") == "0" && len(q.Status.Hard) == 4 })
}
