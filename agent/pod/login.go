package pod

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// login is one entry of a Docker config file.
type login struct {
	Username string `json:"username"`
	Password string `json:"password"`
	Auth     string `json:"auth"` // base64 of user:password, in place of the two

	source pullSecret
}

// logins gives the credentials of the pod's pull secrets that fit an image,
// the most specific first.
func (m *Manager) logins(ctx context.Context, pod *corev1.Pod, image string) ([]credential, error) {
	known := make(map[string][]login)
	for _, ref := range pod.Spec.ImagePullSecrets {
		secret, err := m.cfg.Objects.Secret(ctx, pod.Namespace, ref.Name)
		if apierrors.IsNotFound(err) { // the image may be public
			m.cfg.Events.Event(objectReference(pod, nil), corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
				fmt.Sprintf("Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", ref.Name))
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read image pull secret: %w", err)
		}
		for registry, l := range secretLogins(secret) {
			l.source = pullSecret{UID: secret.UID, Namespace: secret.Namespace, Name: secret.Name}
			known[registryKey(registry)] = append(known[registryKey(registry)], l)
		}
	}
	var out []credential
	for _, l := range fitting(known, repository(image)) {
		c := credential{auth: &runtimeapi.AuthConfig{Username: l.Username, Password: l.Password}, source: l.source}
		c.source.Hash = loginHash(c.auth)
		out = append(out, c)
	}
	return out, nil
}

// secretLogins reads a pull secret by registry; what is malformed is left out.
func secretLogins(s *corev1.Secret) map[string]login {
	var all map[string]login
	switch s.Type {
	case corev1.SecretTypeDockerConfigJson:
		var file struct {
			Auths map[string]login `json:"auths"`
		}
		if json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &file) != nil {
			return nil
		}
		all = file.Auths
	case corev1.SecretTypeDockercfg:
		if json.Unmarshal(s.Data[corev1.DockerConfigKey], &all) != nil {
			return nil
		}
	}
	for registry, l := range all {
		if l.Auth == "" {
			continue
		}
		raw, err := base64.StdEncoding.DecodeString(l.Auth)
		user, password, ok := strings.Cut(string(raw), ":")
		if err != nil || !ok {
			delete(all, registry)
			continue
		}
		all[registry] = login{Username: user, Password: strings.TrimRight(password, "\x00")}
	}
	return all
}

// registryKey reduces a registry's URL to host and path.
func registryKey(registry string) string {
	if !strings.Contains(registry, "://") {
		registry = "https://" + registry
	}
	u, err := url.Parse(registry)
	if err != nil {
		return registry
	}
	p := u.Path
	if strings.HasPrefix(p, "/v1/") || strings.HasPrefix(p, "/v2/") {
		p = p[3:]
	}
	return u.Host + strings.TrimSuffix(p, "/")
}

// fitting gives the logins whose key matches repo, the longest key first.
func fitting(known map[string][]login, repo string) []login {
	var keys []string
	for key := range known {
		if registryMatches(key, repo) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	var out []login
	for _, key := range keys {
		out = append(out, known[key]...)
	}
	return out
}

// registryMatches holds a key, whose host may have wildcards within its parts,
// against a repository.
func registryMatches(key, repo string) bool {
	keyHost, keyPath, _ := strings.Cut(key, "/")
	host, rest, _ := strings.Cut(repo, "/")
	if keyHost == "index.docker.io" || keyHost == "registry-1.docker.io" {
		keyHost = "docker.io"
	}
	if !strings.HasPrefix(rest, keyPath) {
		return false
	}
	want, got := strings.Split(keyHost, "."), strings.Split(host, ".")
	if len(want) != len(got) {
		return false
	}
	for i := range want {
		if ok, err := path.Match(want[i], got[i]); err != nil || !ok {
			return false
		}
	}
	return true
}
