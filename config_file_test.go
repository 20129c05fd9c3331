package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What is written is what the flag gets, of whatever type YAML would make it.
func TestConfigFileKeepsText(t *testing.T) {
	for text, want := range map[string]string{
		"0123456": "0123456", "12345678901234567890": "12345678901234567890", "1e3": "1e3", "0x10": "0x10", "true": "true", "yes": "yes",
		"2026-01-02": "2026-01-02", "1.10": "1.10", `"null"`: "null", `""`: "", "": "", "~": "", "null": "", "'0644'": "0644", "|\n  a": "a",
		"&a text": "text",
	} {
		if got := contextOf(t, "token: "+text+"\n").String("token"); got != want {
			t.Errorf("token: %s gives %q, want %q", text, got, want)
		}
	}
	c := contextOf(t, "node-label: &l [x=1, y=2]\nnode-taint: *l\n")
	if got := strings.Join(c.StringSlice("node-taint"), " "); got != "x=1 y=2" {
		t.Errorf("an alias gives %q", got)
	}
}

func TestConfigFileMode(t *testing.T) {
	for text, want := range map[string]fs.FileMode{"0644": 0o644, "644": 0o644, "0o640": 0o640, "'600'": 0o600, "": 0o600} {
		mode, err := parseMode(contextOf(t, "mode: "+text+"\n"), "mode")
		if err != nil || mode != want {
			t.Errorf("mode: %s gives %o (%v), want %o", text, mode, err, want)
		}
	}
}

// A key without a value is as if it were not there, whatever its type.
func TestConfigFileEmptyKeys(t *testing.T) {
	c := contextOf(t, "token:\nport:\nflag: ~\nnode-label:\nnode-taint: []\nshutdown-grace-period:\nnode-name: null\n")
	for _, name := range []string{"token", "port", "flag", "node-label", "node-taint", "shutdown-grace-period", "node-name"} {
		if c.IsSet(name) {
			t.Errorf("%s counts as given", name)
		}
	}
	if c.Int("port") != 1 || c.Duration("shutdown-grace-period") != 30*time.Second {
		t.Errorf("defaults: port %d, period %s", c.Int("port"), c.Duration("shutdown-grace-period"))
	}
	for _, config := range []string{"", "# nothing\n", "---\n", "null\n"} {
		contextOf(t, config)
	}
}

// Each error tells file, line, key and what to write instead.
func TestConfigFileErrors(t *testing.T) {
	for name, test := range map[string]struct{ config, line, text string }{
		"twice":             {"token: a\nport: 1\ntoken: b\n", ":3:", `key "token" is there already, in line 1`},
		"twice, one empty":  {"token:\ntoken: b\n", ":2:", "keep one of them"},
		"unknown":           {"port: 1\nnode_name: a\n", ":2:", "did you mean node-name?"},
		"unlike any":        {"no-such-thing: 1\n", ":1:", "orch try --help"},
		"merge":             {"x: &x {token: a}\n<<: *x\n", ":1:", `unknown key "x"`},
		"list for one":      {"\ntoken: [a, b]\n", ":2:", "takes one value"},
		"structure":         {"token: {a: b}\n", ":1:", "plain value"},
		"labels as a map":   {"node-label: {a: b}\n", ":1:", "[a=b, c=d]"},
		"map in a list":     {"node-label:\n- a=b\n- c: d\n", ":3:", "[a=b, c=d]"},
		"empty item":        {"node-label:\n- a=b\n-\n", ":3:", "empty: remove it"},
		"octal number":      {"port: 010\n", ":1:", "decimal digits"},
		"number with point": {"port: 1.0\n", ":1:", "decimal digits"},
		"number, too large": {"port: 99999999999999999999\n", ":1:", "decimal digits"},
		"time without unit": {"shutdown-grace-period: 30\n", ":1:", "such as 30s"},
		"word for a bool":   {"flag: yes\n", ":1:", "true or false"},
		"tag":               {"token: !!binary YQ==\n", ":1:", "without the tag"},
		"list at the top":   {"- token\n", ":1:", "flag: value"},
		"text at the top":   {"token\n", ":1:", "flag: value"},
		"second document":   {"token: a\n---\ntoken: b\n", ":", "second document"},
		"not YAML":          {"token: a\n\t- b: {\n", "config.yaml: not YAML: line", ""},
		"itself":            {"config: /etc/other.yaml\n", ":1:", "on the command line"},
		"not on this page":  {"[a]: b\n", ":1:", "name of a flag"},
	} {
		_, err := try(t, test.config)
		if err == nil || !strings.Contains(err.Error(), "config.yaml") || !strings.Contains(err.Error(), test.line) || !strings.Contains(err.Error(), test.text) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want %q and %q", name, err, test.line, test.text)
		}
	}
	// What the command line wins over must make sense all the same.
	if _, err := try(t, "port: many\n", "--port", "2"); err == nil {
		t.Error("a value that makes no sense passes when a flag wins over it")
	}
}

