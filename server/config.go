// Package server is server mode: Run wires the store, the API, the scheduler
// and the controllers, and nothing else knows all of them.
package server

import (
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"time"

	"orch/server/backup"
)

// Parts that --disable can leave out, so that another implementation can run
// in their place. The agent's parts (proxy, dns, agent) are known here too
// because one flag names them all.
var parts = []string{"scheduler", "controllers", "proxy", "dns", "agent"}

// futureParts may be named as well, for scripts do: nothing is there to be left
// out yet, and a warning says so.
var futureParts = []string{"servicelb", "network-policy", "metrics", "local-storage", "admission-webhooks"}

// Config of a server. Error texts of Validate name the flag to mend.
type Config struct {
	DataDir          string
	BindAddress      net.IP // nil: all addresses
	Port             int    // of the one TCP port
	AdvertiseAddress net.IP // the address other machines reach this server at
	NodeName         string
	NodeIP           net.IP

	// What all servers of a cluster agree on. nil and "": as it was founded with, or
	// the defaults.
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

// Warnings tells what was asked for and has no effect.
func (c *Config) Warnings() []string {
	var warnings []string
	for _, part := range c.Disable {
		if slices.Contains(futureParts, part) {
			warnings = append(warnings, fmt.Sprintf("--disable %s: this version of orch has no such part, so nothing is left out", part))
		}
	}
	if c.CloudProvider != "" {
		warnings = append(warnings, fmt.Sprintf("--cloud-provider %s: this version of orch has no part for clouds: nodes are neither tainted nor given addresses by it, and services of type LoadBalancer stay pending", c.CloudProvider))
	}
	return warnings
}

func (c *Config) serverDir() string { return filepath.Join(c.DataDir, "server") }
