package volumes

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/server/controllers/harness"
)

func makeVolume(name, size string, change ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/tmp/x"}},
		}}
	for _, c := range change {
		c(v)
	}
	return v
}

func makeClaim(name, size string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: name, UID: "u"}, Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
	}}
	for _, f := range change {
		f(c)
	}
	return c
}

func reserve(uid types.UID) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) {
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: harness.Namespace, Name: "c", UID: uid}
	}
}

func TestPlanClaim(t *testing.T) {
	late, fast, block := storagev1.VolumeBindingWaitForFirstConsumer, "fast", corev1.PersistentVolumeBlock
	class := func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = &fast }
	bound := func(c *corev1.PersistentVolumeClaim) {
		c.Annotations, c.Spec.VolumeName = map[string]string{bindCompleted: "yes"}, "a"
	}
	for _, c := range []struct {
		name    string
		claim   *corev1.PersistentVolumeClaim
		class   *storagev1.StorageClass
		volumes []*corev1.PersistentVolume
		bind    string
		phase   corev1.PersistentVolumeClaimPhase
		reason  string
	}{
		{"the smallest that fits", makeClaim("c", "2Gi"), nil, []*corev1.PersistentVolume{makeVolume("a", "1Gi"), makeVolume("b", "9Gi"), makeVolume("d", "3Gi")}, "d", "", ""},
		{"none", makeClaim("c", "2Gi"), nil, []*corev1.PersistentVolume{makeVolume("a", "1Gi")}, "", corev1.ClaimPending, "FailedBinding"},
		{"fewer modes first", makeClaim("c", "1Gi"), nil, []*corev1.PersistentVolume{
			makeVolume("a", "1Gi", func(v *corev1.PersistentVolume) {
				v.Spec.AccessModes = append(v.Spec.AccessModes, corev1.ReadWriteMany)
			}), makeVolume("b", "5Gi")}, "b", "", ""},
		{"modes not offered", makeClaim("c", "1Gi", func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes[0] = corev1.ReadWriteMany }), nil,
			[]*corev1.PersistentVolume{makeVolume("a", "1Gi")}, "", corev1.ClaimPending, "FailedBinding"},
		{"volumeMode", makeClaim("c", "1Gi", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = &block }), nil,
			[]*corev1.PersistentVolume{makeVolume("a", "1Gi")}, "", corev1.ClaimPending, "FailedBinding"},
		{"selector", makeClaim("c", "1Gi", func(c *corev1.PersistentVolumeClaim) { c.Spec.Selector = harness.Selector("web") }), nil,
			[]*corev1.PersistentVolume{makeVolume("a", "1Gi"), makeVolume("b", "2Gi", func(v *corev1.PersistentVolume) { v.Labels = harness.Selector("web").MatchLabels })}, "b", "", ""},
		{"reserved by name", makeClaim("c", "1Gi"), nil, []*corev1.PersistentVolume{makeVolume("a", "1Gi"), makeVolume("b", "5Gi", reserve(""))}, "b", "", ""},
		{"reserved by uid", makeClaim("c", "1Gi"), nil, []*corev1.PersistentVolume{makeVolume("b", "5Gi", reserve("u"))}, "b", "", ""},
		{"reserved for a predecessor", makeClaim("c", "1Gi"), nil, []*corev1.PersistentVolume{makeVolume("b", "5Gi", reserve("v"))}, "", corev1.ClaimPending, "FailedBinding"},
		{"class", makeClaim("c", "1Gi", class), &storagev1.StorageClass{Provisioner: "x.io/y"}, []*corev1.PersistentVolume{makeVolume("a", "1Gi")}, "", "", "ExternalProvisioning"},
		{"no such class", makeClaim("c", "1Gi", class), nil, nil, "", "", "ProvisioningFailed"},
		{"volume of the class", makeClaim("c", "1Gi", class), nil, []*corev1.PersistentVolume{makeVolume("a", "1Gi", func(v *corev1.PersistentVolume) { v.Spec.StorageClassName = fast })}, "a", "", ""},
		{"first consumer", makeClaim("c", "1Gi", class), &storagev1.StorageClass{VolumeBindingMode: &late},
			[]*corev1.PersistentVolume{makeVolume("a", "1Gi", func(v *corev1.PersistentVolume) { v.Spec.StorageClassName = fast })}, "", corev1.ClaimPending, "WaitForFirstConsumer"},
		{"named", makeClaim("c", "1Gi", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "b" }), nil, []*corev1.PersistentVolume{makeVolume("a", "1Gi"), makeVolume("b", "2Gi")}, "b", "", ""},
		{"named and too small", makeClaim("c", "5Gi", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "a" }), nil, []*corev1.PersistentVolume{makeVolume("a", "1Gi")}, "", corev1.ClaimPending, "VolumeMismatch"},
		{"named and taken", makeClaim("c", "1Gi", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "a" }), nil, []*corev1.PersistentVolume{makeVolume("a", "1Gi", reserve("v"))}, "", corev1.ClaimPending, "FailedBinding"},
		{"lost", makeClaim("c", "1Gi", bound), nil, nil, "", corev1.ClaimLost, "ClaimLost"},
		{"misbound", makeClaim("c", "1Gi", bound), nil, []*corev1.PersistentVolume{makeVolume("a", "1Gi", reserve("v"))}, "", corev1.ClaimLost, "ClaimMisbound"},
	} {
		plan := PlanClaim(c.claim, View{Volumes: c.volumes, Class: c.class, Volume: func(name string) *corev1.PersistentVolume {
			for _, v := range c.volumes {
				if v.Name == name {
					return v
				}
			}
			return nil
		}})
		bind, reason := "", ""
		if plan.Bind != nil {
			bind = plan.Bind.Name
		}
		if plan.Event != nil {
			reason = plan.Event.Reason
		}
		if bind != c.bind || plan.Phase != c.phase || reason != c.reason {
			t.Errorf("%s: bind %q, phase %q, event %q", c.name, bind, plan.Phase, reason)
		}
	}
}

