package volume

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// makeNested makes the directories on which other volumes are mounted inside
// this one. Containers see it read-only, so that the runtime could not.
func makeNested(dir, volume string, p *corev1.Pod) error {
	for _, nested := range nestedMountPoints(p, volume) {
		if err := os.MkdirAll(filepath.Join(dir, nested), 0o755); err != nil {
			return fmt.Errorf("unable to create nested volume mountpoints: %w", err)
		}
	}
	return nil
}

// nestedMountPoints gives, relative to the volume, where other volumes are
// mounted in it; not those inside of others again.
func nestedMountPoints(p *corev1.Pod, volume string) []string {
	var nested []string
	for mounts := range mountsOf(&p.Spec) {
		for _, own := range mounts {
			if own.Name != volume {
				continue
			}
			inside := pathsBelow(filepath.Clean(own.MountPath), mounts)
			for i, path := range inside {
				covered := slices.ContainsFunc(inside[:i], func(other string) bool { return strings.HasPrefix(path, other+"/") })
				if !covered && !slices.Contains(nested, path) {
					nested = append(nested, path)
				}
			}
		}
	}
	return nested
}

// pathsBelow gives the mount paths below base, relative to it, parents first.
func pathsBelow(base string, mounts []corev1.VolumeMount) []string {
	var below []string
	for _, m := range mounts {
		if path, ok := strings.CutPrefix(filepath.Clean(m.MountPath), base+"/"); ok && filepath.IsLocal(path) {
			below = append(below, path)
		}
	}
	slices.SortFunc(below, func(a, b string) int { return len(a) - len(b) })
	return below
}

// mountsOf yields the volume mounts of each container of any kind.
func mountsOf(spec *corev1.PodSpec) func(yield func([]corev1.VolumeMount) bool) {
	return func(yield func([]corev1.VolumeMount) bool) {
		for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
			for i := range list {
				if !yield(list[i].VolumeMounts) {
					return
				}
			}
		}
		for i := range spec.EphemeralContainers {
			if !yield(spec.EphemeralContainers[i].VolumeMounts) {
				return
			}
		}
	}
}
