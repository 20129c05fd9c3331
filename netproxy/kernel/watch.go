package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Interest tells what of the machine's network somebody wants to hear of. Links
// and addresses always count; machines with whole routing tables and busy
// neighbours have much that does not.
type Interest struct {
	Link       func(index int) bool       // whose neighbours and routes count
	Route      func(to netip.Prefix) bool // counts whatever its link
	Parameters []string                   // below /proc/sys
}

const (
	quiet   = 100 * time.Millisecond // after the last change
	impulse = time.Second            // at the latest after the first
)

// Watch calls changed after something changed that is of interest, by whomever,
// until ctx ends. Changes that come together are told of once.
func Watch(ctx context.Context, of Interest, changed func()) error {
	news := make(chan struct{}, 1)
	tell := func() {
		select {
		case news <- struct{}{}:
		default:
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return watchLinks(ctx, of, tell) })
	group.Go(func() error { return watchParameters(ctx, of.Parameters, tell) })
	group.Go(func() error { return settle(ctx, news, changed) })
	return group.Wait()
}

// settle calls changed once news have stopped coming for a moment.
func settle(ctx context.Context, news <-chan struct{}, changed func()) error {
	var due <-chan time.Time
	var latest time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-news:
			if due == nil {
				latest = time.Now().Add(impulse)
			}
			due = time.After(min(quiet, time.Until(latest)))
		case <-due:
			due = nil
			changed()
		}
	}
}

func watchLinks(ctx context.Context, of Interest, tell func()) error {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_NETCONF)
	if err != nil {
		return fmt.Errorf("watch the network of this machine: %w", err)
	}
	stop := context.AfterFunc(ctx, socket.Close)
	defer stop()
	for {
		messages, _, err := socket.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			tell() // too much at once to be told: look
			continue
		case err != nil:
			return fmt.Errorf("watch the network of this machine: %w", err)
		}
		for _, m := range messages {
			if of.counts(m.Header.Type, m.Data) {
				tell()
				break
			}
		}
	}
}

// counts tells whether a message of the kernel is of interest.
func (of *Interest) counts(kind uint16, data []byte) bool {
	switch kind {
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		// struct ndmsg: family, three bytes of padding, index of the link.
		return len(data) < unix.SizeofNdMsg || of.Link(int(int32(binary.NativeEndian.Uint32(data[4:8]))))
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return of.countsRoute(data)
	}
	return true
}

func (of *Interest) countsRoute(data []byte) bool {
	if len(data) < unix.SizeofRtMsg {
		return true
	}
	attributes, err := nl.ParseRouteAttr(data[unix.SizeofRtMsg:])
	if err != nil {
		return true
	}
	for _, a := range attributes {
		switch {
		case a.Attr.Type == unix.RTA_OIF && len(a.Value) == 4 && of.Link(int(int32(binary.NativeEndian.Uint32(a.Value)))):
			return true
		case a.Attr.Type == unix.RTA_DST:
			if to, ok := netip.AddrFromSlice(a.Value); ok && of.Route(netip.PrefixFrom(to, int(data[1]))) {
				return true
			}
		}
	}
	return false
}

// watchParameters tells of writes to kernel parameters. The files stay open, for
// the kernel may forget one that nobody has open, and who watches it.
func watchParameters(ctx context.Context, names []string, tell func()) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch kernel parameters: %w", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	stop := context.AfterFunc(ctx, func() { events.Close() })
	defer stop()
	defer events.Close()
	for _, name := range names {
		file, err := os.Open(parameters + name)
		if err != nil {
			continue // not every kernel has all
		}
		defer file.Close()
		if _, err := unix.InotifyAddWatch(fd, parameters+name, unix.IN_MODIFY); err != nil {
			return fmt.Errorf("watch kernel parameter %s: %w", name, err)
		}
	}
	for buffer := make([]byte, 4096); ; tell() {
		if _, err := events.Read(buffer); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return fmt.Errorf("watch kernel parameters: %w", err)
		}
	}
}