func TestPlanVolume(t *testing.T) {
	policy := func(p corev1.PersistentVolumeReclaimPolicy) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) { v.Spec.PersistentVolumeReclaimPolicy = p }
	}
	to := func(name string) *corev1.PersistentVolumeClaim {
		return makeClaim("c", "1Gi", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = name })
	}
	for _, c := range []struct {
		name   string
		volume *corev1.PersistentVolume
		claim  *corev1.PersistentVolumeClaim
		phase  corev1.PersistentVolumePhase
		unbind bool
	}{
		{"free", makeVolume("a", "1Gi"), nil, corev1.VolumeAvailable, false},
		{"reserved", makeVolume("a", "1Gi", reserve("")), nil, corev1.VolumeAvailable, false},
		{"bound", makeVolume("a", "1Gi", reserve("u")), to("a"), corev1.VolumeBound, false},
		{"being bound", makeVolume("a", "1Gi", reserve("u")), to(""), "", false},
		{"bound elsewhere", makeVolume("a", "1Gi", reserve("u")), to("b"), corev1.VolumeAvailable, true},
		{"retained", makeVolume("a", "1Gi", reserve("u")), nil, corev1.VolumeReleased, false},
		{"of a predecessor", makeVolume("a", "1Gi", reserve("v")), to("a"), corev1.VolumeReleased, false},
		{"to delete", makeVolume("a", "1Gi", reserve("u"), policy(corev1.PersistentVolumeReclaimDelete)), nil, corev1.VolumeFailed, false},
	} {
		if plan := PlanVolume(c.volume, c.claim); plan.Phase != c.phase || plan.Unbind != c.unbind {
			t.Errorf("%s: %+v", c.name, plan)
		}
	}
}

func TestBinding(t *testing.T) {
	h := harness.New(t)
	h.Run(Binder(h.Registry, h.Events, time.Now))
	harness.Create(h, makeClaim("c", "1Gi"))
	harness.Create(h, makeVolume("small", "2Gi"))
	c := harness.Wait(h, "c", "its volume", func(c *corev1.PersistentVolumeClaim) bool { return c.Status.Phase == corev1.ClaimBound })
	if c.Spec.VolumeName != "small" || c.Annotations[bindCompleted] != "yes" || c.Annotations[boundByController] != "yes" || c.Status.Capacity.Storage().String() != "2Gi" || len(c.Status.AccessModes) != 1 {
		t.Errorf("%+v", c)
	}
	v := harness.Wait(h, "small", "its claim", func(v *corev1.PersistentVolume) bool { return v.Status.Phase == corev1.VolumeBound })
	if v.Spec.ClaimRef == nil || v.Spec.ClaimRef.UID != c.UID || v.Annotations[boundByController] != "yes" {
		t.Errorf("%+v", v)
	}
	harness.Delete[*corev1.PersistentVolumeClaim](h, "c")
	harness.Wait(h, "small", "its release", func(v *corev1.PersistentVolume) bool { return v.Status.Phase == corev1.VolumeReleased })
}
