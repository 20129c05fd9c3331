// Package netproxy is a node's network: pod links and addresses (CNI), service rules and cluster DNS.
package netproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"orch/netproxy/cni"
	"orch/netproxy/dns"
	"orch/netproxy/overlay"
	"orch/netproxy/rules"
	"orch/netproxy/services"
	"orch/netproxy/wire"
)

// Proxy is the network of one node.
type Proxy struct {
	cfg   Config
	store *services.Store
	ready chan struct{}

	// Set before ready is closed.
	engine *rules.Engine
	pods   *cni.Server
}

// New returns a Proxy; Run makes it work.
func New(cfg Config) *Proxy {
	cfg.setDefaults()
	return &Proxy{cfg: cfg, store: services.NewStore(), ready: make(chan struct{})}
}

// Ready is closed once pods can be attached, services reached and names
// resolved.
func (p *Proxy) Ready() <-chan struct{} { return p.ready }

// Services lists the services of a namespace, sorted by name, for the
// environment of pods. The objects are shared: do not change them.
func (p *Proxy) Services(namespace string) []*corev1.Service { return p.store.InNamespace(namespace) }

// Synced is closed once Services is complete.
func (p *Proxy) Synced() <-chan struct{} { return p.store.Synced() }

// CollectSandboxes detaches every sandbox whose id the container runtime does
// not name, and frees its address. Call once after Ready, before new pods start.
func (p *Proxy) CollectSandboxes(live map[string]bool) error { return p.pods.Collect(live) }

// PluginConfDir is where the container runtime finds the network configuration.
func PluginConfDir(dataDir string) string { return filepath.Join(dataDir, "agent", "cni", "net.d") }

