package runtime

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"sigs.k8s.io/yaml"
)

// wildcard stands for every registry that has no entry of its own; containerd
// has a folder for it.
const (
	wildcard      = "*"
	defaultFolder = "_default"
)

// registries is registries.yaml, in the form that k3s made known.
type registries struct {
	Mirrors map[string]mirror         `json:"mirrors"`
	Configs map[string]registryConfig `json:"configs"`

	local map[mirrorEndpoint]*rewriter // endpoints that are asked through us
}

// mirror lists what is asked before a registry itself. The key "*" stands for
// every registry that has no entry of its own.
type mirror struct {
	Endpoint []string          `json:"endpoint"`
	Rewrite  map[string]string `json:"rewrite"`
}

type registryConfig struct {
	Auth *registryAuth `json:"auth"`
	TLS  *registryTLS  `json:"tls"`
}

type registryAuth struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"` // base64 of username:password
	IdentityToken string `json:"identity_token"`
}

type registryTLS struct {
	CAFile             string `json:"ca_file"`
	CertFile           string `json:"cert_file"`
	KeyFile            string `json:"key_file"`
	InsecureSkipVerify bool   `json:"insecure_skip_verify"`
}

// readRegistries reads the file at path; none is the same as an empty one.
func readRegistries(path string) (*registries, error) {
	if path == "" {
		return &registries{}, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return &registries{}, nil
	}
	if err != nil {
		return nil, err
	}
	return parseRegistries(path, data)
}

func parseRegistries(path string, data []byte) (*registries, error) {
	r := &registries{}
	if err := yaml.UnmarshalStrict(data, r); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	for name, m := range r.Mirrors {
		if err := m.validate(); err != nil {
			return nil, fmt.Errorf("read %s: mirror %q: %w", path, name, err)
		}
		if !isRegistry(name) {
			return nil, fmt.Errorf("read %s: mirror %q: use a registry's host and port, or \"*\" for all others", path, name)
		}
	}
	for name, c := range r.Configs {
		if err := c.validate(name); err != nil {
			return nil, fmt.Errorf("read %s: config %q: %w", path, name, err)
		}
		if !isRegistry(name) {
			return nil, fmt.Errorf("read %s: config %q: use a registry's host and port, or \"*\" for all others", path, name)
		}
	}
	return r, nil
}

func (m mirror) validate() error {
	for _, e := range m.Endpoint {
		if u, err := url.Parse(e); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("endpoint %q is not an absolute URL with http or https", e)
		}
	}
	for pattern := range m.Rewrite {
		if _, err := regexp.Compile(pattern); err != nil {
			return fmt.Errorf("rewrite %q is not a regular expression: %w", pattern, err)
		}
	}
	return nil
}

func (c registryConfig) validate(name string) error {
	switch {
	case c.Auth != nil && name == wildcard:
		return errors.New("auth needs a registry of its own: name it in place of \"*\"")
	case c.TLS != nil && (c.TLS.CertFile == "") != (c.TLS.KeyFile == ""):
		return errors.New("tls needs cert_file and key_file together")
	}
	return nil
}

// isRegistry tells whether text can be a registry's name, which becomes that of
// a folder.
func isRegistry(name string) bool {
	host := hostOf(name)
	return name == wildcard || host != "" && host != "." && host != ".." && !strings.ContainsAny(host, "/\\ \x00") && host != defaultFolder
}

// credentials is the part that goes into the CRI configuration: user names and
// passwords by host.
func (r *registries) credentials() map[string]any {
	configs := map[string]any{}
	for host, c := range r.Configs {
		if c.Auth == nil {
			continue
		}
		auth := map[string]any{"auth": map[string]any{
			"username": c.Auth.Username, "password": c.Auth.Password,
			"auth": c.Auth.Auth, "identitytoken": c.Auth.IdentityToken,
		}}
		configs[hostOf(host)] = auth
		if hostOf(host) == dockerHub[0] { // whose credentials are asked for by the other name
			if other := r.Configs[dockerHub[1]]; other.Auth == nil {
				configs[dockerHub[1]] = auth
			}
		}
	}
	for at, w := range r.local {
		target, err := url.Parse(at.endpoint)
		if auth := configs[target.Host]; err == nil && auth != nil {
			configs[w.listener.Addr().String()] = auth
		}
	}
	return configs
}

