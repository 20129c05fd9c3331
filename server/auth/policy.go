package auth

import (
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Policy is a set of RBAC objects.
type Policy struct {
	ClusterRoles        []*rbacv1.ClusterRole
	ClusterRoleBindings []*rbacv1.ClusterRoleBinding
	Roles               []*rbacv1.Role
	RoleBindings        []*rbacv1.RoleBinding
}

// BootstrapPolicy gives the roles and bindings that every cluster starts with:
// Kubernetes' own, and what an orch node needs for its network. Controllers run
// inside the server under the server's identity and need none.
func BootstrapPolicy() *Policy {
	p := &Policy{
		ClusterRoles:        append(userRoles(), systemRoles()...),
		ClusterRoleBindings: clusterBindings(),
		Roles:               namespaceRoles(),
		RoleBindings:        namespaceBindings(),
	}
	// admin holds edit, which holds view: the third pass fills the last of them.
	for range 3 {
		for _, role := range p.ClusterRoles {
			if rules, ok := AggregatedRules(role, p.ClusterRoles); ok {
				role.Rules = rules
			}
		}
	}
	for _, o := range p.objects() {
		markDefault(o)
	}
	return p
}

func (p *Policy) objects() []metav1.Object {
	var all []metav1.Object
	for _, o := range p.ClusterRoles {
		all = append(all, o)
	}
	for _, o := range p.ClusterRoleBindings {
		all = append(all, o)
	}
	for _, o := range p.Roles {
		all = append(all, o)
	}
	for _, o := range p.RoleBindings {
		all = append(all, o)
	}
	return all
}

// markDefault says that the server keeps the object up to date. An
// administrator who wants to change it sets the annotation to false.
func markDefault(o metav1.Object) {
	labels := o.GetLabels()
	if labels == nil {
		labels = make(map[string]string, 1)
	}
	labels["kubernetes.io/bootstrapping"] = "rbac-defaults"
	o.SetLabels(labels)
	o.SetAnnotations(map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"})
}

// Sets of verbs.
const (
	read      = "get list watch"
	write     = "create delete deletecollection patch update"
	readWrite = "create delete deletecollection get list patch update watch"
	record    = "create patch update"
)

// API groups; a rule for the core group says "core".
const (
	core           = "core"
	apps           = "apps"
	authentication = "authentication.k8s.io"
	authorization  = "authorization.k8s.io"
	certificates   = "certificates.k8s.io"
	coordination   = "coordination.k8s.io"
	discovery      = "discovery.k8s.io"
	events         = "core events.k8s.io"
	networking     = "networking.k8s.io"
	rbacGroup      = "rbac.authorization.k8s.io"
	resourceGroup  = "resource.k8s.io"
	storage        = "storage.k8s.io"
)

// may is a rule; its arguments are lists separated by spaces.
func may(verbs, groups, resources string, names ...string) rbacv1.PolicyRule {
	rule := rbacv1.PolicyRule{
		Verbs:         strings.Fields(verbs),
		APIGroups:     strings.Fields(groups),
		Resources:     strings.Fields(resources),
		ResourceNames: names,
	}
	for i, g := range rule.APIGroups {
		if g == core {
			rule.APIGroups[i] = ""
		}
	}
	return rule
}

func mayVisit(verbs, urls string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: strings.Fields(verbs), NonResourceURLs: strings.Fields(urls)}
}

func clusterRole(name string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}
}

// aggregateTo lets the role's rules become part of another's.
func aggregateTo(target string, role *rbacv1.ClusterRole) *rbacv1.ClusterRole {
	role.Labels = map[string]string{aggregationLabel(target): "true"}
	return role
}

// aggregated is a role that is made of all roles labelled for it.
func aggregated(name string) *rbacv1.ClusterRole {
	role := clusterRole(name)
	role.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{
		{MatchLabels: map[string]string{aggregationLabel(name): "true"}},
	}}
	return role
}

func aggregationLabel(target string) string {
	return "rbac.authorization.k8s.io/aggregate-to-" + target
}

func group(name string) rbacv1.Subject {
	return rbacv1.Subject{APIGroup: rbacGroup, Kind: rbacv1.GroupKind, Name: name}
}

