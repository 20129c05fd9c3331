package kinds

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// placedContainer knows where in its pod it stands. Paths are made only when
// there is something to say: nearly all pods are without fault.
type placedContainer struct {
	*corev1.Container
	list  string
	index int
}

func (c placedContainer) at(spec *field.Path) *field.Path { return spec.Child(c.list).Index(c.index) }

// allContainers are the containers of s of every sort.
func allContainers(s *corev1.PodSpec) iter.Seq[placedContainer] {
	return func(yield func(placedContainer) bool) {
		for i := range s.InitContainers {
			if !yield(placedContainer{&s.InitContainers[i], "initContainers", i}) {
				return
			}
		}
		for i := range s.Containers {
			if !yield(placedContainer{&s.Containers[i], "containers", i}) {
				return
			}
		}
		for i := range s.EphemeralContainers {
			c := (*corev1.Container)(&s.EphemeralContainers[i].EphemeralContainerCommon)
			if !yield(placedContainer{c, "ephemeralContainers", i}) {
				return
			}
		}
	}
}

func podWarnings(p *corev1.Pod) []string {
	var w warnings
	if msgs := validation.IsDNS1123Label(p.Name); len(msgs) > 0 {
		w.say("metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: %v", msgs)
	}
	w.podSpec(nil, &p.Spec)
	return w
}

// templateWarnings are those of the pods that a workload makes.
func templateWarnings(t *corev1.PodTemplateSpec, path ...string) []string {
	var w warnings
	w.podSpec(path, &t.Spec)
	return w
}

// workloadWarnings are those of a workload after whose name its pods are named.
func workloadWarnings(name string, t *corev1.PodTemplateSpec, path ...string) []string {
	var w warnings
	if msgs := validation.IsDNS1123Label(name); len(msgs) > 0 {
		w.say("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: %v", msgs)
	}
	w.podSpec(path, &t.Spec)
	return w
}

// warnings gathers, in upstream's words, what is allowed but hardly meant.
type warnings []string

func (w *warnings) say(format string, args ...any) { *w = append(*w, fmt.Sprintf(format, args...)) }

// podSpec warns of the spec that stands under prefix.
func (w *warnings) podSpec(prefix []string, s *corev1.PodSpec) {
	at := func() *field.Path { return specPath(prefix) }
	w.placement(at, s)
	w.volumes(at, s)
	w.repeated(at, s)
	for c := range allContainers(s) {
		w.fractions(at, c, "limits", c.Resources.Limits)
		w.fractions(at, c, "requests", c.Resources.Requests)
		w.hiddenEnv(at, c)
	}
	w.ports(at, s)
	if period := s.TerminationGracePeriodSeconds; period != nil && *period < 0 {
		w.say("%s: must be >= 0; negative values are invalid and will be treated as 1", at().Child("terminationGracePeriodSeconds"))
	}
	w.affinity(at, s.Affinity)
	if s.DNSConfig != nil {
		for i, ip := range s.DNSConfig.Nameservers {
			w.ip(at().Child("dnsConfig", "nameservers").Index(i), ip)
		}
	}
	for i, alias := range s.HostAliases {
		w.ip(at().Child("hostAliases").Index(i).Child("ip"), alias.IP)
	}
	w.ignored(at, s)
}

func specPath(prefix []string) *field.Path {
	if len(prefix) == 0 {
		return field.NewPath("spec")
	}
	return field.NewPath(prefix[0], prefix[1:]...).Child("spec")
}

// Node labels that something newer stands for.
var oldNodeLabels = map[string]string{
	corev1.LabelFailureDomainBetaRegion: `deprecated since v1.17; use "topology.kubernetes.io/region" instead`,
	corev1.LabelFailureDomainBetaZone:   `deprecated since v1.17; use "topology.kubernetes.io/zone" instead`,
	corev1.LabelInstanceType:            `deprecated since v1.17; use "node.kubernetes.io/instance-type" instead`,
	"beta.kubernetes.io/arch":           `deprecated since v1.14; use "kubernetes.io/arch" instead`,
	"beta.kubernetes.io/os":             `deprecated since v1.14; use "kubernetes.io/os" instead`,
	"node-role.kubernetes.io/master":    `use "node-role.kubernetes.io/control-plane" instead`,
}

func (w *warnings) placement(at func() *field.Path, s *corev1.PodSpec) {
	for _, key := range slices.Sorted(maps.Keys(s.NodeSelector)) {
		if instead := oldNodeLabels[key]; instead != "" {
			w.say("%s: %s", at().Child("nodeSelector").Key(key), instead)
		}
	}
	for i := range s.TopologySpreadConstraints {
		c := &s.TopologySpreadConstraints[i]
		path := func(name string) *field.Path { return at().Child("topologySpreadConstraints").Index(i).Child(name) }
		if instead := oldNodeLabels[c.TopologyKey]; instead != "" {
			w.say("%s: %s is %s", path("topologyKey"), c.TopologyKey, instead)
		}
		if c.LabelSelector == nil {
			w.say(matchesNothing, path("labelSelector"))
		}
	}
}

const matchesNothing = "%s: a null labelSelector results in matching no pod"

