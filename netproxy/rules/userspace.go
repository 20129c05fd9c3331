package rules

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/netproxy/relay"
)

// Userspace is the Filter of a machine that has no packet filter: this process
// listens on the services' addresses, which a link of the node is given, and
// relays. The goroutine that syncs has it to itself.
type Userspace struct {
	facts  *Facts
	link   Link
	relays *relay.Group
	log    *slog.Logger

	health  map[string]*healthPort             // by owner: desired
	owned   map[string][]front                 // by owner: what it claims
	claims  map[front]map[string]relay.Targets // by owner: desired
	changed map[front]bool                     // claims to put in force

	guard Watched // keeps pods to their own addresses; nil where the kernel cannot

	serving map[front]*serving // in force
	held    map[netip.Addr]int // fronts at an address of the link, in force
}

// Link carries addresses of services.
type Link interface {
	// Add does nothing if the machine has the address already.
	Add(netip.Addr) error
	// Remove takes away only what Add gave.
	Remove(netip.Addr) error
}

// front is where clients come in. An unspecified address means every one of the
// node.
type front struct {
	protocol string
	at       netip.AddrPort
}

// serving is a front in force; relay is nil while nobody would answer, so that
// the kernel refuses clients.
type serving struct {
	relay *relay.Relay
	to    relay.Targets
}

// NewUserspace returns a Filter that has nothing in force. guard is a filter
// without services for the packets of pods, where there is one for this kernel;
// else nil.
func NewUserspace(facts Facts, link Link, guard Watched, log *slog.Logger) *Userspace {
	return &Userspace{
		facts: &facts, link: link, guard: guard, relays: relay.NewGroup(log), log: log,
		health: make(map[string]*healthPort), owned: make(map[string][]front),
		claims: make(map[front]map[string]relay.Targets), changed: make(map[front]bool),
		serving: make(map[front]*serving), held: make(map[netip.Addr]int),
	}
}

// Watch ends all relays when ctx does. Nobody else can change what is in force,
// the guard apart.
func (u *Userspace) Watch(ctx context.Context, changed func()) error {
	defer u.relays.Close()
	if u.guard != nil {
		if err := u.guard.Watch(ctx, changed); err != nil {
			u.log.Warn("rules removed by other programs will not be restored", "error", err)
		}
	}
	<-ctx.Done()
	return nil
}

// Prepare implements Filter: pods reach each other by routes alone.
func (u *Userspace) Prepare(ctx context.Context) error {
	if u.guard == nil {
		return nil
	}
	return u.guard.Prepare(ctx)
}

// Repair implements Filter: sockets are this process's own, addresses may have
// been taken away.
func (u *Userspace) Repair(ctx context.Context) (bool, error) {
	for addr := range u.held {
		if err := u.link.Add(addr); err != nil {
			return false, err
		}
	}
	if u.guard == nil {
		return false, nil
	}
	return u.guard.Repair(ctx)
}

// SetNode implements Filter.
func (u *Userspace) SetNode(name string, addr netip.Addr) {
	if u.guard != nil {
		u.guard.SetNode(name, addr)
	}
}

// NodesKnown implements Filter.
func (u *Userspace) NodesKnown() {
	if u.guard != nil {
		u.guard.NodesKnown()
	}
}

// SetService claims one service's fronts in place of its former ones.
func (u *Userspace) SetService(name types.NamespacedName, service *corev1.Service, endpointSlices []*discoveryv1.EndpointSlice) []udpFrontend {
	owner := "service/" + name.String()
	ports := ServicePorts(service, endpointSlices, u.facts)
	fronts := make(map[front]relay.Targets)
	for i := range ports {
		// A relay takes an address as a whole: never one of another machine's.
		elsewhere := u.facts.Reserved.Elsewhere
		ports[i].ExternalIPs = slices.DeleteFunc(ports[i].ExternalIPs, elsewhere)
		ports[i].LoadBalancerIPs = slices.DeleteFunc(ports[i].LoadBalancerIPs, elsewhere)
		servicePortFronts(&ports[i], fronts)
	}
	delete(u.health, owner)
	if len(ports) > 0 {
		if health := healthOf(service, ports); health != nil {
			u.health[owner] = health
		}
	}
	u.claim(owner, fronts)
	return nil
}

// SetHostPorts claims one sandbox's host ports in place of its former ones.
func (u *Userspace) SetHostPorts(sandbox string, ports []HostPort) []udpFrontend {
	fronts := make(map[front]relay.Targets)
	for _, p := range ports {
		fronts[frontAt(p.Protocol, p.HostIP, p.Port)] = relay.Targets{Addrs: []netip.AddrPort{p.Pod}}
	}
	u.claim("sandbox/"+sandbox, fronts)
	return nil
}