// Run sets the network up and keeps it until ctx ends. What pods need to go on
// (links, rules) stays behind; DNS and new pods wait for the next Run.
func (p *Proxy) Run(ctx context.Context) error {
	if err := p.cfg.Validate(); err != nil {
		return err
	}
	tasks, running := errgroup.WithContext(ctx)
	// Services are read while the node's range is still being waited for.
	tasks.Go(func() error {
		p.store.Run(running, p.cfg.Client, p.cfg.Logger.With("component", "services"))
		return nil
	})
	tasks.Go(func() error {
		podCIDR, err := p.cfg.PodCIDR(running)
		if err != nil {
			return fmt.Errorf("learn the node's pod range: %w", err)
		}
		filter, err := p.filter(running, podCIDR)
		if err != nil {
			return err
		}
		return p.start(running, tasks, podCIDR, filter)
	})
	if err := tasks.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

// start brings up the parts in the order of what rests on what, and leaves
// them running as tasks.
func (p *Proxy) start(ctx context.Context, tasks *errgroup.Group, podCIDR netip.Prefix, filter packetFilter) error {
	var services rules.Services
	if !p.cfg.DisableProxy {
		services = p.store
	}
	engine := rules.NewEngine(filter, services, rules.Conntrack{}, p.cfg.Logger.With("component", "rules"))
	if services != nil {
		p.store.OnChange(engine.ServiceChanged)
	}

	// The addresses first: pods are routed by them and DNS listens on one.
	if err := p.anchor(podCIDR).Ensure(); err != nil {
		return err
	}
	if err := p.startDNS(ctx, tasks); err != nil {
		return err
	}
	// Then what lets pods out, before there are new ones.
	if err := engine.Prepare(ctx); err != nil {
		return err
	}
	mtu := p.cfg.MTU
	if mtu == 0 {
		mtu = cni.UplinkMTU(p.cfg.NodeIP) - overlay.Overhead
	}
	// Adopt the sandboxes before the first full sync, which removes every rule
	// that nobody claims.
	pods := cni.New(cni.Config{
		Dir: filepath.Join(p.cfg.DataDir, "agent"), PodCIDR: podCIDR, NodeIP: p.cfg.NodeIP, MTU: mtu,
		HostPorts: hostPorts{engine}, LoopbackPorts: p.cfg.Mode != ModeUserspace, Logger: p.cfg.Logger.With("component", "cni"),
	})
	if err := pods.Open(); err != nil {
		return err
	}
	tasks.Go(func() error { return engine.Run(ctx) })
	tunnel := &overlay.Device{Name: overlay.LinkName, Addr: p.cfg.NodeIP, Range: podCIDR.Masked(), MTU: mtu}
	tasks.Go(func() error {
		return overlay.New(p.cfg.NodeName, tunnel, p.cfg.Peers, p.cfg.Logger.With("component", "overlay")).Run(ctx)
	})
	tasks.Go(func() error {
		if err := filter.Watch(ctx, engine.Recheck); err != nil {
			p.cfg.Logger.Warn("rules removed by other programs will not be restored", "component", "rules", "error", err)
		}
		return nil
	})
	listening := make(chan struct{})
	tasks.Go(func() error {
		return pods.Serve(ctx, func() error {
			defer close(listening)
			// Last, because its presence is what tells the container runtime
			// that pods can be attached.
			return cni.WriteConfList(PluginConfDir(p.cfg.DataDir), pods.Socket(), p.cfg.Plugin)
		})
	})
	for _, part := range []<-chan struct{}{listening, p.store.Synced(), engine.Synced()} {
		select {
		case <-part:
		case <-ctx.Done():
			return nil
		}
	}
	p.engine, p.pods = engine, pods
	close(p.ready)
	return nil
}

// packetFilter is a filter that is told when others change its rules.
type packetFilter interface {
	rules.Filter
	Watch(ctx context.Context, changed func()) error
}

// filter makes the packet filter of the mode, and removes what a process in
// another mode left.
func (p *Proxy) filter(ctx context.Context, podCIDR netip.Prefix) (packetFilter, error) {
	facts := rules.Facts{
		NodeName: p.cfg.NodeName, Zone: p.cfg.Zone,
		ClusterCIDR: p.cfg.ClusterCIDR.Masked(), PodCIDR: podCIDR.Masked(), NoServices: p.cfg.DisableProxy,
	}
	if !p.cfg.DisableDNS {
		facts.LocalDNS = p.cfg.ClusterDNS
	}
	if p.cfg.Mode != ModeIPTables {
		if iptables, err := rules.NewIPTables(); err == nil {
			if err := iptables.Cleanup(ctx); err != nil {
				return nil, err
			}
		}
	}
	if p.cfg.Mode == ModeNFTables {
		return rules.NewNFTables(facts)
	}
	if err := rules.CleanupNFTables(ctx); err != nil {
		return nil, err
	}
	if p.cfg.Mode == ModeUserspace {
		log := p.cfg.Logger.With("component", "rules")
		log.Warn("services are relayed by this process: they rest while it is stopped, pods see the node as their client, and nothing lets pods reach the world outside but your own routes or rules")
		return rules.NewUserspace(facts, cni.NewServiceAddresses(p.cfg.LinkName, p.cfg.ServiceCIDR), log), nil
	}
	iptables, err := rules.NewIPTables()
	if err != nil {
		return nil, err
	}
	facts.RandomFully = iptables.RandomFully
	return struct {
		*rules.Tables
		*rules.IPTables
	}{rules.NewTables(facts, iptables), iptables}, nil
}

func (p *Proxy) anchor(podCIDR netip.Prefix) *cni.Anchor {
	anchor := &cni.Anchor{Name: p.cfg.LinkName, NodeIP: p.cfg.NodeIP, ClusterCIDR: p.cfg.ClusterCIDR, Addresses: []netip.Addr{podCIDR.Masked().Addr().Next()}}
	if !p.cfg.DisableDNS {
		anchor.Addresses = append(anchor.Addresses, p.cfg.ClusterDNS)
	}
	if !p.cfg.DisableProxy {
		anchor.ServiceCIDR = p.cfg.ServiceCIDR
	}
	return anchor
}

func (p *Proxy) startDNS(ctx context.Context, tasks *errgroup.Group) error {
	if p.cfg.DisableDNS {
		return nil
	}
	server := dns.New(dns.Config{
		Addr:        netip.AddrPortFrom(p.cfg.ClusterDNS, 53),
		Domain:      p.cfg.ClusterDomain,
		ClusterCIDR: p.cfg.ClusterCIDR,
		ServiceCIDR: p.cfg.ServiceCIDR,
		ResolvConf:  p.cfg.ResolvConf,
		Services:    p.store,
	})
	if err := server.Listen(ctx); err != nil {
		return err
	}
	tasks.Go(func() error { return server.Serve(ctx) })
	return nil
}

// Cleanup removes what Run leaves behind on the machine, for uninstalling:
// rules, pods' links and the node's cluster addresses.
func Cleanup(ctx context.Context, linkName string) error {
	if err := cni.RemoveLinks(); err != nil {
		return err
	}
	if err := overlay.Remove(overlay.LinkName); err != nil {
		return err
	}
	if err := (&cni.Anchor{Name: linkName}).Remove(); err != nil {
		return err
	}
	if err := rules.CleanupNFTables(ctx); err != nil {
		return err
	}
	iptables, err := rules.NewIPTables()
	if errors.Is(err, rules.ErrNoIPTables) {
		return nil
	}
	if err != nil {
		return err
	}
	return iptables.Cleanup(ctx)
}

// hostPorts translates the CNI's port mappings for the rules engine.
type hostPorts struct{ engine *rules.Engine }

func (h hostPorts) Adopt(sandbox string, pod netip.Addr, mappings []wire.PortMapping) {
	h.engine.Adopt(sandbox, translate(pod, mappings))
}

func (h hostPorts) Publish(ctx context.Context, sandbox string, pod netip.Addr, mappings []wire.PortMapping) error {
	ports := translate(pod, mappings)
	if len(ports) == 0 {
		return nil
	}
	return h.engine.Publish(ctx, sandbox, ports)
}

func (h hostPorts) Withdraw(sandbox string) { h.engine.Withdraw(sandbox) }

// translate leaves out mappings without a host port, and those to an IPv6
// address, which this node does not have.
func translate(pod netip.Addr, mappings []wire.PortMapping) []rules.HostPort {
	var ports []rules.HostPort
	for _, m := range mappings {
		if m.HostPort == 0 {
			continue
		}
		port := rules.HostPort{Protocol: strings.ToLower(m.Protocol), Port: m.HostPort, Pod: netip.AddrPortFrom(pod, m.ContainerPort)}
		if port.Protocol == "" {
			port.Protocol = "tcp"
		}
		if addr, err := netip.ParseAddr(m.HostIP); err == nil && !addr.IsUnspecified() {
			if !addr.Is4() {
				continue
			}
			port.HostIP = addr
		}
		ports = append(ports, port)
	}
	return ports
}
