// Package agent is agent mode: Run wires the container runtime, the pod
// workers, volumes, statistics, streaming and the service proxy of one node.
package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"orch/agent/pod"
	"orch/netproxy"
	"orch/runtime"
)

// Config of an agent. Error texts of Validate name the flag to mend.
type Config struct {
	DataDir  string
	NodeName string
	NodeIP   net.IP // to begin with
	// NodeIPGiven tells that somebody chose NodeIP: it stays, even if the machine
	// has another.
	NodeIPGiven bool
	NodeLabels  []string // key=value
	NodeTaints  []string // key=value:Effect

	// Servers gives the URL of a server and the join token. It may block until a
	// server in the same process is listening.
	Servers func(ctx context.Context) (url, token string, err error)

	ProxyMode       string
	ResolvConf      string // file with the machine's name servers; "": there are none
	RuntimeEndpoint string // CRI socket; "" means the embedded containerd
	Disable         []string

	Registries    string   // file with mirrors and credentials of registries; need not be there
	LogLinks      string   // gets links to logs for collectors; "": none
	UnsafeSysctls []string // that pods may set beyond the safe ones

	// ShutdownPeriod is how long pods have to end when the machine goes down, the
	// critical ones the last part of it; 0: they just end with the machine.
	ShutdownPeriod, ShutdownCriticalPeriod time.Duration
	// Shutdown asks for that, where no logind does; nil: nobody does.
	Shutdown <-chan os.Signal

	OnReady func() // called once, when the node is Ready for the first time; nil: nothing
	OnMove  func() // called after the node's address became another one; nil: nothing

	Logger *slog.Logger
}

// Disabled tells whether part was named by --disable.
func (c *Config) Disabled(part string) bool { return slices.Contains(c.Disable, part) }

// Validate checks what can be checked without touching the machine.
func (c *Config) Validate() error {
	if c.DataDir == "" {
		return fmt.Errorf("--data-dir must not be empty")
	}
	if msgs := validation.IsDNS1123Subdomain(c.NodeName); len(msgs) > 0 {
		return fmt.Errorf("--node-name %q: %s", c.NodeName, msgs[0])
	}
	if ip := c.NodeIP; ip.To4() == nil || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLoopback() {
		return fmt.Errorf("--node-ip %s: other machines cannot reach that: give an IPv4 address of this machine", c.NodeIP)
	}
	if err := netproxy.ValidateMode(c.ProxyMode); err != nil {
		return err
	}
	if err := (runtime.Config{DataDir: c.DataDir, Endpoint: c.RuntimeEndpoint}).Validate(); err != nil {
		return err
	}
	if c.ShutdownCriticalPeriod < 0 || c.ShutdownPeriod < c.ShutdownCriticalPeriod {
		return fmt.Errorf("--shutdown-grace-period %s: must not be shorter than --shutdown-grace-period-critical-pods %s", c.ShutdownPeriod, c.ShutdownCriticalPeriod)
	}
	if c.LogLinks != "" && !filepath.IsAbs(c.LogLinks) {
		return fmt.Errorf("--log-links %q: not an absolute path", c.LogLinks)
	}
	for _, name := range c.UnsafeSysctls {
		if err := pod.ValidateUnsafeSysctl(name); err != nil {
			return fmt.Errorf("--allowed-unsafe-sysctls: %w", err)
		}
	}
	// The usual file may be missing; one that somebody named is to be there.
	if _, err := os.Stat(c.ResolvConf); err != nil && c.ResolvConf != "" && c.ResolvConf != "/etc/resolv.conf" {
		return fmt.Errorf("--resolv-conf: %w", err)
	}
	if _, err := c.labels(); err != nil {
		return err
	}
	_, err := c.taints()
	return err
}

func (c *Config) labels() (map[string]string, error) {
	labels := make(map[string]string, len(c.NodeLabels))
	for _, text := range c.NodeLabels {
		key, value, _ := strings.Cut(text, "=")
		if msgs := slices.Concat(validation.IsQualifiedName(key), validation.IsValidLabelValue(value)); len(msgs) > 0 {
			return nil, fmt.Errorf("--node-label %q: %s", text, msgs[0])
		}
		if other, twice := labels[key]; twice && other != value {
			return nil, fmt.Errorf("--node-label %q: there is a label %s=%s already: keep one", text, key, other)
		}
		labels[key] = value
	}
	return labels, nil
}

var taintForm = regexp.MustCompile(`^([^=:]+)(?:=([^:]*))?:(NoSchedule|PreferNoSchedule|NoExecute)$`)

func (c *Config) taints() ([]corev1.Taint, error) {
	taints := make([]corev1.Taint, 0, len(c.NodeTaints))
	for _, text := range c.NodeTaints {
		m := taintForm.FindStringSubmatch(text)
		if m == nil {
			return nil, fmt.Errorf("--node-taint %q: use key=value:NoSchedule, :PreferNoSchedule or :NoExecute", text)
		}
		if msgs := slices.Concat(validation.IsQualifiedName(m[1]), validation.IsValidLabelValue(m[2])); len(msgs) > 0 {
			return nil, fmt.Errorf("--node-taint %q: %s", text, msgs[0])
		}
		taint := corev1.Taint{Key: m[1], Value: m[2], Effect: corev1.TaintEffect(m[3])}
		if slices.ContainsFunc(taints, func(t corev1.Taint) bool { return t.Key == taint.Key && t.Effect == taint.Effect }) {
			return nil, fmt.Errorf("--node-taint %q: there is a taint of this key and effect already: keep one", text)
		}
		taints = append(taints, taint)
	}
	return taints, nil
}
