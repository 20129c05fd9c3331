package kinds

import (
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/registry"
)

// oddSpec draws every warning there is about what a pod says of itself.
func oddSpec() corev1.PodSpec {
	http := corev1.ContainerPort{Name: "http", ContainerPort: 80, Protocol: "TCP"}
	host, any := http, http
	host.Name, host.HostPort, host.HostIP = "h", 80, "127.0.0.1"
	any.Name, any.HostPort = "", 80
	return corev1.PodSpec{
		NodeSelector:                  map[string]string{"beta.kubernetes.io/os": "linux"},
		TerminationGracePeriodSeconds: ptr(int64(-1)),
		TopologySpreadConstraints:     []corev1.TopologySpreadConstraint{{TopologyKey: "failure-domain.beta.kubernetes.io/zone"}},
		HostAliases:                   []corev1.HostAlias{{IP: "1.1.1.1"}, {IP: "1.1.1.1"}},
		ImagePullSecrets:              []corev1.LocalObjectReference{{}, {}},
		Volumes:                       []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{GitRepo: &corev1.GitRepoVolumeSource{}}}},
		Affinity: &corev1.Affinity{
			PodAffinity:     &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{}}},
			PodAntiAffinity: &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{}}},
		},
		InitContainers: []corev1.Container{{Name: "i", Ports: []corev1.ContainerPort{http}}},
		Containers: []corev1.Container{{
			Name: "c", Ports: []corev1.ContainerPort{http, host, any},
			Env: []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "A", Value: "$(A)2"}, {Name: "A", Value: "3"}},
			Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{
				corev1.ResourceMemory: resource.MustParse("100m"), corev1.ResourceCPU: resource.MustParse("100m"),
			}},
		}},
	}
}

// TestWarnings holds the warnings, which upstream 1.37 words so.
func TestWarnings(t *testing.T) {
	odd := oddSpec()
	for _, test := range []struct {
		name string
		got  []string
		want []string
	}{
		{"pod", podWarnings(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: odd}), []string{
			`spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use "kubernetes.io/os" instead`,
			`spec.topologySpreadConstraints[0].topologyKey: failure-domain.beta.kubernetes.io/zone is deprecated since v1.17; use "topology.kubernetes.io/zone" instead`,
			`spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod`,
			`spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+`,
			`spec.hostAliases[1].ip: duplicate ip "1.1.1.1"`,
			`spec.imagePullSecrets[1].name: duplicate name ""`,
			`spec.imagePullSecrets[0].name: invalid empty name ""`,
			`spec.imagePullSecrets[1].name: invalid empty name ""`,
			`spec.containers[0].resources.limits[memory]: fractional byte value "100m" is invalid, must be an integer`,
			`spec.containers[0].env[2]: hides previous definition of "A", which may be dropped when using apply`,
			`spec.containers[0].ports[0]: duplicate port definition with spec.initContainers[0].ports[0]`,
			`spec.containers[0].ports[1]: overlapping port definition with spec.initContainers[0].ports[0]`,
			`spec.containers[0].ports[1]: overlapping port definition with spec.containers[0].ports[0]`,
			`spec.containers[0].ports[2]: overlapping port definition with spec.initContainers[0].ports[0]`,
			`spec.containers[0].ports[2]: overlapping port definition with spec.containers[0].ports[0]`,
			`spec.containers[0].ports[2]: dangerously ambiguous port definition with spec.containers[0].ports[1]`,
			`spec.containers[0].ports[0]: duplicate port name "http" with spec.initContainers[0].ports[0], services and probes that select ports by name will use spec.initContainers[0].ports[0]`,
			`spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1`,
			`spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector: a null labelSelector results in matching no pod`,
			`spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector: a null labelSelector results in matching no pod`,
		}},
		{"template", templateWarnings(&corev1.PodTemplateSpec{Spec: corev1.PodSpec{ImagePullSecrets: odd.ImagePullSecrets[:1]}}, "spec", "template"), []string{
			`spec.template.spec.imagePullSecrets[0].name: invalid empty name ""`,
		}},
		{"history", statefulSetWarnings(&appsv1.StatefulSet{Spec: appsv1.StatefulSetSpec{RevisionHistoryLimit: ptr(int32(-1))}}), []string{
			"spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended",
		}},
		{"secret", secretWarnings(&corev1.Secret{Type: corev1.SecretTypeTLS}), []string{"tls: failed to find any PEM data in certificate input"}},
		{"volume", volumeWarnings(&corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{CephFS: &corev1.CephFSPersistentVolumeSource{}}}}), []string{
			"spec.cephfs: deprecated in v1.28, non-functional in v1.31+",
		}},
		{"service", serviceWarnings(&corev1.Service{Spec: corev1.ServiceSpec{ExternalIPs: []string{"1.1.1.1"}, ExternalName: "x"}}), []string{
			"spec.externalIPs is deprecated and may no longer be implemented in some clusters",
			`spec.externalName is ignored when spec.type is not "ExternalName"`,
		}},
		{"ingress", ingressWarnings(&networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"kubernetes.io/ingress.class": "x"}}}), []string{
			`annotation "kubernetes.io/ingress.class" is deprecated, please use 'spec.ingressClassName' instead`,
		}},
		{"driver", csiDriverWarnings(&storagev1.CSIDriver{}), nil},
	} {
		if !slices.Equal(test.got, test.want) {
			t.Errorf("%s:\n%q\nwant\n%q", test.name, test.got, test.want)
		}
	}
}

// TestWarnedOnce: what a change leaves as it was is not warned of again.
func TestWarnedOnce(t *testing.T) {
	f := newFixture(t)
	var heard []string
	f.ctx = registry.WithWarnings(f.ctx, func(text string) { heard = append(heard, text) })
	put(f, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "a.b", Namespace: "default"},
		Spec:       appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: web()}, Template: template("")},
	})
	put(f, &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Name: "c.d", Namespace: "default"},
		Spec:       batchv1.CronJobSpec{Schedule: "* * * * *", JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: template("Never")}}},
	})
	if len(heard) != 2 {
		t.Errorf("created: %q", heard)
	}
	deployments := registry.Of[*appsv1.Deployment](f.Registry)
	for label, want := range map[string]int{"": 3, "x": 3} {
		if _, err := deployments.Mutate(f.ctx, "default", "a.b", func(d *appsv1.Deployment) error {
			if label == "" {
				d.Spec.Replicas = ptr(int32(5))
			} else {
				d.Labels = map[string]string{label: "y"}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if label == "" && len(heard) != want {
			t.Errorf("scaled: %q", heard)
		}
	}
	if len(heard) != 3 {
		t.Errorf("labelled: %q", heard)
	}
}
