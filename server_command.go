package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"orch/agent"
	"orch/agent/address"
	"orch/internal/footprint"
	"orch/internal/joining"
	"orch/server"
)

func serverCommand() *cli.Command {
	return &cli.Command{
		Name:  "server",
		Usage: "run the control plane, and a node beside it",
		Flags: append(serverFlags(),
			&cli.BoolFlag{Name: "recover", Usage: "go on as the only server, from this one's files or --from; the others join again"},
			&cli.StringFlag{Name: "from", Usage: "`snapshot` to recover from: its name, or a path"},
			dryRunFlag(),
		),
		Action: runServer,
	}
}

func serverFlags() []cli.Flag {
	return append(append(nodeFlags(), snapshotS3Flags()...),
		&cli.IntFlag{Name: "https-listen-port", Value: 6443, Usage: "the one TCP `port`: API, joining, agent links", EnvVars: env("https-listen-port")},
		stringFlag("bind-address", "", "`address` to listen on (default: all)"),
		stringFlag("advertise-address", "", "`address` at which other machines reach this server (default: --node-ip)"),
		stringFlag("cluster-cidr", "10.42.0.0/16", "`network` of the pods"),
		stringFlag("service-cidr", "10.43.0.0/16", "`network` of the services"),
		stringFlag("cluster-dns", "", "`address` of the cluster DNS (default: the tenth of --service-cidr)"),
		stringFlag("cluster-domain", "cluster.local", "DNS `domain` of the cluster"),
		stringFlag("agent-token", "", "shared secret for agents only (default: one is made)"),
		stringFlag("agent-token-file", "", "`file` with that secret"),
		listFlag("tls-san", "further `name` or address for the server certificate (repeatable)"),
		stringFlag("write-kubeconfig", defaultKubeconfig, "`file` to write the administrator's kubeconfig to"),
		stringFlag("write-kubeconfig-mode", "600", "octal file `mode` of the kubeconfig"),
		listFlag("disable", "parts to leave out: scheduler, controllers, proxy, dns, agent"),
		boolFlag("disable-agent", "run the control plane only, no node"),
		&cli.DurationFlag{Name: "snapshot-interval", Value: 12 * time.Hour, Usage: "`time` between scheduled snapshots of the cluster; 0: none", EnvVars: env("snapshot-interval")},
		&cli.IntFlag{Name: "snapshot-retention", Value: 5, Usage: "scheduled snapshots of a server to keep, on its disk and in S3", EnvVars: env("snapshot-retention")},
		stringFlag("cloud-provider", "", `"", external or orch: for scripts that pass it, as this version has no part for clouds`),
		// For tests: they make a store do within seconds what else takes hours.
		&cli.DurationFlag{Name: "flush-delay", Hidden: true, EnvVars: env("flush-delay")},
		&cli.Int64Flag{Name: "log-bytes", Hidden: true, EnvVars: env("log-bytes")},
		&cli.IntFlag{Name: "history-size", Hidden: true, EnvVars: env("history-size")},
	)
}

func runServer(c *cli.Context) error {
	node, err := nodeConfig(c)
	if err != nil {
		return err
	}
	cfg, err := serverConfig(c, node)
	if err != nil {
		return err
	}
	if err := validateServer(&cfg, &node); err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return tryServer(c, cfg, node)
	}
	warn(cfg.Logger, append(cfg.Warnings(), addressWarnings(node.NodeIP)...))
	unlock, err := lockDataDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := recoverFirst(c, cfg); err != nil {
		return err
	}
	s := server.New(cfg)
	group, ctx := errgroup.WithContext(c.Context)
	if cfg.Disabled("agent") {
		group.Go(func() error {
			if _, _, err := s.Local(ctx); err == nil {
				notifyReady(cfg.Logger)
			}
			return nil
		})
	} else {
		node.Servers = s.Local
		node.OnReady = func() { notifyReady(cfg.Logger) }
		node.OnMove = func() {
			cfg.Logger.Warn("other servers and nodes know this server by the address that it started with: start orch again", "address", cfg.AdvertiseAddress)
		}
		group.Go(func() error { return agent.Run(ctx, node) })
	}
	group.Go(func() error { return s.Run(ctx) })
	group.Go(func() error { return footprint.Run(ctx) })
	return unlessShutdown(group.Wait())
}

