package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"orch/server"
	"orch/server/backup"
	"orch/server/join"
)

// try runs a command with one flag of each kind and a config file.
func try(t *testing.T, config string, args ...string) (*cli.Context, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var seen *cli.Context
	app := &cli.App{ExitErrHandler: func(*cli.Context, error) {}, Commands: []*cli.Command{{
		Name:  "try",
		Flags: append(nodeFlags(), &cli.IntFlag{Name: "port", Value: 1}, boolFlag("flag", ""), stringFlag("mode", "600", "")),
		Action: func(c *cli.Context) error {
			seen = c
			return readConfigFile(c)
		},
	}}}
	err := app.Run(append([]string{"orch", "try", "--config", path}, args...))
	return seen, err
}

func TestConfigFile(t *testing.T) {
	c := contextOf(t, "port: 70\nflag: true\nnode-name: from-file\nnode-label: [a=b, c=d]\n", "--node-name", "from-flag")
	if c.Int("port") != 70 || !c.Bool("flag") || c.String("node-name") != "from-flag" || strings.Join(c.StringSlice("node-label"), " ") != "a=b c=d" {
		t.Errorf("port %d, flag %v, node-name %q, node-label %q", c.Int("port"), c.Bool("flag"), c.String("node-name"), c.StringSlice("node-label"))
	}
	for name, test := range map[string]struct{ config, text string }{
		"unknown key": {"no-such: 1", `unknown key "no-such"`},
		"bad value":   {"port: many", `key "port"`},
		"not YAML":    {"{", "config.yaml"},
	} {
		if _, err := try(t, test.config); err == nil || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v, want %q", name, err, test.text)
		}
	}
}

