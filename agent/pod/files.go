package pod

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"orch/agent/disk"
)

// podUID names a pod everywhere on the node.
type podUID = types.UID

// podDir holds what the agent keeps for a pod. Its volumes lie in there too,
// but are not ours.
func (m *Manager) podDir(uid podUID) string { return filepath.Join(m.cfg.Dir, "pods", string(uid)) }

// LogDir is where the logs of a pod's containers lie:
// <container>/<attempt>.log below it, in CRI format.
func (m *Manager) LogDir(namespace, name string, uid types.UID) string {
	return filepath.Join(m.cfg.Dir, "logs", namespace+"_"+name+"_"+string(uid))
}

func (m *Manager) podLogDir(pod *corev1.Pod) string {
	return m.LogDir(pod.Namespace, pod.Name, pod.UID)
}

func (m *Manager) makeDirs(pod *corev1.Pod) error {
	if err := os.MkdirAll(m.podDir(pod.UID), 0o750); err != nil {
		return fmt.Errorf("make pod directory: %w", err)
	}
	if err := os.MkdirAll(m.podLogDir(pod), 0o755); err != nil {
		return fmt.Errorf("make pod log directory: %w", err)
	}
	if err := m.linkPod(pod); err != nil {
		m.log.Warn("cannot make the link for a pod's logs", "pod", describe(pod), "err", err)
	}
	return nil
}

// removeDirs deletes a pod's logs and files. The directory itself stays while
// something of its volumes is left in it.
func (m *Manager) removeDirs(uid podUID) error {
	logs, err := filepath.Glob(filepath.Join(m.cfg.Dir, "logs", "*_"+string(uid)))
	if err != nil {
		return err
	}
	for _, path := range append(logs, filepath.Join(m.podDir(uid), "containers"), filepath.Join(m.podDir(uid), "etc-hosts")) {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	_ = os.Remove(m.podDir(uid)) // fails while volumes are left, which their owner removes
	return m.dropLinks()
}

// leftovers are the pods that have files here.
func (m *Manager) leftovers() []podUID {
	var all []podUID
	pods, _ := os.ReadDir(filepath.Join(m.cfg.Dir, "pods")) // none yet
	for _, e := range pods {
		all = append(all, podUID(e.Name()))
	}
	logs, _ := os.ReadDir(filepath.Join(m.cfg.Dir, "logs"))
	for _, e := range logs {
		if i := strings.LastIndexByte(e.Name(), '_'); i >= 0 {
			all = append(all, podUID(e.Name()[i+1:]))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// writeHosts writes the pod's hosts file and gives its path.
func (m *Manager) writeHosts(pod *corev1.Pod, ips []string) (string, error) {
	path := filepath.Join(m.podDir(pod.UID), "etc-hosts")
	var content []byte
	if pod.Spec.HostNetwork {
		host, err := os.ReadFile("/etc/hosts")
		if err != nil && !os.IsNotExist(err) {
			return "", err
		}
		content = append([]byte("# Kubernetes-managed hosts file (host network).\n"), host...)
		content = append(content, hostAliases(pod)...)
	} else {
		host, domain, err := m.hostname(pod)
		if err != nil {
			return "", err
		}
		content = hostsFile(pod, ips, host, domain)
	}
	// Written in place: containers that run already have this very file mounted.
	// They may have written it, too, as much as they like.
	old, cut, err := disk.Tail(path, int64(len(content))+1)
	if err == nil && !cut && bytes.Equal(old, content) {
		return path, nil
	}
	return path, os.WriteFile(path, content, 0o644)
}

func hostsFile(pod *corev1.Pod, ips []string, host, domain string) []byte {
	var b bytes.Buffer
	b.WriteString("# Kubernetes-managed hosts file.\n" +
		"127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\n" +
		"fe00::0\tip6-mcastprefix\n" +
		"fe00::1\tip6-allnodes\n" +
		"fe00::2\tip6-allrouters\n")
	for _, ip := range ips {
		if domain != "" {
			fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, host, domain, host)
		} else {
			fmt.Fprintf(&b, "%s\t%s\n", ip, host)
		}
	}
	b.Write(hostAliases(pod))
	return b.Bytes()
}

func hostAliases(pod *corev1.Pod) []byte {
	if len(pod.Spec.HostAliases) == 0 {
		return nil
	}
	var b bytes.Buffer
	b.WriteString("\n# Entries added by HostAliases.\n")
	for _, a := range pod.Spec.HostAliases {
		fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
	}
	return b.Bytes()
}

// makeMessageFile makes the file that the container finds at its termination
// message path. Any user of the container may write it.
func (m *Manager) makeMessageFile(o launchOrder) (string, error) {
	dir := filepath.Join(m.podDir(o.pod.UID), "containers", o.unit.Name)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", fmt.Errorf("make directory for termination message: %w", err)
	}
	path := filepath.Join(dir, fmt.Sprint(o.attempt))
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		return "", fmt.Errorf("make file for termination message: %w", err)
	}
	return path, os.Chmod(path, 0o666) // whatever the umask
}

const (
	mostMessage      = 4096
	mostLogMessage   = 2048
	mostMessageLines = 80
)

// lastWords puts a dead container's termination message into its status.
func (m *Manager) lastWords(s *runtimeapi.ContainerStatus) {
	if s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		return
	}
	words, err := messageFile(s)
	fallback := s.GetAnnotations()[noteMessagePolicy] == string(corev1.TerminationMessageFallbackToLogsOnError) &&
		s.GetExitCode() != 0 && s.GetReason() != "ContainerCannotRun"
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		words = fmt.Sprintf("Error on reading termination log: %v", err)
	case words == "" && fallback:
		words = logTail(s.GetLogPath(), mostLogMessage, mostMessageLines)
	}
	if words != "" {
		if s.Message != "" {
			words = s.Message + ": " + words
		}
		s.Message = words
	}
}

// messageFile reads the end of what the container wrote for us.
func messageFile(s *runtimeapi.ContainerStatus) (string, error) {
	path := s.GetAnnotations()[noteMessagePath]
	for _, mount := range s.GetMounts() {
		if path == "" || mount.GetContainerPath() != absolute(path) {
			continue
		}
		raw, _, err := disk.Tail(mount.GetHostPath(), mostMessage)
		return string(raw), err
	}
	return "", nil
}
