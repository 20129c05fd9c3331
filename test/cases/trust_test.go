package cases

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"orch/internal/joining"
	"orch/internal/pki"
	"orch/test/cluster"
)

// party is somebody who speaks to a cluster.
type party struct {
	*kubernetes.Clientset
	config *rest.Config
}

func partyOf(t *testing.T, config *rest.Config, err error) party {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return party{client, config}
}

// administrator of the server's cluster.
func administrator(t *testing.T, server *cluster.Node) party {
	config, err := server.Config()
	return partyOf(t, config, err)
}

// thief has the key of a node and all that it opens.
func thief(t *testing.T, server, node *cluster.Node) party {
	t.Helper()
	dir := filepath.Join(node.DataDir(), "agent")
	text, err := os.ReadFile(filepath.Join(dir, "node.json"))
	if err != nil {
		t.Fatal(err)
	}
	kept := joining.Answer{}
	if err := json.Unmarshal(text, &kept); err != nil {
		t.Fatal(err)
	}
	config, err := server.Config()
	if err == nil {
		config = rest.AnonymousClientConfig(config)
		config.CertData, config.KeyFile = []byte(kept.ClientCertificate), filepath.Join(dir, "node.key")
	}
	return partyOf(t, config, err)
}

// get asks for a path as somebody else ("": as itself).
func (p party) get(t *testing.T, path, as string) int {
	t.Helper()
	client, err := rest.HTTPClientFor(p.config)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.config.Host+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if as != "" {
		req.Header.Set("Impersonate-User", as)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func forbidden(t *testing.T, err error, want string) {
	t.Helper()
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want Forbidden: …%s…", err, want)
	}
}

// A pod has the zone and the region of its node, whoever placed it there.
func TestApi07TopologyLabels(t *testing.T) {
	t.Parallel()
	server := cluster.Start(t)
	if err := server.ImportBusybox(); err != nil {
		t.Fatal(err)
	}
	kubectl := func(args ...string) (string, error) { return server.Kubectl(t.Context(), args...) }
	if out, err := kubectl("label", "node", server.Name, "topology.kubernetes.io/zone=z1", "topology.kubernetes.io/region=r1"); err != nil {
		t.Fatal(out, err)
	}
	text, err := os.ReadFile("testdata/api-07-topology-labels-not-copied.yaml")
	if err != nil {
		t.Fatal(err)
	}
	yaml := strings.ReplaceAll(string(text), "local.test/bb:1", cluster.BusyboxRef)
	if out, err := server.KubectlInput(t.Context(), strings.NewReader(yaml), "apply", "-f", "-"); err != nil {
		t.Fatal(out, err)
	}
	if out, err := kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s", "pod/topo"); err != nil {
		described, _ := kubectl("describe", "pod", "topo")
		t.Fatal(out, err, described)
	}
	labels, err := kubectl("get", "pod", "topo", "-o", "jsonpath={.metadata.labels}")
	if err != nil || !strings.Contains(labels, `"topology.kubernetes.io/zone":"z1"`) || !strings.Contains(labels, `"topology.kubernetes.io/region":"r1"`) {
		t.Errorf("labels %s, %v", labels, err)
	}
	if log, err := kubectl("logs", "topo"); err != nil || strings.TrimSpace(log) != "zone z1" {
		t.Errorf("log %q, %v", log, err)
	}
}

// What a node says of itself is believed within bounds.
func TestNodesWord(t *testing.T) {
	t.Parallel()
	server := cluster.Start(t)
	admin, node := administrator(t, server), thief(t, server, server)
	ctx := t.Context()
	nodes := node.CoreV1().Nodes()

	patch := func(text string, sub ...string) error {
		_, err := nodes.Patch(ctx, server.Name, types.MergePatchType, []byte(text), metav1.PatchOptions{}, sub...)
		return err
	}
	for _, share := range []string{"10.42.0.0/16", "10.43.0.0/24", "10.42.200.0/24"} {
		forbidden(t, patch(fmt.Sprintf(`{"spec":{"podCIDR":%q,"podCIDRs":[%q]}}`, share, share)), "is not allowed to modify spec.podCIDR")
	}
	for address, want := range map[string]string{
		"127.0.0.1": "no address by which others could reach", "169.254.169.254": "no address by which others could reach", "224.0.0.1": "no address by which",
		"10.43.0.1": "is an address of services", "10.43.0.10": "is an address of services", "10.42.7.7": "is an address of pods",
	} {
		forbidden(t, patch(fmt.Sprintf(`{"status":{"addresses":[{"type":"InternalIP","address":%q}]}}`, address), "status"), want)
	}
	for _, name := range []string{"kubernetes.default.svc", "kubernetes", "other"} {
		forbidden(t, patch(fmt.Sprintf(`{"status":{"addresses":[{"type":"InternalDNS","address":%q}]}}`, name), "status"), "is not the name of node")
	}
	t.Run("tokens", func(t *testing.T) { nodeTokens(t, admin, node, server.Name) })
	t.Run("certificates", func(t *testing.T) { nodeCertificates(t, admin, node, server.Name) })
}

