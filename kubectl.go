package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	cobracli "k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"

	"orch/internal/joining"
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
	if os.Getenv("KUBECONFIG") == "" && !namesCluster(args) {
		if path := findKubeconfig(); path != "" {
			os.Setenv("KUBECONFIG", path)
		} else if hint := whereToRun(defaultKubeconfig, agentDir()); hint != "" {
			kubectlutil.BehaviorOnFatal(func(message string, code int) {
				fmt.Fprintln(os.Stderr, strings.TrimSuffix(message, "\n"))
				fmt.Fprintln(os.Stderr, "orch:", hint)
				os.Exit(code)
			})
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

// namesCluster tells whether kubectl is told which cluster it is for.
func namesCluster(args []string) bool {
	return slices.ContainsFunc(args, func(arg string) bool {
		name, _, _ := strings.Cut(arg, "=")
		return name == "--kubeconfig" || name == "--server" || name == "-s"
	})
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

func agentDir() string {
	dataDir := os.Getenv(env("data-dir")[0])
	if dataDir == "" {
		dataDir = defaultDataDir
	}
	return filepath.Join(dataDir, "agent")
}

// whereToRun says what to do where there is no kubeconfig to be read; "": nothing
// is known of a cluster here.
func whereToRun(kubeconfig, agentDir string) string {
	if _, err := os.Stat(kubeconfig); err == nil {
		return fmt.Sprintf("%s may be read by others than you: run it as root (sudo orch kubectl), or give the server --write-kubeconfig-mode 640 and yourself the file's group", kubeconfig)
	}
	data, err := os.ReadFile(filepath.Join(agentDir, "node.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	var answer joining.Answer
	if err == nil && json.Unmarshal(data, &answer) == nil && len(answer.Settings.Servers) > 0 {
		return fmt.Sprintf("this machine is a node of the cluster of %s and has no access of its own to the API: run orch kubectl on that server, or copy its %s here, put its address in it, and name it with --kubeconfig",
			answer.Settings.Servers[0], kubeconfig)
	}
	return fmt.Sprintf("this machine runs orch agent: run orch kubectl on a server, or copy a server's %s here, put its address in it, and name it with --kubeconfig", kubeconfig)
}
