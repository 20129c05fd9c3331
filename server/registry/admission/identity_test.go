package admission

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/internal/pki"
	"orch/server/auth"
	"orch/server/controllers/nodes"
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
	csrs := &registry.Resource{Group: "certificates.k8s.io", Plural: "certificatesigningrequests"}
	subject := func(groups ...string) error {
		return certificateSubject{}.Admit(t.Context(), &registry.Attempt{Resource: csrs, Operation: registry.OperationCreate, Object: csr(request(groups...))})
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
		return certificateApproval{allowed}.Admit(as("ann"), &registry.Attempt{Resource: csrs, Subresource: subresource, Operation: registry.OperationUpdate, Object: now, Old: old})
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

// Admission is asked about actions, whoever takes them: a node evicts, binds
// and makes tokens for no others.
func TestActionsAreAdmitted(t *testing.T) {
	r := newRegistry(t, nodeRestriction{authorizer: allow{}}, topologyLabels{})
	create(t, r, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2", Labels: map[string]string{corev1.LabelTopologyZone: "z"}}})
	create(t, r, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "default"}})
	create(t, r, pod("theirs", func(p *corev1.Pod) { p.Spec.NodeName = "n2" }))
	create(t, r, pod("new"))
	node, pods := as("system:node:n1", "system:nodes"), r.Lookup("", "v1", "pods")
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "ns", Name: name} }
	_, err := r.Act(node, pods, "eviction", "ns", "theirs", &policyv1.Eviction{ObjectMeta: meta("theirs")}, nil)
	wantForbidden(t, err, "node n1 can only evict pods with spec.nodeName set to itself")
	binding := &corev1.Binding{ObjectMeta: meta("new"), Target: corev1.ObjectReference{Kind: "Node", Name: "n2"}}
	_, err = r.Act(node, pods, "binding", "ns", "new", binding, nil)
	wantForbidden(t, err, `unexpected pod subresource "binding", only 'status' and 'eviction' are allowed`)
	_, err = r.Act(node, r.Lookup("", "v1", "serviceaccounts"), "token", "ns", "default", &authenticationv1.TokenRequest{}, nil)
	wantForbidden(t, err, "node requested token not bound to a pod")
	if _, err := r.Act(t.Context(), pods, "binding", "ns", "new", binding, nil); err != nil {
		t.Fatal(err)
	}
	if bound, err := registry.Of[*corev1.Pod](r).Get("ns", "new"); err != nil || bound.Labels[corev1.LabelTopologyZone] != "z" {
		t.Errorf("labels %v, %v", bound.Labels, err)
	}
	if _, err := r.Act(t.Context(), pods, "exec", "ns", "new", binding, nil); !apierrors.IsMethodNotSupported(err) {
		t.Errorf("no action: %v", err)
	}
}

// The part of the pod network is the server's to give, and where a pod is
// bounds what its node may say of its address.
func TestNodeAddresses(t *testing.T) {
	r := newRegistry(t)
	plugin := nodeRestriction{authorizer: allow{}, claims: auth.Claims{
		Pods: netip.MustParsePrefix("10.42.0.0/16"), Services: netip.MustParsePrefix("10.43.0.0/16"),
		Nodes: func() []*corev1.Node { return registry.Of[*corev1.Node](r).List("", nil) },
	}}
	node := func(name, share, address string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDR: share},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}},
				Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}}
	}
	mine := create(t, r, node("n1", "10.42.1.0/24", "192.0.2.1"))
	create(t, r, node("n2", "10.42.2.0/24", "192.0.2.2"))
	ctx := as("system:node:n1", "system:nodes")
	admit := func(plural, subresource, operation string, obj, old registry.Object) error {
		return plugin.Admit(ctx, &registry.Attempt{Registry: r, Resource: r.Lookup("", "v1", plural), Subresource: subresource,
			Operation: operation, Namespace: obj.GetNamespace(), Name: obj.GetName(), Object: obj, Old: old})
	}
	for want, change := range map[string]func(*corev1.Node){
		"":                                       func(n *corev1.Node) { n.Annotations = map[string]string{"a": "b"} },
		"is not allowed to modify spec.podCIDR":  func(n *corev1.Node) { n.Spec.PodCIDR = "10.42.2.0/24" },
		"not allowed to modify spec.podCIDR: ":   func(n *corev1.Node) { n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, "10.42.3.0/24") },
		"is an address of services":              func(n *corev1.Node) { n.Status.Addresses[0].Address = "10.43.0.1" },
		`is the address of node "n2"`:            func(n *corev1.Node) { n.Status.Addresses[0].Address = "192.0.2.2" },
		"is not allowed to modify ownerReferenc": func(n *corev1.Node) { n.OwnerReferences = []metav1.OwnerReference{{Name: "x"}} },
		"to update configSource to a new non-nil configSource": func(n *corev1.Node) { n.Spec.ConfigSource = &corev1.NodeConfigSource{} },
		"modify labels: node-restriction.kubernetes.io/tier":   func(n *corev1.Node) { n.Labels = map[string]string{"node-restriction.kubernetes.io/tier": "x"} },
	} {
		changed := mine.DeepCopy()
		change(changed)
		if err := admit("nodes", "", registry.OperationUpdate, changed, mine); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	fresh := node("n1", "10.42.9.0/24", "192.0.2.1")
	if err := admit("nodes", "", registry.OperationCreate, fresh, nil); err == nil || !strings.Contains(err.Error(), "not allowed to set spec.podCIDR") {
		t.Errorf("a new Node: %v", err)
	}
	old := pod("p", func(p *corev1.Pod) { p.Spec.NodeName = "n1" })
	for address, ok := range map[string]bool{
		"10.42.1.7": true, "192.0.2.1": true, "10.42.77.1": true, "172.31.0.9": true,
		"10.42.2.7": false, "192.0.2.2": false, "10.43.0.1": false, "127.0.0.1": false, "169.254.169.254": false,
	} {
		said := old.DeepCopy()
		said.Status.PodIP, said.Status.PodIPs = address, []corev1.PodIP{{IP: address}}
		if err := admit("pods", "status", registry.OperationUpdate, said, old); (err == nil) != ok {
			t.Errorf("pod at %s: %v", address, err)
		}
	}
}

