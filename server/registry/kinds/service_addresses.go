package kinds

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"orch/server/registry"
)

// serviceAddresses gives services their cluster IPs and node ports. What is in
// use is known by the claims of all services; taking the claim with the write
// makes sure that two services written at once never get the same one.
type serviceAddresses struct {
	cidr      *net.IPNet // one family
	nodePorts [2]int
}

// allocate completes the addresses and ports of s; old is nil on creation.
func (a serviceAddresses) allocate(claimed func(string) bool, s, old *corev1.Service) error {
	syncClusterIPs(s, old)
	if needsClusterIP(s) {
		if err := a.setFamilies(s, old); err != nil {
			return err
		}
		if err := a.setClusterIP(claimed, s, old); err != nil {
			return err
		}
	}
	return a.setNodePorts(claimed, s, old)
}

func (a serviceAddresses) family() corev1.IPFamily {
	if a.cidr != nil && a.cidr.IP.To4() == nil {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

func otherFamily(f corev1.IPFamily) corev1.IPFamily {
	if f == corev1.IPv4Protocol {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

func invalidService(s *corev1.Service, errs ...*field.Error) error {
	return registry.Invalid(corev1.SchemeGroupVersion.WithKind("Service").GroupKind(), s.Name, errs)
}

// syncClusterIPs infers the list from the single field, which old clients know alone.
func syncClusterIPs(s, old *corev1.Service) {
	spec := &s.Spec
	if old == nil {
		if spec.ClusterIP != "" && len(spec.ClusterIPs) == 0 {
			spec.ClusterIPs = []string{spec.ClusterIP}
		}
		return
	}
	same := slices.Equal(spec.ClusterIPs, old.Spec.ClusterIPs)
	switch {
	case len(spec.ClusterIPs) == 0 && spec.ClusterIP == old.Spec.ClusterIP:
		spec.ClusterIPs = slices.Clone(old.Spec.ClusterIPs)
	case spec.ClusterIP == old.Spec.ClusterIP || !same:
	case spec.ClusterIP == "":
		spec.ClusterIPs = nil
	default:
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
}

// setFamilies chooses the policy and families of a service in a cluster of one family.
func (a serviceAddresses) setFamilies(s, old *corev1.Service) error {
	spec, path := &s.Spec, field.NewPath("spec")
	selectorless := headless(s) && len(spec.Selector) == 0
	if spec.IPFamilyPolicy == nil && old != nil {
		spec.IPFamilyPolicy = old.Spec.IPFamilyPolicy
	}
	if spec.IPFamilyPolicy == nil {
		policy := corev1.IPFamilyPolicySingleStack
		if selectorless {
			policy = corev1.IPFamilyPolicyRequireDualStack
		}
		spec.IPFamilyPolicy = &policy
	}
	if errs := validateClusterIPs(s, old); len(errs) > 0 {
		return invalidService(s, errs...)
	}
	single := *spec.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack
	if single {
		if old != nil && len(spec.IPFamilies) > 1 && slices.Equal(spec.IPFamilies, old.Spec.IPFamilies) {
			spec.IPFamilies = spec.IPFamilies[:1]
		}
		if len(spec.ClusterIPs) == 2 {
			return invalidService(s, field.Invalid(path.Child("ipFamilyPolicy"), spec.IPFamilyPolicy, "must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified"))
		}
		if len(spec.IPFamilies) == 2 {
			return invalidService(s, field.Invalid(path.Child("ipFamilyPolicy"), spec.IPFamilyPolicy, "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"))
		}
	}
	for i, ip := range spec.ClusterIPs {
		if ip == corev1.ClusterIPNone || i < len(spec.IPFamilies) {
			continue
		}
		family := familyOf(ip)
		if family != a.family() {
			return invalidService(s, field.Invalid(path.Child("clusterIPs").Index(i), spec.ClusterIPs, fmt.Sprintf("%s is not configured on this cluster", family)))
		}
		spec.IPFamilies = append(spec.IPFamilies, family)
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = []corev1.IPFamily{a.family()}
	}
	if selectorless {
		if len(spec.IPFamilies) < 2 && !single {
			spec.IPFamilies = append(spec.IPFamilies, otherFamily(spec.IPFamilies[0]))
		}
		return nil
	}
	if *spec.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack {
		return invalidService(s, field.Invalid(path.Child("ipFamilyPolicy"), spec.IPFamilyPolicy, "this cluster is not configured for dual-stack services"))
	}
	for i, family := range spec.IPFamilies {
		if family != a.family() {
			return invalidService(s, field.Invalid(path.Child("ipFamilies").Index(i), family, "not configured on this cluster"))
		}
	}
	return nil
}

func familyOf(ip string) corev1.IPFamily {
	if netutils.IsIPv6String(ip) {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

// setClusterIP keeps the address that s had or asks for, or finds a free one.
func (a serviceAddresses) setClusterIP(claimed func(string) bool, s, old *corev1.Service) error {
	spec := &s.Spec
	if headless(s) || old != nil && needsClusterIP(old) && len(spec.ClusterIPs) > 0 && slices.Equal(spec.ClusterIPs, old.Spec.ClusterIPs) {
		return nil
	}
	if old != nil && needsClusterIP(old) {
		return nil // the primary address cannot change; validation says so
	}
	if len(spec.ClusterIPs) > 0 && spec.ClusterIPs[0] != "" {
		return a.checkClusterIP(s, claimed)
	}
	ip := a.freeIP(claimed, rand.Uint64())
	if ip == "" {
		return errors.NewInternalError(fmt.Errorf("failed to allocate a serviceIP for Service %q: range is full", s.Name))
	}
	spec.ClusterIP, spec.ClusterIPs = ip, []string{ip}
	return nil
}

func (a serviceAddresses) checkClusterIP(s *corev1.Service, claimed func(string) bool) error {
	ip := net.ParseIP(s.Spec.ClusterIPs[0])
	switch {
	case a.cidr == nil:
		return nil
	case !a.cidr.Contains(ip) || ip.Equal(a.cidr.IP):
		return refuseClusterIP(s, "the provided network does not match the current range")
	case claimed(ipClaim(s.Spec.ClusterIPs[0])):
		return refuseClusterIP(s, "provided IP is already allocated")
	}
	return nil
}

func refuseClusterIP(s *corev1.Service, why string) error {
	asked := ""
	if len(s.Spec.ClusterIPs) > 0 {
		asked = s.Spec.ClusterIPs[0]
	}
	return invalidService(s, field.Invalid(field.NewPath("spec", "clusterIPs"), s.Spec.ClusterIPs, fmt.Sprintf("failed to allocate IP %v: %s", asked, why)))
}

// freeIP is a free address of the range, "" when there is none. It starts at
// a place given by random, and leaves the low part of the range to people who
// choose addresses themselves for as long as it can.
func (a serviceAddresses) freeIP(claimed func(string) bool, random uint64) string {
	if a.cidr == nil {
		return ""
	}
	first, size := a.span()
	reserved := min(max(16, size/16), 256)
	if size <= reserved {
		reserved = 0
	}
	for _, band := range [][2]uint64{{reserved, size}, {0, reserved}} {
		n := band[1] - band[0]
		for i := range n {
			ip := addressAt(first, band[0]+(random+i)%n)
			if !claimed(ipClaim(ip)) {
				return ip
			}
		}
	}
	return ""
}

// span is the first usable address and how many there are, without the
// network's own and, for IPv4, its broadcast address.
func (a serviceAddresses) span() (first net.IP, size uint64) {
	ones, bits := a.cidr.Mask.Size()
	size = uint64(1)<<min(bits-ones, 16) - 1
	if bits == 32 && size > 1 {
		size--
	}
	return net.ParseIP(addressAt(a.cidr.IP, 1)), size
}

func addressAt(base net.IP, offset uint64) string {
	if v4 := base.To4(); v4 != nil {
		var ip [4]byte
		binary.BigEndian.PutUint32(ip[:], binary.BigEndian.Uint32(v4)+uint32(offset))
		return net.IP(ip[:]).String()
	}
	ip := slices.Clone(base.To16())
	binary.BigEndian.PutUint64(ip[8:], binary.BigEndian.Uint64(ip[8:])+offset)
	return ip.String()
}

// setNodePorts gives each port that must have one a node port, and checks
// those that were asked for. Ports with one number and several protocols share.
func (a serviceAddresses) setNodePorts(claimed func(string) bool, s, old *corev1.Service) error {
	held := sets.New[int32]() // by this service already
	if old != nil {
		held.Insert(nodePortsOf(old)...)
	}
	pool := &portPool{bounds: a.nodePorts, held: held, claimed: claimed}
	if hasNodePorts(s) {
		if err := pool.assign(s); err != nil {
			return err
		}
	}
	if !needsHealthCheckPort(s) {
		return nil
	}
	if s.Spec.HealthCheckNodePort == 0 {
		port, err := pool.next()
		s.Spec.HealthCheckNodePort = port
		return err
	}
	if why := pool.take(s.Spec.HealthCheckNodePort); why != "" {
		return errors.NewInternalError(fmt.Errorf("failed to allocate requested HealthCheck NodePort %v: %v", s.Spec.HealthCheckNodePort, why))
	}
	return nil
}

const portAllocated = "provided port is already allocated"

// portPool hands out node ports for one write.
type portPool struct {
	bounds  [2]int
	held    sets.Set[int32] // this service has these
	claimed func(string) bool
}

func (p *portPool) assign(s *corev1.Service) error {
	byPort := make(map[int32]int32) // node port by service port, for other protocols
	for i := range s.Spec.Ports {
		if sp := &s.Spec.Ports[i]; sp.NodePort != 0 {
			if why := p.take(sp.NodePort); why != "" {
				return invalidService(s, field.Invalid(field.NewPath("spec", "ports").Index(i).Child("nodePort"), sp.NodePort, why))
			}
			if _, ok := byPort[sp.Port]; !ok {
				byPort[sp.Port] = sp.NodePort
			}
		}
	}
	if !wantsNodePorts(s) {
		return nil
	}
	for i := range s.Spec.Ports {
		sp := &s.Spec.Ports[i]
		if sp.NodePort != 0 {
			continue
		}
		if shared := byPort[sp.Port]; shared != 0 && !portTaken(s, sp.Protocol, shared) {
			sp.NodePort = shared
			continue
		}
		port, err := p.next()
		if err != nil {
			return err
		}
		sp.NodePort = port
		byPort[sp.Port] = port
	}
	return nil
}

func portTaken(s *corev1.Service, protocol corev1.Protocol, nodePort int32) bool {
	return slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool {
		return p.Protocol == protocol && p.NodePort == nodePort
	})
}

// take tells why port cannot be had, "" when it can.
func (p *portPool) take(port int32) string {
	if p.held.Has(port) {
		return ""
	}
	if int(port) < p.bounds[0] || int(port) > p.bounds[1] {
		return fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %d-%d", p.bounds[0], p.bounds[1])
	}
	if p.claimed(portClaim(port)) {
		return portAllocated
	}
	p.held.Insert(port)
	return ""
}

// next finds a free port, leaving the low ones to people who choose themselves.
func (p *portPool) next() (int32, error) {
	size := p.bounds[1] - p.bounds[0] + 1
	reserved := min(max(16, size/32), 128)
	if size <= reserved {
		reserved = 0
	}
	for _, band := range [][2]int{{reserved, size}, {0, reserved}} {
		n := band[1] - band[0]
		if n == 0 {
			continue
		}
		start := rand.IntN(n)
		for i := range n {
			port := int32(p.bounds[0] + band[0] + (start+i)%n)
			if !p.held.Has(port) && !p.claimed(portClaim(port)) {
				p.held.Insert(port)
				return port, nil
			}
		}
	}
	return 0, errors.NewInternalError(fmt.Errorf("failed to allocate a nodePort: range is full"))
}
