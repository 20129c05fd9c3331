package netproxy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"orch/netproxy/cni"
	"orch/netproxy/rules"
)

// Modes of the service proxy.
const (
	ModeIPTables  = "iptables"
	ModeNFTables  = "nftables"
	ModeUserspace = "userspace" // where the kernel has neither
)

// ValidateMode names the flag to mend.
func ValidateMode(mode string) error {
	switch mode {
	case ModeIPTables, ModeNFTables, ModeUserspace:
		return nil
	}
	return fmt.Errorf("--proxy-mode %q is not supported: use iptables, nftables or userspace", mode)
}

// Config of a Proxy. Error texts of Validate name the flag to mend.
type Config struct {
	DataDir  string // the node's data directory; agent/ below it is used
	NodeName string
	NodeIP   netip.Addr

	ClusterCIDR netip.Prefix // every pod of the cluster
	ServiceCIDR netip.Prefix
	// PodCIDR gives the range of this node's pods. It may block until the
	// node's object has one, and is called once.
	PodCIDR func(ctx context.Context) (netip.Prefix, error)
	Zone    string // the node's topology zone; may be empty

	ClusterDNS    netip.Addr
	ClusterDomain string // default cluster.local
	ResolvConf    string // file with the upstream name servers; "": there are none

	Client kubernetes.Interface
	// Peers opens a server's stream of podnet.Path.
	Peers func(ctx context.Context) (io.ReadCloser, error)
	Mode  string // default iptables
	// Report records an API event of this node's proxy; nil: nobody does.
	Report rules.Report

	DisableProxy bool // leave services to another proxy
	DisableDNS   bool // leave the DNS address to another server

	LinkName string // of the link with the node's cluster addresses; default orch0
	MTU      int    // of pods' links; 0: the uplink's less what the overlay adds
	Plugin   string // name of the CNI executable; default orch-cni

	Logger *slog.Logger
}

// setDefaults fills what was left out.
func (c *Config) setDefaults() {
	setDefault(&c.ClusterDomain, "cluster.local")
	setDefault(&c.Mode, ModeIPTables)
	setDefault(&c.LinkName, cni.AnchorName)
	setDefault(&c.Plugin, "orch-cni")
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Report == nil {
		c.Report = func(*corev1.ObjectReference, string, string, string) {}
	}
}

func setDefault(field *string, value string) {
	if *field == "" {
		*field = value
	}
}

// Validate checks what can be checked without touching the machine.
func (c *Config) Validate() error {
	switch {
	case c.DataDir == "":
		return fmt.Errorf("--data-dir must not be empty")
	case !c.NodeIP.Is4():
		return fmt.Errorf("--node-ip %s is not an IPv4 address", c.NodeIP)
	case !c.ClusterCIDR.Addr().Is4():
		return fmt.Errorf("--cluster-cidr %s is not an IPv4 range", c.ClusterCIDR)
	case !c.ServiceCIDR.Addr().Is4():
		return fmt.Errorf("--service-cidr %s is not an IPv4 range", c.ServiceCIDR)
	case !c.DisableDNS && !c.ServiceCIDR.Contains(c.ClusterDNS):
		return fmt.Errorf("--cluster-dns %s is not in --service-cidr %s", c.ClusterDNS, c.ServiceCIDR)
	case c.ClusterCIDR.Overlaps(c.ServiceCIDR):
		return fmt.Errorf("--cluster-cidr %s and --service-cidr %s overlap", c.ClusterCIDR, c.ServiceCIDR)
	}
	return ValidateMode(c.Mode)
}
