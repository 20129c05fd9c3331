package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"orch/agent/address"
	"orch/agent/node"
	"orch/agent/pod"
	"orch/agent/serve"
	"orch/agent/shutdown"
	"orch/agent/stats"
	"orch/agent/volume"
	"orch/internal/joining"
	"orch/internal/link"
	"orch/netproxy"
	"orch/runtime"
)

// assembly is the parts of one node.
type assembly struct {
	cfg         Config
	runtime     *runtime.Runtime
	credentials *joining.Credentials
	servers     *servers
	api         kubernetes.Interface
	hangUp      func() // closes connections of api that nobody uses
	events      *pod.Events
	network     *netproxy.Proxy
	address     *address.Tracker
	volumes     *volume.Manager
	pods        *pod.Manager
	node        *node.Manager
	shutdown    *shutdown.Manager // nil: pods end with the machine
	stats       *stats.Source
}

// Run is the node until ctx ends or a part fails. Pods go on running
// afterwards; the next Run takes them over.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	r, err := runtime.New(runtime.Config{
		DataDir: cfg.DataDir, Endpoint: cfg.RuntimeEndpoint, Logger: cfg.Logger,
		Registries: cfg.Registries, CNIConfDir: netproxy.PluginConfDir(cfg.DataDir),
	})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	// The runtime needs no server, so both come up side by side.
	group.Go(func() error { return r.Run(ctx) })
	group.Go(func() error { return belong(ctx, cfg, r) })
	err = group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// assemble makes all parts; nothing runs yet.
func (a *assembly) assemble() error {
	cfg := &a.cfg
	dir := filepath.Join(cfg.DataDir, "agent")
	a.events = pod.NewEvents(a.api, cfg.NodeName, cfg.Logger)
	settings := a.credentials.Settings
	networkConfig, err := a.networkConfig(settings)
	if err != nil {
		return err
	}
	a.network = netproxy.New(networkConfig)
	a.address = address.Follow(networkConfig.NodeIP, cfg.NodeIPGiven, cfg.DataDir, cfg.Logger)
	a.volumes = volume.New(volume.Config{
		Dir: dir, Client: a.api, Events: a.events, Evict: a.evict, Logger: cfg.Logger,
		Node:    func() *corev1.Node { return a.node.Node() },
		Written: func(ctx context.Context, uid types.UID) map[string]int64 { return a.stats.Written(ctx, uid) },
	})
	if a.pods, err = pod.New(pod.Config{
		NodeName: cfg.NodeName, Dir: dir, Client: a.api, Logger: cfg.Logger,
		LogLinks: cfg.LogLinks, UnsafeSysctls: cfg.UnsafeSysctls,
		Runtime: a.runtime.Runtime(), Images: a.runtime.Images(),
		Volumes: a.volumes, Objects: a.volumes.Objects, Observed: a.volumes.Observe, Events: a.events,
		Node:   func() *corev1.Node { return a.node.Node() },
		Refuse: a.refuse,
		Sweep:  a.runtime.Sweep, EndSandbox: a.runtime.EndShim,
		Services:   a.network.Services,
		HostIPs:    func() []string { return []string{a.address.Current().String()} },
		ClusterDNS: []string{settings.ClusterDNS}, ClusterDomain: settings.ClusterDomain, ResolvConf: cfg.ResolvConf,
	}); err != nil {
		return err
	}
	if cfg.ShutdownPeriod > 0 {
		a.shutdown = shutdown.New(a.shutdownConfig())
	}
	a.stats = stats.New(stats.Config{NodeName: cfg.NodeName, DataDir: cfg.DataDir, Pods: a.pods.Pods, Images: a.runtime.Images(), Volumes: a.volumes.Dirs})
	a.node, err = node.New(a.nodeConfig())
	return err
}

// evict ends a pod that uses more of the node's disk than it may.
func (a *assembly) evict(uid types.UID, reason, message string) {
	grace := int64(1) // upstream's: the pod has had its share
	a.pods.Evict(uid, reason, message, corev1.PodReasonTerminationByKubelet, &grace)
}

func (a *assembly) networkConfig(s joining.Settings) (netproxy.Config, error) {
	config := netproxy.Config{
		DataDir: a.cfg.DataDir, NodeName: a.cfg.NodeName, ClusterDomain: s.ClusterDomain,
		PodCIDR: a.podCIDR, Peers: a.peers, Client: a.api, Mode: a.cfg.ProxyMode, Logger: a.cfg.Logger, ResolvConf: a.cfg.ResolvConf,
		Report: func(o *corev1.ObjectReference, eventType, reason, message string) {
			a.events.Event(o, eventType, reason, message)
		},
		DisableProxy: a.cfg.Disabled("proxy"), DisableDNS: a.cfg.Disabled("dns"),
	}
	var ok bool
	if config.NodeIP, ok = netip.AddrFromSlice(a.cfg.NodeIP); !ok {
		return config, fmt.Errorf("--node-ip %s: not an address", a.cfg.NodeIP)
	}
	config.NodeIP = config.NodeIP.Unmap()
	var err error
	if config.ClusterCIDR, err = netip.ParsePrefix(s.ClusterCIDR); err != nil {
		return config, fmt.Errorf("cluster settings: %w", err)
	}
	if config.ServiceCIDR, err = netip.ParsePrefix(s.ServiceCIDR); err != nil {
		return config, fmt.Errorf("cluster settings: %w", err)
	}
	if config.ClusterDNS, err = netip.ParseAddr(s.ClusterDNS); err != nil {
		return config, fmt.Errorf("cluster settings: %w", err)
	}
	return config, nil
}