// What a user may not grant he may not have gathered into what he has either.
func TestRoleLabels(t *testing.T) {
	index := auth.NewRBAC()
	r := newRegistry(t, rbacEscalation{auth.Escalation{RBAC: index, Authorizer: index}})
	everything := create(t, r, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "everything"}, Rules: []rbacv1.PolicyRule{{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}}}})
	ann, roles := as("ann"), registry.Of[*rbacv1.ClusterRole](r)
	_, err := roles.Mutate(ann, "", everything.Name, func(c *rbacv1.ClusterRole) error {
		c.Labels = map[string]string{"rbac.authorization.k8s.io/aggregate-to-view": "true"}
		return nil
	})
	wantForbidden(t, err, `{APIGroups:["*"], Resources:["*"], Verbs:["*"]}`)
	if _, err := roles.Mutate(ann, "", everything.Name, func(c *rbacv1.ClusterRole) error {
		c.Finalizers = []string{"example.com/x"}
		return nil
	}); err != nil {
		t.Errorf("what the garbage collector writes: %v", err)
	}
}

// Nobody but the servers writes down which credentials are revoked.
func TestCredentialRecords(t *testing.T) {
	r := newRegistry(t, credentialRecords{})
	create(t, r, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceSystem}})
	secrets, admin := registry.Of[*corev1.Secret](r), as("admin", "system:masters")
	for _, name := range []string{auth.SecretJoinTokens, nodes.KeyName("n1")} {
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: name}}
		_, err := secrets.Create(admin, secret.DeepCopy())
		wantForbidden(t, err, "(see orch token rotate, and kubectl delete node)")
		create(t, r, secret)
		_, err = secrets.Mutate(admin, secret.Namespace, name, func(s *corev1.Secret) error { s.Data = map[string][]byte{"a": nil}; return nil })
		wantForbidden(t, err, "(see orch token rotate, and kubectl delete node)")
		wantForbidden(t, secrets.Delete(admin, secret.Namespace, name, metav1.DeleteOptions{}), "(see orch token rotate, and kubectl delete node)")
	}
	if _, err := secrets.Create(admin, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "mine"}}); err != nil {
		t.Error(err)
	}
}

func TestNodeSlices(t *testing.T) {
	r, plugin := newRegistry(t), nodeRestriction{}
	slice := func(node string) *resourcev1.ResourceSlice {
		return &resourcev1.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: resourcev1.ResourceSliceSpec{NodeName: &node}}
	}
	for _, test := range []struct {
		operation string
		obj       *resourcev1.ResourceSlice
		ok        bool
	}{
		{registry.OperationCreate, slice("n1"), true}, {registry.OperationCreate, slice("n2"), false},
		{registry.OperationCreate, &resourcev1.ResourceSlice{}, false}, {registry.OperationDelete, slice("n1"), true}, {registry.OperationDelete, slice("n2"), false},
	} {
		a := &registry.Attempt{Registry: r, Resource: r.Lookup("resource.k8s.io", "v1", "resourceslices"), Operation: test.operation, Name: "s", Object: test.obj}
		if test.operation == registry.OperationDelete {
			a.Object, a.Old = nil, test.obj
		}
		if err := plugin.Admit(as("system:node:n1", "system:nodes"), a); (err == nil) != test.ok {
			t.Errorf("%s of %v: %v", test.operation, test.obj.Spec.NodeName, err)
		}
	}
}

func TestNodeClaimStatus(t *testing.T) {
	r, plugin := newRegistry(t), nodeRestriction{}
	old := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}}
	for name, change := range map[string]func(*corev1.PersistentVolumeClaim){
		"capacity": func(c *corev1.PersistentVolumeClaim) {
			c.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
		},
		"labels":     func(c *corev1.PersistentVolumeClaim) { c.Labels = map[string]string{"a": "b"} },
		"finalizers": func(c *corev1.PersistentVolumeClaim) { c.Finalizers = []string{"a.b/c"} },
		"phase":      func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = corev1.ClaimLost },
		"volume":     func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "other" },
	} {
		claim := old.DeepCopy()
		change(claim)
		err := plugin.Admit(as("system:node:n1", "system:nodes"), &registry.Attempt{Registry: r, Resource: r.Lookup("", "v1", "persistentvolumeclaims"),
			Subresource: "status", Operation: registry.OperationUpdate, Namespace: "ns", Name: "c", Object: claim, Old: old})
		if (err == nil) != (name == "capacity") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
