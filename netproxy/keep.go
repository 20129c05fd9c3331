package netproxy

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"orch/netproxy/cni"
	"orch/netproxy/kernel"
	"orch/netproxy/overlay"
	"orch/netproxy/rules"
)

// keeper compares what is ours in the kernel with what is wanted whenever the
// kernel says that something changed, and mends it: a cable that was pulled, a
// firewall or a network manager that was restarted, somebody's mistake.
type keeper struct {
	proxy  *Proxy
	anchor *cni.Anchor
	pods   *cni.Server
	ways   *overlay.Overlay
	engine *rules.Engine
	links  atomic.Pointer[map[int]bool] // ours, by index
	wake   chan struct{}                // holds one token when there is work
	// silent tells that the kernel does not say when rules change.
	silent bool
}

func (k *keeper) changed() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Retries after a failure wait this long, doubling up to the second.
const (
	keepFirst = time.Second
	keepMax   = 30 * time.Second
)

// run keeps things so until ctx ends.
func (k *keeper) run(ctx context.Context) error {
	log := k.proxy.cfg.Logger.With("component", "network")
	var retry <-chan time.Time
	delay := keepFirst
	for k.changed(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-k.wake:
		case <-retry:
		}
		mended, err := k.mend()
		if len(mended) > 0 {
			log.Info("restored what others took from the pod network", "what", mended)
		}
		if err != nil {
			log.Warn("the pod network is not complete, will try again", "error", err, "after", delay)
			retry, delay = time.After(delay), min(2*delay, keepMax)
			continue
		}
		retry, delay = nil, keepFirst
	}
}

// mend looks at everything once. Rules and ways to other nodes have loops of
// their own.
func (k *keeper) mend() ([]string, error) {
	mended, err := k.anchor.Mend()
	links, podsErr := k.pods.Mend()
	k.ways.Recheck()
	if k.silent {
		k.engine.Recheck()
	}
	return append(mended, links...), errors.Join(err, podsErr, k.learn())
}

// learn notes which links are ours.
func (k *keeper) learn() error {
	all, err := netlink.LinkList()
	if err != nil {
		return err
	}
	ours := make(map[int]bool)
	for _, l := range all {
		if a := l.Attrs(); a.Name == k.anchor.Name || a.Name == overlay.LinkName || cni.IsHostLink(l) {
			ours[a.Index] = true
		}
	}
	k.links.Store(&ours)
	return nil
}

// watch wakes run when the kernel says that something changed.
func (k *keeper) watch(ctx context.Context) error {
	cfg := &k.proxy.cfg
	err := kernel.Watch(ctx, kernel.Interest{
		Link: func(index int) bool { links := k.links.Load(); return links == nil || (*links)[index] },
		Route: func(to netip.Prefix) bool {
			return to.Overlaps(cfg.ClusterCIDR) && to.Bits() > 0 || to.Overlaps(cfg.ServiceCIDR) && to.Bits() > 0
		},
		Parameters: cni.AnchorParameters(),
	}, k.changed)
	if err != nil {
		cfg.Logger.Warn("what others take from the pod network will not be restored", "component", "network", "error", err)
	}
	return nil
}
