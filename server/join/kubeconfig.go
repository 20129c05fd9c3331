package join

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	clientcmdv1 "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"

	"orch/internal/pki"
)

// Kubeconfig says where a kubeconfig goes and what is in it.
type Kubeconfig struct {
	Path   string
	Mode   os.FileMode // 0: 0600
	Server string      // "https://127.0.0.1:6443"
}

// Write gives the administrator a kubeconfig with a new client certificate. A
// failure names the path and the flag that moves it.
func (k Kubeconfig) Write(ca *pki.Authority, now time.Time) error {
	pair, err := ca.Issue(pki.AdminProfile(), now)
	if err != nil {
		return fmt.Errorf("admin certificate: %w", err)
	}
	data, err := encodeKubeconfig(k.Server, ca.PEM(), pair)
	if err != nil {
		return err
	}
	mode := k.Mode
	if mode == 0 {
		mode = 0o600
	}
	// Users other than root may read the kubeconfig when its mode allows it.
	err = os.MkdirAll(filepath.Dir(k.Path), 0o755)
	if err == nil {
		err = pki.WriteFile(k.Path, data, mode)
	}
	return k.explain(err)
}

func (k Kubeconfig) explain(err error) error {
	if err == nil {
		return nil
	}
	reason := "check that its folder exists and is writable"
	switch {
	case errors.Is(err, syscall.EROFS):
		reason = "its file system is read-only"
	case errors.Is(err, fs.ErrPermission):
		reason = "this user may not write there"
	case errors.Is(err, syscall.ENOSPC):
		reason = "its file system is full"
	}
	return fmt.Errorf("write kubeconfig %s: %w: %s; choose another place with --write-kubeconfig", k.Path, err, reason)
}

func encodeKubeconfig(server string, caPEM []byte, pair *pki.Pair) ([]byte, error) {
	const name = "orch"
	config := clientcmdv1.Config{
		APIVersion:     "v1",
		Kind:           "Config",
		CurrentContext: name,
		Clusters: []clientcmdv1.NamedCluster{{Name: name, Cluster: clientcmdv1.Cluster{
			Server: server, CertificateAuthorityData: caPEM,
		}}},
		AuthInfos: []clientcmdv1.NamedAuthInfo{{Name: name, AuthInfo: clientcmdv1.AuthInfo{
			ClientCertificateData: pair.Cert, ClientKeyData: pair.Key,
		}}},
		Contexts: []clientcmdv1.NamedContext{{Name: name, Context: clientcmdv1.Context{Cluster: name, AuthInfo: name}}},
	}
	data, err := yaml.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encode kubeconfig: %w", err)
	}
	return data, nil
}
