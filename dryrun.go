package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"orch/agent"
	"orch/internal/joining"
	"orch/netproxy"
	"orch/server"
)

func dryRunFlag() *cli.BoolFlag {
	return &cli.BoolFlag{Name: "dry-run", Usage: "check flags, environment, config file, data directory, port and token, and end: nothing is started or written"}
}

// tryLater is the exit status of a dry run that found nothing wrong, but could not
// reach the server to join: EX_TEMPFAIL of sysexits.h.
const tryLater = 75

// checkTime is how long a dry run waits for the server to join.
const checkTime = 15 * time.Second

// tryServer is the dry run of a server whose flags are valid.
func tryServer(c *cli.Context, cfg server.Config, node agent.Config) error {
	host := ""
	if cfg.BindAddress != nil {
		host = cfg.BindAddress.String()
	}
	if err := tryPort(host, cfg.Port, cfg.DataDir); err != nil {
		return err
	}
	if !cfg.Disabled("agent") {
		if err := tryNode(c.Context, node); err != nil {
			return err
		}
	}
	warn(cfg.Logger, append(cfg.Warnings(), addressWarnings(node.NodeIP)...))
	return tryJoin(c, cfg.Join, cfg.Token, joining.UserServer, filepath.Join(cfg.DataDir, "server", "tls", "ca.crt"))
}

// tryAgent is the dry run of an agent whose flags are valid.
func tryAgent(c *cli.Context, cfg agent.Config, url, token string) error {
	if err := tryNode(c.Context, cfg); err != nil {
		return err
	}
	warn(cfg.Logger, addressWarnings(cfg.NodeIP))
	return tryJoin(c, url, token, joining.UserNode, filepath.Join(cfg.DataDir, "agent", "node.json"))
}

// tryNode looks for what the node needs of this machine.
func tryNode(ctx context.Context, cfg agent.Config) error {
	if cfg.RuntimeEndpoint != "" {
		path := strings.TrimPrefix(cfg.RuntimeEndpoint, "unix://")
		if info, err := os.Stat(path); err != nil {
			return fmt.Errorf("--container-runtime-endpoint: %w: start that runtime, or leave the flag out for the embedded one", err)
		} else if info.Mode()&os.ModeSocket == 0 {
			return fmt.Errorf("--container-runtime-endpoint %s: is no socket", path)
		}
	}
	if cfg.Disabled("proxy") {
		return nil
	}
	if err := netproxy.Preflight(ctx, cfg.ProxyMode); err != nil {
		return fmt.Errorf("--proxy-mode %s: %w (orch check tells more)", cfg.ProxyMode, err)
	}
	return nil
}

// tryJoin asks the server that is to be joined. The file joined is there when this
// machine has joined before.
func tryJoin(c *cli.Context, url, token, user, joined string) error {
	if url == "" {
		return nil
	}
	_, err := os.Stat(joined)
	known := err == nil
	if known && token == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.Context, checkTime)
	defer cancel()
	err = joining.Check(ctx, url, token, user, known)
	switch {
	case err == nil:
		return nil
	case joining.Retry(err):
		return cli.Exit(fmt.Sprintf("orch: --join %s: cannot be asked now: %v; is the address right, and the server up?", url, err), tryLater)
	}
	return fmt.Errorf("--join %s: %w", url, err)
}

// tryPort tells whether the server could listen, were the one that runs here from
// the same data directory stopped.
func tryPort(host string, port int, dataDir string) error {
	address := net.JoinHostPort(host, strconv.Itoa(port))
	listener, err := net.Listen("tcp", address)
	if err == nil {
		return listener.Close()
	}
	if errors.Is(err, unix.EADDRINUSE) && listens(lockHolder(dataDir), port) {
		return nil
	}
	return fmt.Errorf("listen on %s: %w; find who listens with `ss -ltnp 'sport = :%d'`, or choose another --https-listen-port or --bind-address", address, err, port)
}

// listens tells whether the process has a TCP socket that listens on the port.
func listens(pid, port int) bool {
	if pid == 0 {
		return false
	}
	inodes := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6"} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			// sl local_address rem_address st … inode, see proc_net_tcp; 0A is LISTEN.
			f := strings.Fields(line)
			if len(f) > 9 && f[3] == "0A" && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
				inodes["socket:["+f[9]+"]"] = true
			}
		}
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return false
	}
	for _, file := range files {
		if target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, file.Name())); err == nil && inodes[target] {
			return true
		}
	}
	return false
}

// needRoot is for what runs containers.
func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("a node makes namespaces, mounts and network rules: run orch as root, or orch server --disable-agent as anybody")
	}
	return nil
}

// addressWarnings tells when the node's address is not one of this machine. It may
// become one: a floating address, or a network that is not up yet.
func addressWarnings(ip net.IP) []string {
	addresses, err := net.InterfaceAddrs()
	if err != nil || ip == nil {
		return nil
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(ip) {
			return nil
		}
	}
	return []string{fmt.Sprintf("--node-ip %s is no address of this machine: until it is one, other nodes do not reach pods here", ip)}
}
