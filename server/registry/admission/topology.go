package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"orch/server/registry"
)

// topologyLabels copies the zone and region of the node to the pod, where the
// downward API can show them (PodTopologyLabels).
type topologyLabels struct{}

func (topologyLabels) Admit(_ context.Context, a *registry.Attempt) error {
	if a.Operation != registry.OperationCreate {
		return nil
	}
	switch obj := a.Object.(type) {
	case *corev1.Binding:
		if obj.Target.Kind == "Node" {
			copyTopology(a.Registry, obj.Target.Name, &obj.Labels)
		}
	case *corev1.Pod:
		if a.Subresource == "" && obj.Spec.NodeName != "" {
			copyTopology(a.Registry, obj.Spec.NodeName, &obj.Labels)
		}
	}
	return nil
}

func copyTopology(r *registry.Registry, node string, labels *map[string]string) {
	found, err := registry.Of[*corev1.Node](r).Get("", node)
	if err != nil {
		return // a node that is not there has no place
	}
	for _, key := range [2]string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion} {
		value, ok := found.Labels[key]
		if !ok {
			continue
		}
		if *labels == nil {
			*labels = make(map[string]string, 2)
		}
		(*labels)[key] = value
	}
}
