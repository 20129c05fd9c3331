package kinds

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

func validateIngress(i *networkingv1.Ingress) field.ErrorList {
	var f faults
	at, s := field.NewPath("spec"), &i.Spec
	if len(s.Rules) == 0 && s.DefaultBackend == nil {
		f.invalid(at, s.Rules, "either `defaultBackend` or `rules` must be specified")
	}
	if s.DefaultBackend != nil {
		f.ingressBackend(at.Child("defaultBackend"), s.DefaultBackend)
	}
	for j := range s.Rules {
		f.ingressRule(at.Child("rules").Index(j), &s.Rules[j])
	}
	for j, tls := range s.TLS {
		path := at.Child("tls").Index(j)
		for k, host := range tls.Hosts {
			f.wildcardHost(path.Child("hosts").Index(k), host)
		}
		if tls.SecretName != "" {
			f.invalids(path.Child("secretName"), tls.SecretName, subdomainName(tls.SecretName))
		}
	}
	if class := s.IngressClassName; class != nil {
		f.invalids(at.Child("ingressClassName"), *class, subdomainName(*class))
	}
	return f.list
}

func (f *faults) wildcardHost(at *field.Path, host string) {
	if strings.Contains(host, "*") {
		f.invalids(at, host, validation.IsWildcardDNS1123Subdomain(host))
		return
	}
	f.invalids(at, host, validation.IsDNS1123Subdomain(host))
}

func (f *faults) ingressRule(at *field.Path, r *networkingv1.IngressRule) {
	if r.Host != "" {
		f.notAnIP(at.Child("host"), r.Host)
		f.wildcardHost(at.Child("host"), r.Host)
	}
	if r.HTTP == nil {
		return
	}
	paths := at.Child("http", "paths")
	if len(r.HTTP.Paths) == 0 {
		f.required(paths, "")
	}
	for i := range r.HTTP.Paths {
		f.ingressPath(paths.Index(i), &r.HTTP.Paths[i])
	}
}

func (f *faults) ingressPath(at *field.Path, p *networkingv1.HTTPIngressPath) {
	if p.PathType == nil {
		f.required(at.Child("pathType"), "pathType must be specified")
		return
	}
	relative := !strings.HasPrefix(p.Path, "/")
	switch *p.PathType {
	case networkingv1.PathTypeExact, networkingv1.PathTypePrefix:
		if relative {
			f.invalid(at.Child("path"), p.Path, "must be an absolute path")
		}
		for _, part := range []string{"//", "/./", "/../", "%2f", "%2F"} {
			if strings.Contains(p.Path, part) {
				f.invalid(at.Child("path"), p.Path, fmt.Sprintf("must not contain '%s'", part))
			}
		}
		for _, end := range []string{"/..", "/."} {
			if strings.HasSuffix(p.Path, end) {
				f.invalid(at.Child("path"), p.Path, fmt.Sprintf("cannot end with '%s'", end))
			}
		}
	case networkingv1.PathTypeImplementationSpecific:
		if relative && p.Path != "" {
			f.invalid(at.Child("path"), p.Path, "must be an absolute path")
		}
	default:
		supports(f, at.Child("pathType"), *p.PathType, networkingv1.PathTypeExact, networkingv1.PathTypeImplementationSpecific, networkingv1.PathTypePrefix)
	}
	f.ingressBackend(at.Child("backend"), &p.Backend)
}

func (f *faults) ingressBackend(at *field.Path, b *networkingv1.IngressBackend) {
	switch {
	case b.Resource != nil && b.Service != nil:
		f.invalid(at, "", "cannot set both resource and service backends")
	case b.Resource != nil:
		f.typedReference(at.Child("resource"), b.Resource.APIGroup, b.Resource.Kind, b.Resource.Name)
	case b.Service == nil:
		f.invalid(at, "", "resource or service backend is required")
	default:
		path, port := at.Child("service"), b.Service.Port
		f.present(path.Child("name"), b.Service.Name, serviceName)
		switch {
		case port.Name != "" && port.Number != 0:
			f.invalid(at, "", "cannot set both port name & port number")
		case port.Name != "":
			f.invalids(path.Child("port", "name"), port.Name, validation.IsValidPortName(port.Name))
		case port.Number != 0:
			f.invalids(path.Child("port", "number"), port.Number, validation.IsValidPortNum(int(port.Number)))
		default:
			f.required(at, "port name or number is required")
		}
	}
}

func serviceName(name string) []string { return apivalidation.NameIsDNSLabel(name, false) }

