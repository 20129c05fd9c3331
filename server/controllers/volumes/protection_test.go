package volumes

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/harness"
)

func TestClaimProtection(t *testing.T) {
	h := harness.New(t)
	h.AddNode("node")
	h.Run(ClaimProtection(h.Registry))
	h.Kubelet(nil)
	for _, name := range []string{"used", "free"} {
		harness.Create(h, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		}})
	}
	template := harness.Template("web")
	template.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "used"}}}}
	harness.Create(h, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "p"}, Spec: template.Spec})
	harness.Wait(h, "p", "a node", func(p *corev1.Pod) bool { return p.Spec.NodeName != "" })
	harness.Delete[*corev1.PersistentVolumeClaim](h, "used")
	harness.Delete[*corev1.PersistentVolumeClaim](h, "free")
	left := harness.WaitAll(h, "the free claim gone", func(all []*corev1.PersistentVolumeClaim) bool { return len(all) == 1 })
	if left[0].Name != "used" || left[0].DeletionTimestamp == nil {
		t.Errorf("left %s, deleted at %v", left[0].Name, left[0].DeletionTimestamp)
	}
	harness.Delete[*corev1.Pod](h, "p")
	harness.WaitAll(h, "no claims", func(all []*corev1.PersistentVolumeClaim) bool { return len(all) == 0 })
}

func TestVolumeProtection(t *testing.T) {
	h := harness.New(t)
	h.Run(VolumeProtection(h.Registry))
	volume := func(name string) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/tmp/x"}},
		}}
	}
	harness.Create(h, volume("v"))
	v := harness.Wait(h, "v", "its finalizer", func(v *corev1.PersistentVolume) bool { return len(v.Finalizers) == 1 })
	bound := v.DeepCopy()
	bound.Status.Phase = corev1.VolumeBound
	deleted := metav1.Now()
	bound.DeletionTimestamp = &deleted
	used := func() bool { return bound.Status.Phase == corev1.VolumeBound }
	if protects(bound, volumeFinalizer, used) {
		t.Error("a bound volume may go")
	}
	bound.Status.Phase = corev1.VolumeReleased
	if !protects(bound, volumeFinalizer, used) {
		t.Error("a released volume may not go")
	}
}
