package scheduler

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// volumeOn is an available volume of class late that node alone reaches.
func volumeOn(name, node string) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}}
	v.Spec.StorageClassName = "late"
	v.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	v.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
		expression(corev1.LabelHostname, corev1.NodeSelectorOpIn, node)}}}
	v.Status.Phase = corev1.VolumeAvailable
	return v
}

func TestRefuseVolumes(t *testing.T) {
	name := "late"
	late := func(provisioner string, topology ...corev1.TopologySelectorTerm) lateClaim {
		c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data"}}
		c.Spec.StorageClassName = &name
		c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
		c.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
		return lateClaim{c, &storagev1.StorageClass{Provisioner: provisioner, AllowedTopologies: topology}}
	}
	const none = "kubernetes.io/no-provisioner"
	inZone := corev1.TopologySelectorTerm{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: zone, Values: []string{"1"}}}}
	type list = []*corev1.PersistentVolume
	tests := []struct {
		name  string
		fixed list
		late  []lateClaim
		all   list
		want  string // of node a
	}{
		{"bound here", list{volumeOn("v", "a")}, nil, nil, ""},
		{"bound elsewhere", list{volumeOn("v", "a"), volumeOn("w", "b")}, nil, nil, volumeFar},
		{"a volume here", nil, []lateClaim{late(none)}, list{volumeOn("v", "a")}, ""},
		{"a volume elsewhere", nil, []lateClaim{late(none)}, list{volumeOn("v", "b")}, volumeNone},
		{"one volume for two claims", nil, []lateClaim{late(none), late(none)}, list{volumeOn("v", "a")}, volumeNone},
		{"two volumes for two claims", nil, []lateClaim{late(none), late(none)}, list{volumeOn("v", "a"), volumeOn("w", "a")}, ""},
		{"can be made", nil, []lateClaim{late("example.com/disks")}, nil, ""},
		{"can be made elsewhere", nil, []lateClaim{late("example.com/disks", inZone)}, nil, volumeNone},
	}
	for _, test := range tests {
		if got := refuseVolumes(test.fixed, test.late, test.all)(makeNode("a")); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
	if got := refuseVolumes(nil, []lateClaim{late("example.com/disks", inZone)}, nil)(makeNode("a", label(zone, "1"))); got != "" {
		t.Errorf("in the zone where it can be made: %q", got)
	}
}
