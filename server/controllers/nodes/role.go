package nodes

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	"orch/server/controllers/loop"
	"orch/server/registry"
)

// controlPlaneLabel is what kubectl shows as the node's role.
const controlPlaneLabel = "node-role.kubernetes.io/control-plane"

// ControlPlane labels the node that shares a machine with this server. A node
// may not give itself a role, so its server does; each server runs its own.
func ControlPlane(r *registry.Registry, name string) *loop.Controller {
	nodes := registry.Of[*corev1.Node](r)
	return &loop.Controller{
		Name: "control-plane-role",
		Sources: []loop.Source{loop.Changes(r, func(_, n *corev1.Node, deleted bool) []loop.Key {
			if _, labelled := n.Labels[controlPlaneLabel]; deleted || labelled || n.Name != name {
				return nil
			}
			return []loop.Key{loop.KeyOf(n)}
		})},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			_, err := nodes.Mutate(ctx, "", key.Name, func(n *corev1.Node) error {
				if _, labelled := n.Labels[controlPlaneLabel]; !labelled {
					if n.Labels == nil {
						n.Labels = map[string]string{}
					}
					n.Labels[controlPlaneLabel] = "true"
				}
				return nil
			})
			return 0, ignoreNotFound(err)
		},
	}
}
