package e2e

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// restart says what comes of starting a server again with a flag at another value.
type restart struct {
	args    []string
	refused string // in the error; "": it works
	no      string // why it is not tried here
}

// anotherValue has every flag of orch server and orch agent. DIR is the node's
// folder and IP its address.
var anotherValue = map[string]restart{
	"data-dir":                            {args: []string{"--data-dir", "DIR/other"}}, // a cluster of its own
	"config":                              {args: []string{"--config", "DIR/second.yaml"}},
	"token":                               {args: []string{"--token", "another-secret"}},
	"token-file":                          {args: []string{"--token-file", "DIR/secret"}},
	"agent-token":                         {args: []string{"--agent-token", "another-secret"}},
	"agent-token-file":                    {args: []string{"--agent-token-file", "DIR/secret"}},
	"join":                                {args: []string{"--join", "https://IP:6443"}}, // it is in a cluster already
	"node-name":                           {args: []string{"--node-name", "another"}, refused: `is the address of server "`},
	"node-ip":                             {args: []string{"--node-ip", "10.99.200.1"}},
	"node-label":                          {args: []string{"--node-label", "a=b"}},
	"node-taint":                          {args: []string{"--node-taint", "a=b:PreferNoSchedule"}},
	"proxy-mode":                          {args: []string{"--proxy-mode", "nftables"}},
	"container-runtime-endpoint":          {args: []string{"--container-runtime-endpoint", "run/none.sock"}, refused: "absolute path"},
	"shutdown-grace-period":               {args: []string{"--shutdown-grace-period", "0s"}},
	"shutdown-grace-period-critical-pods": {args: []string{"--shutdown-grace-period-critical-pods", "1h", "--shutdown-grace-period", "1m"}, refused: "must not be shorter"},
	"log-level":                           {args: []string{"--log-level", "debug"}},
	"log-format":                          {args: []string{"--log-format", "json"}},
	"snapshot-s3-bucket":                  {args: []string{"--snapshot-s3-bucket", "b", "--snapshot-s3-endpoint", "127.0.0.1:1", "--snapshot-s3-access-key", "k", "--snapshot-s3-secret-key", "s"}},
	"snapshot-s3-endpoint":                {no: "with snapshot-s3-bucket"},
	"snapshot-s3-access-key":              {no: "with snapshot-s3-bucket"},
	"snapshot-s3-secret-key":              {no: "with snapshot-s3-bucket"},
	"snapshot-s3-secret-key-file":         {args: []string{"--snapshot-s3-secret-key-file", "DIR/none"}, refused: "--snapshot-s3-secret-key-file: open"},
	"snapshot-s3-ca-file":                 {no: "test/e2e's snapshots use a real S3 server"},
	"snapshot-s3-region":                  {no: "test/e2e's snapshots use a real S3 server"},
	"snapshot-s3-folder":                  {no: "test/e2e's snapshots use a real S3 server"},
	"snapshot-s3-insecure":                {no: "test/e2e's snapshots use a real S3 server"},
	"snapshot-s3-timeout":                 {no: "test/e2e's snapshots use a real S3 server"},
	"https-listen-port":                   {args: []string{"--https-listen-port", "7443"}},
	"bind-address":                        {args: []string{"--bind-address", "IP"}},
	"advertise-address":                   {args: []string{"--advertise-address", "10.99.200.1"}},
	"cluster-cidr":                        {args: []string{"--cluster-cidr", "10.52.0.0/16"}, refused: "founded with 10.42.0.0/16"},
	"service-cidr":                        {args: []string{"--service-cidr", "10.53.0.0/16"}, refused: "founded with 10.43.0.0/16"},
	"cluster-dns":                         {args: []string{"--cluster-dns", "10.43.0.53"}, refused: "founded with 10.43.0.10"},
	"cluster-domain":                      {args: []string{"--cluster-domain", "another.test"}, refused: "founded with cluster.local"},
	"tls-san":                             {args: []string{"--tls-san", "a.test"}},
	"write-kubeconfig":                    {args: []string{"--write-kubeconfig", "DIR/other.yaml"}},
	"write-kubeconfig-mode":               {args: []string{"--write-kubeconfig-mode", "640"}},
	"disable":                             {args: []string{"--disable", "dns"}},
	"disable-agent":                       {args: []string{"--disable-agent"}},
	"snapshot-interval":                   {args: []string{"--snapshot-interval", "1h"}},
	"snapshot-retention":                  {args: []string{"--snapshot-retention", "9"}},
	"cloud-provider":                      {args: []string{"--cloud-provider", "external"}},
	"recover":                             {no: "test/ha"},
	"from":                                {args: []string{"--from", "a"}, refused: "goes with --recover only"},
	"dry-run":                             {no: "test/cases"},
	"help":                                {no: "prints"},
	"resolv-conf":                         {args: []string{"--resolv-conf", "/dev/null"}},
	"allowed-unsafe-sysctls":              {args: []string{"--allowed-unsafe-sysctls", "net.core.somaxconn"}},
	"private-registry":                    {args: []string{"--private-registry", "DIR/registries.yaml"}},
	"log-links":                           {no: "the links are the machine's own"},
}

