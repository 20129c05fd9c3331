package kinds

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
)

// keepAllocated carries over what was allocated and the client left out, so
// that sending the same manifest again succeeds.
func keepAllocated(s, old *corev1.Service) {
	if needsClusterIP(s) && needsClusterIP(old) {
		setZero(&s.Spec.ClusterIP, old.Spec.ClusterIP)
		if len(s.Spec.ClusterIPs) == 0 {
			s.Spec.ClusterIPs = slices.Clone(old.Spec.ClusterIPs)
		}
		if len(s.Spec.IPFamilies) == 0 && s.Spec.ClusterIP == old.Spec.ClusterIP {
			s.Spec.IPFamilies = slices.Clone(old.Spec.IPFamilies)
		}
	}
	if wantsNodePorts(s) && wantsNodePorts(old) {
		keepNodePorts(s, old)
	}
	if needsHealthCheckPort(s) && needsHealthCheckPort(old) {
		setZero(&s.Spec.HealthCheckNodePort, old.Spec.HealthCheckNodePort)
	}
}

// keepNodePorts matches ports by name and never takes a port that another
// entry names.
func keepNodePorts(s, old *corev1.Service) {
	had := make(map[string]int32, len(old.Spec.Ports))
	for _, p := range old.Spec.Ports {
		had[p.Name] = p.NodePort
	}
	taken := sets.New(nodePortsOf(s)...)
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		if port := had[p.Name]; p.NodePort == 0 && !taken.Has(port) {
			p.NodePort = port
		}
	}
}

// dropForType clears what the new type does not have, when the client left it
// as it was under the old type.
func dropForType(s, old *corev1.Service) {
	spec, was := &s.Spec, &old.Spec
	if needsClusterIP(old) && !needsClusterIP(s) {
		if spec.ClusterIP == was.ClusterIP && slices.Equal(spec.ClusterIPs, was.ClusterIPs) {
			spec.ClusterIP, spec.ClusterIPs = "", nil
		}
		if slices.Equal(spec.IPFamilies, was.IPFamilies) {
			spec.IPFamilies = nil
		}
		if derefOr(spec.IPFamilyPolicy, "") == derefOr(was.IPFamilyPolicy, "") {
			spec.IPFamilyPolicy = nil
		}
	}
	if hasNodePorts(old) && !hasNodePorts(s) && !addsNodePorts(s, old) {
		for i := range spec.Ports {
			spec.Ports[i].NodePort = 0
		}
	}
	if needsHealthCheckPort(old) && !needsHealthCheckPort(s) && spec.HealthCheckNodePort == was.HealthCheckNodePort {
		spec.HealthCheckNodePort = 0
	}
	if externallyAccessible(old) && !externallyAccessible(s) && spec.ExternalTrafficPolicy == was.ExternalTrafficPolicy {
		spec.ExternalTrafficPolicy = ""
	}
	if spec.Type == corev1.ServiceTypeExternalName {
		spec.InternalTrafficPolicy = nil
	}
	if spec.Type == corev1.ServiceTypeLoadBalancer {
		return
	}
	s.Status.LoadBalancer = corev1.LoadBalancerStatus{}
	if was.Type == corev1.ServiceTypeLoadBalancer {
		if sameValue(spec.AllocateLoadBalancerNodePorts, was.AllocateLoadBalancerNodePorts) {
			spec.AllocateLoadBalancerNodePorts = nil
		}
		if sameValue(spec.LoadBalancerClass, was.LoadBalancerClass) {
			spec.LoadBalancerClass = nil
		}
	}
}

func addsNodePorts(s, old *corev1.Service) bool {
	had := sets.New[int32]()
	for _, p := range old.Spec.Ports {
		had.Insert(p.NodePort)
	}
	return slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.NodePort != 0 && !had.Has(p.NodePort) })
}
