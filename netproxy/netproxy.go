// Package netproxy is a node's network: pod links and addresses (CNI), service rules and cluster DNS.
package netproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"orch/netproxy/cni"
	"orch/netproxy/dns"
	"orch/netproxy/kernel"
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

	mu     sync.Mutex // guards what follows
	nodeIP netip.Addr
	ways   *overlay.Overlay // nil: not started

	// Set before ready is closed.
	engine *rules.Engine
	pods   *cni.Server
}

// New returns a Proxy; Run makes it work.
func New(cfg Config) *Proxy {
	cfg.setDefaults()
	return &Proxy{cfg: cfg, store: services.NewStore(), ready: make(chan struct{}), nodeIP: cfg.NodeIP}
}

// Move tells that the node has another address now.
func (p *Proxy) Move(to netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nodeIP = to
	if p.ways != nil {
		p.ways.Move(to)
	}
}

// follow passes on where the node is, from now on.
func (p *Proxy) follow(ways *overlay.Overlay) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ways = ways
	if p.nodeIP != p.cfg.NodeIP {
		ways.Move(p.nodeIP)
	}
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
		reserved := rules.NewReserved(p.cfg.NodeName, p.cfg.ServiceCIDR.Masked())
		reserved.HostPortsOnly, reserved.Anchor = p.cfg.DisableProxy, p.cfg.LinkName
		filter, err := p.filter(running, podCIDR, reserved)
		if err != nil {
			return err
		}
		return p.start(running, tasks, podCIDR, filter, reserved)
	})
	if err := tasks.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

// start brings up the parts in the order of what rests on what, and leaves
// them running as tasks.
func (p *Proxy) start(ctx context.Context, tasks *errgroup.Group, podCIDR netip.Prefix, filter rules.Watched, reserved *rules.Reserved) error {
	engine := rules.NewEngine(filter, p.store, reserved, rules.Conntrack{}, p.cfg.Report, p.cfg.Logger.With("component", "rules"))
	p.store.OnChange(engine.ServiceChanged)

	// The addresses first: pods are routed by them and DNS listens on one.
	anchor := p.anchor(podCIDR)
	if err := anchor.Ensure(); err != nil {
		return err
	}
	if err := p.startDNS(ctx, tasks); err != nil {
		return err
	}
	if p.cfg.Mode != ModeUserspace && !p.cfg.DisableProxy {
		if err := kernel.TrackConnections(goruntime.NumCPU()); err != nil {
			p.cfg.Logger.Debug("connection tracking is left as it is", "component", "network", "error", err)
		}
	}
	// Then what lets pods out, before there are new ones.
	if err := engine.Prepare(ctx); err != nil {
		return err
	}
	// What opens the node's own loopback to others only behind the rules that shut it.
	anchor.LoopbackPorts = p.cfg.Mode != ModeUserspace
	if _, err := anchor.Mend(); err != nil {
		return err
	}
	mtu := p.cfg.MTU
	if mtu == 0 {
		mtu = cni.UplinkMTU(p.cfg.NodeIP) - overlay.Overhead
	}
	// Adopt the sandboxes before the first full sync, which removes every rule
	// that nobody claims.
	pods := cni.New(cni.Config{
		Dir: filepath.Join(p.cfg.DataDir, "agent"), PodCIDR: podCIDR, MTU: mtu,
		HostPorts: hostPorts{engine}, Logger: p.cfg.Logger.With("component", "cni"),
	})
	if err := pods.Open(); err != nil {
		return err
	}
	tasks.Go(func() error { return engine.Run(ctx) })
	tunnel := &overlay.Device{Name: overlay.LinkName, Addr: p.cfg.NodeIP, Range: podCIDR.Masked(), MTU: mtu,
		Limits: overlay.Limits{Own: podCIDR.Masked(), Cluster: p.cfg.ClusterCIDR.Masked(), Services: p.cfg.ServiceCIDR.Masked()}}
	ways := overlay.New(p.cfg.NodeName, tunnel, p.cfg.Peers, engine.NodesChanged, p.cfg.Logger.With("component", "overlay"))
	tasks.Go(func() error { return ways.Run(ctx) })
	p.follow(ways)
	keep := &keeper{
		proxy: p, anchor: anchor, pods: pods, ways: ways, engine: engine, wake: make(chan struct{}, 1),
		silent: p.cfg.Mode == ModeUserspace || rules.Silent(filter),
	}
	tasks.Go(func() error { return keep.run(ctx) })
	tasks.Go(func() error { return keep.watch(ctx) })
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

// filter makes the packet filter of the mode, and removes what a process in
// another mode left.
func (p *Proxy) filter(ctx context.Context, podCIDR netip.Prefix, reserved *rules.Reserved) (rules.Watched, error) {
	facts := rules.Facts{
		NodeName: p.cfg.NodeName, Zone: p.cfg.Zone,
		ClusterCIDR: p.cfg.ClusterCIDR.Masked(), PodCIDR: podCIDR.Masked(), NoServices: p.cfg.DisableProxy,
		TunnelLink: overlay.LinkName, Reserved: reserved,
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
		return rules.NewUserspace(facts, cni.NewServiceAddresses(p.cfg.LinkName, p.cfg.ServiceCIDR), guard(ctx, facts, log), log), nil
	}
	return iptablesFilter(ctx, facts, p.cfg.Logger)
}

func iptablesFilter(ctx context.Context, facts rules.Facts, log *slog.Logger) (rules.Watched, error) {
	iptables, err := rules.NewIPTables()
	if err != nil {
		return nil, err
	}
	iptables.Probe(ctx)
	if !iptables.ReversePath {
		log.Warn("iptables does not know rpfilter (modprobe xt_rpfilter): only the kernel's check of sources keeps pods to their own addresses (it must not be loose: net.ipv4.conf.all.rp_filter=2 overrules it)", "component", "rules")
	}
	facts.RandomFully, facts.ReversePath = iptables.RandomFully, iptables.ReversePath
	return struct {
		*rules.Tables
		*rules.IPTables
	}{rules.NewTables(facts, iptables), iptables}, nil
}

// guard is what keeps pods to their own addresses in mode userspace, if the
// kernel has any filter after all.
func guard(ctx context.Context, facts rules.Facts, log *slog.Logger) rules.Watched {
	facts.NoServices, facts.GuardOnly = true, true
	if filter, err := iptablesFilter(ctx, facts, log); err == nil && filter.Prepare(ctx) == nil {
		return filter
	}
	if filter, err := rules.NewNFTables(facts); err == nil && filter.Prepare(ctx) == nil {
		return filter
	}
	log.Warn("there is no packet filter: only the kernel's check of sources keeps pods to their own addresses (it must not be loose: net.ipv4.conf.all.rp_filter=2 overrules it), and whoever reaches UDP port 8472 of this node is believed")
	return nil
}

func (p *Proxy) anchor(podCIDR netip.Prefix) *cni.Anchor {
	anchor := &cni.Anchor{
		Name: p.cfg.LinkName, ClusterCIDR: p.cfg.ClusterCIDR, Addresses: []netip.Addr{podCIDR.Masked().Addr().Next()},
	}
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
		Logger:      p.cfg.Logger.With("component", "dns"),
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
		switch port.Protocol {
		case "tcp", "udp", "sctp":
		case "":
			port.Protocol = "tcp"
		default: // it would become a part of rules
			continue
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