func nodeTokens(t *testing.T, admin, node party, name string) {
	pod, err := admin.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "here"},
		Spec:       corev1.PodSpec{NodeName: name, Containers: []corev1.Container{{Name: "c", Image: "orch.local/hello"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(spec authenticationv1.TokenRequestSpec) error {
		_, err := node.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
		return err
	}
	bound := &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}
	forbidden(t, ask(authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To[int64](10 * 365 * 24 * 3600)}), "node requested token not bound to a pod")
	forbidden(t, ask(authenticationv1.TokenRequestSpec{BoundObjectRef: bound, Audiences: []string{"vault"}}), `is not authorized to request tokens for audience "vault"`)
	if err := ask(authenticationv1.TokenRequestSpec{BoundObjectRef: bound}); err != nil {
		t.Errorf("the token that the pod's volume needs: %v", err)
	}
}

// nodeCertificates asks for certificates that others would be taken for by, and
// has an administrator approve all of them.
func nodeCertificates(t *testing.T, admin, node party, name string) {
	ctx := t.Context()
	key, err := pki.LoadOrCreateKey(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	for i, test := range []struct {
		names     []string
		addresses []string
		refused   string
	}{
		{names: []string{"kubernetes"}, refused: `DNS subjectAltName "kubernetes" is neither`},
		{names: []string{name, "kubernetes.default.svc"}, refused: `DNS subjectAltName "kubernetes.default.svc" is neither`},
		{addresses: []string{"10.43.0.1"}, refused: `IP subjectAltName "10.43.0.1" is not an address of`},
		{names: []string{name}},
	} {
		request := servingRequest(t, key, name, test.names, test.addresses)
		csr := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("csr-", i)}, Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: request, SignerName: certificatesv1.KubeletServingSignerName,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth},
		}}
		requests := admin.CertificatesV1().CertificateSigningRequests()
		if csr, err = node.CertificatesV1().CertificateSigningRequests().Create(ctx, csr, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Hurry"}}
		if _, err = requests.UpdateApproval(ctx, csr.Name, csr, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		until(t, func() error {
			csr, err := requests.Get(ctx, csr.Name, metav1.GetOptions{})
			last := certificatesv1.CertificateSigningRequestCondition{}
			if err == nil {
				last = csr.Status.Conditions[len(csr.Status.Conditions)-1]
			}
			failed := last.Type == certificatesv1.CertificateFailed
			if test.refused != "" && failed && strings.Contains(last.Message, test.refused) || test.refused == "" && len(csr.Status.Certificate) > 0 {
				return err
			}
			return fmt.Errorf("%s: %v, %v", csr.Name, last, err)
		})
	}
}

func servingRequest(t *testing.T, key *ecdsa.PrivateKey, node string, names, addresses []string) []byte {
	t.Helper()
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}}, DNSNames: names}
	for _, a := range addresses {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(a))
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// until looks until ok gives no error.
func until(t *testing.T, ok func() error) {
	t.Helper()
	again, end := time.NewTicker(100*time.Millisecond), time.After(time.Minute)
	defer again.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-again.C:
		case <-end:
			t.Fatal(err)
		}
	}
}