func (f *faults) typedReference(at *field.Path, group *string, kind, name string) {
	if group != nil {
		f.invalids(at.Child("apiGroup"), *group, validation.IsDNS1123Subdomain(*group))
	}
	f.present(at.Child("kind"), kind, pathSegment)
	f.present(at.Child("name"), name, pathSegment)
}

func validateIngressClass(c *networkingv1.IngressClass) field.ErrorList {
	var f faults
	at := field.NewPath("spec")
	if len(c.Spec.Controller) > 250 {
		f.add(field.TooLong(at.Child("controller"), "", 250))
	}
	f.join(validation.IsDomainPrefixedPath(at.Child("controller"), c.Spec.Controller))
	p := c.Spec.Parameters
	if p == nil {
		return f.list
	}
	path := at.Child("parameters")
	f.typedReference(path, p.APIGroup, p.Kind, p.Name)
	supports(&f, path.Child("scope"), *p.Scope, networkingv1.IngressClassParametersReferenceScopeCluster, networkingv1.IngressClassParametersReferenceScopeNamespace)
	switch namespaced := *p.Scope == networkingv1.IngressClassParametersReferenceScopeNamespace; {
	case namespaced && p.Namespace == nil:
		f.required(path.Child("namespace"), "`parameters.scope` is set to 'Namespace'")
	case namespaced:
		f.invalids(path.Child("namespace"), *p.Namespace, apivalidation.ValidateNamespaceName(*p.Namespace, false))
	case *p.Scope == networkingv1.IngressClassParametersReferenceScopeCluster && p.Namespace != nil:
		f.forbidden(path.Child("namespace"), "`parameters.scope` is set to 'Cluster'")
	}
	return f.list
}

func validateIngressClassUpdate(c, old *networkingv1.IngressClass) field.ErrorList {
	var f faults
	immutable(&f, field.NewPath("spec", "controller"), c.Spec.Controller, old.Spec.Controller)
	return f.list
}

func validateNetworkPolicy(p *networkingv1.NetworkPolicy) field.ErrorList {
	var f faults
	at := field.NewPath("spec")
	f.selector(at.Child("podSelector"), &p.Spec.PodSelector)
	for i, r := range p.Spec.Ingress {
		f.policyRule(at.Child("ingress").Index(i), "from", r.Ports, r.From)
	}
	for i, r := range p.Spec.Egress {
		f.policyRule(at.Child("egress").Index(i), "to", r.Ports, r.To)
	}
	if len(p.Spec.PolicyTypes) > 2 {
		f.invalid(at.Child("policyTypes"), &p.Spec.PolicyTypes, "may not specify more than two policyTypes")
		return f.list
	}
	for i, t := range p.Spec.PolicyTypes {
		supports(&f, at.Child("policyTypes").Index(i), t, networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress)
	}
	return f.list
}

func (f *faults) policyRule(at *field.Path, peersName string, ports []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer) {
	for i := range ports {
		f.policyPort(at.Child("ports").Index(i), &ports[i])
	}
	for i := range peers {
		f.policyPeer(at.Child(peersName).Index(i), &peers[i])
	}
}

