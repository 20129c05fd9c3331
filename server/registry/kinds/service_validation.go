package kinds

import (
	"fmt"
	"net"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

func validateService(s *corev1.Service) field.ErrorList {
	var f faults
	at := field.NewPath("spec")
	f.serviceType(at, s)
	f.servicePorts(at.Child("ports"), s)
	f.join(metavalidation.ValidateLabels(s.Spec.Selector, at.Child("selector")))
	f.sessionAffinity(at, s)
	f.join(validateClusterIPs(s, nil))
	for i, ip := range s.Spec.ExternalIPs {
		if errs := legacyIP(at.Child("externalIPs").Index(i), ip); len(errs) > 0 {
			f.join(errs)
		} else {
			f.endpointIP(at.Child("externalIPs").Index(i), ip)
		}
	}
	f.loadBalancer(at, s)
	f.trafficPolicies(at, s)
	return f.list
}

func (f *faults) serviceType(at *field.Path, s *corev1.Service) {
	if len(s.Spec.Ports) == 0 && !headless(s) && needsClusterIP(s) {
		f.required(at.Child("ports"), "")
	}
	oneOf(f, at.Child("type"), s.Spec.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort)
	switch {
	case hasNodePorts(s) && headless(s):
		f.invalid(at.Child("clusterIPs").Index(0), "None", fmt.Sprintf("may not be set to 'None' for %s services", s.Spec.Type))
		return
	case needsClusterIP(s):
		return
	}
	if len(s.Spec.ClusterIPs) > 0 {
		f.forbidden(at.Child("clusterIPs"), "may not be set for ExternalName services")
	}
	if len(s.Spec.IPFamilies) > 0 {
		f.forbidden(at.Child("ipFamilies"), "may not be set for ExternalName services")
	}
	if s.Spec.IPFamilyPolicy != nil {
		f.forbidden(at.Child("ipFamilyPolicy"), "may not be set for ExternalName services")
	}
	f.present(at.Child("externalName"), strings.TrimSuffix(s.Spec.ExternalName, "."), validation.IsDNS1123Subdomain)
}

func (f *faults) servicePorts(at *field.Path, s *corev1.Service) {
	type endpoint struct {
		protocol corev1.Protocol
		port     int32
	}
	names, ports, nodePorts := sets.New[string](), sets.New[endpoint](), sets.New[endpoint]()
	for i := range s.Spec.Ports {
		p, path := &s.Spec.Ports[i], at.Index(i)
		if p.Name == "" && len(s.Spec.Ports) > 1 {
			f.required(path.Child("name"), "")
		} else if p.Name != "" {
			f.invalids(path.Child("name"), p.Name, validation.IsDNS1123Label(p.Name))
			if names.Has(p.Name) {
				f.add(field.Duplicate(path.Child("name"), p.Name))
			}
			names.Insert(p.Name)
		}
		f.invalids(path.Child("port"), p.Port, validation.IsValidPortNum(int(p.Port)))
		protocol(f, path.Child("protocol"), p.Protocol)
		f.portNumberOrName(path.Child("targetPort"), p.TargetPort)
		if p.AppProtocol != nil {
			f.invalids(path.Child("appProtocol"), *p.AppProtocol, validation.IsQualifiedName(*p.AppProtocol))
		}
		if ports.Has(endpoint{p.Protocol, p.Port}) {
			f.add(field.Duplicate(path, corev1.ServicePort{Protocol: p.Protocol, Port: p.Port}))
		}
		ports.Insert(endpoint{p.Protocol, p.Port})
		if p.NodePort == 0 {
			continue
		}
		if s.Spec.Type == corev1.ServiceTypeClusterIP {
			f.forbidden(path.Child("nodePort"), "may not be used when `type` is 'ClusterIP'")
		}
		if nodePorts.Has(endpoint{p.Protocol, p.NodePort}) {
			f.add(field.Duplicate(path.Child("nodePort"), p.NodePort))
		}
		nodePorts.Insert(endpoint{p.Protocol, p.NodePort})
	}
}

func (f *faults) sessionAffinity(at *field.Path, s *corev1.Service) {
	oneOf(f, at.Child("sessionAffinity"), s.Spec.SessionAffinity, corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)
	if s.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return
	}
	timeout := s.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds // defaulted
	if *timeout <= 0 || *timeout > corev1.DefaultClientIPServiceAffinitySeconds*8 {
		f.invalid(at.Child("sessionAffinityConfig", "clientIP", "timeoutSeconds"), timeout, "must be greater than 0 and less than 86400")
	}
}

