package admission

import (
	"context"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/internal/pki"
	"orch/server/auth"
	"orch/server/registry"
)

func TestNodeRestriction(t *testing.T) {
	r := newRegistry(t, nodeRestriction{})
	create(t, r, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: corev1.NamespaceNodeLease}})
	create(t, r, pod("mine", func(p *corev1.Pod) { p.Spec.NodeName = "n1" }))
	create(t, r, pod("theirs", func(p *corev1.Pod) { p.Spec.NodeName = "n2" }))
	ctx := as("system:node:n1", "system:nodes", "system:authenticated")

	nodes, pods := registry.Of[*corev1.Node](r), registry.Of[*corev1.Pod](r)
	_, err := nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}})
	wantForbidden(t, err, `node "n1" is not allowed to modify node "n2"`)
	_, err = nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"node-role.kubernetes.io/control-plane": ""}}})
	wantForbidden(t, err, `node "n1" is not allowed to set the following labels: node-role.kubernetes.io/control-plane`)
	if _, err = nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelHostname: "n1", "example.com/x": "y"}}}); err != nil {
		t.Fatal(err)
	}
	_, err = nodes.Mutate(ctx, "", "n1", func(n *corev1.Node) error {
		n.Spec.Taints = []corev1.Taint{{Key: "a", Effect: corev1.TaintEffectNoSchedule}}
		return nil
	})
	wantForbidden(t, err, `node "n1" is not allowed to modify taints`)

	_, err = pods.Create(ctx, pod("new"))
	wantForbidden(t, err, `pod does not have "kubernetes.io/config.mirror" annotation, node "n1" can only create mirror pods`)
	wantForbidden(t, pods.Delete(ctx, "ns", "theirs", metav1.DeleteOptions{}), `node "n1" can only delete pods with spec.nodeName set to itself`)
	status := func(name string) error {
		_, err := pods.MutateStatus(ctx, "ns", name, func(p *corev1.Pod) error {
			p.Status.Phase = corev1.PodRunning
			return nil
		})
		return err
	}
	wantForbidden(t, status("theirs"), `node "n1" can only update pod status for pods with spec.nodeName set to itself`)
	if err := status("mine"); err != nil {
		t.Error(err)
	}
	lease := func(name string) error {
		_, err := registry.Of[*coordinationv1.Lease](r).Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: name}})
		return err
	}
	wantForbidden(t, lease("n2"), "can only access node lease with the same name as the requesting node")
	if err := lease("n1"); err != nil {
		t.Error(err)
	}
	if _, err := nodes.Create(as("admin", "system:masters"), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n3"}}); err != nil {
		t.Errorf("others are not restricted: %v", err)
	}
}

