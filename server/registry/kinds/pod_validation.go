package kinds

import (
	"fmt"
	"math"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// validatePod runs for creates and updates; what may only be had one way is in
// validatePodNew and validatePodUpdate.
func validatePod(p *corev1.Pod) field.ErrorList {
	var f faults
	spec := field.NewPath("spec")
	f.podAnnotations(field.NewPath("metadata", "annotations"), p.Annotations, &p.Spec)
	f.podSpec(spec, &p.Spec, &p.ObjectMeta)
	if p.Spec.ServiceAccountName == "" {
		f.noTokenVolumes(spec.Child("volumes"), p.Spec.Volumes)
	}
	f.untrimmedImages(spec.Child("containers"), p.Spec.Containers)
	f.untrimmedImages(spec.Child("initContainers"), p.Spec.InitContainers)
	return f.list
}

// validatePodNew adds what holds at creation alone.
func validatePodNew(p *corev1.Pod) field.ErrorList {
	var f faults
	spec := field.NewPath("spec")
	if len(p.Spec.EphemeralContainers) > 0 {
		f.forbidden(spec.Child("ephemeralContainers"), "cannot be set on create")
	}
	if p.Spec.NodeName != "" && len(p.Spec.SchedulingGates) > 0 {
		f.forbidden(spec.Child("nodeName"), "cannot be set until all schedulingGates have been cleared")
	}
	return f.list
}

func (f *faults) podAnnotations(at *field.Path, annotations map[string]string, s *corev1.PodSpec) {
	if value, ok := annotations[corev1.MirrorPodAnnotationKey]; ok && s.NodeName == "" {
		f.invalid(at.Key(corev1.MirrorPodAnnotationKey), value, "must set spec.nodeName if mirror pod annotation is set")
	}
	if cost, ok := annotations["controller.kubernetes.io/pod-deletion-cost"]; ok && !isInt32(cost) {
		f.invalid(at.Key("controller.kubernetes.io/pod-deletion-cost"), cost, "must be a 32bit integer")
	}
}

func isInt32(s string) bool {
	if s != "" && (s[0] == '+' || len(s) > 1 && s[0] == '0' || strings.HasPrefix(s, "-0")) {
		return false // leading signs and zeros are refused
	}
	var n int32
	_, err := fmt.Sscanf(s, "%d", &n)
	return err == nil && fmt.Sprint(n) == s
}

func (f *faults) noTokenVolumes(at *field.Path, volumes []corev1.Volume) {
	for i, v := range volumes {
		if v.Projected == nil {
			continue
		}
		for j, source := range v.Projected.Sources {
			if source.ServiceAccountToken != nil {
				f.forbidden(at.Index(i).Child("projected", "sources").Index(j).Child("serviceAccountToken"), "must not be specified when serviceAccountName is not set")
			}
		}
	}
}

func (f *faults) untrimmedImages(at *field.Path, containers []corev1.Container) {
	for i := range containers {
		if image := containers[i].Image; strings.TrimSpace(image) != image {
			f.invalid(at.Index(i).Child("image"), image, "must not have leading or trailing whitespace")
		}
	}
}

// podScope is what the checks of containers need to know of their pod.
type podScope struct {
	meta          *metav1.ObjectMeta // nil in a template
	spec          *corev1.PodSpec
	volumes       map[string]*corev1.VolumeSource
	claims        sets.Set[string]
	hostUsers     bool
	restartPolicy corev1.RestartPolicy
}

// podSpec checks the spec of a pod, or of a template when meta is nil.
func (f *faults) podSpec(at *field.Path, s *corev1.PodSpec, meta *metav1.ObjectMeta) {
	if s.TerminationGracePeriodSeconds == nil {
		f.required(at.Child("terminationGracePeriodSeconds"), "")
	}
	scope := &podScope{meta: meta, spec: s, hostUsers: derefOr(s.HostUsers, true), restartPolicy: s.RestartPolicy}
	scope.volumes = f.volumes(at.Child("volumes"), s.Volumes, meta)
	scope.claims = f.resourceClaims(at.Child("resourceClaims"), s.ResourceClaims)
	f.containers(at.Child("containers"), scope)
	f.initContainers(at.Child("initContainers"), scope)
	f.ephemeralContainers(at.Child("ephemeralContainers"), scope)
	f.podResources(at, s)
	f.hostNetworkPorts(at.Child("containers"), s, meta != nil)
	oneOf(f, at.Child("restartPolicy"), s.RestartPolicy, corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	oneOf(f, at.Child("dnsPolicy"), s.DNSPolicy, corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)
	f.join(metavalidation.ValidateLabels(s.NodeSelector, at.Child("nodeSelector")))
	f.podSecurity(at, s)
	f.affinity(at.Child("affinity"), s.Affinity)
	f.dnsConfig(at.Child("dnsConfig"), s)
	f.gates(at, s)
	f.spreadConstraints(at.Child("topologySpreadConstraints"), s.TopologySpreadConstraints)
	f.tolerations(at.Child("tolerations"), s.Tolerations)
	f.hostUsers(at, s)
	f.podNames(at, s)
	f.podOS(at, s)
	if d := s.ActiveDeadlineSeconds; d != nil && (*d < 1 || *d > math.MaxInt32) {
		f.invalid(at.Child("activeDeadlineSeconds"), *d, validation.InclusiveRangeError(1, math.MaxInt32))
	}
	if s.PreemptionPolicy != nil {
		oneOf(f, at.Child("preemptionPolicy"), *s.PreemptionPolicy, corev1.PreemptLowerPriority, corev1.PreemptNever)
	}
	if s.Overhead != nil {
		f.resources(at.Child("overhead"), &corev1.ResourceRequirements{Limits: s.Overhead}, containerResourceName)
	}
}

// podNames checks the names of other objects and of the pod on the network.
func (f *faults) podNames(at *field.Path, s *corev1.PodSpec) {
	for _, ref := range []struct {
		field, name string
		check       func(string) []string
	}{
		{"serviceAccountName", s.ServiceAccountName, subdomainName},
		{"nodeName", s.NodeName, subdomainName},
		{"hostname", s.Hostname, validation.IsDNS1123Label},
		{"subdomain", s.Subdomain, validation.IsDNS1123Label},
		{"priorityClassName", s.PriorityClassName, subdomainName},
	} {
		if ref.name != "" {
			f.invalids(at.Child(ref.field), ref.name, ref.check(ref.name))
		}
	}
	if s.RuntimeClassName != nil {
		f.invalids(at.Child("runtimeClassName"), *s.RuntimeClassName, subdomainName(*s.RuntimeClassName))
	}
	for i, alias := range s.HostAliases {
		f.ip(at.Child("hostAliases").Index(i).Child("ip"), alias.IP)
		for j, name := range alias.Hostnames {
			f.invalids(at.Child("hostAliases").Index(i).Child("hostnames").Index(j), name, validation.IsDNS1123Subdomain(name))
		}
	}
	f.hostnameOverride(at.Child("hostnameOverride"), s)
}

func (f *faults) hostnameOverride(at *field.Path, s *corev1.PodSpec) {
	if s.HostnameOverride == nil {
		return
	}
	if derefOr(s.SetHostnameAsFQDN, false) {
		f.forbidden(at, "may not be specified when setHostnameAsFQDN is true")
	}
	if s.HostNetwork {
		f.forbidden(at, "may not be specified when hostNetwork is true")
	}
	if len(*s.HostnameOverride) > 64 {
		f.add(field.TooLong(at, "", 64))
	}
	f.invalids(at, *s.HostnameOverride, validation.IsDNS1123Subdomain(*s.HostnameOverride))
}

func (f *faults) gates(at *field.Path, s *corev1.PodSpec) {
	for i, gate := range s.ReadinessGates {
		f.invalids(at.Child("readinessGates").Index(i).Child("conditionType"), string(gate.ConditionType), validation.IsQualifiedName(string(gate.ConditionType)))
	}
	seen := sets.New[string]()
	for i, gate := range s.SchedulingGates {
		path := at.Child("schedulingGates").Index(i)
		f.invalids(path, gate.Name, validation.IsQualifiedName(gate.Name))
		if seen.Has(gate.Name) {
			f.add(field.Duplicate(path, gate.Name))
		}
		seen.Insert(gate.Name)
	}
}

func (f *faults) resourceClaims(at *field.Path, claims []corev1.PodResourceClaim) sets.Set[string] {
	names := sets.New[string]()
	for i, c := range claims {
		path := at.Index(i)
		if names.Has(c.Name) {
			f.add(field.Duplicate(path.Child("name"), c.Name))
		} else {
			f.present(path.Child("name"), c.Name, validation.IsDNS1123Label)
		}
		if c.Name != "" {
			names.Insert(c.Name)
		}
		switch {
		case c.ResourceClaimName != nil && c.ResourceClaimTemplateName != nil:
			f.invalid(path, c, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified")
		case c.ResourceClaimName == nil && c.ResourceClaimTemplateName == nil:
			f.invalid(path, c, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`")
		}
	}
	return names
}

// hostNetworkPorts: on the host's network a port is the same inside and
// outside; a template may still leave the host port open.
func (f *faults) hostNetworkPorts(at *field.Path, s *corev1.PodSpec, isPod bool) {
	if !s.HostNetwork {
		return
	}
	for i := range s.Containers {
		for j, port := range s.Containers[i].Ports {
			if (isPod || port.HostPort != 0) && port.HostPort != port.ContainerPort {
				f.invalid(at.Index(i).Child("ports").Index(j).Child("hostPort"), port.HostPort, "must match `containerPort` when `hostNetwork` is true")
			}
		}
	}
}

func (f *faults) dnsConfig(at *field.Path, s *corev1.PodSpec) {
	c := s.DNSConfig
	if s.DNSPolicy == corev1.DNSNone {
		if c == nil {
			f.required(at, "must provide `dnsConfig` when `dnsPolicy` is None")
			return
		}
		if len(c.Nameservers) == 0 {
			f.required(at.Child("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None")
			return
		}
	}
	if c == nil {
		return
	}
	if len(c.Nameservers) > 3 {
		f.invalid(at.Child("nameservers"), c.Nameservers, "must not have more than 3 nameservers")
	}
	for i, server := range c.Nameservers {
		f.ip(at.Child("nameservers").Index(i), server)
	}
	if len(c.Searches) > 32 {
		f.invalid(at.Child("searches"), c.Searches, "must not have more than 32 search paths")
	}
	if len(strings.Join(c.Searches, " ")) > 2048 {
		f.invalid(at.Child("searches"), c.Searches, "must not have more than 2048 characters (including spaces) in the search list")
	}
	for i, search := range c.Searches {
		if search != "." {
			search = strings.TrimSuffix(search, ".")
			f.invalids(at.Child("searches").Index(i), search, validation.IsDNS1123SubdomainWithUnderscore(search))
		}
	}
	for i, option := range c.Options {
		if option.Name == "" {
			f.required(at.Child("options").Index(i), "must not be empty")
		}
	}
}

// hostUsers: a user namespace of its own excludes the host's other namespaces.
func (f *faults) hostUsers(at *field.Path, s *corev1.PodSpec) {
	if derefOr(s.HostUsers, true) {
		return
	}
	if s.HostNetwork {
		f.forbidden(at.Child("hostNetwork"), "when `hostUsers` is false")
	}
	if s.HostPID {
		f.forbidden(at.Child("HostPID"), "when `hostUsers` is false")
	}
	if s.HostIPC {
		f.forbidden(at.Child("HostIPC"), "when `hostUsers` is false")
	}
	for c := range allContainers(s) {
		if len(c.VolumeDevices) > 0 {
			f.forbidden(c.at(at).Child("volumeDevices"), "when `hostUsers` is false")
		}
	}
}

func (f *faults) podOS(at *field.Path, s *corev1.PodSpec) {
	if s.OS == nil {
		return
	}
	oneOf(f, at.Child("os", "name"), s.OS.Name, corev1.Linux, corev1.Windows)
}

func validatePodTemplateObject(t *corev1.PodTemplate) field.ErrorList {
	var f faults
	f.podTemplate(field.NewPath("template"), &t.Template)
	return f.list
}

func (f *faults) podTemplate(at *field.Path, t *corev1.PodTemplateSpec) {
	f.join(metavalidation.ValidateLabels(t.Labels, at.Child("labels")))
	f.join(apivalidation.ValidateAnnotations(t.Annotations, at.Child("annotations")))
	f.podAnnotations(at.Child("annotations"), t.Annotations, &t.Spec)
	f.podSpec(at.Child("spec"), &t.Spec, nil)
	if len(t.Spec.EphemeralContainers) > 0 {
		f.forbidden(at.Child("spec", "ephemeralContainers"), "ephemeral containers not allowed in pod template")
	}
}
