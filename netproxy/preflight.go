package netproxy

import (
	"context"
	"errors"
	"fmt"
	goruntime "runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"orch/netproxy/rules"
)

// Preflight tries on a throw-away network namespace what Run will need of the
// machine in a mode of the proxy, so that a missing program or kernel feature is known beforehand.
// The returned error joins one per problem; nothing of the machine is changed.
func Preflight(ctx context.Context, mode string) error {
	if err := ValidateMode(mode); err != nil {
		return err
	}
	var filter error
	switch mode {
	case ModeIPTables:
		filter = rules.Preflight(ctx)
	case ModeNFTables:
		_, filter = rules.NewNFTables(rules.Facts{})
	}
	return errors.Join(filter, preflightLinks(mode))
}

// preflightLinks makes a link of each kind that is used.
func preflightLinks(mode string) error {
	goruntime.LockOSThread() // and never unlocked on failure: the thread ends with the goroutine
	here, err := netns.Get()
	if err != nil {
		return fmt.Errorf("network namespaces: %w", err)
	}
	defer here.Close()
	there, err := netns.New()
	if err != nil {
		return fmt.Errorf("network namespaces (are you root?): %w", err)
	}
	defer there.Close()
	var problems []error
	for _, link := range []netlink.Link{
		&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bridge", TxQLen: -1}},
		&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth", TxQLen: -1}, PeerName: "peer"},
	} {
		if err := netlink.LinkAdd(link); err != nil {
			problems = append(problems, fmt.Errorf("kernel support for %s links (modprobe %s): %w", link.Type(), link.Type(), err))
		}
	}
	if mode == ModeUserspace {
		// Relays keep track of their connections themselves.
	} else if _, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET); err != nil {
		problems = append(problems, fmt.Errorf("kernel support for connection tracking over netlink (modprobe nf_conntrack_netlink): %w", err))
	}
	if err := netns.Set(here); err != nil {
		return fmt.Errorf("leave the network namespace: %w", err)
	}
	goruntime.UnlockOSThread()
	return errors.Join(problems...)
}
