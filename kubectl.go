package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	cobracli "k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
)

// defaultKubeconfig is where `orch server` writes the administrator's kubeconfig.
const defaultKubeconfig = "/etc/orch/kubeconfig.yaml"

// kubectlCommand only lists kubectl in the help; run hands the call to runKubectl.
func kubectlCommand() *cli.Command {
	return &cli.Command{
		Name:            "kubectl",
		Usage:           "run the embedded kubectl against this cluster",
		SkipFlagParsing: true,
		Action:          func(c *cli.Context) error { return runKubectl(c.Context, c.Args().Slice()) },
	}
}

// runKubectl is the real kubectl. It finds the kubeconfig of this machine's
// server by itself unless the caller names one.
func runKubectl(ctx context.Context, args []string) error {
	if os.Getenv("KUBECONFIG") == "" && !slices.ContainsFunc(args, func(a string) bool {
		return a == "--kubeconfig" || strings.HasPrefix(a, "--kubeconfig=")
	}) {
		if path := findKubeconfig(); path != "" {
			os.Setenv("KUBECONFIG", path)
		}
	}
	os.Args = append([]string{"kubectl"}, args...)
	command := cmd.NewDefaultKubectlCommand()
	command.SetArgs(args)
	if err := cobracli.RunNoErrOutput(command); err != nil {
		// Prints as kubectl does and exits with its code.
		kubectlutil.CheckErr(err)
	}
	return nil
}

// findKubeconfig gives the kubeconfig to use when none is named: this
// machine's server's, if it is readable, before the user's own default.
func findKubeconfig() string {
	candidates := []string{defaultKubeconfig}
	if home, err := os.UserHomeDir(); err == nil {
		candidates = append(candidates, filepath.Join(home, ".kube", "config"))
	}
	for _, path := range candidates {
		if f, err := os.Open(path); err == nil {
			f.Close()
			return path
		}
	}
	return ""
}