// validateServer finds what is wrong before anything is written.
func validateServer(cfg *server.Config, node *agent.Config) error {
	// Its name and address are those of the server, too, with or without a node.
	if err := node.Validate(); err != nil {
		return err
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	if !cfg.Disabled("agent") {
		return needRoot()
	}
	return nil
}

// recoverFirst does what --recover asks for.
func recoverFirst(c *cli.Context, cfg server.Config) error {
	switch {
	case c.Bool("recover"):
		return server.Recover(c.Context, cfg, server.Recovery{From: c.String("from"), S3: cfg.SnapshotS3, Once: true})
	case c.String("from") != "":
		return errors.New("--from: goes with --recover only")
	}
	return server.ForgetRecovery(cfg.DataDir)
}

// unlessShutdown drops the error that ends everything after the node's pods did.
func unlessShutdown(err error) error {
	if errors.Is(err, agent.ErrShutdown) {
		return nil
	}
	return err
}

func serverConfig(c *cli.Context, node agent.Config) (server.Config, error) {
	cfg := server.Config{
		DataDir: node.DataDir, NodeName: node.NodeName, NodeIP: node.NodeIP, Logger: node.Logger,
		Port: c.Int("https-listen-port"), TLSSANs: split(c.StringSlice("tls-san")),
		Join:             c.String("join"),
		SnapshotInterval: c.Duration("snapshot-interval"), SnapshotRetention: c.Int("snapshot-retention"),
		FlushDelay: c.Duration("flush-delay"), LogBytes: c.Int64("log-bytes"), HistorySize: c.Int("history-size"),
		Kubeconfig: c.String("write-kubeconfig"), Disable: node.Disable, CloudProvider: c.String("cloud-provider"),
	}
	if c.Bool("disable-agent") {
		cfg.Disable = append(cfg.Disable, "agent")
	}
	var err error
	if cfg.Token, err = secret(c, "token"); err != nil {
		return cfg, err
	}
	if cfg.AgentToken, err = secret(c, "agent-token"); err != nil {
		return cfg, err
	}
	if cfg.SnapshotS3, err = snapshotS3(c); err != nil {
		return cfg, err
	}
	if cfg.KubeconfigMode, err = parseMode(c, "write-kubeconfig-mode"); err != nil {
		return cfg, err
	}
	if cfg.Kubeconfig != "" {
		if cfg.Kubeconfig, err = filepath.Abs(cfg.Kubeconfig); err != nil {
			return cfg, fmt.Errorf("--write-kubeconfig: %w", err)
		}
	}
	if cfg.BindAddress, err = parseIP(c, "bind-address"); err != nil {
		return cfg, err
	}
	if cfg.AdvertiseAddress, err = parseIP(c, "advertise-address"); err != nil {
		return cfg, err
	}
	if cfg.AdvertiseAddress == nil {
		cfg.AdvertiseAddress = node.NodeIP
	}
	return cfg, clusterFlags(c, &cfg)
}

// clusterFlags reads what all servers of a cluster agree on; a flag that is not
// given leaves it to the cluster.
func clusterFlags(c *cli.Context, cfg *server.Config) (err error) {
	if c.IsSet("cluster-domain") {
		cfg.ClusterDomain = strings.TrimSuffix(c.String("cluster-domain"), ".")
	}
	if c.IsSet("cluster-dns") {
		if cfg.ClusterDNS, err = parseIP(c, "cluster-dns"); err != nil {
			return err
		}
	}
	if c.IsSet("cluster-cidr") {
		if cfg.ClusterCIDR, err = parseCIDR(c, "cluster-cidr"); err != nil {
			return err
		}
	}
	if c.IsSet("service-cidr") {
		cfg.ServiceCIDR, err = parseCIDR(c, "service-cidr")
	}
	return err
}

func agentCommand() *cli.Command {
	return &cli.Command{
		Name:   "agent",
		Usage:  "run a node that joins a server",
		Flags:  append(nodeFlags(), listFlag("disable", "parts to leave out: proxy, dns"), dryRunFlag()),
		Action: runAgent,
	}
}

func runAgent(c *cli.Context) error {
	cfg, err := nodeConfig(c)
	if err != nil {
		return err
	}
	url := c.String("join")
	token, err := secret(c, "token")
	if err != nil {
		return err
	}
	if err := validateAgent(&cfg, url, token); err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return tryAgent(c, cfg, url, token)
	}
	warn(cfg.Logger, addressWarnings(cfg.NodeIP))
	unlock, err := lockDataDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer unlock()
	cfg.Servers = func(context.Context) (string, string, error) { return url, token, nil }
	mark := readyMarkIn(cfg.DataDir)
	if err := mark.remove(); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	cfg.OnReady = func() { notifyReady(cfg.Logger); mark.make(cfg.Logger) }
	ctx, stop := context.WithCancel(c.Context)
	defer stop()
	var group errgroup.Group
	group.Go(func() error { return footprint.Run(ctx) })
	group.Go(func() error {
		defer stop()
		return agent.Run(ctx, cfg)
	})
	return unlessShutdown(group.Wait())
}

