package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	rbacv1 "k8s.io/api/rbac/v1"
)

// RBAC decides by Roles and bindings. It keeps an index of them, fed by the
// On… methods in the order of the objects' events, and never asks anybody
// while deciding.
type RBAC struct {
	mu           sync.RWMutex // guards everything below
	clusterRoles map[string]*rbacv1.ClusterRole
	roles        map[objectKey]*rbacv1.Role
	bindings     map[objectKey]*binding               // cluster role bindings have no namespace
	bySubject    map[string]map[subjectKey][]*binding // namespace of the binding, subject
}

type objectKey struct{ namespace, name string }

// subjectKey is a user or a group; service accounts are users.
type subjectKey struct {
	group bool
	name  string
}

type binding struct {
	key      objectKey
	ref      rbacv1.RoleRef
	subjects []subjectKey
	shown    []string // the reason that each subject gives
}

// NewRBAC gives an index without any roles: it allows nothing.
func NewRBAC() *RBAC {
	return &RBAC{
		clusterRoles: make(map[string]*rbacv1.ClusterRole),
		roles:        make(map[objectKey]*rbacv1.Role),
		bindings:     make(map[objectKey]*binding),
		bySubject:    make(map[string]map[subjectKey][]*binding),
	}
}

// OnClusterRole takes notice of a change.
func (r *RBAC) OnClusterRole(_, role *rbacv1.ClusterRole, deleted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if deleted {
		delete(r.clusterRoles, role.Name)
		return
	}
	r.clusterRoles[role.Name] = role
}

// OnRole takes notice of a change.
func (r *RBAC) OnRole(_, role *rbacv1.Role, deleted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := objectKey{role.Namespace, role.Name}
	if deleted {
		delete(r.roles, key)
		return
	}
	r.roles[key] = role
}

// OnClusterRoleBinding takes notice of a change.
func (r *RBAC) OnClusterRoleBinding(_, b *rbacv1.ClusterRoleBinding, deleted bool) {
	r.setBinding(objectKey{"", b.Name}, b.RoleRef, b.Subjects, deleted)
}

// OnRoleBinding takes notice of a change.
func (r *RBAC) OnRoleBinding(_, b *rbacv1.RoleBinding, deleted bool) {
	r.setBinding(objectKey{b.Namespace, b.Name}, b.RoleRef, b.Subjects, deleted)
}

func (r *RBAC) setBinding(key objectKey, ref rbacv1.RoleRef, subjects []rbacv1.Subject, deleted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.bindings[key]; old != nil {
		r.unindex(old)
		delete(r.bindings, key)
	}
	if deleted {
		return
	}
	b := &binding{key: key, ref: ref}
	for i := range subjects {
		b.addSubject(&subjects[i])
	}
	r.bindings[key] = b
	r.index(b)
}

func (b *binding) addSubject(s *rbacv1.Subject) {
	var key subjectKey
	switch s.Kind {
	case rbacv1.UserKind:
		key = subjectKey{name: s.Name}
	case rbacv1.GroupKind:
		key = subjectKey{group: true, name: s.Name}
	case rbacv1.ServiceAccountKind:
		namespace := s.Namespace
		if namespace == "" {
			namespace = b.key.namespace
		}
		if namespace == "" {
			return
		}
		key = subjectKey{name: ServiceAccountUser(namespace, s.Name)}
	default:
		return
	}
	b.subjects = append(b.subjects, key)
	b.shown = append(b.shown, b.describe(s))
}

// describe words the grant as upstream does.
func (b *binding) describe(s *rbacv1.Subject) string {
	subject := fmt.Sprintf("%s %q", s.Kind, s.Name)
	if s.Kind == rbacv1.ServiceAccountKind {
		namespace := s.Namespace
		if namespace == "" {
			namespace = b.key.namespace
		}
		subject = fmt.Sprintf("%s %q", s.Kind, s.Name+"/"+namespace)
	}
	if b.key.namespace == "" {
		return fmt.Sprintf("RBAC: allowed by ClusterRoleBinding %q of %s %q to %s", b.key.name, b.ref.Kind, b.ref.Name, subject)
	}
	return fmt.Sprintf("RBAC: allowed by RoleBinding %q of %s %q to %s", b.key.name+"/"+b.key.namespace, b.ref.Kind, b.ref.Name, subject)
}