// What goes on beside admission: there is one way to each effect.
func TestDoorsBesideAdmission(t *testing.T) {
	t.Parallel()
	server := cluster.Start(t)
	admin := administrator(t, server)
	ctx := t.Context()
	t.Run("labels of roles", func(t *testing.T) { labelsOfRoles(t, admin) })
	t.Run("impersonation", func(t *testing.T) {
		for _, path := range []string{"/v1-orch/members", "/v1-orch/podnet", "/v1-orch/snapshots", "/v1-orch/tokens/rotate"} {
			if code := admin.get(t, path, "nobody"); code != http.StatusForbidden {
				t.Errorf("%s as nobody: %d", path, code)
			}
		}
		if code := admin.get(t, "/v1-orch/members", ""); code != http.StatusOK {
			t.Errorf("as administrator: %d", code)
		}
		if code := admin.get(t, "/v1-orch/members", "system:admin"); code != http.StatusForbidden {
			t.Errorf("as an administrator's name without its groups: %d", code)
		}
	})
	t.Run("records of credentials", func(t *testing.T) {
		secrets := admin.CoreV1().Secrets(metav1.NamespaceSystem)
		if err := admin.CoreV1().RESTClient().Post().AbsPath("/v1-orch/tokens/rotate").Body([]byte(`{"agent":true}`)).Do(ctx).Error(); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"orch-join-tokens", "node-key." + server.Name} {
			forbidden(t, secrets.Delete(ctx, name, metav1.DeleteOptions{}), "the servers' own record")
			_, err := secrets.Patch(ctx, name, types.MergePatchType, []byte(`{"metadata":{"ownerReferences":[]},"data":null}`), metav1.PatchOptions{})
			forbidden(t, err, "the servers' own record")
		}
		if err := secrets.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err == nil {
			t.Error("all Secrets of kube-system at once")
		}
		_, err := secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "node-key.other"}}, metav1.CreateOptions{})
		forbidden(t, err, "the servers' own record")
		if _, err := secrets.Get(ctx, "orch-join-tokens", metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// labelsOfRoles: who may patch roles and no more does not become powerful by
// having a powerful one gathered into its own.
func labelsOfRoles(t *testing.T, admin party) {
	ctx := t.Context()
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "patcher"}, Rules: []rbacv1.PolicyRule{
		{Verbs: []string{"get", "patch", "update"}, APIGroups: []string{rbacv1.GroupName}, Resources: []string{"clusterroles"}},
	}}
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "patcher"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "patcher"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "ann"}}}
	_, err := admin.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{})
	if err == nil {
		_, err = admin.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	config := rest.CopyConfig(admin.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: "ann"}
	ann := partyOf(t, config, nil)
	for _, label := range []string{"view", "edit", "admin"} {
		patch := fmt.Sprintf(`{"metadata":{"labels":{"rbac.authorization.k8s.io/aggregate-to-%s":"true"}}}`, label)
		until(t, func() error { // her right to patch reaches the authorizer first
			_, err := ann.RbacV1().ClusterRoles().Patch(ctx, "cluster-admin", types.MergePatchType, []byte(patch), metav1.PatchOptions{})
			if apierrors.IsForbidden(err) && strings.Contains(err.Error(), "is attempting to grant RBAC permissions not currently held") {
				return nil
			}
			return fmt.Errorf("got %v", err)
		})
	}
	if _, err := ann.RbacV1().ClusterRoles().Patch(ctx, "patcher", types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{}); err != nil {
		t.Errorf("a role whose rights she has: %v", err)
	}
}

// A node that is removed hears and says nothing more, on what it has open either.
func TestRemovedNodeHearsNothing(t *testing.T) {
	t.Parallel()
	server := cluster.Start(t)
	agent, err := server.Network().NewAgent(server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := agent.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := agent.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	node := thief(t, server, agent)
	events, err := node.CoreV1().Services("").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()
	podnet, err := node.CoreV1().RESTClient().Get().AbsPath("/v1-orch/podnet").Stream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer podnet.Close()
	if out, err := server.Kubectl(ctx, "delete", "node", agent.Name); err != nil {
		t.Fatal(out, err)
	}
	for open := true; open; {
		select {
		case _, open = <-events.ResultChan():
		case <-ctx.Done():
			t.Fatal("the watch of a removed node goes on")
		}
	}
	for buffer, err := make([]byte, 4096), error(nil); err == nil; {
		if _, err = podnet.Read(buffer); errors.Is(err, context.DeadlineExceeded) {
			t.Fatal("the stream of a removed node goes on")
		}
	}
	if _, err := node.CoreV1().Services("").List(t.Context(), metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("a request of a removed node: %v", err)
	}
	_, err = administrator(t, server).CoreV1().Secrets(metav1.NamespaceSystem).Patch(ctx, "node-key."+agent.Name, types.MergePatchType, []byte(`{"data":{"sha256":"YQ=="}}`), metav1.PatchOptions{})
	forbidden(t, err, "the servers' own record")
}
