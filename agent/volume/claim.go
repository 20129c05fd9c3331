package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/agent/pod"
)

// claim finds the directory behind a claim. Volumes on this machine's disk
// (hostPath and local) are served.
func (m *Manager) claim(ctx context.Context, p *corev1.Pod, v *corev1.Volume) (pod.Mount, error) {
	name, readOnly := p.Name+"-"+v.Name, false // of an ephemeral volume
	if v.PersistentVolumeClaim != nil {
		name, readOnly = v.PersistentVolumeClaim.ClaimName, v.PersistentVolumeClaim.ReadOnly
	}
	volume, err := m.boundVolume(ctx, p, name, v.Ephemeral != nil)
	if err != nil {
		return pod.Mount{}, fmt.Errorf("error processing PVC %s/%s: %w", p.Namespace, name, err)
	}
	mode := volume.Spec.VolumeMode
	switch source := volume.Spec.PersistentVolumeSource; {
	case mode != nil && *mode == corev1.PersistentVolumeBlock:
		return pod.Mount{}, fmt.Errorf("volume %s has volumeMode %s, which this node does not serve", v.Name, *mode)
	case source.HostPath != nil:
		return pod.Mount{HostPath: source.HostPath.Path, ReadOnly: readOnly}, checkHostPath(source.HostPath)
	case source.Local != nil:
		return pod.Mount{HostPath: source.Local.Path, ReadOnly: readOnly}, localDirectory(p, source.Local.Path)
	}
	return pod.Mount{}, fmt.Errorf("persistent volume %s is of a kind that this node does not serve: use hostPath or local", volume.Name)
}

// boundVolume gives the volume of a claim that is bound for good.
func (m *Manager) boundVolume(ctx context.Context, p *corev1.Pod, name string, owned bool) (*corev1.PersistentVolume, error) {
	claim, err := m.cfg.Client.CoreV1().PersistentVolumeClaims(p.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("failed to fetch PVC from API server: %w", err)
	}
	const protection = "kubernetes.io/pvc-protection"
	switch {
	case owned && !metav1.IsControlledBy(claim, p):
		return nil, errors.New("PVC was not created for the pod (pod is not owner)")
	case claim.DeletionTimestamp != nil && !slices.Contains(claim.Finalizers, protection):
		return nil, errors.New("PVC is being deleted")
	case claim.Status.Phase != corev1.ClaimBound:
		return nil, errors.New("PVC is not bound")
	case claim.Spec.VolumeName == "":
		return nil, errors.New("PVC has empty pvc.Spec.VolumeName")
	}
	volume, err := m.cfg.Client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("failed to fetch PV %s from API server: %w", claim.Spec.VolumeName, err)
	}
	if ref := volume.Spec.ClaimRef; ref == nil || ref.UID != claim.UID {
		return nil, fmt.Errorf("PV %s is not bound to this claim", volume.Name)
	}
	return volume, nil
}

// localDirectory checks the directory of a local volume and gives it to the
// pod's group. A hostPath volume is never changed that way.
func localDirectory(p *corev1.Pod, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("path %q does not exist", path)
	}
	if !info.IsDir() {
		return fmt.Errorf("local volume %q is not a directory; block devices must be mounted beforehand", path)
	}
	group := fsGroup(p)
	if group == nil {
		return nil
	}
	policy := p.Spec.SecurityContext.FSGroupChangePolicy
	if policy != nil && *policy == corev1.FSGroupChangeOnRootMismatch && groupMatches(path, *group) {
		return nil
	}
	return giveToGroup(path, *group, groupWrites)
}
