package main

import (
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// What the shells read. Each asks orch itself for the words, so that none grows old.
var (
	//go:embed completion/orch.bash
	bashCompletion string
	//go:embed completion/orch.zsh
	zshCompletion string
	//go:embed completion/orch.fish
	fishCompletion string
)

func completionCommand() *cli.Command {
	scripts := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}
	shells := strings.Join(slices.Sorted(maps.Keys(scripts)), ", ")
	return &cli.Command{
		Name: "completion", Usage: "print what makes a shell complete orch's commands, kubectl's included", ArgsUsage: "bash|zsh|fish",
		Description: "bash:  source <(orch completion bash)      in ~/.bashrc\n" +
			"zsh:   source <(orch completion zsh)       in ~/.zshrc, after compinit\n" +
			"fish:  orch completion fish | source       in ~/.config/fish/config.fish",
		Action: func(c *cli.Context) error {
			script, ok := scripts[c.Args().First()]
			if !ok || c.NArg() != 1 {
				return fmt.Errorf("orch completion: name your shell: %s", shells)
			}
			_, err := fmt.Fprint(c.App.Writer, script)
			return err
		},
		BashComplete: func(c *cli.Context) {
			for _, shell := range slices.Sorted(maps.Keys(scripts)) {
				fmt.Fprintln(c.App.Writer, shell)
			}
		},
	}
}
