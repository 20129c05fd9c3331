package pod

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Log collectors look for logs where kubelets have them: links in LogLinks lead
// to ours.
//
//	pods/NAMESPACE_POD_UID -> the pod's log directory
//	containers/POD_NAMESPACE_CONTAINER-ID.log -> a container's log below pods

// longestName of a file that file systems take, in bytes.
const longestName = 255

func (m *Manager) podLink(pod *corev1.Pod) string {
	return filepath.Join(m.cfg.LogLinks, "pods", filepath.Base(m.podLogDir(pod)))
}

// linkPod makes the link for a pod's logs.
func (m *Manager) linkPod(pod *corev1.Pod) error {
	if m.cfg.LogLinks == "" {
		return nil
	}
	return makeLink(m.podLogDir(pod), m.podLink(pod))
}

// linkLog makes the link for a container's log, which is log below the pod's
// directory. Without it the container runs as well.
func (m *Manager) linkLog(pod *corev1.Pod, container, id, log string) {
	if m.cfg.LogLinks == "" {
		return
	}
	const suffix = ".log"
	name := pod.Name + "_" + pod.Namespace + "_" + container + "-" + id
	name = name[:min(len(name), longestName-len(suffix))] + suffix
	if err := makeLink(filepath.Join(m.podLink(pod), log), filepath.Join(m.cfg.LogLinks, "containers", name)); err != nil {
		m.log.Warn("cannot make the link for a log", "pod", describe(pod), "container", container, "err", err)
	}
}

// makeLink makes a link unless it is there. What somebody else has at its place
// stays.
func makeLink(target, path string) error {
	if old, err := os.Readlink(path); err == nil {
		if old == target {
			return nil
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

// dropLinks removes our links that lead to nothing any more. Links of others are
// told by where they lead.
func (m *Manager) dropLinks() error {
	if m.cfg.LogLinks == "" {
		return nil
	}
	var errs []error
	for folder, ours := range map[string]string{"containers": filepath.Join(m.cfg.LogLinks, "pods"), "pods": filepath.Join(m.cfg.Dir, "logs")} {
		dir := filepath.Join(m.cfg.LogLinks, folder)
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			target, err := os.Readlink(path)
			if err != nil || !strings.HasPrefix(target, ours+"/") {
				continue
			}
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, ignoreNotExist(os.Remove(path)))
			}
		}
	}
	return errors.Join(errs...)
}