func (a *assembly) nodeConfig() node.Config {
	labels, _ := a.cfg.labels() // validated
	taints, _ := a.cfg.taints()
	return node.Config{
		Client: a.api, NodeName: a.cfg.NodeName, NodeIPs: func() []net.IP { return []net.IP{a.address.Current().AsSlice()} },
		Labels: labels, Taints: taints, DataDir: a.cfg.DataDir, KubeletPort: serve.Port,
		Runtime: a.runtime.Runtime(), Images: a.runtime.Images(), Ready: a.ready, OnReady: a.cfg.OnReady, Events: a.events,
		Evictor: a.pods, Usage: a.stats.Usage, Reclaim: a.runtime.GarbageCollect, Logger: a.cfg.Logger,
		Pods: func() (running []*corev1.Pod) {
			for _, s := range a.pods.Pods() {
				if s.Pod != nil && len(s.Containers) > 0 {
					running = append(running, s.Pod)
				}
			}
			return running
		},
	}
}

// moved tells all who need to know that the node has another address.
func (a *assembly) moved(_, to netip.Addr) {
	a.network.Move(to)
	a.node.Wake()
	a.pods.Moved()
	if a.cfg.OnMove != nil {
		a.cfg.OnMove()
	}
}

// ready tells what keeps pods from running on this node.
func (a *assembly) ready() error {
	if a.shutdown != nil && a.shutdown.UnderWay() {
		return node.ErrShuttingDown
	}
	select {
	case <-a.runtime.Ready():
	default:
		return errors.New("container runtime is not ready")
	}
	select {
	case <-a.network.Ready():
	default:
		return errors.New("container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized")
	}
	return nil
}

// run runs the parts. The node registers at once, as its pod network depends
// on that; pods wait for runtime and network.
func (a *assembly) run(ctx context.Context) error {
	// A server in this process that stops too waits for its connections to close.
	defer a.hangUp()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.credentials.Run(ctx) })
	group.Go(func() error { return a.events.Run(ctx) })
	group.Go(func() error { return a.volumes.Run(ctx) })
	group.Go(func() error { return a.network.Run(ctx) })
	group.Go(func() error { return a.address.Run(ctx, a.moved) })
	group.Go(func() error { return a.runNode(ctx) })
	group.Go(func() error { return a.link(ctx) })
	if a.shutdown != nil {
		group.Go(func() error { return a.shutdown.Run(ctx) })
	}
	group.Go(func() error {
		return a.servers.follow(ctx, a.api, func(err error) {
			a.cfg.Logger.Warn("servers are forgotten at the next start", "component", "agent", "err", err)
		})
	})
	return group.Wait()
}

// runNode keeps the Node and its pods. When the Node is deleted, the pods end
// while there still is a network to take them off.
func (a *assembly) runNode(ctx context.Context) error {
	var pods errgroup.Group
	podsCtx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	pods.Go(func() error {
		err := a.runPods(podsCtx)
		stop(err) // a failure ends the Node's part, too
		return err
	})
	var err error
	if await(podsCtx, a.runtime.Ready()) {
		err = a.node.Run(podsCtx)
	}
	stop(err)
	podsErr := pods.Wait()
	if !errors.Is(err, node.ErrRemoved) {
		return errors.Join(err, podsErr)
	}
	if stopErr := a.stopPods(ctx); stopErr != nil {
		a.cfg.Logger.Warn("cannot stop the pods that are left", "component", "agent", "err", stopErr)
	}
	return err
}

// link keeps a link to each server until ctx ends.
func (a *assembly) link(ctx context.Context) error {
	handler := serve.New(serve.Config{Pods: a.pods, Runtime: a.runtime.Runtime(), Stats: a.stats, LogDir: filepath.Join(a.cfg.DataDir, "agent", "logs"), Logger: a.cfg.Logger})
	group, ctx := errgroup.WithContext(ctx)
	running := map[string]context.CancelFunc{}
	for {
		wanted, changed := a.servers.links()
		for address, stop := range running {
			if !slices.Contains(wanted, address) {
				stop()
				delete(running, address)
			}
		}
		for _, address := range wanted {
			if running[address] != nil {
				continue
			}
			linking, stop := context.WithCancel(ctx)
			running[address] = stop
			agent := &link.Agent{Address: address, Also: a.servers.given, TLS: a.credentials.TLSConfig(), Logger: a.cfg.Logger, Handler: handler}
			group.Go(func() error { return agent.Run(linking) })
		}
		select {
		case <-changed:
		case <-ctx.Done():
			for _, stop := range running {
				stop()
			}
			return group.Wait()
		}
	}
}

func (a *assembly) runPods(ctx context.Context) error {
	if !await(ctx, a.runtime.Ready()) || !await(ctx, a.network.Ready()) {
		return nil
	}
	a.node.Wake()
	if err := a.collectSandboxes(ctx); err != nil {
		a.cfg.Logger.Warn("cannot look for addresses of sandboxes that are gone", "component", "agent", "err", err)
	}
	return a.pods.Run(ctx)
}

// collectSandboxes gives back the addresses of sandboxes that vanished while
// the agent was away.
func (a *assembly) collectSandboxes(ctx context.Context) error {
	list, err := a.runtime.Runtime().ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	live := make(map[string]bool, len(list.Items))
	for _, s := range list.Items {
		live[s.Id] = true
	}
	return a.network.CollectSandboxes(live)
}

func await(ctx context.Context, ready <-chan struct{}) bool {
	select {
	case <-ready:
		return true
	case <-ctx.Done():
		return false
	}
}
