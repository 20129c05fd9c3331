// Package server is server mode: Run wires the store, the API, the scheduler
// and the controllers, and nothing else knows all of them.
package server

import (
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"orch/server/backup"
)

// Parts that --disable can leave out, so that another implementation can run
// in their place. The agent's parts (proxy, dns, agent) are known here too
// because one flag names them all.
var parts = []string{"scheduler", "controllers", "proxy", "dns", "servicelb", "agent"}

// Config of a server. Error texts of Validate name the flag to mend.
type Config struct {
	DataDir          string
	BindAddress      net.IP // nil: all addresses
	Port             int    // of the one TCP port
	AdvertiseAddress net.IP // the address other machines reach this server at
	NodeName         string
	NodeIP           net.IP

	ClusterCIDR   *net.IPNet
	ServiceCIDR   *net.IPNet
	ClusterDNS    net.IP
	ClusterDomain string

	Join              string // URL of a server whose cluster a new server joins; "": it founds its own
	Token, AgentToken string // secrets; "" makes them at first start
	TLSSANs           []string
	Kubeconfig        string // where the administrator's kubeconfig is written
	KubeconfigMode    fs.FileMode
	Disable           []string
	CloudProvider     string // "", "external" or "orch"

	// How eagerly the store writes its state file, cuts its log and forgets history;
	// zeros: as the store thinks best.
	FlushDelay  time.Duration
	LogBytes    int64
	HistorySize int

	SnapshotInterval  time.Duration // between scheduled snapshots; 0: none are taken
	SnapshotRetention int           // scheduled snapshots kept
	SnapshotS3        backup.S3     // where snapshots go besides this machine

	Logger *slog.Logger
}

// Disabled tells whether part was named by --disable.
func (c *Config) Disabled(part string) bool { return slices.Contains(c.Disable, part) }

// Validate checks what can be checked without touching the machine.
func (c *Config) Validate() error {
	switch {
	case c.DataDir == "":
		return fmt.Errorf("--data-dir must not be empty")
	case c.Port < 1 || c.Port > 65535:
		return fmt.Errorf("--https-listen-port %d: use a port from 1 to 65535", c.Port)
	case !c.ServiceCIDR.Contains(c.ClusterDNS):
		return fmt.Errorf("--cluster-dns %s: must lie in --service-cidr %s", c.ClusterDNS, c.ServiceCIDR)
	case c.ServiceCIDR.Contains(c.ClusterCIDR.IP) || c.ClusterCIDR.Contains(c.ServiceCIDR.IP):
		return fmt.Errorf("--cluster-cidr %s and --service-cidr %s overlap", c.ClusterCIDR, c.ServiceCIDR)
	case c.FlushDelay < 0 || c.LogBytes < 0 || c.HistorySize < 0:
		return fmt.Errorf("--flush-delay, --log-bytes and --history-size must not be negative")
	case c.SnapshotInterval < 0 || c.SnapshotInterval > 0 && c.SnapshotInterval < time.Minute:
		return fmt.Errorf("--snapshot-interval %s: use 0 or at least a minute", c.SnapshotInterval)
	case c.SnapshotRetention < 1 && c.SnapshotInterval > 0:
		return fmt.Errorf("--snapshot-retention %d: keep at least one", c.SnapshotRetention)
	case c.CloudProvider != "" && c.CloudProvider != "external" && c.CloudProvider != "orch":
		return fmt.Errorf(`--cloud-provider %q: use "", external or orch`, c.CloudProvider)
	}
	if err := c.SnapshotS3.Validate(); err != nil {
		return err
	}
	for _, part := range c.Disable {
		if !slices.Contains(parts, part) {
			return fmt.Errorf("--disable %q: use any of %s", part, strings.Join(parts, ", "))
		}
	}
	return nil
}