// frontAt is the front at addr, or at every address of the node if it is not valid.
func frontAt(protocol string, addr netip.Addr, port uint16) front {
	if !addr.IsValid() {
		addr = netip.IPv4Unspecified()
	}
	return front{protocol, netip.AddrPortFrom(addr, port)}
}

func servicePortFronts(p *ServicePort, fronts map[front]relay.Targets) {
	targets := func(local bool) relay.Targets {
		endpoints := p.Cluster
		if local {
			endpoints = p.Local
		}
		to := relay.Targets{Affinity: time.Duration(p.Affinity) * time.Second}
		for _, e := range endpoints {
			to.Addrs = append(to.Addrs, e.Addr)
		}
		return to
	}
	external := targets(p.ExternalLocal)
	for _, addr := range p.ExternalIPs {
		fronts[frontAt(p.Protocol, addr, p.Port)] = external
	}
	if p.NodePort != 0 {
		fronts[frontAt(p.Protocol, netip.Addr{}, p.NodePort)] = external
	}
	balanced := external
	balanced.Sources = p.SourceRanges
	for _, addr := range p.LoadBalancerIPs {
		fronts[frontAt(p.Protocol, addr, p.Port)] = balanced
	}
	fronts[frontAt(p.Protocol, p.ClusterIP, p.Port)] = targets(p.InternalLocal)
}

// claim notes what owner wants.
func (u *Userspace) claim(owner string, fronts map[front]relay.Targets) {
	for _, f := range u.owned[owner] {
		delete(u.claims[f], owner)
		u.changed[f] = true
	}
	delete(u.owned, owner)
	for f, to := range fronts {
		if u.claims[f] == nil {
			u.claims[f] = make(map[string]relay.Targets)
		}
		u.claims[f][owner] = to
		u.changed[f] = true
		u.owned[owner] = append(u.owned[owner], f)
	}
}

// Apply puts in force what changed. A front that cannot be is left for the next
// time: another program that has the port must not hold up all others.
func (u *Userspace) Apply(ctx context.Context) error {
	if u.guard != nil {
		if err := u.guard.Apply(ctx); err != nil {
			return err
		}
	}
	again := make(map[front]bool)
	for f := range u.changed {
		if err := u.serve(f); err != nil {
			u.log.Warn("a service's port is not served; another program may have it", "protocol", f.protocol, "address", f.at, "error", err)
			again[f] = true
		}
	}
	u.changed = again
	return nil
}

// serve makes one front as it is claimed: by the first of its owners.
func (u *Userspace) serve(f front) error {
	claims := u.claims[f]
	now := u.serving[f]
	if len(claims) == 0 {
		delete(u.claims, f)
		if now == nil {
			return nil
		}
		delete(u.serving, f)
		if now.relay != nil {
			now.relay.Close()
		}
		return u.drop(f.at.Addr())
	}
	if now == nil {
		if err := u.hold(f.at.Addr()); err != nil {
			return err
		}
		now = &serving{}
		u.serving[f] = now
	}
	return now.redirect(u.relays, f, claims[slices.Min(slices.Collect(maps.Keys(claims)))])
}

func (s *serving) redirect(relays *relay.Group, f front, to relay.Targets) (err error) {
	switch {
	case s.relay != nil && len(to.Addrs) == 0:
		s.relay.Close()
		s.relay = nil
	case s.relay != nil && !s.to.Equal(to):
		s.relay.Redirect(to)
	case s.relay == nil && len(to.Addrs) > 0:
		if s.relay, err = relays.Listen(f.protocol, f.at, to); err != nil {
			return err
		}
	}
	s.to = to
	return nil
}

// hold makes addr one of the node's.
func (u *Userspace) hold(addr netip.Addr) error {
	if addr.IsUnspecified() {
		return nil
	}
	if u.held[addr] == 0 {
		if err := u.link.Add(addr); err != nil {
			return fmt.Errorf("take the address of a service: %w", err)
		}
	}
	u.held[addr]++
	return nil
}

func (u *Userspace) drop(addr netip.Addr) error {
	if addr.IsUnspecified() {
		return nil
	}
	if u.held[addr]--; u.held[addr] > 0 {
		return nil
	}
	delete(u.held, addr)
	return u.link.Remove(addr)
}

func (u *Userspace) healthPorts() map[uint16]healthPort {
	found := make(map[uint16]healthPort, len(u.health))
	for _, h := range u.health {
		found[h.port] = *h
	}
	return found
}
