package volumes

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/harness"
	"orch/server/controllers/loop"
)

func TestEphemeralVolumes(t *testing.T) {
	h := harness.New(t)
	c := Ephemeral(h.Registry, h.Events)
	spec := corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
	}
	// A claim of somebody else's stands in the second pod's way.
	harness.Create(h, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "q-scratch"}, Spec: spec})
	for _, name := range []string{"p", "q"} {
		pod := harness.Template("web")
		pod.Spec.Volumes = []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{
			VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"kind": "scratch"}}, Spec: spec},
		}}}}
		harness.Create(h, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: name}, Spec: pod.Spec})
	}
	look := func(name string) error {
		_, err := c.Reconcile(h.Context(), loop.Key{Namespace: harness.Namespace, Name: name})
		return err
	}
	if err := look("p"); err != nil {
		t.Fatal(err)
	}
	claim := harness.Wait(h, "p-scratch", "its claim", func(*corev1.PersistentVolumeClaim) bool { return true })
	if len(claim.OwnerReferences) != 1 || claim.OwnerReferences[0].Name != "p" || claim.Labels["kind"] != "scratch" {
		t.Errorf("made %+v", claim.ObjectMeta)
	}
	if err := look("p"); err != nil { // a second look finds all done
		t.Error(err)
	}
	if again := harness.Wait(h, "p-scratch", "it again", func(*corev1.PersistentVolumeClaim) bool { return true }); again.ResourceVersion != claim.ResourceVersion {
		t.Error("a second look wrote")
	}
	if err := look("q"); err == nil || !strings.Contains(err.Error(), "pod is not owner") {
		t.Errorf("took a foreign claim: %v", err)
	}
	h.Run(c)
	harness.Delete[*corev1.PersistentVolumeClaim](h, "q-scratch")
	harness.Wait(h, "q-scratch", "a claim of its own", func(claim *corev1.PersistentVolumeClaim) bool { return len(claim.OwnerReferences) == 1 })
}