func contextOf(t *testing.T, config string, args ...string) *cli.Context {
	t.Helper()
	c, err := try(t, config, args...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestMissingConfigFile(t *testing.T) {
	app := &cli.App{Commands: []*cli.Command{{Name: "try", Flags: nodeFlags(), Action: readConfigFile}}, ExitErrHandler: func(*cli.Context, error) {}}
	if err := app.Run([]string{"orch", "try", "--config", filepath.Join(t.TempDir(), "none")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a named file that is missing: %v", err)
	}
}

func TestBootstrapSecret(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := bootstrapSecret("abcdef", "0123456789abcdef", "", time.Hour, now)
	if s.Name != "bootstrap-token-abcdef" || s.StringData["expiration"] != "2026-01-02T04:04:05Z" {
		t.Errorf("%s %v", s.Name, s.StringData)
	}
	if _, limited := bootstrapSecret("a", "b", "", 0, now).StringData["expiration"]; limited {
		t.Error("a ttl of 0 limits the token")
	}
	for text, want := range map[string]string{"": "never", "2026-01-02T03:04:05Z": "expired", "2026-01-02T04:04:05Z": "in 1h0m0s", "soon": "expired"} {
		if got := expiry(text, now); got != want {
			t.Errorf("expiry of %q: %s, want %s", text, got, want)
		}
	}
	for _, token := range []string{"abcdef", "abcdef.0123456789abcdef", "K10" + strings.Repeat("ab", 32) + "::node:abcdef.0123456789abcdef"} {
		if id := tokenID(token); id != "abcdef" {
			t.Errorf("ID of %q: %s", token, id)
		}
	}
}

func TestCheckCgroups(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		mounts, controllers string
		lacks               string
	}{
		"v2":      {"", "cpu memory pids io", ""},
		"v1":      {"cgroup /c/cpu cgroup rw,cpu,cpuacct 0 0\ncgroup /c/memory cgroup rw,memory 0 0\ncgroup /c/pids cgroup rw,pids 0 0\n", "", ""},
		"hybrid":  {"cgroup /c/cpu cgroup rw,cpu 0 0\ncgroup /c/pids cgroup rw,pids 0 0\n", "memory", ""},
		"missing": {"cgroup /c/cpu cgroup rw,cpu 0 0\n", "pids", "memory"},
		"none":    {"", "", "cpu"},
	} {
		dir := t.TempDir()
		mounts := filepath.Join(dir, "mounts")
		if err := os.WriteFile(mounts, []byte(test.mounts), 0o600); err != nil {
			t.Fatal(err)
		}
		if test.controllers != "" {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.controllers"), []byte(test.controllers+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := checkCgroups(mounts, dir)
		if (test.lacks == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), "the "+test.lacks+" controller") {
			t.Errorf("%s: %v, want %q", name, err, test.lacks)
		}
	}
}

func TestCheckPort(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	if err := checkPort(t.TempDir(), port); err == nil || !strings.Contains(err.Error(), "--https-listen-port") {
		t.Errorf("busy port: %v", err)
	}
	if err := checkDataDir("relative"); err == nil {
		t.Error("a relative data directory passes")
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	reader := &progressReader{Reader: strings.NewReader("content"), out: &out, what: "a.tar", size: 3 << 20}
	if _, err := reader.Read(make([]byte, 100)); err != nil || out.String() != "a.tar: 0 MiB of 3 MiB read\n" {
		t.Errorf("%q %v", out.String(), err)
	}
	out.Reset()
	wanted := errors.New("refused")
	if err := withProgress(context.Background(), &out, "pulling x", func() error { return wanted }); err != wanted || out.String() != "pulling x\n" {
		t.Errorf("%q %v", out.String(), err)
	}
}

func kubeconfigFor(t *testing.T, server string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: a}}]\nclusters: [{name: a, cluster: {server: '" + server + "'}}]\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What could end in the wrong cluster, or in none, is refused.
func TestCommandLine(t *testing.T) {
	t.Setenv("KUBECONFIG", kubeconfigFor(t, "https://127.0.0.1:1"))
	dir := t.TempDir()
	for _, tt := range []struct{ line, want string }{
		{"member list", "127.0.0.1:1"},
		{"token list", "127.0.0.1:1"},
		{"snapshot save", "127.0.0.1:1"},
		{"member remove a --kubeconfig b", "put --kubeconfig and what belongs to it before a"},
		{"snapshot restore one --data-dir " + dir, "put --data-dir and what belongs to it before one"},
		{"snapshot restore --data-dir " + dir + " ", "name one snapshot"}, // an empty name
		{"snapshot restore one two", "name one snapshot"},
		{"member remove a b", "name one server"},
		{"token create a b", "orch token create: takes no arguments, and was given a b"},
		{"member list a", "takes no arguments"},
		{"snapshot save one", "takes no arguments"},
		{"server one", "takes no arguments"},
		{"sever", `there is no command "sever" (see orch --help)`},
		{"token crate", `there is no command "crate" (see orch token --help)`},
		{"version one", "takes no arguments"},
		{"completion", "name your shell: bash, fish, zsh"},
		{"completion csh", "name your shell: bash, fish, zsh"},
		{"server --nod-name a", "there is no flag --nod-name: did you mean --node-name? (see orch server --help)"},
		{"member list --kubecnfig a", "did you mean --kubeconfig?"},
	} {
		if err := run(t.Context(), append([]string{"orch"}, strings.Split(tt.line, " ")...)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("orch %s: %v, want %q", tt.line, err, tt.want)
		}
	}
}

// Whoever rotates tokens and gets no answer is told where to look: the tokens may
// be void by then.
func TestRotationWithoutAnswer(t *testing.T) {
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer silent.Close()
	if err := run(t.Context(), []string{"orch", "token", "rotate", "--kubeconfig", kubeconfigFor(t, silent.URL)}); err == nil || !strings.Contains(err.Error(), join.InForce) {
		t.Errorf("%v does not say where the tokens are", err)
	}
}

// What only has a snapshot's name is not listed as one, and what is damaged is told.
func TestSnapshotList(t *testing.T) {
	dataDir := t.TempDir()
	dir := server.SnapshotDir(dataDir)
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "folder.orch"), 0o700), os.WriteFile(filepath.Join(dir, "half.orch"), []byte("half"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := backup.Save(t.Context(), dir, backup.Header{Name: "whole"}, emptyStore{}, nil); err != nil {
		t.Fatal(err)
	}
	var out, warnings bytes.Buffer
	app := &cli.App{Commands: []*cli.Command{snapshotCommand()}, Writer: &out, ErrWriter: &warnings}
	if err := app.RunContext(t.Context(), []string{"orch", "snapshot", "list", "--data-dir", dataDir, "--config", os.DevNull}); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, filepath.Join(dir, "whole.orch")) {
		t.Errorf("listed are:\n%s", text)
	}
	if text := warnings.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "half.orch is not a whole and sound snapshot") {
		t.Errorf("warnings:\n%s", text)
	}
}

type emptyStore struct{}

func (emptyStore) Backup(context.Context, io.Writer, func(done, total int64)) (int64, error) {
	return 1, nil
}
func (emptyStore) Group() string { return "g/1" }