func TestNodeToken(t *testing.T) {
	r := newRegistry(t, serviceAccount{})
	create(t, r, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "default"}})
	mine := create(t, r, pod("mine", func(p *corev1.Pod) { p.Spec.NodeName = "n1" }))
	theirs := create(t, r, pod("theirs", func(p *corev1.Pod) { p.Spec.NodeName = "n2" }))
	ask := func(p *corev1.Pod, audiences ...string) error {
		request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: audiences}}
		if p != nil {
			request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID}
		}
		return nodeRestriction{authorizer: allow{}}.Admit(as("system:node:n1", "system:nodes"), &registry.Attempt{
			Registry: r, Resource: r.Lookup("", "v1", "serviceaccounts"), Subresource: "token", Operation: registry.OperationCreate,
			Namespace: "ns", Name: "default", Object: request,
		})
	}
	for want, err := range map[string]error{
		"": ask(mine),
		"node requested token not bound to a pod":                           ask(nil),
		"node requested token bound to a pod scheduled on a different node": ask(theirs),
		`not authorized to request tokens for audience "vault"`:             ask(mine, "vault"),
	} {
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestRBACEscalation(t *testing.T) {
	index := auth.NewRBAC()
	plugin := rbacEscalation{auth.Escalation{RBAC: index, Authorizer: index}}
	r := newRegistry(t, plugin)
	read := []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"pods"}}}
	index.OnRole(nil, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "reader"}, Rules: read}, false)
	index.OnClusterRole(nil, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "powerful"},
		Rules: []rbacv1.PolicyRule{{Verbs: []string{"get", "delete"}, APIGroups: []string{""}, Resources: []string{"pods"}}}}, false)
	index.OnRoleBinding(nil, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "b"},
		RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "reader"}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "ann"}}}, false)
	ann := as("ann", "dev")

	roles, bindings := registry.Of[*rbacv1.Role](r), registry.Of[*rbacv1.RoleBinding](r)
	if _, err := roles.Create(ann, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "same"}, Rules: read}); err != nil {
		t.Error(err)
	}
	more := []rbacv1.PolicyRule{{Verbs: []string{"get", "list", "watch"}, APIGroups: []string{""}, Resources: []string{"pods", "secrets"}}}
	_, err := roles.Create(ann, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "more"}, Rules: more})
	wantForbidden(t, err, `roles.rbac.authorization.k8s.io "more" is forbidden: user "ann" (groups=["dev"]) is attempting to grant RBAC permissions not currently held:
{APIGroups:[""], Resources:["pods"], Verbs:["list" "watch"]}
{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list" "watch"]}`)

	binding := func(role string) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "to-" + role},
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "bob"}}}
	}
	_, err = bindings.Create(ann, binding("powerful"))
	wantForbidden(t, err, `{APIGroups:[""], Resources:["pods"], Verbs:["delete"]}`)
	if _, err = bindings.Create(ann, binding("absent")); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `"absent" not found`) {
		t.Errorf("missing role: %v", err)
	}
	index.OnClusterRole(nil, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "binder"}, Rules: []rbacv1.PolicyRule{
		{Verbs: []string{"bind"}, APIGroups: []string{rbacv1.GroupName}, Resources: []string{"clusterroles"}, ResourceNames: []string{"powerful"}}}}, false)
	index.OnRoleBinding(nil, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"},
		RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "binder"}, Subjects: []rbacv1.Subject{{Kind: "Group", Name: "dev"}}}, false)
	if _, err = bindings.Create(ann, binding("powerful")); err != nil {
		t.Errorf("with the right to bind: %v", err)
	}
	aggregate := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "all"}, AggregationRule: &rbacv1.AggregationRule{
		ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"a": "b"}}}}}
	_, err = registry.Of[*rbacv1.ClusterRole](r).Create(ann, aggregate)
	wantForbidden(t, err, "must have cluster-admin privileges to use the aggregationRule")
}

func TestCertificates(t *testing.T) {
	key, err := pki.LoadOrCreateKey(t.TempDir() + "/key")
	if err != nil {
		t.Fatal(err)
	}
	request := func(groups ...string) []byte {
		data, err := pki.NewRequest(key, "ann", groups)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	allowed := allow{"approve kubernetes.io/kube-apiserver-client": true, "sign kubernetes.io/*": true}
	csr := func(data []byte) *certificatesv1.CertificateSigningRequest {
		return &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Spec: certificatesv1.CertificateSigningRequestSpec{
			SignerName: certificatesv1.KubeAPIServerClientSignerName, Request: data, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
		}}
	}
	resource := &registry.Resource{Group: "certificates.k8s.io", Plural: "certificatesigningrequests"}
	subject := func(groups ...string) error {
		return certificateSubject{}.Admit(t.Context(), &registry.Attempt{Resource: resource, Operation: registry.OperationCreate, Object: csr(request(groups...))})
	}
	if err := subject("dev"); err != nil {
		t.Error(err)
	}
	if err := subject("system:masters"); err == nil || err.Error() != "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed" {
		t.Errorf("masters: %v", err)
	}
	decide := func(signer, subresource string) error {
		old := csr(nil)
		old.Spec.SignerName = signer
		now := old.DeepCopy()
		now.Status.Certificate = []byte("x")
		return certificateApproval{allowed}.Admit(as("ann"), &registry.Attempt{Resource: resource, Subresource: subresource, Operation: registry.OperationUpdate, Object: now, Old: old})
	}
	for _, test := range []struct{ signer, subresource, refusal string }{
		{"kubernetes.io/kube-apiserver-client", "approval", ""},
		{"kubernetes.io/kubelet-serving", "approval", `user not permitted to approve requests with signerName "kubernetes.io/kubelet-serving"`},
		{"kubernetes.io/kubelet-serving", "status", ""},
		{"example.com/x", "status", `user not permitted to sign requests with signerName "example.com/x"`},
	} {
		err := decide(test.signer, test.subresource)
		if (err == nil) != (test.refusal == "") || err != nil && err.Error() != test.refusal {
			t.Errorf("%s %s: %v", test.signer, test.subresource, err)
		}
	}
}

// allow is a set of "verb name".
type allow map[string]bool

func (a allow) Authorize(_ context.Context, attributes *auth.Attributes) (bool, string, error) {
	return a[attributes.Verb+" "+attributes.Name], "", nil
}