func (f *faults) policyPort(at *field.Path, p *networkingv1.NetworkPolicyPort) {
	supports(f, at.Child("protocol"), *p.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
	switch {
	case p.Port == nil && p.EndPort != nil:
		f.invalid(at.Child("endPort"), *p.EndPort, "may not be specified when `port` is not specified")
	case p.Port == nil:
	case p.Port.Type == intstr.Int:
		f.invalids(at.Child("port"), p.Port.IntVal, validation.IsValidPortNum(int(p.Port.IntVal)))
		if p.EndPort != nil {
			if *p.EndPort < p.Port.IntVal {
				f.invalid(at.Child("endPort"), p.Port.IntVal, "must be greater than or equal to `port`")
			}
			f.invalids(at.Child("endPort"), *p.EndPort, validation.IsValidPortNum(int(*p.EndPort)))
		}
	default:
		if p.EndPort != nil {
			f.invalid(at.Child("endPort"), *p.EndPort, "may not be specified when `port` is non-numeric")
		}
		f.invalids(at.Child("port"), p.Port.StrVal, validation.IsValidPortName(p.Port.StrVal))
	}
}

func (f *faults) policyPeer(at *field.Path, p *networkingv1.NetworkPolicyPeer) {
	f.selector(at.Child("podSelector"), p.PodSelector)
	f.selector(at.Child("namespaceSelector"), p.NamespaceSelector)
	if p.IPBlock != nil {
		f.ipBlock(at.Child("ipBlock"), p.IPBlock)
	}
	switch labelled := p.PodSelector != nil || p.NamespaceSelector != nil; {
	case !labelled && p.IPBlock == nil:
		f.required(at, "must specify a peer")
	case labelled && p.IPBlock != nil:
		f.forbidden(at, "may not specify both ipBlock and another peer")
	}
}

func (f *faults) ipBlock(at *field.Path, b *networkingv1.IPBlock) {
	if b.CIDR == "" {
		f.required(at.Child("cidr"), "")
		return
	}
	f.join(legacyCIDR(at.Child("cidr"), b.CIDR))
	_, block, err := netutils.ParseCIDRSloppy(b.CIDR)
	if err != nil {
		return
	}
	ones, _ := block.Mask.Size()
	for i, except := range b.Except {
		path := at.Child("except").Index(i)
		f.join(legacyCIDR(path, except))
		_, inner, err := netutils.ParseCIDRSloppy(except)
		if err != nil {
			continue
		}
		if n, _ := inner.Mask.Size(); !block.Contains(inner.IP) || ones >= n {
			f.invalid(path, except, "must be a strict subset of `cidr`")
		}
	}
}

// ipAddressName asks for the canonical form of an address.
func ipAddressName(name string, _ bool) []string {
	var messages []string
	for _, err := range validation.IsValidIP(&field.Path{}, name) {
		messages = append(messages, err.Detail)
	}
	return messages
}

func validateIPAddress(a *networkingv1.IPAddress) field.ErrorList {
	var f faults
	at, p := field.NewPath("spec", "parentRef"), a.Spec.ParentRef
	if p == nil {
		f.required(at, "")
		return f.list
	}
	if p.Group != "" {
		f.invalids(at.Child("group"), p.Group, validation.IsDNS1123Subdomain(p.Group))
	}
	f.present(at.Child("resource"), p.Resource, pathSegment)
	f.present(at.Child("name"), p.Name, pathSegment)
	if p.Namespace != "" {
		f.invalids(at.Child("namespace"), p.Namespace, pathSegment(p.Namespace))
	}
	return f.list
}

func validateIPAddressUpdate(a, old *networkingv1.IPAddress) field.ErrorList {
	var f faults
	immutable(&f, field.NewPath("spec", "parentRef"), a.Spec.ParentRef, old.Spec.ParentRef)
	return f.list
}

func validateServiceCIDR(c *networkingv1.ServiceCIDR) field.ErrorList {
	var f faults
	at, cidrs := field.NewPath("spec", "cidrs"), c.Spec.CIDRs
	switch {
	case len(cidrs) == 0:
		f.required(at, "at least one CIDR required")
	case len(cidrs) > 2:
		f.invalid(at, c.Spec, "may only hold up to 2 values")
	default:
		for i, cidr := range cidrs {
			f.join(validation.IsValidCIDR(at.Index(i), cidr))
		}
		if len(cidrs) == 2 && netutils.IPFamilyOfCIDRString(cidrs[0]) == netutils.IPFamilyOfCIDRString(cidrs[1]) &&
			netutils.IPFamilyOfCIDRString(cidrs[0]) != netutils.IPFamilyUnknown {
			f.invalid(at, cidrs, "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64")
		}
	}
	return f.list
}

func validateServiceCIDRUpdate(c, old *networkingv1.ServiceCIDR) field.ErrorList {
	var f faults
	at, now, was := field.NewPath("spec", "cidrs"), c.Spec.CIDRs, old.Spec.CIDRs
	if len(now) != len(was) && !(len(was) == 1 && len(now) == 2) {
		f.invalid(at, now, apivalidation.FieldImmutableErrorMsg)
		return f.list
	}
	for i := range was {
		if now[i] != was[i] {
			f.invalid(at.Index(i), now[i], apivalidation.FieldImmutableErrorMsg)
		}
	}
	return f.list
}

// Limits of what one slice may hold.
const (
	maxSlicePorts     = 20000
	maxSliceEndpoints = 1000
	maxSliceAddresses = 100
	maxSliceHints     = 8
	maxSliceTopology  = 16
)

func validateEndpointSlice(s *discoveryv1.EndpointSlice) field.ErrorList {
	var f faults
	oneOf(&f, field.NewPath("addressType"), s.AddressType, discoveryv1.AddressTypeFQDN, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6)
	f.slicePorts(field.NewPath("ports"), s.Ports)
	at := field.NewPath("endpoints")
	if len(s.Endpoints) > maxSliceEndpoints {
		f.add(field.TooMany(at, len(s.Endpoints), maxSliceEndpoints))
		return f.list
	}
	for i := range s.Endpoints {
		f.sliceEndpoint(at.Index(i), &s.Endpoints[i], s.AddressType)
	}
	return f.list
}

func (f *faults) slicePorts(at *field.Path, ports []discoveryv1.EndpointPort) {
	if len(ports) > maxSlicePorts {
		f.add(field.TooMany(at, len(ports), maxSlicePorts))
		return
	}
	names := sets.New[string]()
	for i, p := range ports {
		path := at.Index(i)
		if *p.Name != "" {
			f.invalids(path.Child("name"), *p.Name, validation.IsDNS1123Label(*p.Name))
		}
		if names.Has(*p.Name) {
			f.add(field.Duplicate(path.Child("name"), p.Name))
		}
		names.Insert(*p.Name)
		supports(f, path.Child("protocol"), *p.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
		if p.AppProtocol != nil {
			f.invalids(path.Child("appProtocol"), *p.AppProtocol, validation.IsQualifiedName(*p.AppProtocol))
		}
	}
}

func (f *faults) sliceEndpoint(at *field.Path, e *discoveryv1.Endpoint, t discoveryv1.AddressType) {
	addresses := at.Child("addresses")
	if len(e.Addresses) == 0 {
		f.required(addresses, "must contain at least 1 address")
	} else if n := len(e.Addresses); n > maxSliceAddresses {
		f.add(field.TooMany(addresses, n, maxSliceAddresses))
	}
	for i, address := range e.Addresses {
		f.sliceAddress(addresses, i, address, t)
	}
	if e.NodeName != nil {
		f.invalids(at.Child("nodeName"), *e.NodeName, subdomainName(*e.NodeName))
	}
	if n := len(e.DeprecatedTopology); n > maxSliceTopology {
		f.add(field.TooMany(at.Child("deprecatedTopology"), n, maxSliceTopology))
	}
	f.join(metavalidation.ValidateLabels(e.DeprecatedTopology, at.Child("deprecatedTopology")))
	if e.Hostname != nil {
		f.invalids(at.Child("hostname"), *e.Hostname, validation.IsDNS1123Label(*e.Hostname))
	}
	if e.Hints != nil {
		f.hints(at.Child("hints"), e.Hints)
	}
}

func (f *faults) sliceAddress(at *field.Path, i int, address string, t discoveryv1.AddressType) {
	var errs field.ErrorList
	switch t {
	case discoveryv1.AddressTypeIPv4:
		errs = legacyIP(at.Index(i), address)
		if len(errs) == 0 && !netutils.IsIPv4String(address) {
			f.invalid(at, address, "must be an IPv4 address")
		}
	case discoveryv1.AddressTypeIPv6:
		errs = validation.IsValidIP(at.Index(i), address)
		if len(errs) == 0 && !netutils.IsIPv6String(address) {
			f.invalid(at, address, "must be an IPv6 address")
		}
	case discoveryv1.AddressTypeFQDN:
		f.join(validation.IsFullyQualifiedDomainName(at.Index(i), address))
		return
	default:
		return
	}
	if len(errs) > 0 {
		f.join(errs)
		return
	}
	f.endpointIP(at.Index(i), address)
}

func (f *faults) hints(at *field.Path, h *discoveryv1.EndpointHints) {
	var zones, nodes []string
	for _, z := range h.ForZones {
		zones = append(zones, z.Name)
	}
	for _, n := range h.ForNodes {
		nodes = append(nodes, n.Name)
	}
	f.hintNames(at.Child("forZones"), zones, validation.IsValidLabelValue)
	f.hintNames(at.Child("forNodes"), nodes, subdomainName)
}

func (f *faults) hintNames(at *field.Path, names []string, check func(string) []string) {
	if len(names) > maxSliceHints {
		f.add(field.TooMany(at, len(names), maxSliceHints))
		return
	}
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			f.add(field.Duplicate(at.Index(i).Child("name"), name))
		}
		f.invalids(at.Index(i).Child("name"), name, check(name))
	}
}

func validateEndpointSliceUpdate(s, old *discoveryv1.EndpointSlice) field.ErrorList {
	var f faults
	immutable(&f, field.NewPath("addressType"), s.AddressType, old.AddressType)
	return f.list
}