func TestConfigFileBound(t *testing.T) {
	if _, err := try(t, strings.Repeat("#", maxConfig+1)); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a file beyond the bound: %v", err)
	}
}

// FuzzConfigFile: any file is read or refused with its name in the error, and what
// is read can be read again.
func FuzzConfigFile(f *testing.F) {
	for _, seed := range []string{
		"token:\nwrite-kubeconfig-mode: 0644\n", "node-label: [a=b]\n", "a: &a [*a]\n", "a: &a {b: *a}\n<<: *a\n", "? [a]\n: b\n", "--- a\n--- b\n",
		"token: !!binary |\n  YQ==\n", "{", "\xff\xfe", "a: |+\n\n\n", "token: \"\\x00\"\n", "*a : b\n", "%YAML 1.1\n---\na: 0o1\n",
	} {
		f.Add([]byte(seed))
	}
	flags := append(serverFlags(), boolFlag("flag", ""))
	f.Fuzz(func(t *testing.T, data []byte) {
		settings, err := parseConfig("file", data)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "file:") {
				t.Errorf("%v does not begin with the file", err)
			}
			return
		}
		for _, s := range settings {
			flag := flagNamed(flags, s.name)
			if flag == nil {
				continue
			}
			texts, err := s.texts(flag)
			if err != nil && !strings.HasPrefix(err.Error(), "file:") {
				t.Errorf("%v does not begin with the file", err)
			}
			for _, text := range texts {
				mistyped(flag, text)
			}
		}
	})
}

func TestEnvironment(t *testing.T) {
	flags := serverFlags()
	for name, want := range map[string]string{
		"ORCH_NODENAME": "did you mean ORCH_NODE_NAME?", "ORCH_NODE_NAMES": "did you mean ORCH_NODE_NAME?", "ORCH_HTTP_LISTEN_PORT": "did you mean ORCH_HTTPS_LISTEN_PORT?",
		"ORCH_CLUSTER_CDIR": "did you mean ORCH_CLUSTER_CIDR?", "ORCH_DATADIR": "did you mean ORCH_DATA_DIR?", "ORCH_TOKENS": "did you mean ORCH_TOKEN?",
	} {
		if _, err := checkEnvironment(flags, []string{name + "=x"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	warnings, err := checkEnvironment(flags, []string{
		"ORCH_NODE_NAME=a", "ORCH_URL=a", "ORCH_ROLE=server", "PATH=/", "ORCH=/bin/orch", "ORCH_SERVICE_HOST=10.0.0.1", "ORCH_PORT_6443_TCP_ADDR=a", "ORCH_SOMETHING_ELSE=a",
	})
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "ORCH_SOMETHING_ELSE") {
		t.Errorf("%v, warnings %q", err, warnings)
	}
	t.Setenv("ORCH_LOG_LEVEL", "")
	if err := dropEmptyVariables(); err != nil {
		t.Fatal(err)
	}
	if _, found := os.LookupEnv("ORCH_LOG_LEVEL"); found {
		t.Error("an empty variable counts as given")
	}
}

func TestSecretFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if got, err := secret(contextOf(t, "", "--token-file", write("good", "sesame\n")), "token"); err != nil || got != "sesame" {
		t.Errorf("%q %v", got, err)
	}
	for want, args := range map[string][]string{
		"given both":       {"--token", "a", "--token-file", write("other", "b")},
		"is empty":         {"--token-file", write("empty", "\n")},
		"one token":        {"--token-file", write("two", "a\nb\n")},
		"larger than":      {"--token-file", write("large", strings.Repeat("a", maxTokenFile+1))},
		"no such file":     {"--token-file", filepath.Join(dir, "none")},
		"is a directory":   {"--token-file", dir},
		"--token-file: op": {"--token-file", filepath.Join(dir, "none")},
	} {
		if _, err := secret(contextOf(t, "", args...), "token"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}

func TestSecretSpans(t *testing.T) {
	for line, want := range map[string]string{
		"orch server --token abc --node-name x":  "orch server --token *** --node-name x",
		"orch server -token=abc":                 "orch server -token=***",
		"orch server --agent-token=a --token  b": "orch server --agent-token=* --token  *",
		"orch server --token-file abc":           "orch server --token-file abc",
		"orch server --token":                    "orch server --token",
		"orch server --snapshot-s3-secret-key s": "orch server --snapshot-s3-secret-key *",
	} {
		data := []byte(strings.ReplaceAll(line, " ", "\x00") + "\x00")
		for _, s := range secretSpans(data) {
			for i := s.begin; i < s.end; i++ {
				data[i] = '*'
			}
		}
		if got := strings.TrimSuffix(strings.ReplaceAll(string(data), "\x00", " "), " "); got != want {
			t.Errorf("%q becomes %q, want %q", line, got, want)
		}
	}
}
