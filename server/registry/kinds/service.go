package kinds

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"orch/server/registry"
)

func services(cfg Config) *registry.Resource {
	addresses := serviceAddresses{cidr: cfg.ServiceCIDR, nodePorts: cfg.NodePorts}
	return entry[corev1.Service, corev1.ServiceList](corev1.SchemeGroupVersion, "services", traits[*corev1.Service]{
		ShortNames: []string{"svc"}, Categories: []string{"all"}, Unnumbered: true,
		Spec:           within(func(s *corev1.Service) *corev1.ServiceSpec { return &s.Spec }),
		Status:         within(func(s *corev1.Service) *corev1.ServiceStatus { return &s.Status }),
		StatusValidate: validateServiceStatus,
		Default:        defaultService,
		PrepareCreate: func(ctx context.Context, r *registry.Registry, s *corev1.Service) error {
			return addresses.allocate(r.Claimed, s, nil)
		},
		PrepareUpdate: func(ctx context.Context, r *registry.Registry, s, old *corev1.Service) error {
			keepAllocated(s, old)
			if err := addresses.allocate(r.Claimed, s, old); err != nil {
				return err
			}
			dropForType(s, old)
			return nil
		},
		Warnings:       serviceWarnings,
		Validate:       validateService,
		ValidateUpdate: validateServiceUpdate,
		ValidateName:   apivalidation.NameIsDNSLabel,
		Claims:         serviceClaims,
		ClaimError:     claimRefused,
		Fields: func(s *corev1.Service) fields.Set {
			return fields.Set{"spec.clusterIP": s.Spec.ClusterIP, "spec.type": string(s.Spec.Type)}
		},
		CreateOnUpdate: true, UnconditionalUpdate: true,
		Columns: columns(
			nameColumn(),
			column("Type", "string", doc(corev1.ServiceSpec{}, "type")),
			column("Cluster-IP", "string", doc(corev1.ServiceSpec{}, "clusterIP")),
			column("External-IP", "string", doc(corev1.ServiceSpec{}, "externalIPs")),
			column("Port(s)", "string", doc(corev1.ServiceSpec{}, "ports")),
			ageColumn(),
			wide("Selector", "string", doc(corev1.ServiceSpec{}, "selector")),
		),
		Row:          serviceRow,
		Subresources: []*registry.Subresource{connect("proxy", core("ServiceProxyOptions"), proxyVerbs()...)},
	})
}

func defaultService(s *corev1.Service) {
	spec := &s.Spec
	setZero(&spec.SessionAffinity, corev1.ServiceAffinityNone)
	switch c := spec.SessionAffinityConfig; spec.SessionAffinity {
	case corev1.ServiceAffinityNone:
		spec.SessionAffinityConfig = nil
	case corev1.ServiceAffinityClientIP:
		if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
			timeout := corev1.DefaultClientIPServiceAffinitySeconds
			spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
		}
	}
	setZero(&spec.Type, corev1.ServiceTypeClusterIP)
	for i := range spec.Ports {
		p := &spec.Ports[i]
		setZero(&p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if externallyAccessible(s) {
		setZero(&spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	setDefault(&spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	if spec.Type != corev1.ServiceTypeLoadBalancer {
		return
	}
	setDefault(&spec.AllocateLoadBalancerNodePorts, true)
	for i := range s.Status.LoadBalancer.Ingress {
		if in := &s.Status.LoadBalancer.Ingress[i]; in.IP != "" {
			setDefault(&in.IPMode, corev1.LoadBalancerIPModeVIP)
		}
	}
}

func externallyAccessible(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer || s.Spec.Type == corev1.ServiceTypeNodePort ||
		s.Spec.Type == corev1.ServiceTypeClusterIP && len(s.Spec.ExternalIPs) > 0
}

func needsClusterIP(s *corev1.Service) bool { return s.Spec.Type != corev1.ServiceTypeExternalName }

func headless(s *corev1.Service) bool {
	return len(s.Spec.ClusterIPs) == 1 && s.Spec.ClusterIPs[0] == corev1.ClusterIPNone
}

// hasNodePorts tells whether ports of s may have node ports; wantsNodePorts
// whether they must.
func hasNodePorts(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer
}

func wantsNodePorts(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeNodePort ||
		s.Spec.Type == corev1.ServiceTypeLoadBalancer && derefOr(s.Spec.AllocateLoadBalancerNodePorts, true)
}

func needsHealthCheckPort(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// serviceClaims are the addresses and ports that only one service may have.
// Node ports are claimed whatever their protocol, as upstream does.
func serviceClaims(s *corev1.Service) []string {
	claims := sets.New[string]()
	for _, ip := range s.Spec.ClusterIPs {
		if ip != "" && ip != corev1.ClusterIPNone {
			claims.Insert(ipClaim(ip))
		}
	}
	for _, port := range nodePortsOf(s) {
		claims.Insert(portClaim(port))
	}
	return sets.List(claims)
}

func ipClaim(ip string) string { return "clusterip/" + ip }

func portClaim(port int32) string { return "nodeport/" + strconv.Itoa(int(port)) }

// claimRefused words a race that allocate could not see.
func claimRefused(s *corev1.Service, claim string) error {
	for i, p := range s.Spec.Ports {
		if claim == portClaim(p.NodePort) {
			return invalidService(s, field.Invalid(field.NewPath("spec", "ports").Index(i).Child("nodePort"), p.NodePort, portAllocated))
		}
	}
	return refuseClusterIP(s, "provided IP is already allocated")
}

// nodePortsOf lists the node ports of s, that of its health check too.
func nodePortsOf(s *corev1.Service) []int32 {
	var ports []int32
	for i := range s.Spec.Ports {
		if p := s.Spec.Ports[i].NodePort; p != 0 {
			ports = append(ports, p)
		}
	}
	if s.Spec.HealthCheckNodePort != 0 {
		ports = append(ports, s.Spec.HealthCheckNodePort)
	}
	return ports
}

func serviceRow(s *corev1.Service, now time.Time) []any {
	clusterIP := "<none>"
	if len(s.Spec.ClusterIPs) > 0 {
		clusterIP = s.Spec.ClusterIPs[0]
	}
	return []any{
		s.Name, string(s.Spec.Type), clusterIP, externalIPCell(s), orText(portsCell(s.Spec.Ports), "<none>"),
		age(s, now), labels.FormatLabels(s.Spec.Selector),
	}
}

func externalIPCell(s *corev1.Service) string {
	var ips []string
	switch s.Spec.Type {
	case corev1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	case corev1.ServiceTypeLoadBalancer:
		ingress := sets.New[string]()
		for _, in := range s.Status.LoadBalancer.Ingress {
			if address := orText(in.IP, in.Hostname); address != "" {
				ingress.Insert(address)
			}
		}
		ips = append(sets.List(ingress), s.Spec.ExternalIPs...)
		return orText(strings.Join(ips, ","), "<pending>")
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort:
		return orText(strings.Join(s.Spec.ExternalIPs, ","), "<none>")
	}
	return "<unknown>"
}

func portsCell(ports []corev1.ServicePort) string {
	cells := make([]string, len(ports))
	for i, p := range ports {
		cells[i] = fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		if p.NodePort > 0 {
			cells[i] = fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol)
		}
	}
	return strings.Join(cells, ",")
}
