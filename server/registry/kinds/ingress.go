package kinds

import (
	"fmt"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/sets"

	"orch/server/registry"
)

func ingresses() *registry.Resource {
	return entry[networkingv1.Ingress, networkingv1.IngressList](networkingv1.SchemeGroupVersion, "ingresses", traits[*networkingv1.Ingress]{
		ShortNames:          []string{"ing"},
		Spec:                within(func(i *networkingv1.Ingress) *networkingv1.IngressSpec { return &i.Spec }),
		Status:              within(func(i *networkingv1.Ingress) *networkingv1.IngressStatus { return &i.Status }),
		Warnings:            ingressWarnings,
		Validate:            validateIngress,
		UnconditionalUpdate: true,
		Columns: columns(
			nameColumn(),
			column("Class", "string", "The name of the IngressClass resource that should be used for additional configuration"),
			column("Hosts", "string", "Hosts that incoming requests are matched against before the ingress rule"),
			column("Address", "string", "Address is a list containing ingress points for the load-balancer"),
			column("Ports", "string", "Ports of TLS configurations that open"),
			ageColumn(),
		),
		Row: func(i *networkingv1.Ingress, now time.Time) []any {
			ports := "80"
			if len(i.Spec.TLS) > 0 {
				ports = "80, 443"
			}
			return []any{i.Name, textOr(i.Spec.IngressClassName, "<none>"), hostsCell(i.Spec.Rules), ingressAddressCell(i), ports, age(i, now)}
		},
	})
}

// hostsCell counts all rules among those not shown, also those without a host.
func hostsCell(rules []networkingv1.IngressRule) string {
	const limit = 3
	var hosts []string
	for i, rule := range rules {
		if len(hosts) == limit {
			return fmt.Sprintf("%s + %d more...", strings.Join(hosts, ","), len(rules)-limit)
		}
		if rules[i].Host != "" {
			hosts = append(hosts, rule.Host)
		}
	}
	return orText(strings.Join(hosts, ","), "*")
}

func ingressAddressCell(i *networkingv1.Ingress) string {
	addresses := sets.New[string]()
	for _, in := range i.Status.LoadBalancer.Ingress {
		if a := orText(in.IP, in.Hostname); a != "" {
			addresses.Insert(a)
		}
	}
	return strings.Join(sets.List(addresses), ",")
}

func ingressClasses() *registry.Resource {
	return entry[networkingv1.IngressClass, networkingv1.IngressClassList](networkingv1.SchemeGroupVersion, "ingressclasses", traits[*networkingv1.IngressClass]{
		Cluster: true,
		Spec:    within(func(c *networkingv1.IngressClass) *networkingv1.IngressClassSpec { return &c.Spec }),
		Default: func(c *networkingv1.IngressClass) {
			if c.Spec.Parameters != nil {
				setDefault(&c.Spec.Parameters.Scope, networkingv1.IngressClassParametersReferenceScopeCluster)
			}
		},
		Validate:            validateIngressClass,
		ValidateUpdate:      validateIngressClassUpdate,
		UnconditionalUpdate: true,
		Columns: columns(
			nameColumn(),
			column("Controller", "string", "Controller that is responsible for handling this class"),
			column("Parameters", "string", "A reference to a resource with additional parameters"),
			ageColumn(),
		),
		Row: func(c *networkingv1.IngressClass, now time.Time) []any {
			name := c.Name
			if c.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true" {
				name += " (default)"
			}
			parameters := "<none>"
			if p := c.Spec.Parameters; p != nil {
				parameters = p.Kind
				if p.APIGroup != nil {
					parameters += "." + *p.APIGroup
				}
				parameters += "/" + p.Name
			}
			return []any{name, c.Spec.Controller, parameters, age(c, now)}
		},
	})
}
