package dns

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// systemdFile has the name servers behind the stub of systemd-resolved.
const systemdFile = "/run/systemd/resolve/resolv.conf"

// HostFile is where the machine's name servers really are, given a resolv.conf:
// one that names systemd-resolved's stub, which pods cannot reach, stands for
// another file.
func HostFile(path string) string { return hostFile(path, systemdFile) }

func hostFile(path, real string) string {
	config, err := dns.ClientConfigFromFile(path)
	if err != nil || !slices.Contains(config.Servers, "127.0.0.53") {
		return path
	}
	if behind, err := dns.ClientConfigFromFile(real); err != nil || len(behind.Servers) == 0 {
		return path
	}
	return real
}

// source is a resolv.conf, and the servers in it.
type source struct {
	path string     // "": there are none
	self netip.Addr // never one of them: it is us

	checked time.Time // when the file was looked at
	seen    version
	servers []*server
}

// version tells files apart that were at one place.
type version struct {
	path     string
	modified time.Time
	size     int64
}

// rereadAfter is how often the file is looked at, at most.
const rereadAfter = time.Second

// current gives the servers, having read the file again if it changed. A server
// that stays keeps what is known of it.
func (s *source) current(now time.Time) []*server {
	if s.path == "" || now.Sub(s.checked) < rereadAfter {
		return s.servers
	}
	s.checked = now
	path := HostFile(s.path)
	info, err := os.Stat(path)
	if err != nil {
		s.servers, s.seen = nil, version{}
		return nil
	}
	if is := (version{path, info.ModTime(), info.Size()}); is != s.seen {
		s.seen = is
		s.servers = s.take(readServers(path, s.self))
	}
	return s.servers
}

func (s *source) take(addresses []string) []*server {
	var all []*server
	for _, address := range addresses {
		i := slices.IndexFunc(s.servers, func(old *server) bool { return old.address == address })
		if i < 0 {
			all = append(all, &server{address: address})
			continue
		}
		all = append(all, s.servers[i])
	}
	return all
}

// serversMax is how many name servers of a file count.
const serversMax = 8

// readServers reads the name servers of a resolv.conf without ourselves, whom to
// ask would be a circle.
func readServers(path string, self netip.Addr) []string {
	config, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil
	}
	var servers []string
	for _, text := range config.Servers {
		addr, err := netip.ParseAddr(text)
		if at := net.JoinHostPort(text, config.Port); err == nil && addr != self && !slices.Contains(servers, at) {
			servers = append(servers, at)
		}
	}
	return servers[:min(len(servers), serversMax)]
}
