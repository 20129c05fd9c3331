package auth

import (
	"context"
	"fmt"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/fields"

	"orch/internal/podnet"
)

// Nodes lets each node read and write what belongs to it: its own Node and
// Lease, and the objects that the pods bound to it name. It keeps the pods by
// node, fed by OnPod in the order of their events.
type Nodes struct {
	objects Objects
	rules   []rbacv1.PolicyRule

	mu   sync.RWMutex                         // guards pods
	pods map[string]map[objectKey]*corev1.Pod // by node
}

// NewNodes looks claims, volumes and accounts up in objects.
func NewNodes(objects Objects) *Nodes {
	own := rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: []string{podnet.Path}} // not Kubernetes'
	return &Nodes{objects: objects, rules: append(nodeRules(), own), pods: make(map[string]map[objectKey]*corev1.Pod)}
}

// OnPod takes notice of a change.
func (n *Nodes) OnPod(old, pod *corev1.Pod, deleted bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	key := objectKey{pod.Namespace, pod.Name}
	if old != nil && old.Spec.NodeName != pod.Spec.NodeName {
		n.remove(old.Spec.NodeName, key)
	}
	switch {
	case deleted:
		n.remove(pod.Spec.NodeName, key)
	case pod.Spec.NodeName != "":
		if n.pods[pod.Spec.NodeName] == nil {
			n.pods[pod.Spec.NodeName] = make(map[objectKey]*corev1.Pod)
		}
		n.pods[pod.Spec.NodeName][key] = pod
	}
}

func (n *Nodes) remove(node string, key objectKey) {
	delete(n.pods[node], key)
	if len(n.pods[node]) == 0 {
		delete(n.pods, node)
	}
}

// hasPod tells whether any pod on node that was made through the API (mirror
// pods come from the node itself and lend it nothing) satisfies match.
func (n *Nodes) hasPod(node, namespace string, match func(*corev1.Pod) bool) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for key, pod := range n.pods[node] {
		if namespace != "" && key.namespace != namespace {
			continue
		}
		if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; !mirror && match(pod) {
			return true
		}
	}
	return false
}

// Authorize implements Authorizer.
func (n *Nodes) Authorize(_ context.Context, a *Attributes) (bool, string, error) {
	node, ok := a.User.NodeName()
	if !ok {
		return false, "", nil
	}
	if reason, narrowed := n.narrow(node, a); narrowed {
		return reason == allowed, refusal(reason), nil
	}
	for i := range n.rules {
		if ruleAllows(&n.rules[i], a) {
			return true, "", nil
		}
	}
	return false, "", nil
}

// Verdicts of narrow that are not a reason.
const (
	allowed = "\x00allowed"
	refused = "\x00refused" // without a reason
)

func refusal(reason string) string {
	if reason == allowed || reason == refused {
		return ""
	}
	return reason
}

// narrow decides on the resources that a node may see a part of only; the
// reasons are those of Kubernetes' node authorizer.
func (n *Nodes) narrow(node string, a *Attributes) (verdict string, narrowed bool) {
	if !a.ResourceRequest {
		return "", false
	}
	name := objectName(a)
	switch a.Group + "/" + a.Resource {
	case "/secrets":
		return n.readNamespaced(node, a, func(pod *corev1.Pod) bool { return n.usesSecret(pod, name) }), true
	case "/configmaps":
		return n.readNamespaced(node, a, func(pod *corev1.Pod) bool { return usesConfigMap(pod, name) }), true
	case "/serviceaccounts":
		return n.serviceAccount(node, name, a), true
	case "/persistentvolumeclaims":
		return n.claim(node, name, a), true
	case "/persistentvolumes":
		return n.getOne(node, a, func(pod *corev1.Pod) bool { return n.usesVolume(pod, name) }), true
	case "/nodes":
		return ownNode(node, name, a), true
	case "/pods":
		return n.pod(node, name, a), true
	case "coordination.k8s.io/leases":
		return ownLease(node, a), true
	case "storage.k8s.io/csinodes":
		return ownCSINode(node, a), true
	case "resource.k8s.io/resourceslices":
		return n.resourceSlice(node, a), true
	case "resource.k8s.io/resourceclaims":
		return n.getOne(node, a, func(pod *corev1.Pod) bool { return usesResourceClaim(pod, name) }), true
	}
	return "", false
}

// objectName also finds the name in a field selector, by which lists and
// watches ask for a single object.
func objectName(a *Attributes) string {
	if a.Name == "" {
		return selected(a, "metadata.name")
	}
	return a.Name
}

func selected(a *Attributes, field string) string {
	if a.FieldSelector == "" {
		return ""
	}
	selector, err := fields.ParseSelector(a.FieldSelector)
	if err != nil {
		return ""
	}
	value, _ := selector.RequiresExactMatch(field)
	return value
}