func user(name string) rbacv1.Subject {
	return rbacv1.Subject{APIGroup: rbacGroup, Kind: rbacv1.UserKind, Name: name}
}

func systemAccount(name string) rbacv1.Subject {
	return rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: metav1.NamespaceSystem, Name: name}
}

// bindCluster grants the cluster role of the same name.
func bindCluster(name string, subjects ...rbacv1.Subject) *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Subjects:   subjects,
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacGroup, Kind: "ClusterRole", Name: name},
	}
}

func clusterBindings() []*rbacv1.ClusterRoleBinding {
	return []*rbacv1.ClusterRoleBinding{
		bindCluster("cluster-admin", group(GroupMasters)),
		bindCluster("system:basic-user", group(GroupAuthenticated)),
		bindCluster("system:discovery", group(GroupAuthenticated)),
		bindCluster("system:kube-controller-manager", user("system:kube-controller-manager")),
		bindCluster("system:kube-dns", systemAccount("kube-dns")),
		bindCluster("system:kube-scheduler", user("system:kube-scheduler")),
		bindCluster("system:monitoring", group("system:monitoring")),
		bindCluster("system:node"), // the node authorizer grants it instead
		bindCluster("system:node-proxier", user("system:kube-proxy")),
		bindCluster("system:public-info-viewer", group(GroupAuthenticated), group(GroupUnauthenticated)),
		bindCluster("system:service-account-issuer-discovery", group(GroupServiceAccounts)),
		bindCluster("system:volume-scheduler", user("system:kube-scheduler")),
		bindCluster(nodeNetworkRole, group(GroupNodes)),
	}
}

func namespaceRoles() []*rbacv1.Role {
	role := func(namespace, name string, rules ...rbacv1.PolicyRule) *rbacv1.Role {
		return &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Rules: rules}
	}
	const locking = "create get list update watch"
	return []*rbacv1.Role{
		role(metav1.NamespacePublic, "system:controller:bootstrap-signer",
			may(read, core, "configmaps"),
			may("update", core, "configmaps", "cluster-info"),
			may(record, events, "events")),
		role(metav1.NamespaceSystem, "extension-apiserver-authentication-reader",
			may(read, core, "configmaps", "extension-apiserver-authentication")),
		role(metav1.NamespaceSystem, "system::leader-locking-kube-controller-manager",
			may(locking, coordination, "leases"),
			may(locking, coordination, "leasecandidates")),
		role(metav1.NamespaceSystem, "system::leader-locking-kube-scheduler",
			may(locking, coordination, "leases"),
			may(locking, coordination, "leasecandidates")),
		role(metav1.NamespaceSystem, "system:controller:bootstrap-signer", may(read, core, "secrets")),
		role(metav1.NamespaceSystem, "system:controller:cloud-provider", may("create get list watch", core, "configmaps")),
		role(metav1.NamespaceSystem, "system:controller:token-cleaner",
			may("delete get list watch", core, "secrets"),
			may(record, events, "events")),
	}
}

func namespaceBindings() []*rbacv1.RoleBinding {
	bind := func(namespace, name, role string, subjects ...rbacv1.Subject) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Subjects:   subjects,
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacGroup, Kind: "Role", Name: role},
		}
	}
	manager, scheduler := user("system:kube-controller-manager"), user("system:kube-scheduler")
	system := func(name string, subjects ...rbacv1.Subject) *rbacv1.RoleBinding {
		return bind(metav1.NamespaceSystem, name, name, subjects...)
	}
	return []*rbacv1.RoleBinding{
		bind(metav1.NamespacePublic, "system:controller:bootstrap-signer", "system:controller:bootstrap-signer", systemAccount("bootstrap-signer")),
		bind(metav1.NamespaceSystem, "system::extension-apiserver-authentication-reader", "extension-apiserver-authentication-reader", manager, scheduler),
		system("system::leader-locking-kube-controller-manager", manager, systemAccount("kube-controller-manager"), systemAccount("leader-election-controller")),
		system("system::leader-locking-kube-scheduler", scheduler, systemAccount("kube-scheduler")),
		system("system:controller:bootstrap-signer", systemAccount("bootstrap-signer")),
		system("system:controller:cloud-provider", systemAccount("cloud-provider")),
		system("system:controller:token-cleaner", systemAccount("token-cleaner")),
	}
}
