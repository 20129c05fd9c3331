package pod

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestResizeMessage(t *testing.T) {
	pod := &corev1.Pod{}
	pod.Generation = 3
	pod.Spec.InitContainers = []corev1.Container{{Name: "i"}}
	pod.Spec.Containers = []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}}}}
	const about = `{"initContainers":[{"name":"i","resources":{}}],"containers":[{"name":"c","resources":{"requests":{"cpu":"1"}}}],"generation":3`
	if got, want := resizeMessage("started", pod, ""), "Pod resize started: "+about+"}"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := resizeMessage("Deferred", pod, "no room"), "Pod resize Deferred: "+about+`,"error":"no room"}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
