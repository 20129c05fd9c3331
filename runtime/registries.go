package runtime

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"sigs.k8s.io/yaml"
)

// registries is registries.yaml, in the form that k3s made known.
type registries struct {
	Mirrors map[string]mirror         `json:"mirrors"`
	Configs map[string]registryConfig `json:"configs"`
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
		if len(m.Rewrite) > 0 {
			return nil, fmt.Errorf("read %s: mirror %q: rewrite is not supported", path, name)
		}
		for _, e := range m.Endpoint {
			if u, err := url.Parse(e); err != nil || u.Host == "" {
				return nil, fmt.Errorf("read %s: mirror %q: endpoint %q is not an absolute URL", path, name, e)
			}
		}
	}
	return r, nil
}

// credentials is the part that goes into the CRI configuration: user names and
// passwords by host.
func (r *registries) credentials() map[string]any {
	configs := map[string]any{}
	for host, c := range r.Configs {
		if c.Auth == nil {
			continue
		}
		configs[hostOf(host)] = map[string]any{"auth": map[string]any{
			"username": c.Auth.Username, "password": c.Auth.Password,
			"auth": c.Auth.Auth, "identitytoken": c.Auth.IdentityToken,
		}}
	}
	return configs
}

// hostsFile is containerd's hosts.toml.
type hostsFile struct {
	Host map[string]hostEntry `toml:"host"`
}

type hostEntry struct {
	Capabilities []string    `toml:"capabilities"`
	CA           string      `toml:"ca,omitempty"`
	Client       [][2]string `toml:"client,omitempty"`
	SkipVerify   bool        `toml:"skip_verify,omitempty"`
	OverridePath bool        `toml:"override_path,omitempty"`
}

// hosts gives the hosts file of each registry by the name of its folder.
func (r *registries) hosts() map[string]hostsFile {
	files := map[string]hostsFile{}
	for name, m := range r.Mirrors {
		entries := map[string]hostEntry{}
		for _, e := range m.Endpoint {
			address, entry := r.entry(e)
			entries[address] = entry
		}
		files[folderOf(name)] = hostsFile{Host: entries}
	}
	for name, c := range r.Configs {
		folder := folderOf(hostOf(name))
		if _, ok := files[folder]; ok || c.TLS == nil {
			continue
		}
		address, entry := r.entry("https://" + hostOf(name))
		files[folder] = hostsFile{Host: map[string]hostEntry{address: entry}}
	}
	return files
}

// entry describes one endpoint, with the TLS settings of its host.
func (r *registries) entry(endpoint string) (string, hostEntry) {
	entry := hostEntry{Capabilities: []string{"pull", "resolve"}}
	u, err := url.Parse(endpoint)
	if err != nil {
		return endpoint, entry
	}
	if tls := r.tlsOf(u.Host); tls != nil {
		entry.CA, entry.SkipVerify = tls.CAFile, tls.InsecureSkipVerify
		if tls.CertFile != "" {
			entry.Client = [][2]string{{tls.CertFile, tls.KeyFile}}
		}
	}
	// containerd adds /v2 itself unless the path is its own.
	if path := strings.TrimSuffix(u.Path, "/"); path != "" && path != "/v2" {
		entry.OverridePath = true
		if !strings.HasSuffix(path, "/v2") {
			path += "/v2"
		}
		u.Path = path
	} else {
		u.Path = ""
	}
	return u.String(), entry
}

func (r *registries) tlsOf(host string) *registryTLS {
	for name, c := range r.Configs {
		if hostOf(name) == host {
			return c.TLS
		}
	}
	return nil
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
		data, err := toml.Marshal(file)
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
	if name == "*" {
		return "_default"
	}
	return hostOf(name)
}
