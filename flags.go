package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

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
		stringFlag("token-file", "", "`file` with that secret, for whoever does not want it in a list of processes"),
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
	ip, network, err := net.ParseCIDR(c.String(name))
	switch {
	case err != nil:
		return nil, fmt.Errorf("--%s %q: not a network in CIDR notation, such as 10.42.0.0/16", name, c.String(name))
	case !ip.Equal(network.IP):
		return nil, fmt.Errorf("--%s %q: is an address in a network: the network is %s", name, c.String(name), network)
	}
	return network, nil
}

// parseMode reads a file mode: octal digits, as chmod takes them.
func parseMode(c *cli.Context, name string) (fs.FileMode, error) {
	mode, err := strconv.ParseUint(strings.TrimPrefix(c.String(name), "0o"), 8, 9)
	if err != nil {
		return 0, fmt.Errorf("--%s %q: use an octal mode such as 600", name, c.String(name))
	}
	return fs.FileMode(mode), nil
}

// warn logs what was asked for and will not be as somebody might think.
func warn(log *slog.Logger, warnings []string) {
	for _, w := range warnings {
		log.Warn(w, "component", "command")
	}
}

// refuseStrays makes errors of arguments to commands that take none, and of flags
// behind arguments: they would be taken for arguments, and the command would go to
// the wrong folder or cluster.
func refuseStrays(commands []*cli.Command) {
	for _, command := range commands {
		refuseStrays(command.Subcommands)
		command.OnUsageError = usageError
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

// usageError words what is wrong with the flags in one line, where the library
// would print all the help.
func usageError(c *cli.Context, err error, _ bool) error {
	text := err.Error()
	if name, unknown := strings.CutPrefix(text, "flag provided but not defined: "); unknown {
		name = strings.TrimLeft(name, "-")
		text = fmt.Sprintf("there is no flag --%s%s", name, didYouMean("--", name, flagNames(c.Command.Flags)))
	}
	return fmt.Errorf("%s: %s (see %s --help)", c.Command.HelpName, text, c.Command.HelpName)
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
