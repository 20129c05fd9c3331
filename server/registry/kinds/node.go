package kinds

import (
	"context"
	"maps"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/sets"

	"orch/server/registry"
)

func nodes() *registry.Resource {
	return entry[corev1.Node, corev1.NodeList](corev1.SchemeGroupVersion, "nodes", traits[*corev1.Node]{
		ShortNames: []string{"no"}, Cluster: true, Unnumbered: true,
		Spec: within(func(n *corev1.Node) *corev1.NodeSpec { return &n.Spec }),
		// A node registers itself with its status, so a create keeps it.
		Subresources: []*registry.Subresource{
			statusView(traits[*corev1.Node]{
				Spec:           within(func(n *corev1.Node) *corev1.NodeSpec { return &n.Spec }),
				StatusValidate: validateNodeUpdate,
			}),
			connect("proxy", core("NodeProxyOptions"), proxyVerbs()...),
		},
		Default:             defaultNode,
		PrepareUpdate:       keepNodeStatus,
		Validate:            validateNode,
		ValidateUpdate:      validateNodeUpdate,
		UnconditionalUpdate: true,
		Fields: func(n *corev1.Node) fields.Set {
			return fields.Set{"spec.unschedulable": strconv.FormatBool(n.Spec.Unschedulable)}
		},
		Columns: columns(
			nameColumn(),
			column("Status", "string", "The status of the node"),
			column("Roles", "string", "The roles of the node"),
			ageColumn(),
			column("Version", "string", doc(corev1.NodeSystemInfo{}, "kubeletVersion")),
			wide("Internal-IP", "string", doc(corev1.NodeStatus{}, "addresses")),
			wide("External-IP", "string", doc(corev1.NodeStatus{}, "addresses")),
			wide("OS-Image", "string", doc(corev1.NodeSystemInfo{}, "osImage")),
			wide("Kernel-Version", "string", doc(corev1.NodeSystemInfo{}, "kernelVersion")),
			wide("Container-Runtime", "string", doc(corev1.NodeSystemInfo{}, "containerRuntimeVersion")),
		),
		Row: nodeRow,
	})
}

func defaultNode(n *corev1.Node) {
	if n.Status.Allocatable == nil && n.Status.Capacity != nil {
		n.Status.Allocatable = maps.Clone(n.Status.Capacity)
	}
	// The single range and the list of them say the same.
	if len(n.Spec.PodCIDRs) == 0 && n.Spec.PodCIDR != "" {
		n.Spec.PodCIDRs = []string{n.Spec.PodCIDR}
	}
	if n.Spec.PodCIDR == "" && len(n.Spec.PodCIDRs) > 0 {
		n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
	}
	roundToMilli(n.Status.Capacity)
	roundToMilli(n.Status.Allocatable)
}

func keepNodeStatus(_ context.Context, _ *registry.Registry, n, old *corev1.Node) error {
	n.Status = old.Status
	return nil
}

func nodeRow(n *corev1.Node, now time.Time) []any {
	info := &n.Status.NodeInfo
	kernel := orText(info.KernelVersion, "<unknown>")
	if info.Architecture != "" {
		kernel += " (" + info.Architecture + ")"
	}
	return []any{
		n.Name, nodeState(n), orText(strings.Join(nodeRoles(n), ","), "<none>"), age(n, now), info.KubeletVersion,
		nodeAddress(n, corev1.NodeInternalIP), nodeAddress(n, corev1.NodeExternalIP),
		orText(info.OSImage, "<unknown>"), kernel, orText(info.ContainerRuntimeVersion, "<unknown>"),
	}
}

func nodeState(n *corev1.Node) string {
	state := "Unknown"
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			state = "NotReady"
			if c.Status == corev1.ConditionTrue {
				state = "Ready"
			}
		}
	}
	if n.Spec.Unschedulable {
		state += ",SchedulingDisabled"
	}
	return state
}

func nodeRoles(n *corev1.Node) []string {
	roles := sets.New[string]()
	for k, v := range n.Labels {
		if role, ok := strings.CutPrefix(k, "node-role.kubernetes.io/"); ok && role != "" {
			roles.Insert(role)
		} else if k == "kubernetes.io/role" && v != "" {
			roles.Insert(v)
		}
	}
	return sets.List(roles)
}

func nodeAddress(n *corev1.Node, t corev1.NodeAddressType) string {
	for _, a := range n.Status.Addresses {
		if a.Type == t {
			return a.Address
		}
	}
	return "<none>"
}
