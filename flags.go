package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"sigs.k8s.io/yaml"

	"orch/netproxy"
)

const (
	defaultDataDir = "/var/lib/orch"
	defaultConfig  = "/etc/orch/config.yaml"

	defaultRegistries = "/etc/orch/registries.yaml"

	// defaultLogLinks is where collectors look for kubelets' logs. Only the
	// default data directory has links there: there may be several orch here.
	defaultLogLinks = "/var/log"
)

// env gives the environment variable of a flag: ORCH_<FLAG>.
func env(flag string) []string {
	return []string{"ORCH_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))}
}

func stringFlag(name, value, usage string) *cli.StringFlag {
	return &cli.StringFlag{Name: name, Value: value, Usage: usage, EnvVars: env(name)}
}

func listFlag(name, usage string) *cli.StringSliceFlag {
	return &cli.StringSliceFlag{Name: name, Usage: usage, EnvVars: env(name)}
}

func boolFlag(name, usage string) *cli.BoolFlag {
	return &cli.BoolFlag{Name: name, Usage: usage, EnvVars: env(name)}
}

func dataDirFlag() *cli.StringFlag {
	return stringFlag("data-dir", defaultDataDir, "folder for everything that orch keeps")
}

func proxyModeFlag() *cli.StringFlag {
	return stringFlag("proxy-mode", netproxy.ModeIPTables, "how services are programmed: iptables, nftables, or userspace where the kernel has neither")
}

func kubeconfigFlag() *cli.StringFlag {
	return stringFlag("kubeconfig", "", "kubeconfig to reach the cluster with (default: "+defaultKubeconfig+")")
}

// nodeFlags are shared by server and agent, as a server is a node too.
func nodeFlags() []cli.Flag {
	return []cli.Flag{
		dataDirFlag(),
		stringFlag("config", defaultConfig, "YAML `file` with flag names as keys; flags and environment win over it"),
		stringFlag("token", "", "shared secret to join the cluster with, or a token file's content"),
		stringFlag("join", "", "`URL` of a server to join (https://host:6443)"),
		stringFlag("node-name", "", "name of this node (default: the host name)"),
		stringFlag("node-ip", "", "`address` of this node (default: that of the default route, also when it changes)"),
		stringFlag("resolv-conf", "/etc/resolv.conf", "`file` with the name servers for names outside the cluster, and for pods of DNS policy Default; '' for none"),
		listFlag("node-label", "`key=value` label to register the node with (repeatable)"),
		listFlag("node-taint", "`key=value:Effect` taint to register the node with (repeatable)"),
		proxyModeFlag(),
		stringFlag("container-runtime-endpoint", "", "CRI `socket` of another container runtime (default: the embedded containerd)"),
		stringFlag("private-registry", defaultRegistries, "`file` with mirrors, credentials and certificates of registries"),
		stringFlag("log-links", "", "`folder` that gets pods/ and containers/ with links to the logs for collectors; '' for none (default: "+defaultLogLinks+" with the default --data-dir, else none)"),
		listFlag("allowed-unsafe-sysctls", "`sysctl` that pods may set beyond the safe ones, or a pattern that ends in * (repeatable)"),
		&cli.DurationFlag{Name: "shutdown-grace-period", Value: 30 * time.Second, Usage: "`time` that pods have to end in when the machine shuts down; 0: none", EnvVars: env("shutdown-grace-period")},
		&cli.DurationFlag{Name: "shutdown-grace-period-critical-pods", Value: 10 * time.Second, Usage: "the last part of that `time`, for critical pods", EnvVars: env("shutdown-grace-period-critical-pods")},
		stringFlag("log-level", "info", "least severe level to log: debug, info, warn, error"),
		stringFlag("log-format", "text", "log format: text, json"),
	}
}

// readConfigFile sets the flags that were given neither on the command line nor
// in the environment from the config file. A missing default file is fine.
func readConfigFile(c *cli.Context) error {
	path := c.String("config")
	data, err := os.ReadFile(path)
	switch {
	case os.IsNotExist(err) && !c.IsSet("config"):
		return nil
	case err != nil:
		return fmt.Errorf("--config: %w", err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(data, &values); err != nil {
		return fmt.Errorf("--config %s: %w", path, err)
	}
	for name, value := range values {
		if err := setFromConfig(c, name, value); err != nil {
			return fmt.Errorf("--config %s: %w", path, err)
		}
	}
	return nil
}

func setFromConfig(c *cli.Context, name string, value any) error {
	known := false
	for _, flag := range c.Command.Flags {
		for _, n := range flag.Names() {
			known = known || n == name
		}
	}
	if !known {
		return fmt.Errorf("unknown key %q: see `orch %s --help` for the flags there are", name, c.Command.Name)
	}
	if c.IsSet(name) {
		return nil
	}
	values, isList := value.([]any)
	if !isList {
		values = []any{value}
	}
	for _, v := range values {
		text := fmt.Sprint(v)
		if f, ok := v.(float64); ok { // YAML numbers pass through JSON
			text = strconv.FormatFloat(f, 'f', -1, 64)
		}
		if err := c.Set(name, text); err != nil {
			return fmt.Errorf("key %q: %w", name, err)
		}
	}
	return nil
}

// newLogger builds the logger that --log-level and --log-format ask for.
func newLogger(c *cli.Context, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		return nil, fmt.Errorf("--log-level %q: use debug, info, warn or error", c.String("log-level"))
	}
	options := &slog.HandlerOptions{Level: level}
	switch format := c.String("log-format"); format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	default:
		return nil, fmt.Errorf("--log-format %q: use text or json", format)
	}
}

// quiet makes every line one for debugging: the Kubernetes libraries call it an
// error when a client hangs up, and what is one they also return to us.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }
func (q quiet) WithGroup(name string) slog.Handler       { return quiet{q.Handler.WithGroup(name)} }

// parseIP reads an address flag; an empty one is nil.
func parseIP(c *cli.Context, name string) (net.IP, error) {
	text := c.String(name)
	if text == "" {
		return nil, nil
	}
	ip := net.ParseIP(text)
	if ip == nil {
		return nil, fmt.Errorf("--%s %q: not an IP address", name, text)
	}
	return ip, nil
}

// parseCIDR reads a network flag.
func parseCIDR(c *cli.Context, name string) (*net.IPNet, error) {
	_, network, err := net.ParseCIDR(c.String(name))
	if err != nil {
		return nil, fmt.Errorf("--%s %q: not a network in CIDR notation", name, c.String(name))
	}
	return network, nil
}

// refuseStrays makes errors of arguments to commands that take none, and of flags
// behind arguments: they would be taken for arguments, and the command would go to
// the wrong folder or cluster.
func refuseStrays(commands []*cli.Command) {
	for _, command := range commands {
		refuseStrays(command.Subcommands)
		action := command.Action
		if len(command.Subcommands) > 0 {
			command.Action = noCommand(cli.ShowSubcommandHelp)
		}
		if action == nil || command.SkipFlagParsing {
			continue
		}
		command.Action = func(c *cli.Context) error {
			for _, arg := range c.Args().Slice() {
				if len(arg) > 1 && arg[0] == '-' {
					return fmt.Errorf("%s: put %s and what belongs to it before %s", c.Command.HelpName, arg, c.Args().First())
				}
			}
			if c.Args().Present() && c.Command.ArgsUsage == "" {
				return fmt.Errorf("%s: takes no arguments, and was given %s", c.Command.HelpName, strings.Join(c.Args().Slice(), " "))
			}
			return action(c)
		}
	}
}

// noCommand is the action where a command is missing: help, or an error when there
// is none of the name that was given.
func noCommand(help func(*cli.Context) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.Args().Present() {
			return fmt.Errorf("there is no command %q (see %s --help)", c.Args().First(), c.Command.HelpName)
		}
		return help(c)
	}
}