func (r *RBAC) index(b *binding) {
	subjects := r.bySubject[b.key.namespace]
	if subjects == nil {
		subjects = make(map[subjectKey][]*binding)
		r.bySubject[b.key.namespace] = subjects
	}
	for _, s := range b.subjects {
		if !slices.Contains(subjects[s], b) {
			subjects[s] = append(subjects[s], b)
		}
	}
}

func (r *RBAC) unindex(b *binding) {
	subjects := r.bySubject[b.key.namespace]
	for _, s := range b.subjects {
		subjects[s] = slices.DeleteFunc(subjects[s], func(other *binding) bool { return other == b })
		if len(subjects[s]) == 0 {
			delete(subjects, s)
		}
	}
	if len(subjects) == 0 {
		delete(r.bySubject, b.key.namespace)
	}
}

// visit calls fn for each binding that grants u something in namespace (and,
// always, in the whole cluster) until fn returns false. mu must be held.
func (r *RBAC) visit(u *User, namespace string, fn func(b *binding, s subjectKey) bool) {
	for _, ns := range [2]string{"", namespace} {
		if subjects := r.bySubject[ns]; subjects != nil && !visitSubjects(subjects, u, fn) {
			return
		}
		if namespace == "" {
			return
		}
	}
}

func visitSubjects(subjects map[subjectKey][]*binding, u *User, fn func(*binding, subjectKey) bool) bool {
	user := subjectKey{name: u.Name}
	for _, b := range subjects[user] {
		if !fn(b, user) {
			return false
		}
	}
	for _, name := range u.Groups {
		group := subjectKey{group: true, name: name}
		for _, b := range subjects[group] {
			if !fn(b, group) {
				return false
			}
		}
	}
	return true
}

// rules are those of the role that ref names, seen from namespace. mu must be held.
func (r *RBAC) rules(ref rbacv1.RoleRef, namespace string) ([]rbacv1.PolicyRule, error) {
	switch ref.Kind {
	case "ClusterRole":
		if role := r.clusterRoles[ref.Name]; role != nil {
			return role.Rules, nil
		}
		return nil, fmt.Errorf("clusterrole.rbac.authorization.k8s.io %q not found", ref.Name)
	case "Role":
		if role := r.roles[objectKey{namespace, ref.Name}]; role != nil {
			return role.Rules, nil
		}
		return nil, fmt.Errorf("role.rbac.authorization.k8s.io %q not found", ref.Name)
	}
	return nil, fmt.Errorf("unsupported role reference kind: %q", ref.Kind)
}

// Authorize implements Authorizer.
func (r *RBAC) Authorize(_ context.Context, a *Attributes) (bool, string, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var allowedBy string
	var missing []error
	r.visit(a.User, a.Namespace, func(b *binding, s subjectKey) bool {
		rules, err := r.rules(b.ref, b.key.namespace)
		if err != nil {
			missing = append(missing, err)
			return true
		}
		for i := range rules {
			if ruleAllows(&rules[i], a) {
				allowedBy = b.shown[slices.Index(b.subjects, s)]
				return false
			}
		}
		return true
	})
	if allowedBy != "" {
		return true, allowedBy, nil
	}
	if len(missing) > 0 {
		return false, fmt.Sprintf("RBAC: %v", aggregate(missing)), nil
	}
	return false, "", nil
}

// RulesFor lists the rules that u has in namespace ("": cluster-wide). The
// error tells of roles that bindings name but that do not exist; the rules are
// then those that do.
func (r *RBAC) RulesFor(u *User, namespace string) ([]rbacv1.PolicyRule, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var all []rbacv1.PolicyRule
	var missing []error
	r.visit(u, namespace, func(b *binding, _ subjectKey) bool {
		rules, err := r.rules(b.ref, b.key.namespace)
		if err != nil {
			missing = append(missing, err)
		}
		all = append(all, rules...)
		return true
	})
	return all, aggregate(missing)
}

// RulesOf are the rules of the role that a binding in namespace refers to.
func (r *RBAC) RulesOf(ref rbacv1.RoleRef, namespace string) ([]rbacv1.PolicyRule, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.rules(ref, namespace)
}

// aggregate words several errors on one line, as Kubernetes' messages have them.
func aggregate(errs []error) error {
	switch len(errs) {
	case 0:
		return nil
	case 1:
		return errs[0]
	}
	text := "["
	for i, err := range errs {
		if i > 0 {
			text += ", "
		}
		text += err.Error()
	}
	return errors.New(text + "]")
}
