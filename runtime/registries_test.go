package runtime

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const registriesYAML = `
mirrors:
  docker.io:
    endpoint: ["https://mirror.example.com:5000", "https://cache.example.com/hub"]
  "*":
    endpoint: ["http://any.example.com"]
configs:
  "mirror.example.com:5000":
    auth: {username: me, password: secret}
    tls: {ca_file: /etc/ca.pem, cert_file: /etc/c.pem, key_file: /etc/k.pem}
  "https://private.example.com":
    tls: {insecure_skip_verify: true}
`

func TestRegistriesHosts(t *testing.T) {
	r, err := parseRegistries("registries.yaml", []byte(registriesYAML))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := r.writeHosts(dir); err != nil {
		t.Fatal(err)
	}
	for folder, want := range map[string][]string{
		"docker.io": {
			`[host.'https://mirror.example.com:5000']`, `ca = '/etc/ca.pem'`, `client = [['/etc/c.pem', '/etc/k.pem']]`,
			`[host.'https://cache.example.com/hub/v2']`, `override_path = true`,
		},
		"_default":            {`[host.'http://any.example.com']`},
		"private.example.com": {`[host.'https://private.example.com']`, `skip_verify = true`},
	} {
		data, err := os.ReadFile(filepath.Join(dir, folder, "hosts.toml"))
		if err != nil {
			t.Error(err)
		}
		for _, w := range want {
			if !strings.Contains(string(data), w) {
				t.Errorf("%s lacks %q:\n%s", folder, w, data)
			}
		}
	}
	if hosts := slices.Collect(maps.Keys(r.credentials())); !slices.Equal(hosts, []string{"mirror.example.com:5000"}) {
		t.Errorf("credentials for %v", hosts)
	}
}

func TestRegistriesRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"unknown field":     "mirrrors: {}",
		"relative endpoint": "mirrors: {docker.io: {endpoint: [mirror]}}",
		"rewrite":           "mirrors: {docker.io: {rewrite: {a: b}}}",
	} {
		if _, err := parseRegistries("registries.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), "registries.yaml") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if r, err := readRegistries(filepath.Join(t.TempDir(), "absent")); err != nil || len(r.hosts()) != 0 {
		t.Errorf("absent file: %v, %v", r, err)
	}
}

func FuzzRegistries(f *testing.F) {
	f.Add([]byte(registriesYAML))
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := parseRegistries("f", data); err == nil {
			r.hosts()
			r.credentials()
		}
	})
}
