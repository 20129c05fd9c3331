package kinds

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"orch/server/registry"
)

func networkPolicies() *registry.Resource {
	return entry[networkingv1.NetworkPolicy, networkingv1.NetworkPolicyList](networkingv1.SchemeGroupVersion, "networkpolicies", traits[*networkingv1.NetworkPolicy]{
		ShortNames:          []string{"netpol"},
		Spec:                within(func(p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicySpec { return &p.Spec }),
		Default:             defaultNetworkPolicy,
		Validate:            validateNetworkPolicy,
		Warnings:            networkPolicyWarnings,
		UnconditionalUpdate: true,
		Columns:             columns(nameColumn(), column("Pod-Selector", "string", doc(networkingv1.NetworkPolicySpec{}, "podSelector")), ageColumn()),
		Row: func(p *networkingv1.NetworkPolicy, now time.Time) []any {
			return []any{p.Name, metav1.FormatLabelSelector(&p.Spec.PodSelector), age(p, now)}
		},
	})
}

func defaultNetworkPolicy(p *networkingv1.NetworkPolicy) {
	if len(p.Spec.PolicyTypes) == 0 {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) > 0 {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	for i := range p.Spec.Ingress {
		defaultPolicyPorts(p.Spec.Ingress[i].Ports)
	}
	for i := range p.Spec.Egress {
		defaultPolicyPorts(p.Spec.Egress[i].Ports)
	}
}

func defaultPolicyPorts(ports []networkingv1.NetworkPolicyPort) {
	for i := range ports {
		setDefault(&ports[i].Protocol, corev1.ProtocolTCP)
	}
}

func ipAddresses() *registry.Resource {
	return entry[networkingv1.IPAddress, networkingv1.IPAddressList](networkingv1.SchemeGroupVersion, "ipaddresses", traits[*networkingv1.IPAddress]{
		ShortNames: []string{"ip"}, Cluster: true, Unnumbered: true,
		Spec:                within(func(a *networkingv1.IPAddress) *networkingv1.IPAddressSpec { return &a.Spec }),
		Validate:            validateIPAddress,
		ValidateName:        ipAddressName,
		ValidateUpdate:      validateIPAddressUpdate,
		UnconditionalUpdate: true,
		Columns:             columns(nameColumn(), column("ParentRef", "string", doc(networkingv1.IPAddressSpec{}, "parentRef")), ageColumn()),
		Row: func(a *networkingv1.IPAddress, now time.Time) []any {
			parent := "<none>"
			if p := a.Spec.ParentRef; p != nil {
				parent = strings.ToLower(schema.GroupResource{Group: p.Group, Resource: p.Resource}.String())
				if p.Namespace != "" {
					parent += "/" + p.Namespace
				}
				parent += "/" + p.Name
			}
			return []any{a.Name, parent, age(a, now)}
		},
	})
}

func serviceCIDRs() *registry.Resource {
	return entry[networkingv1.ServiceCIDR, networkingv1.ServiceCIDRList](networkingv1.SchemeGroupVersion, "servicecidrs", traits[*networkingv1.ServiceCIDR]{
		Cluster: true, Unnumbered: true,
		Spec:                within(func(c *networkingv1.ServiceCIDR) *networkingv1.ServiceCIDRSpec { return &c.Spec }),
		Status:              within(func(c *networkingv1.ServiceCIDR) *networkingv1.ServiceCIDRStatus { return &c.Status }),
		Validate:            validateServiceCIDR,
		ValidateUpdate:      validateServiceCIDRUpdate,
		UnconditionalUpdate: true,
		Columns:             columns(nameColumn(), column("CIDRs", "string", doc(networkingv1.ServiceCIDRSpec{}, "cidrs")), ageColumn()),
		Row: func(c *networkingv1.ServiceCIDR, now time.Time) []any {
			return []any{c.Name, strings.Join(c.Spec.CIDRs, ","), age(c, now)}
		},
	})
}