// hostsFile is containerd's hosts.toml: whom to ask, in this order, and then
// the registry itself.
type hostsFile struct {
	endpoints []hostEntry
	own       hostEntry // of the registry itself
}

type hostEntry struct {
	URL          string      `toml:"-"`
	Capabilities []string    `toml:"capabilities,omitempty"`
	CA           string      `toml:"ca,omitempty"`
	Client       [][2]string `toml:"client,omitempty"`
	SkipVerify   *bool       `toml:"skip_verify,omitempty"`
	OverridePath bool        `toml:"override_path,omitempty"`
}

// hosts gives the hosts file of each registry by the name of its folder. A
// registry that has no mirrors of its own has those of "*".
func (r *registries) hosts() map[string]hostsFile {
	files := map[string]hostsFile{}
	add := func(name, of string) {
		file := hostsFile{own: r.settings(hostOf(name))}
		for _, e := range r.Mirrors[of].Endpoint {
			entry := r.entry(e)
			if w := r.local[mirrorEndpoint{of, e}]; w != nil {
				entry.URL, entry.OverridePath = w.URL, true
			}
			if !slices.ContainsFunc(file.endpoints, func(other hostEntry) bool { return other.URL == entry.URL }) {
				file.endpoints = append(file.endpoints, entry)
			}
		}
		files[folderOf(name)] = file
	}
	for name := range r.Configs {
		add(name, wildcard)
	}
	for name := range r.Mirrors {
		add(name, name)
	}
	return files
}

// entry describes one endpoint, with the TLS settings of its host.
func (r *registries) entry(endpoint string) hostEntry {
	u, err := url.Parse(endpoint)
	if err != nil {
		return hostEntry{URL: endpoint} // validated
	}
	entry := r.settings(u.Host)
	entry.Capabilities = []string{"pull", "resolve"}
	// containerd adds /v2 itself unless the path is its own.
	u.Path = strings.TrimSuffix(u.Path, "/")
	if u.Path == "/v2" {
		u.Path = ""
	}
	entry.OverridePath = u.Path != ""
	entry.URL = u.String()
	return entry
}

// settings gives the TLS settings of a host: its own, or those of "*".
func (r *registries) settings(host string) hostEntry {
	config, own := r.Configs[wildcard], false
	for name, c := range r.Configs {
		if name != wildcard && !own && sameRegistry(hostOf(name), host) {
			config, own = c, hostOf(name) == host // the very name wins
		}
	}
	var entry hostEntry
	if tls := config.TLS; tls != nil {
		entry.CA = tls.CAFile
		if tls.InsecureSkipVerify {
			entry.SkipVerify = &tls.InsecureSkipVerify
		}
		if tls.CertFile != "" {
			entry.Client = [][2]string{{tls.CertFile, tls.KeyFile}}
		}
	}
	return entry
}

// sameRegistry knows that Docker Hub has two names.
func sameRegistry(a, b string) bool {
	return a == b || slices.Contains(dockerHub, a) && slices.Contains(dockerHub, b)
}

var dockerHub = []string{"docker.io", "registry-1.docker.io"}

// text is the file. Its order is that in which containerd asks, so that it
// cannot be made of a map.
func (f hostsFile) text() ([]byte, error) {
	text, err := toml.Marshal(f.own)
	if err != nil {
		return nil, err
	}
	for _, e := range f.endpoints {
		name, err := toml.Marshal(map[string]string{"server": e.URL})
		if err != nil {
			return nil, err
		}
		_, quoted, _ := strings.Cut(strings.TrimSpace(string(name)), " = ")
		part, err := toml.Marshal(e)
		if err != nil {
			return nil, err
		}
		text = fmt.Appendf(text, "\n[host.%s]\n%s", quoted, part)
	}
	if len(text) == 0 {
		return []byte("# nothing but the registry itself\n"), nil
	}
	return text, nil
}

// writeHosts replaces the folders under dir.
func (r *registries) writeHosts(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for folder, file := range r.hosts() {
		data, err := file.text()
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, folder, "hosts.toml"), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// hostOf strips the scheme that some write in front of a registry's name.
func hostOf(name string) string {
	if _, host, ok := strings.Cut(name, "://"); ok {
		name = host
	}
	return strings.TrimSuffix(name, "/")
}

func folderOf(name string) string {
	if name == wildcard {
		return defaultFolder
	}
	return hostOf(name)
}
