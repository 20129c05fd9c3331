package netproxy

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netns"
)

// TestDNS resolves from pods, as they are configured: the cluster address by
// UDP and TCP, names outside by the node's own name server.
func TestDNS(t *testing.T) {
	if !isolated(t) {
		return
	}
	n := newNode(t, nil)
	defer func() { n.stop() }()
	a, self := n.addPod("pod-a"), here(t)
	n.service("web", "10.43.0.80", nil, a)

	var packets net.PacketConn
	n.in(n.outside, func() {
		var err error
		packets, err = net.ListenPacket("udp4", ":53")
		must(t, err)
	})
	server := &dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, request *dns.Msg) {
		response := new(dns.Msg).SetReply(request)
		record, _ := dns.NewRR("example.com. 60 IN A 203.0.113.9")
		response.Answer = []dns.RR{record}
		_ = w.WriteMsg(response)
	})}
	go func() { _ = server.ActivateAndServe() }()
	defer packets.Close()
	resolvConf := filepath.Join(n.dataDir, "resolv.conf")
	must(t, os.WriteFile(resolvConf, []byte("nameserver "+outsideIP.String()+"\n"), 0o600))

	resolve := func(ns netns.NsHandle, network, name string) string {
		t.Helper()
		var conn *dns.Conn
		var err error
		client := &dns.Client{Net: network, Timeout: 2 * time.Second}
		n.in(ns, func() { conn, err = client.Dial(netip.AddrPortFrom(dnsIP, 53).String()) })
		must(t, err)
		defer conn.Close()
		response, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(name, dns.TypeA), conn)
		must(t, err)
		if len(response.Answer) == 0 {
			return dns.RcodeToString[response.Rcode]
		}
		return response.Answer[0].(*dns.A).A.String()
	}
	n.stop()
	n.resolvConf = resolvConf
	n.start()
	for _, ns := range []netns.NsHandle{a.ns, self} {
		for _, network := range []string{"udp", "tcp"} {
			for name, want := range map[string]string{
				"web.default.svc.cluster.local.":         "10.43.0.80",
				"example.com.":                           "203.0.113.9",
				"example.com.default.svc.cluster.local.": "NXDOMAIN",
				"10-42-0-2.default.pod.cluster.local.":   "10.42.0.2",
			} {
				if got := resolve(ns, network, name); got != want {
					t.Errorf("%s %s: %s, want %s", network, name, got, want)
				}
			}
		}
	}
}
