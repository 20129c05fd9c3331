package volume

import (
	"errors"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubectl/pkg/util/fieldpath"
	containerresource "k8s.io/kubectl/pkg/util/resource"
)

// downward writes fields of the pod and its containers' resources into files.
func (m *Manager) downward(out files, p *corev1.Pod, items []corev1.DownwardAPIVolumeFile, mode *int32) error {
	var errs []error
	for i := range items {
		item := &items[i]
		var text string
		var err error
		switch {
		case item.FieldRef != nil:
			text, err = fieldpath.ExtractFieldPathAsString(p, item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			text, err = resourceText(p, item.ResourceFieldRef, m.cfg.Node())
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out[item.Path] = file{data: []byte(text), mode: modeOf(item.Mode, mode)}
	}
	return errors.Join(errs...)
}

// resourceText gives a container's request or limit in units of the divisor,
// rounded up. What a container does not limit is bounded by the node.
func resourceText(p *corev1.Pod, ref *corev1.ResourceFieldSelector, n *corev1.Node) (string, error) {
	container := findContainer(p, ref.ContainerName)
	if container == nil {
		return "", fmt.Errorf("container %s not found", ref.ContainerName)
	}
	limits := corev1.ResourceList{}
	if n != nil {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
			if q, ok := n.Status.Allocatable[name]; ok {
				limits[name] = q
			}
		}
	}
	for name, q := range container.Resources.Limits {
		if _, bounded := limits[name]; !bounded || !q.IsZero() {
			limits[name] = q
		}
	}
	bounded := corev1.Container{Resources: corev1.ResourceRequirements{Requests: maps.Clone(container.Resources.Requests), Limits: limits}}
	return containerresource.ExtractContainerResourceValue(ref, &bounded)
}

func findContainer(p *corev1.Pod, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}
