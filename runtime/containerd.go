package runtime

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/cmd/containerd/server"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// containerd is the server inside this process.
type containerd struct {
	server *server.Server
	failed chan struct{} // closed at the first fatal error

	stopping atomic.Bool // complaints are to be expected from now on

	rewriters []*rewriter // of registries.yaml

	once sync.Once
	err  error // set before failed is closed
}

// fail records the first fatal error. containerd reports those by ending the
// process; inside orch they end Run instead.
func (c *containerd) fail(err error) {
	c.once.Do(func() {
		c.err = err
		close(c.failed)
	})
}

func (c *containerd) failure() error {
	select {
	case <-c.failed:
		return c.err
	default:
		return nil
	}
}

func (c *containerd) stop() {
	c.stopping.Store(true)
	c.server.Stop()
}

// startContainerd loads the plugins and listens. It returns when containerd has
// taken up the containers that ran before.
func (r *Runtime) startContainerd(ctx context.Context, pinned map[string]string) (*containerd, error) {
	c := &containerd{failed: make(chan struct{})}
	redirectLog(r.log.With("component", "containerd"), c)

	registries, err := readRegistries(r.cfg.Registries)
	if err != nil {
		return nil, err
	}
	if c.rewriters, err = registries.rewriters(r.log); err != nil {
		return nil, fmt.Errorf("read %s: %w", r.cfg.Registries, err)
	}
	if err := registries.writeHosts(r.layout.certs); err != nil {
		return nil, fmt.Errorf("write registry hosts: %w", err)
	}
	if err := r.layout.leadPath(); err != nil {
		return nil, err
	}
	config := r.containerdConfig(registries, pinned)
	if err := server.CreateTopLevelDirectories(config); err != nil {
		return nil, err
	}
	if err := mount.SetTempMountLocation(filepath.Join(config.Root, "tmpmounts")); err != nil {
		return nil, err
	}
	if _, err := mount.CleanupTempMounts(0); err != nil {
		r.log.Warn("cannot unmount what an earlier run left", "err", err)
	}
	// Not ctx: the connections to shims must not end before those who use them.
	if c.server, err = newServer(log.WithLogger(context.WithoutCancel(ctx), log.L), config); err != nil {
		return nil, err
	}
	if err := c.server.Start(context.WithoutCancel(ctx)); err != nil {
		c.stop()
		return nil, err
	}
	if err := waitServer(ctx, c); err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

// newServer turns a panic over damaged files into an error that says what to do.
func newServer(ctx context.Context, config *srvconfig.Config) (s *server.Server, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v: its files may be damaged; move %s away to start without images and containers\n%s", p, config.Root, debug.Stack())
		}
	}()
	s, err = server.New(ctx, config)
	if err != nil && strings.Contains(err.Error(), "io.containerd.metadata.v1.bolt") {
		err = fmt.Errorf("%w: the metadata database may be damaged; move %s away to start without images and containers", err, config.Root)
	}
	return s, err
}

func waitServer(ctx context.Context, c *containerd) error {
	ready := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		c.server.Wait()
		close(ready)
	})
	select {
	case <-ready:
		return nil
	case <-c.failed:
		return c.failure()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// containerdConfig is what /etc/containerd/config.toml would say. Everything
// that containerd would put elsewhere is kept under the data directory.
func (r *Runtime) containerdConfig(registries *registries, pinned map[string]string) *srvconfig.Config {
	snapshotter := r.snapshotter()
	return &srvconfig.Config{
		Version: version.ConfigVersion,
		Root:    r.layout.root,
		State:   r.layout.state,
		// Another process holding the database is told at once instead of
		// being waited for; the lock of prepare comes first in practice.
		Timeouts: map[string]string{"io.containerd.timeout.bolt.open": (3 * time.Second).String()},
		DisabledPlugins: []string{
			// They count each call for a metrics port that is not served.
			"io.containerd.metrics.v1.grpc-prometheus",
			"io.containerd.metrics.v1.grpc-otel",
			"io.containerd.server.v1.grpc-tcp",
		},
		RequiredPlugins: []string{
			"io.containerd.grpc.v1.cri", "io.containerd.metadata.v1.bolt", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images",
		},
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc":  map[string]any{"address": r.layout.socket},
			"io.containerd.server.v1.ttrpc": map[string]any{"address": r.layout.socket + ".ttrpc"},
			"io.containerd.shim.v1.manager": map[string]any{"socket_dir": r.layout.shims},
			"io.containerd.grpc.v1.cri": map[string]any{
				"disable_tcp_service":   true,
				"stream_server_address": "127.0.0.1",
				"stream_server_port":    "0",
			},
			"io.containerd.cri.v1.runtime": r.criRuntimeConfig(),
			"io.containerd.cri.v1.images":  criImageConfig(snapshotter, r.layout.certs, registries, pinned),
			"io.containerd.transfer.v1.local": map[string]any{
				"config_path":   r.layout.certs,
				"unpack_config": []map[string]any{{"platform": "linux", "snapshotter": snapshotter, "differ": "walking"}},
			},
		},
	}
}