// validateAgent finds what is wrong before anything is written.
func validateAgent(cfg *agent.Config, url, token string) error {
	if url == "" || token == "" {
		return errors.New("an agent needs --join https://HOST:6443 and --token or --token-file (the server keeps the token in <data-dir>/server/agent-token)")
	}
	if err := joining.ValidateURL("--join", url); err != nil {
		return err
	}
	if _, err := joining.ParseToken(token); err != nil {
		return fmt.Errorf("--token: %w", err)
	}
	for _, part := range cfg.Disable {
		if part != "proxy" && part != "dns" {
			return fmt.Errorf("--disable %q: an agent can leave out proxy and dns; the other parts are the servers'", part)
		}
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	return needRoot()
}

// nodeConfig reads what server and agent have in common.
func nodeConfig(c *cli.Context) (agent.Config, error) {
	warnings, err := checkEnvironment(c.Command.Flags, os.Environ())
	if err != nil {
		return agent.Config{}, err
	}
	if err := readConfigFile(c); err != nil {
		return agent.Config{}, err
	}
	if err := forgetSecrets(); err != nil {
		return agent.Config{}, err
	}
	logger, err := newLogger(c, os.Stderr)
	if err != nil {
		return agent.Config{}, err
	}
	hidden, err := hideSecrets()
	if err != nil {
		warnings = append(warnings, "secrets stay readable in this process's command line: "+err.Error())
	}
	for _, flag := range hidden {
		warnings = append(warnings, fmt.Sprintf("--%s on the command line can be read by every user of this machine while orch starts, and stays in the shell's history: better --%s-file, the environment or the config file", flag, flag))
	}
	warn(logger, warnings)
	slog.SetDefault(logger) // for what is not worth a logger of its own
	klog.SetSlogLogger(slog.New(quiet{logger.Handler()}).With("component", "library"))
	cfg := agent.Config{
		DataDir: c.String("data-dir"), NodeName: c.String("node-name"), Logger: logger,
		NodeLabels: split(c.StringSlice("node-label")), NodeTaints: split(c.StringSlice("node-taint")),
		ProxyMode: c.String("proxy-mode"), ResolvConf: c.String("resolv-conf"), RuntimeEndpoint: c.String("container-runtime-endpoint"),
		Disable:        split(c.StringSlice("disable")),
		ShutdownPeriod: c.Duration("shutdown-grace-period"), ShutdownCriticalPeriod: c.Duration("shutdown-grace-period-critical-pods"),
	}
	cfg.Registries = c.String("private-registry")
	cfg.LogLinks, cfg.UnsafeSysctls = c.String("log-links"), split(c.StringSlice("allowed-unsafe-sysctls"))
	if !c.IsSet("log-links") && cfg.DataDir == defaultDataDir {
		cfg.LogLinks = defaultLogLinks
	}
	if cfg.ShutdownPeriod == 0 {
		cfg.ShutdownCriticalPeriod = 0 // its default goes with that of the whole
	} else {
		power := make(chan os.Signal, 1)
		signal.Notify(power, syscall.SIGPWR) // in the words of init(8): power fails, go down in order
		cfg.Shutdown = power
	}
	if cfg.DataDir != "" {
		if cfg.DataDir, err = filepath.Abs(cfg.DataDir); err != nil {
			return cfg, fmt.Errorf("--data-dir: %w", err)
		}
	}
	if cfg.NodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return cfg, fmt.Errorf("find the host name: %w (give --node-name)", err)
		}
		cfg.NodeName = strings.ToLower(host)
	}
	if cfg.NodeIP, err = parseIP(c, "node-ip"); err != nil {
		return cfg, err
	}
	if cfg.NodeIPGiven = cfg.NodeIP != nil; !cfg.NodeIPGiven {
		addr, err := address.Find(c.Context, cfg.DataDir, logger)
		if err != nil {
			return cfg, err
		}
		cfg.NodeIP = addr.AsSlice()
	}
	return cfg, nil
}

// split allows lists with commas as well as repeated flags.
func split(values []string) []string {
	var out []string
	for _, v := range values {
		for _, part := range strings.Split(v, ",") {
			if part = strings.TrimSpace(part); part != "" {
				out = append(out, part)
			}
		}
	}
	return out
}