var flagOfHelp = regexp.MustCompile(`(?m)^   --([a-z0-9-]+)`)

// TestRestartWithAnotherValue starts one server again with another value of each
// flag: each works, or is refused with the reason and nothing changed. A flag that
// is not in the table fails it.
func TestRestartWithAnotherValue(t *testing.T) {
	t.Parallel()
	node := unstarted(t)
	var flags []string
	for _, command := range []string{"server", "agent"} {
		help, err := node.Exec(t.Context(), node.Orch, command, "--help")
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range flagOfHelp.FindAllStringSubmatch(help, -1) {
			if !slices.Contains(flags, m[1]) {
				flags = append(flags, m[1])
			}
		}
	}
	if len(flags) < 30 {
		t.Fatalf("--help shows these flags alone: %q", flags)
	}
	for name, content := range map[string]string{"second.yaml": "tls-san: b.test\n", "secret": "from-a-file\n"} {
		if err := os.WriteFile(filepath.Join(node.Dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := node.Exec(t.Context(), "ip", "addr", "add", "10.99.200.1/16", "dev", "eth0"); err != nil {
		t.Fatal(err, out)
	}
	args, kubeconfig := node.Args, node.Kubeconfig
	start(t, node)
	for _, flag := range flags {
		r, known := anotherValue[flag]
		if !known {
			t.Errorf("--%s is not in the table: what comes of another value at a restart?", flag)
			continue
		}
		if r.no != "" {
			continue
		}
		if err := node.Stop(); err != nil {
			t.Fatal(err)
		}
		node.Args, node.Kubeconfig = slices.Clone(args), kubeconfig
		for _, arg := range r.args {
			node.Args = append(node.Args, strings.NewReplacer("DIR", node.Dir, "IP", node.IP).Replace(arg))
		}
		if flag == "write-kubeconfig" {
			node.Kubeconfig = node.Args[len(node.Args)-1]
		}
		if err := node.Start(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if r.refused == "" {
			if out := answers(ctx, node.Exited(), func() (string, error) { return node.Kubectl(ctx, "get", "--raw", "/readyz") }); out != "ok" {
				t.Errorf("--%s: %s\n%s", flag, out, node.LogTail())
			}
		} else {
			select {
			case <-node.Exited():
				if out := node.LogTail(); node.ExitCode() == 0 || !strings.Contains(out[strings.LastIndexByte(out, '\n')+1:], r.refused) {
					t.Errorf("--%s: exit code %d, want %q\n%s", flag, node.ExitCode(), r.refused, out)
				}
			case <-ctx.Done():
				t.Errorf("--%s: goes on with another value", flag)
			}
		}
		cancel()
	}
	if node.Running() {
		if err := node.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	// And back: nothing of that has stayed.
	node.Args, node.Kubeconfig = args, kubeconfig
	start(t, node)
}

// answers asks until there is an answer without an error, or orch has ended.
func answers(ctx context.Context, ended <-chan struct{}, ask func() (string, error)) string {
	for {
		out, err := ask()
		if err == nil {
			return out
		}
		select {
		case <-ended:
			return "orch has ended: " + out
		case <-ctx.Done():
			return "no answer: " + out
		case <-time.After(50 * time.Millisecond):
		}
	}
}
