package rules

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of linux/netfilter/nf_tables.h: the message that ends every change of
// nftables (iptables-nft included) and its attribute with the author's process id.
const (
	nftNewGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | 15
	nftAuthor        = 2
	nfGenHeader      = 4 // bytes of struct nfgenmsg before the attributes
)

// quiet is how long after the last foreign change to look: firewalls are
// reloaded in many small steps.
const quiet = 500 * time.Millisecond

// Watch calls changed after another program has changed the machine's
// rules, until ctx ends. The kernel tells of nftables alone; where rules are
// kept by iptables-legacy it never calls.
func (t *IPTables) Watch(ctx context.Context, changed func()) error {
	return watchForeign(ctx, t.own.has, changed)
}

// Silent tells whether the kernel says nothing when a filter's rules change: those
// of iptables-legacy.
func Silent(filter Filter) bool {
	legacy, ok := filter.(interface{ legacy() bool })
	return ok && legacy.legacy()
}

func (t *IPTables) legacy() bool {
	out, err := exec.Command("iptables", "--version").Output()
	return err == nil && !strings.Contains(string(out), "nf_tables")
}

// watchForeign leaves out the changes by processes that are our own.
func watchForeign(ctx context.Context, own func(pid int) bool, changed func()) error {
	socket, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return fmt.Errorf("watch rule changes: %w", err)
	}
	stop := context.AfterFunc(ctx, socket.Close)
	defer stop()
	settle := time.AfterFunc(time.Hour, changed)
	settle.Stop()
	defer settle.Stop()
	for {
		messages, _, err := socket.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			settle.Reset(quiet) // too much at once to be told: look
			continue
		case err != nil:
			return fmt.Errorf("watch rule changes: %w", err)
		}
		for _, message := range messages {
			if message.Header.Type == nftNewGeneration && !own(author(message.Data)) {
				settle.Reset(quiet)
			}
		}
	}
}

// author reads who made a new generation; -1 if the message does not tell.
func author(data []byte) int {
	if len(data) < nfGenHeader {
		return -1
	}
	attributes, err := nl.ParseRouteAttr(data[nfGenHeader:])
	if err != nil {
		return -1
	}
	for _, attribute := range attributes {
		if attribute.Attr.Type&nl.NLA_TYPE_MASK == nftAuthor && len(attribute.Value) >= 4 {
			return int(binary.BigEndian.Uint32(attribute.Value))
		}
	}
	return -1
}

// processes remembers the last few of our own iptables processes.
type processes struct {
	mu   sync.Mutex // guards what follows
	ids  [16]int
	next int
}

func (p *processes) add(id int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ids[p.next%len(p.ids)] = id
	p.next++
}

func (p *processes) has(id int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, own := range p.ids {
		if own == id {
			return true
		}
	}
	return false
}
