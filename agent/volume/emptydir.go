package volume

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	helpers "k8s.io/component-helpers/resource"
)

// emptyDir makes a directory, or a tmpfs, that lives as long as its pod. One
// that is there already belongs to its containers, who may have changed its
// mode: it stays as it is.
func (m *Manager) emptyDir(dir string, p *corev1.Pod, source *corev1.EmptyDirVolumeSource) error {
	switch medium := source.Medium; {
	case medium == corev1.StorageMediumDefault:
		return m.diskDir(dir, p)
	case medium == corev1.StorageMediumMemory:
		if isTmpfs(dir) {
			return nil
		}
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
		return mountTmpfs(dir, 0, tmpfsOptions(p, source, m.cfg.Node()))
	case strings.HasPrefix(string(medium), string(corev1.StorageMediumHugePages)):
		return fmt.Errorf("storage medium %q is not supported: this node serves no volumes of huge pages", medium)
	default:
		return fmt.Errorf("unknown storage medium %q", medium)
	}
}

// diskDir makes the directory under another name first: it appears with its
// permissions, whenever we are killed. Names of volumes have no dot.
func (m *Manager) diskDir(dir string, p *corev1.Pod) error {
	if _, err := os.Lstat(dir); err == nil {
		return nil
	}
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	// The pod's directory keeps other users of this machine out.
	if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return err
	}
	if err := os.Mkdir(fresh, 0o777); err != nil {
		return err
	}
	if err := os.Chmod(fresh, 0o777); err != nil { // whatever the umask
		return err
	}
	if group := fsGroup(p); group != nil {
		if err := giveToGroup(fresh, *group, groupWrites); err != nil {
			return err
		}
	}
	return os.Rename(fresh, dir)
}

// tmpfsOptions bounds a memory volume by the smallest of what pods may use on
// this node, the pod's own limit, and the volume's.
func tmpfsOptions(p *corev1.Pod, source *corev1.EmptyDirVolumeSource, n *corev1.Node) string {
	var size resource.Quantity
	bound := func(q resource.Quantity) {
		if q.Sign() > 0 && (size.IsZero() || q.Cmp(size) < 0) {
			size = q
		}
	}
	if n != nil {
		bound(n.Status.Allocatable[corev1.ResourceMemory])
	}
	bound(memoryLimit(p))
	if source.SizeLimit != nil {
		bound(*source.SizeLimit)
	}
	mode, group := fs.FileMode(0o1777), fsGroup(p)
	options := fmt.Sprintf("mode=%o", mode)
	if group != nil {
		options = fmt.Sprintf("mode=%o,gid=%d", mode|0o2000, *group)
	}
	if !size.IsZero() {
		options += fmt.Sprintf(",size=%d", size.Value())
	}
	return options
}

// memoryLimit is the pod's, zero when a container is without one.
func memoryLimit(p *corev1.Pod) resource.Quantity {
	if limits := p.Spec.Resources; limits != nil {
		if limit, ok := limits.Limits[corev1.ResourceMemory]; ok {
			return limit
		}
	}
	for i := range p.Spec.Containers {
		if _, ok := p.Spec.Containers[i].Resources.Limits[corev1.ResourceMemory]; !ok {
			return resource.Quantity{}
		}
	}
	return helpers.PodLimits(p, helpers.PodResourcesOptions{})[corev1.ResourceMemory]
}