func (n *Nodes) related(node, namespace, name string, match func(*corev1.Pod) bool) string {
	if name == "" {
		return "No Object name found"
	}
	if n.hasPod(node, namespace, match) {
		return allowed
	}
	return fmt.Sprintf("no relationship found between node '%s' and this object", node)
}

func (n *Nodes) readNamespaced(node string, a *Attributes, match func(*corev1.Pod) bool) string {
	switch {
	case a.Verb != "get" && a.Verb != "list" && a.Verb != "watch":
		return "can only read resources of this type"
	case a.Subresource != "":
		return "cannot read subresource"
	case a.Namespace == "":
		return "can only read namespaced object of this type"
	}
	return n.related(node, a.Namespace, objectName(a), match)
}

func (n *Nodes) getOne(node string, a *Attributes, match func(*corev1.Pod) bool) string {
	switch {
	case a.Verb != "get":
		return "can only get individual resources of this type"
	case a.Subresource != "":
		return "cannot get subresource"
	}
	return n.related(node, a.Namespace, a.Name, match)
}

func (n *Nodes) serviceAccount(node, name string, a *Attributes) string {
	uses := func(pod *corev1.Pod) bool { return pod.Spec.ServiceAccountName == name }
	switch {
	case a.Verb == "get" && a.Subresource == "":
		return n.readNamespaced(node, a, uses)
	case a.Verb != "create" || a.Name == "":
		return "can only create tokens for individual service accounts"
	case a.Subresource != "token":
		return "can only create token subresource of serviceaccount"
	}
	return n.related(node, a.Namespace, name, uses)
}

func (n *Nodes) claim(node, name string, a *Attributes) string {
	uses := func(pod *corev1.Pod) bool { return usesClaim(pod, name) }
	if a.Subresource != "status" {
		return n.getOne(node, a, uses)
	}
	if a.Verb != "update" && a.Verb != "patch" {
		return "can only get/update/patch this type"
	}
	return n.related(node, a.Namespace, name, uses)
}

func (n *Nodes) pod(node, name string, a *Attributes) string {
	isPod := func(pod *corev1.Pod) bool { return pod.Name == name }
	switch a.Subresource + " " + a.Verb {
	case " get":
		return n.related(node, a.Namespace, name, isPod)
	case " list", " watch":
		if selected(a, "spec.nodeName") == node {
			return allowed
		}
		if name != "" {
			return n.related(node, a.Namespace, name, isPod)
		}
		return "can only list/watch pods with spec.nodeName field selector"
	case " create", " delete", "status update", "status patch", "eviction create":
		return allowed // admission sees whether the pod is the node's
	}
	return refused
}

func ownNode(node, name string, a *Attributes) string {
	switch a.Subresource + " " + a.Verb {
	case " create", " update", " patch", "status update", "status patch":
		return allowed // admission sees whether it is the node itself
	case " get", " list", " watch":
		switch name {
		case node:
			return allowed
		case "":
			return fmt.Sprintf("node '%s' cannot read all nodes, only its own Node object", node)
		}
		return fmt.Sprintf("node '%s' cannot read '%s', only its own Node object", node, name)
	}
	return refused
}

// resourceSlice: admission sees of whom a new or a deleted one is.
func (n *Nodes) resourceSlice(node string, a *Attributes) string {
	switch {
	case a.Subresource != "":
		return "cannot authorize ResourceSlice subresources"
	case a.Verb == "create":
		return allowed
	case a.Verb == "list" || a.Verb == "watch" || a.Verb == "deletecollection":
		if selected(a, "spec.nodeName") == node {
			return allowed
		}
		return "can only list/watch/deletecollection resourceslices with nodeName field selector"
	case !isOwnVerb(a.Verb):
		return "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection"
	}
	if holder, err := n.objects.ResourceSliceNode(a.Name); err != nil || holder != node {
		return fmt.Sprintf("no relationship found between node '%s' and this object", node)
	}
	return allowed
}

func isOwnVerb(verb string) bool {
	return slices.Contains([]string{"get", "create", "update", "patch", "delete"}, verb)
}

func ownLease(node string, a *Attributes) string {
	switch {
	case !isOwnVerb(a.Verb):
		return "can only get, create, update, patch, or delete a node lease"
	case a.Namespace != corev1.NamespaceNodeLease:
		return fmt.Sprintf("can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
	case a.Verb != "create" && a.Name != node:
		return "can only access node lease with the same name as the requesting node"
	}
	return allowed
}

func ownCSINode(node string, a *Attributes) string {
	switch {
	case !isOwnVerb(a.Verb):
		return "can only get, create, update, patch, or delete a CSINode"
	case a.Subresource != "":
		return "cannot authorize CSINode subresources"
	case a.Verb != "create" && a.Name != node:
		return "can only access CSINode with the same name as the requesting node"
	}
	return allowed
}
