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
  plain.example.com:
  docker.io:
    auth: {username: hub, password: secret}
  "*":
    tls: {ca_file: /etc/all.pem}
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
			`[host.'https://cache.example.com/hub']`, `override_path = true`,
		},
		"_default":            {"ca = '/etc/all.pem'\n\n[host.'http://any.example.com']"},
		"private.example.com": {"skip_verify = true\n\n[host.'http://any.example.com']"},
		"plain.example.com":   {"\n[host.'http://any.example.com']"},
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
	if hosts := slices.Sorted(maps.Keys(r.credentials())); !slices.Equal(hosts, []string{"docker.io", "mirror.example.com:5000", "registry-1.docker.io"}) {
		t.Errorf("credentials for %v", hosts)
	}
}

func TestRegistriesRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"unknown field":     "mirrrors: {}",
		"relative endpoint": "mirrors: {docker.io: {endpoint: [mirror]}}",
		"scheme":            "mirrors: {docker.io: {endpoint: ['ftp://mirror']}}",
		"rewrite":           "mirrors: {docker.io: {rewrite: {'(': b}}}",
		"given twice":       "mirrors: {docker.io: {}, docker.io: {}}",
		"a path as name":    "mirrors: {../../etc: {}}",
		"auth for all":      "configs: {'*': {auth: {username: a}}}",
		"cert without key":  "configs: {a: {tls: {cert_file: /c}}}",
	} {
		if _, err := parseRegistries("registries.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), "registries.yaml") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if r, err := readRegistries(filepath.Join(t.TempDir(), "absent")); err != nil || len(r.hosts()) != 0 {
		t.Errorf("absent file: %v, %v", r, err)
	}
}

func TestRegistriesOrder(t *testing.T) {
	r, err := parseRegistries("f", []byte("mirrors: {docker.io: {endpoint: ['http://b:5002', 'http://a:5001', 'http://b:5002/v2/']}}"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := r.hosts()["docker.io"].text()
	if b, a := strings.Index(string(text), "http://b:5002"), strings.Index(string(text), "http://a:5001"); err != nil || b < 0 || a < b || strings.Count(string(text), "[host") != 2 {
		t.Errorf("%s %v", text, err)
	}
}

func TestRewritePath(t *testing.T) {
	rules := map[string]string{"^library/(.*)$": "hub/$1", "^(.*)/manifests$": "$1/m"}
	for request, want := range map[string]string{
		"library/redis/manifests/7":           "hub/redis/manifests/7",
		"library/manifests/blobs/sha256:ab":   "library/m/blobs/sha256:ab",
		"other/manifests/manifests/1":         "other/m/manifests/1",
		"other/redis/manifests/7":             "other/redis/manifests/7",
		"":                                    "",
		"library/redis/referrers/sha256:ab":   "hub/redis/referrers/sha256:ab",
		"library/redis/blobs/uploads/some-id": "hub/redis/blobs/uploads/some-id",
	} {
		if got := rewritePath(request, rules); got != want {
			t.Errorf("%s becomes %s, want %s", request, got, want)
		}
	}
}

func FuzzRegistries(f *testing.F) {
	f.Add([]byte(registriesYAML))
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := parseRegistries("f", data); err == nil {
			for _, file := range r.hosts() {
				if _, err := file.text(); err != nil {
					t.Error(err)
				}
			}
			r.credentials()
		}
	})
}