func (w *warnings) affinity(at func() *field.Path, a *corev1.Affinity) {
	if a == nil {
		return
	}
	terms := func(name string, required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm) {
		path := func(list string) *field.Path { return at().Child("affinity", name, list) }
		for i := range required {
			if required[i].LabelSelector == nil {
				w.say(matchesNothing, path("requiredDuringSchedulingIgnoredDuringExecution").Index(i).Child("labelSelector"))
			}
		}
		for i := range preferred {
			if preferred[i].PodAffinityTerm.LabelSelector == nil {
				w.say(matchesNothing, path("preferredDuringSchedulingIgnoredDuringExecution").Index(i).Child("podAffinityTerm", "labelSelector"))
			}
		}
	}
	if p := a.PodAffinity; p != nil {
		terms("podAffinity", p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if p := a.PodAntiAffinity; p != nil {
		terms("podAntiAffinity", p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution)
	}
}

func (w *warnings) volumes(at func() *field.Path, s *corev1.PodSpec) {
	for i := range s.Volumes {
		v := &s.Volumes[i].VolumeSource
		old := func(there bool, name, fate string) {
			if there {
				w.say("%s: deprecated in %s", at().Child("volumes").Index(i).Child(name), fate)
			}
		}
		old(v.PhotonPersistentDisk != nil, "photonPersistentDisk", "v1.11, non-functional in v1.16+")
		old(v.GitRepo != nil, "gitRepo", "v1.11, and disabled by default in v1.33+")
		old(v.ScaleIO != nil, "scaleIO", "v1.16, non-functional in v1.22+")
		old(v.Flocker != nil, "flocker", "v1.22, non-functional in v1.25+")
		old(v.StorageOS != nil, "storageOS", "v1.22, non-functional in v1.25+")
		old(v.Quobyte != nil, "quobyte", "v1.22, non-functional in v1.25+")
		old(v.Glusterfs != nil, "glusterfs", "v1.25, non-functional in v1.26+")
		old(v.CephFS != nil, "cephfs", "v1.28, non-functional in v1.31+")
		old(v.RBD != nil, "rbd", "v1.28, non-functional in v1.31+")
	}
}

// repeated warns of list items that apply would merge into one.
func (w *warnings) repeated(at func() *field.Path, s *corev1.PodSpec) {
	addresses := sets.New[string]()
	for i, item := range s.HostAliases {
		if addresses.Has(item.IP) {
			w.say("%s: duplicate ip %q", at().Child("hostAliases").Index(i).Child("ip"), item.IP)
		}
		addresses.Insert(item.IP)
	}
	name := func(i int) *field.Path { return at().Child("imagePullSecrets").Index(i).Child("name") }
	secrets := sets.New[corev1.LocalObjectReference]()
	for i, item := range s.ImagePullSecrets {
		if secrets.Has(item) {
			w.say("%s: duplicate name %q", name(i), item.Name)
		}
		secrets.Insert(item)
	}
	for i, item := range s.ImagePullSecrets {
		if item.Name == "" {
			w.say("%s: invalid empty name %q", name(i), item.Name)
		}
	}
}

func (w *warnings) fractions(at func() *field.Path, c placedContainer, list string, amounts corev1.ResourceList) {
	for _, name := range []corev1.ResourceName{corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		if q, ok := amounts[name]; ok && q.MilliValue()%1000 != 0 {
			w.say("%s: fractional byte value %q is invalid, must be an integer", c.at(at()).Child("resources", list).Key(string(name)), q.String())
		}
	}
}

// hiddenEnv warns of a variable that is set twice, unless it adds to itself.
func (w *warnings) hiddenEnv(at func() *field.Path, c placedContainer) {
	set := make(map[string]bool, len(c.Env))
	for i, v := range c.Env {
		if !set[v.Name] {
			set[v.Name] = true
			continue
		}
		self := "$(" + v.Name + ")"
		if v.ValueFrom != nil || v.Value == self || !strings.Contains(v.Value, self) {
			w.say("%s: hides previous definition of %q, which may be dropped when using apply", c.at(at()).Child("env").Index(i), v.Name)
		}
	}
}

// placedPort is a port and where it stands.
type placedPort struct {
	*corev1.ContainerPort
	container placedContainer
	index     int
}

func (p placedPort) at(spec *field.Path) *field.Path {
	return p.container.at(spec).Child("ports").Index(p.index)
}

// maxComparedPorts is how many ports are held against each other, for warnings
// that say little to who has more.
const maxComparedPorts = 1000

// ports warns of ports of one pod that stand in each other's way.
func (w *warnings) ports(at func() *field.Path, s *corev1.PodSpec) {
	var all []placedPort
	for c := range allContainers(s) {
		for i := range c.Ports {
			all = append(all, placedPort{&c.Ports[i], c, i})
		}
	}
	if len(all) > maxComparedPorts {
		return
	}
	for i, p := range all {
		if p.HostIP != "" && p.HostPort == 0 {
			w.say("%s: hostIP set without hostPort: %+v", p.at(at()), *p.ContainerPort)
		}
		for _, other := range all[:i] {
			if other.ContainerPort.ContainerPort != p.ContainerPort.ContainerPort || other.Protocol != p.Protocol {
				continue
			}
			if how := overlap(p.ContainerPort, other.ContainerPort); how != "" {
				w.say("%s: %s port definition with %s", p.at(at()), how, other.at(at()))
			}
		}
	}
	for i, p := range all {
		first := slices.IndexFunc(all[:i], func(o placedPort) bool { return o.Name == p.Name })
		if p.Name != "" && first >= 0 {
			w.say("%s: duplicate port name %q with %s, services and probes that select ports by name will use %[3]s", p.at(at()), p.Name, all[first].at(at()))
		}
	}
}

func overlap(a, b *corev1.ContainerPort) string {
	switch {
	case a.HostIP == b.HostIP && a.HostPort == b.HostPort:
		return "duplicate"
	case a.HostPort == 0 || b.HostPort == 0:
		return "overlapping"
	case a.HostPort == b.HostPort && (a.HostIP == "") != (b.HostIP == ""):
		return "dangerously ambiguous"
	}
	return ""
}
