package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"orch/netproxy"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "tell what this machine lacks to run orch, and what mends it",
		Flags: []cli.Flag{
			dataDirFlag(),
			proxyModeFlag(),
			&cli.StringFlag{Name: "for", Value: "server", Usage: "what the machine shall be: server or agent"},
			&cli.IntFlag{Name: "https-listen-port", Value: 6443, Usage: "`port` that orch server will listen on", EnvVars: env("https-listen-port")},
		},
		Action: runCheck,
	}
}

// hostCheck is one need of orch. A problem's text ends with what mends it.
type hostCheck struct {
	name     string
	problem  func(context.Context) error
	advisory bool // orch runs without it, with less comfort
}

func runCheck(c *cli.Context) error {
	checks := hostChecks(c.String("data-dir"), c.String("proxy-mode"))
	switch role := c.String("for"); role {
	case "server":
		checks = append(checks, portCheck(c.String("data-dir"), c.Int("https-listen-port")))
	case "agent": // listens on no port
	default:
		return fmt.Errorf("--for %q: use server or agent", role)
	}
	failed := 0
	for _, check := range checks {
		err := check.problem(c.Context)
		switch {
		case err == nil:
			fmt.Fprintf(c.App.Writer, "ok    %s\n", check.name)
		case check.advisory:
			fmt.Fprintf(c.App.Writer, "warn  %s: %s\n", check.name, indent(err))
		default:
			failed++
			fmt.Fprintf(c.App.Writer, "FAIL  %s: %s\n", check.name, indent(err))
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of the needs above are not met", failed)
	}
	return nil
}

func indent(err error) string { return strings.ReplaceAll(err.Error(), "\n", "\n      ") }

func portCheck(dataDir string, port int) hostCheck {
	return hostCheck{name: fmt.Sprintf("TCP port %d", port), problem: func(context.Context) error { return checkPort(dataDir, port) }}
}

func hostChecks(dataDir, proxyMode string) []hostCheck {
	return []hostCheck{
		{name: "root", problem: checkRoot},
		{name: proxyMode + " and network", problem: func(ctx context.Context) error { return checkNetwork(ctx, proxyMode) }},
		{name: "cgroups", problem: func(context.Context) error { return checkCgroups("/proc/self/mounts", "/sys/fs/cgroup") }},
		{name: "data directory", problem: func(context.Context) error { return checkDataDir(dataDir) }},
		{name: "overlayfs", advisory: true, problem: func(context.Context) error { return checkOverlay(dataDir) }},
		{name: "swap", advisory: true, problem: func(context.Context) error { return checkSwap("/proc/swaps") }},
	}
}

func checkRoot(context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("orch makes namespaces, mounts and network rules: run it as root (sudo orch check)")
	}
	return nil
}

func checkNetwork(ctx context.Context, proxyMode string) error {
	err := netproxy.Preflight(ctx, proxyMode)
	if err == nil {
		return nil
	}
	if proxyMode == netproxy.ModeUserspace {
		return err
	}
	return fmt.Errorf("%w\nmend: %s (or choose another --proxy-mode)", err, installCommand(proxyMode))
}

// installCommand is how the system's package manager installs a package.
func installCommand(name string) string {
	for _, manager := range []struct{ path, command string }{
		{"/usr/bin/apt-get", "apt-get install -y "}, {"/usr/bin/dnf", "dnf install -y "}, {"/usr/bin/zypper", "zypper install -y "},
		{"/sbin/apk", "apk add "}, {"/usr/bin/pacman", "pacman -S --noconfirm "},
	} {
		if _, err := os.Stat(manager.path); err == nil {
			return "sudo " + manager.command + name
		}
	}
	return "install the package " + name
}

// checkCgroups wants the controllers that containers are limited with, in
// either version of the hierarchy.
func checkCgroups(mounts, root string) error {
	v2, v1, err := cgroupControllers(mounts, root)
	if err != nil {
		return err
	}
	for _, controller := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(v2, controller) && !slices.Contains(v1, controller) {
			return fmt.Errorf("the %s controller is not available; mend: boot with the kernel parameter cgroup_enable=%s, or mount it: mkdir -p %s/%s && mount -t cgroup -o %s cgroup %s/%s",
				controller, controller, root, controller, controller, root, controller)
		}
	}
	return nil
}

func cgroupControllers(mounts, root string) (v2, v1 []string, err error) {
	if data, err := os.ReadFile(filepath.Join(root, "cgroup.controllers")); err == nil {
		v2 = strings.Fields(string(data))
	}
	file, err := os.Open(mounts)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 3 && fields[2] == "cgroup" {
			v1 = append(v1, strings.Split(fields[3], ",")...)
		}
	}
	return v2, v1, nil
}

// minimumSpace is what the executable's own programs and images, the log and a
// first state take, with room for a few images.
const minimumSpace = 1 << 30 // bytes

// existing is the nearest folder above path that is there already.
func existing(path string) string {
	for {
		if info, err := os.Stat(path); err == nil && info.IsDir() || path == "/" || path == "." {
			return path
		}
		path = filepath.Dir(path)
	}
}

func checkDataDir(dataDir string) error {
	if !filepath.IsAbs(dataDir) {
		return fmt.Errorf("--data-dir %q: must be an absolute path", dataDir)
	}
	dir := existing(dataDir)
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return fmt.Errorf("%s: %w; mend: mount -o remount,rw %s, or choose another --data-dir", dir, err, dir)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < minimumSpace {
		return fmt.Errorf("%s has %d MiB free, orch wants %d; mend: free some space, or choose another --data-dir", dir, free>>20, minimumSpace>>20)
	}
	return nil
}

func checkOverlay(dataDir string) error {
	dir, err := os.MkdirTemp(existing(dataDir), ".orch-check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := overlayutils.Supported(dir); err != nil {
		return fmt.Errorf("%w; images will be copied, which is slow and large; mend: modprobe overlay, or choose a --data-dir on ext4 or xfs", err)
	}
	return nil
}

func checkPort(dataDir string, port int) error {
	listener, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(port)))
	if err == nil {
		return listener.Close()
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		return err
	}
	if _, err := os.Stat(filepath.Join(dataDir, "server")); err == nil {
		return nil // this machine's orch has it, as it seems
	}
	return fmt.Errorf("%w; find who listens with `ss -ltnp 'sport = :%d'` and stop it, or choose another --https-listen-port", err, port)
}

func checkSwap(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return nil // a kernel without swap
	}
	defer file.Close()
	content, err := io.ReadAll(file)
	if err == nil && strings.Count(string(content), "\n") > 1 {
		return errors.New("is on: memory limits of pods hold less firmly; mend: swapoff -a")
	}
	return err
}
