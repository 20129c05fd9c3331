package kinds

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// ignored warns of fields that are taken and that nobody acts on, as
// docs/fields.md lists them: a pod that asks for them gets less than it asks for.
func (w *warnings) ignored(at func() *field.Path, s *corev1.PodSpec) {
	say := func(set bool, path *field.Path) {
		if set {
			w.say("%s: this cluster does not act on it", path)
		}
	}
	say(s.SchedulingGroup != nil, at().Child("schedulingGroup"))
	say(len(s.EvictionResponders) > 0, at().Child("evictionResponders"))
	if sc := s.SecurityContext; sc != nil {
		path := at().Child("securityContext")
		say(enforced(sc.AppArmorProfile), path.Child("appArmorProfile"))
		say(sc.SELinuxChangePolicy != nil, path.Child("seLinuxChangePolicy"))
	}
	for c := range allContainers(s) {
		path := func() *field.Path { return c.at(at()) }
		if sc := c.SecurityContext; sc != nil {
			say(enforced(sc.AppArmorProfile), path().Child("securityContext", "appArmorProfile"))
		}
		for i := range c.VolumeMounts {
			say(len(c.VolumeMounts[i].BindMountOptions) > 0, path().Child("volumeMounts").Index(i).Child("bindMountOptions"))
		}
	}
	for i := range s.Volumes {
		v, path := &s.Volumes[i], func(name string) *field.Path { return at().Child("volumes").Index(i).Child(name, "defaultUser") }
		say(v.ConfigMap != nil && v.ConfigMap.DefaultUser != nil, path("configMap"))
		say(v.Secret != nil && v.Secret.DefaultUser != nil, path("secret"))
		say(v.DownwardAPI != nil && v.DownwardAPI.DefaultUser != nil, path("downwardAPI"))
		say(v.Projected != nil && v.Projected.DefaultUser != nil, path("projected"))
	}
}

// enforced tells whether a profile asks for more than the runtime does anyway.
func enforced(p *corev1.AppArmorProfile) bool {
	return p != nil && p.Type == corev1.AppArmorProfileTypeLocalhost
}