func (f *faults) loadBalancer(at *field.Path, s *corev1.Service) {
	balanced := s.Spec.Type == corev1.ServiceTypeLoadBalancer
	only := func(path *field.Path) { f.forbidden(path, "may only be used when `type` is 'LoadBalancer'") }
	if len(s.Spec.LoadBalancerSourceRanges) > 0 {
		path := at.Child("LoadBalancerSourceRanges")
		if !balanced {
			only(path)
		}
		for i, cidr := range s.Spec.LoadBalancerSourceRanges {
			f.join(legacyCIDR(path.Index(i), strings.TrimSpace(cidr)))
		}
	}
	if s.Spec.AllocateLoadBalancerNodePorts != nil && !balanced {
		only(at.Child("allocateLoadBalancerNodePorts"))
	}
	switch class := s.Spec.LoadBalancerClass; {
	case class == nil:
	case balanced:
		f.invalids(at.Child("loadBalancerClass"), *class, validation.IsQualifiedName(*class))
	default:
		only(at.Child("loadBalancerClass"))
	}
}

func (f *faults) trafficPolicies(at *field.Path, s *corev1.Service) {
	switch external := s.Spec.ExternalTrafficPolicy; {
	case externallyAccessible(s):
		oneOf(f, at.Child("externalTrafficPolicy"), external, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
	case external != "":
		f.invalid(at.Child("externalTrafficPolicy"), external, "may only be set for externally-accessible services")
	}
	switch port := s.Spec.HealthCheckNodePort; {
	case needsHealthCheckPort(s) && port == 0:
		f.required(at.Child("healthCheckNodePort"), "")
	case needsHealthCheckPort(s):
		f.invalids(at.Child("healthCheckNodePort"), port, validation.IsValidPortNum(int(port)))
	case port != 0:
		f.invalid(at.Child("healthCheckNodePort"), port, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'")
	}
	if p := s.Spec.InternalTrafficPolicy; p != nil {
		supports(f, at.Child("internalTrafficPolicy"), *p, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)
	}
	if d := s.Spec.TrafficDistribution; d != nil {
		supports(f, at.Child("trafficDistribution"), *d, corev1.ServiceTrafficDistributionPreferClose,
			corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)
	}
}

// validateClusterIPs runs before allocation too, which relies on what it finds.
func validateClusterIPs(s, _ *corev1.Service) field.ErrorList {
	var f faults
	if !needsClusterIP(s) {
		return nil
	}
	spec, at := &s.Spec, field.NewPath("spec")
	ips := at.Child("clusterIPs")
	switch {
	case spec.ClusterIP != "" && len(spec.ClusterIPs) == 0:
		f.required(ips, "")
	case spec.ClusterIP != "" && spec.ClusterIPs[0] != spec.ClusterIP:
		f.invalid(ips, spec.ClusterIPs, "first value must match `clusterIP`")
	case spec.ClusterIP == "" && len(spec.ClusterIPs) > 0:
		f.invalid(ips, spec.ClusterIPs, "must be empty when `clusterIP` is not specified")
	}
	seen := sets.New[corev1.IPFamily]()
	for i, family := range spec.IPFamilies {
		supports(&f, at.Child("ipFamilies").Index(i), family, corev1.IPv4Protocol, corev1.IPv6Protocol)
		if seen.Has(family) {
			f.add(field.Duplicate(at.Child("ipFamilies").Index(i), family))
		}
		seen.Insert(family)
	}
	if p := spec.IPFamilyPolicy; p != nil {
		supports(&f, at.Child("ipFamilyPolicy"), *p, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack, corev1.IPFamilyPolicySingleStack)
	}
	f.addresses(ips, s)
	return f.list
}

func (f *faults) addresses(at *field.Path, s *corev1.Service) {
	list, wellFormed := s.Spec.ClusterIPs, true
	for i, ip := range list {
		if i == 0 && ip == corev1.ClusterIPNone {
			if len(list) > 1 {
				wellFormed = false
				f.invalid(at, list, "'None' must be the first and only value")
			}
			continue
		}
		errs := legacyIP(at.Index(i), ip)
		wellFormed = wellFormed && len(errs) == 0
		f.join(errs)
	}
	if len(list) > 2 {
		f.invalid(at, list, "may only hold up to 2 values")
	}
	if !wellFormed {
		return
	}
	if len(list) > 1 {
		if dual, err := netutils.IsDualStackIPStrings(list); err != nil || !dual {
			f.invalid(at, list, "may specify no more than one IP for each IP family")
		}
	}
	for i, ip := range list {
		if i >= len(s.Spec.IPFamilies) || headless(s) {
			break
		}
		if family := s.Spec.IPFamilies[i]; familyOf(ip) != family && (family == corev1.IPv4Protocol || family == corev1.IPv6Protocol) {
			f.invalid(at.Index(i), ip, fmt.Sprintf("expected an %s value as indicated by `ipFamilies[%v]`", family, i))
		}
	}
}

// validateServiceUpdate keeps the primary address and family of a service.
func validateServiceUpdate(s, old *corev1.Service) field.ErrorList {
	var f faults
	at := field.NewPath("spec")
	if needsClusterIP(s) && needsClusterIP(old) {
		f.primaryKept(at, s, old)
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer && old.Spec.Type == corev1.ServiceTypeLoadBalancer &&
		!sameValue(s.Spec.LoadBalancerClass, old.Spec.LoadBalancerClass) {
		f.invalid(at.Child("loadBalancerClass"), s.Spec.LoadBalancerClass, "may not change once set")
	}
	if needsHealthCheckPort(s) && needsHealthCheckPort(old) && s.Spec.HealthCheckNodePort != old.Spec.HealthCheckNodePort {
		f.forbidden(at.Child("healthCheckNodePort"), "field is immutable")
	}
	return f.list
}

func (f *faults) primaryKept(at *field.Path, s, old *corev1.Service) {
	ips, oldIPs := s.Spec.ClusterIPs, old.Spec.ClusterIPs
	switch {
	case headless(s) && headless(old):
		return
	case len(oldIPs) > 0 && len(ips) == 0:
		f.invalid(at.Child("clusterIPs").Index(0), ips, "primary clusterIP can not be unset")
	case len(oldIPs) > 0 && ips[0] != oldIPs[0]:
		f.invalid(at.Child("clusterIPs").Index(0), ips, "may not change once set")
	}
	if headless(s) != headless(old) {
		return
	}
	families, oldFamilies := s.Spec.IPFamilies, old.Spec.IPFamilies
	if len(families) > 0 && len(oldFamilies) > 0 && families[0] != oldFamilies[0] {
		f.invalid(at.Child("ipFamilies").Index(0), families, "may not change once set")
	}
}

func validateServiceStatus(s, _ *corev1.Service) field.ErrorList {
	var f faults
	at := field.NewPath("status", "loadBalancer", "ingress")
	ingress := s.Status.LoadBalancer.Ingress
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer && len(ingress) > 0 {
		f.forbidden(at, "may only be used when `spec.type` is 'LoadBalancer'")
		return f.list
	}
	for i, in := range ingress {
		path := at.Index(i)
		if in.IP != "" {
			f.ip(path.Child("ip"), in.IP)
		}
		switch {
		case in.IPMode == nil && in.IP != "":
			f.required(path.Child("ipMode"), "must be specified when `ip` is set")
		case in.IPMode == nil:
		case in.IP == "":
			f.forbidden(path.Child("ipMode"), "may not be specified when `ip` is not set")
		default:
			supports(&f, path.Child("ipMode"), *in.IPMode, corev1.LoadBalancerIPModeProxy, corev1.LoadBalancerIPModeVIP)
		}
		if in.Hostname != "" {
			f.invalids(path.Child("hostname"), in.Hostname, validation.IsDNS1123Subdomain(in.Hostname))
			f.notAnIP(path.Child("hostname"), in.Hostname)
		}
	}
	return f.list
}

func (f *faults) notAnIP(at *field.Path, host string) {
	if netutils.ParseIPSloppy(host) != nil {
		f.invalid(at, host, "must be a DNS name, not an IP address")
	}
}

// endpointIP refuses addresses that no other host could answer at.
func (f *faults) endpointIP(at *field.Path, address string) {
	ip := netutils.ParseIPSloppy(address)
	if ip == nil {
		f.invalid(at, address, "must be a valid IP address")
		return
	}
	for _, bad := range []struct {
		is   func(net.IP) bool
		text string
	}{
		{net.IP.IsUnspecified, fmt.Sprintf("may not be unspecified (%v)", address)},
		{net.IP.IsLoopback, "may not be in the loopback range (127.0.0.0/8, ::1/128)"},
		{net.IP.IsLinkLocalUnicast, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"},
		{net.IP.IsLinkLocalMulticast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"},
	} {
		if bad.is(ip) {
			f.invalid(at, address, bad.text)
		}
	}
}