// logLineSize bounds a line of a container's output, in bytes: of what is longer
// the log has pieces, all but the last with the tag P. As upstream.
const logLineSize = 16 << 10

func (r *Runtime) criRuntimeConfig() map[string]any {
	return map[string]any{
		"max_container_log_line_size":            logLineSize,
		"restrict_oom_score_adj":                 !canLowerOOMScore(),
		"tolerate_missing_hugetlb_controller":    true,
		"disable_hugetlb_controller":             !hasHugeTLB("/sys/fs/cgroup"), // it would be missed aloud at every container
		"enable_unprivileged_ports":              true,
		"enable_unprivileged_icmp":               true,
		"netns_mounts_under_state_dir":           true,
		"disable_apparmor":                       !hasAppArmor(),
		"device_ownership_from_security_context": false,
		// The agent reads usage from the cgroups when asked for it; a sampler of
		// every container each second would be most of an idle node's work.
		"stats_collect_period":   "1h",
		"stats_retention_period": "2h",
		"cni": map[string]any{
			"bin_dirs":              []string{r.cfg.CNIBinDir, "/opt/cni/bin"},
			"conf_dir":              r.cfg.CNIConfDir,
			"use_internal_loopback": true,
		},
		"containerd": map[string]any{
			"default_runtime_name": "runc",
			"runtimes": map[string]any{"runc": map[string]any{
				"runtime_type": "io.containerd.runc.v2", // found through PATH; a path here would cost an extra run of the shim
				"options": map[string]any{
					"BinaryName":    filepath.Join(r.layout.bin, "runc"),
					"Root":          filepath.Join(r.layout.state, "runc"),
					"SystemdCgroup": false,
				},
			}},
		},
	}
}

func criImageConfig(snapshotter, certs string, registries *registries, pinned map[string]string) map[string]any {
	return map[string]any{
		"snapshotter":             snapshotter,
		"discard_unpacked_layers": true,
		"use_local_image_pull":    true, // the transfer service cannot discard layers
		"stats_collect_period":    600,  // seconds; walks every snapshot
		"pinned_images":           pinned,
		"registry": map[string]any{
			"config_path": certs,
			"configs":     registries.credentials(),
		},
	}
}

// snapshotter is overlayfs wherever it can be mounted on the data directory.
// Copying whole images is slow and large, but works everywhere.
func (r *Runtime) snapshotter() string {
	if err := overlayutils.Supported(r.layout.root); err != nil {
		r.log.Warn("overlayfs does not work here, images are copied instead", "dir", r.layout.root, "err", err)
		return "native"
	}
	return "overlayfs"
}

// hasHugeTLB tells whether huge pages can be limited by cgroups.
func hasHugeTLB(cgroups string) bool {
	if _, err := os.Stat(filepath.Join(cgroups, "hugetlb")); err == nil {
		return true
	}
	controllers, _ := os.ReadFile(filepath.Join(cgroups, "cgroup.controllers")) // version 2 only
	return slices.Contains(strings.Fields(string(controllers)), "hugetlb")
}

// canLowerOOMScore tells whether containers may be given a smaller
// oom_score_adj than ours.
func canLowerOOMScore() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[unix.CAP_SYS_RESOURCE/32].Effective&(1<<(unix.CAP_SYS_RESOURCE%32)) != 0
}

func hasAppArmor() bool {
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(enabled), "Y")
}
