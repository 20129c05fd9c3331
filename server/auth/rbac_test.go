package auth

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// load feeds policy to a new index.
func load(p *Policy) *RBAC {
	r := NewRBAC()
	for _, o := range p.ClusterRoles {
		r.OnClusterRole(nil, o, false)
	}
	for _, o := range p.ClusterRoleBindings {
		r.OnClusterRoleBinding(nil, o, false)
	}
	for _, o := range p.Roles {
		r.OnRole(nil, o, false)
	}
	for _, o := range p.RoleBindings {
		r.OnRoleBinding(nil, o, false)
	}
	return r
}

// TestDecisions replays testdata/decisions.txt: who asks what, against the
// bootstrap policy and a few roles of the administrator's.
func TestDecisions(t *testing.T) {
	p := BootstrapPolicy()
	p.Roles = append(p.Roles, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "scaler"}, Rules: []rbacv1.PolicyRule{
		may("get update", "apps", "*/scale"), may("get", core, "configmaps", "settings"), may("get", core, "pods/log"),
	}})
	bind := func(name, kind, role string, subjects ...rbacv1.Subject) {
		p.RoleBindings = append(p.RoleBindings, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacGroup, Kind: kind, Name: role}, Subjects: subjects})
	}
	bind("scalers", "Role", "scaler", user("ann"), rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Name: "robot"})
	bind("editors", "ClusterRole", "edit", group("dev"))
	bind("viewers", "ClusterRole", "view", group("guests"))
	bind("admins", "ClusterRole", "admin", user("lead"))
	bind("broken", "Role", "gone", user("eve"))
	r := load(p)

	data, err := os.ReadFile("testdata/decisions.txt")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, line := range strings.SplitAfter(string(data), "\n") {
		question, _, _ := strings.Cut(strings.TrimSpace(line), " => ")
		if question == "" || strings.HasPrefix(question, "#") {
			out.WriteString(line)
			continue
		}
		allowed, reason, err := r.Authorize(t.Context(), parseQuestion(question))
		if err != nil {
			t.Fatal(err)
		}
		answer := "no"
		if allowed {
			answer = "yes"
		}
		fmt.Fprintln(&out, strings.TrimSpace(fmt.Sprintf("%s => %s %s", question, answer, reason)))
	}
	if *update {
		if err := os.WriteFile("testdata/decisions.txt", []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if out.String() != string(data) {
		t.Errorf("decisions changed (run with -update to accept):\n%s", out.String())
	}
}

// parseQuestion reads "user[,group…] verb [namespace:]resource[.group][/sub][=name]"
// or "user[,group…] verb /path".
func parseQuestion(text string) *Attributes {
	parts := strings.Fields(text)
	names := strings.Split(parts[0], ",")
	a := &Attributes{User: &User{Name: names[0], Groups: names[1:]}, Verb: parts[1]}
	target := parts[2]
	if strings.HasPrefix(target, "/") {
		a.Path = target
		return a
	}
	a.ResourceRequest = true
	if ns, rest, ok := strings.Cut(target, ":"); ok {
		a.Namespace, target = ns, rest
	}
	target, a.Name, _ = strings.Cut(target, "=")
	target, a.Subresource, _ = strings.Cut(target, "/")
	a.Resource, a.Group, _ = strings.Cut(target, ".")
	return a
}

func TestBindingChanges(t *testing.T) {
	r := NewRBAC()
	r.OnClusterRole(nil, clusterRole("reader", may("get", core, "pods")), false)
	question := &Attributes{User: &User{Name: "ann"}, Verb: "get", Resource: "pods", ResourceRequest: true}
	expect := func(want bool) {
		t.Helper()
		if got, _, _ := r.Authorize(t.Context(), question); got != want {
			t.Errorf("allowed %v, want %v", got, want)
		}
	}
	expect(false)
	first := bindCluster("reader", user("ann"))
	r.OnClusterRoleBinding(nil, first, false)
	expect(true)
	second := bindCluster("reader", user("bob"))
	r.OnClusterRoleBinding(first, second, false)
	expect(false)
	r.OnClusterRoleBinding(second, first, false)
	r.OnClusterRole(nil, clusterRole("reader"), true)
	expect(false)
	r.OnClusterRole(nil, clusterRole("reader", may("get", core, "pods")), false)
	expect(true)
	r.OnClusterRoleBinding(first, first, true)
	expect(false)
	if len(r.bySubject) != 0 || len(r.bindings) != 0 {
		t.Errorf("index keeps %v %v", r.bySubject, r.bindings)
	}
}

// Every bootstrap binding leads to a bootstrap role.
func TestBootstrapPolicy(t *testing.T) {
	p := BootstrapPolicy()
	r := load(p)
	for _, b := range p.ClusterRoleBindings {
		if _, err := r.RulesOf(b.RoleRef, ""); err != nil {
			t.Error(err)
		}
	}
	for _, b := range p.RoleBindings {
		if _, err := r.RulesOf(b.RoleRef, b.Namespace); err != nil {
			t.Error(err)
		}
	}
}

func TestAggregatedRules(t *testing.T) {
	for _, role := range BootstrapPolicy().ClusterRoles {
		if role.Name != "admin" {
			continue
		}
		resources := map[string]bool{}
		for _, rule := range role.Rules {
			for _, res := range rule.Resources {
				resources[res] = true
			}
		}
		for _, want := range []string{"roles", "deployments", "pods/log"} { // its own, edit's, view's
			if !resources[want] {
				t.Errorf("admin lacks %s", want)
			}
		}
	}
}

func BenchmarkAuthorize(b *testing.B) {
	r := load(BootstrapPolicy())
	a := &Attributes{User: &User{Name: "system:kube-scheduler", Groups: []string{GroupAuthenticated}}, Verb: "create", Resource: "pods", Subresource: "binding", Namespace: "x", ResourceRequest: true}
	b.ReportAllocs()
	for b.Loop() {
		if ok, _, _ := r.Authorize(b.Context(), a); !ok {
			b.Fatal("refused")
		}
	}
}
