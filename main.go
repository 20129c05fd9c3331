// Command orch is a whole container orchestrator in one executable: a
// Kubernetes-compatible control plane, node agent, service proxy and container
// runtime.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"orch/internal/version"
)

func main() {
	// Copies: secrets are overwritten where os.Args lies.
	args := make([]string, len(os.Args))
	for i, arg := range os.Args {
		args[i] = strings.Clone(arg)
	}
	ctx := context.Background()
	// kubectl ends by signals as it always does, and handles them itself where it
	// has to put a terminal in order first.
	if !isKubectl(args) {
		// A first signal asks everything to stop in order; a second one ends the
		// process at once, should something hang.
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
		context.AfterFunc(ctx, stop)
	}
	err := run(ctx, args)
	var exit cli.ExitCoder
	switch {
	case errors.As(err, &exit):
		if exit.Error() != "" {
			fmt.Fprintln(os.Stderr, exit.Error())
		}
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "orch:", err)
		os.Exit(1)
	}
}

func isKubectl(args []string) bool { return len(args) > 1 && args[1] == "kubectl" }

func run(ctx context.Context, args []string) error {
	// kubectl parses its own flags, and plugins and scripts call it most.
	if isKubectl(args) {
		return runKubectl(ctx, args[2:])
	}
	if err := dropEmptyVariables(); err != nil {
		return err
	}
	app := &cli.App{
		Name:                   "orch",
		Usage:                  "a container orchestrator in one executable",
		Version:                version.Orch,
		HideHelpCommand:        true,
		UseShortOptionHandling: true,
		EnableBashCompletion:   true,
		ExitErrHandler:         func(*cli.Context, error) {}, // main alone exits
		Commands: []*cli.Command{
			serverCommand(),
			agentCommand(),
			kubectlCommand(),
			tokenCommand(),
			memberCommand(),
			snapshotCommand(),
			imagesCommand(),
			checkCommand(),
			verifyCommand(),
			completionCommand(),
			versionCommand(),
		},
	}
	app.Action = noCommand(cli.ShowAppHelp)
	refuseStrays(app.Commands)
	return app.RunContext(ctx, args)
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the version of orch and of the Kubernetes API it serves",
		Action: func(c *cli.Context) error {
			_, err := fmt.Fprintf(c.App.Writer, "orch %s\nKubernetes API %s\n", version.Orch, version.Kubernetes)
			return err
		},
	}
}
