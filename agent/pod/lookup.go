package pod

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Snapshot is a pod as this node last saw it. It is immutable.
type Snapshot struct {
	Pod        *corev1.Pod      // as the API last showed it
	Status     corev1.PodStatus // as this node computed it, perhaps not yet written
	SandboxID  string           // "" when it has none that is ready
	IPs        []string
	Containers []Container // every attempt that the runtime knows, newest first
}

// Container is one attempt at a container.
type Container struct {
	Name, ID string
	Attempt  int32
	State    runtimeapi.ContainerState
	ExitCode int32
	LogPath  string
	Reason   string
}

// show publishes the worker's state for lookups from outside.
func (w *worker) show() {
	s := &Snapshot{Pod: w.pod, Status: w.written.status, IPs: w.addresses()}
	if b := w.seen.box(); b != nil {
		s.SandboxID = b.ID
	}
	for _, c := range w.seen.containers {
		s.Containers = append(s.Containers, Container{
			Name: c.Name, ID: c.ID, Attempt: c.Attempt, State: c.State,
			ExitCode: c.ExitCode, LogPath: c.CRI.GetLogPath(), Reason: c.Reason,
		})
	}
	w.snapshot.Store(s)
}

// addresses are the pod's IPs, the node's for a pod in the host's network.
func (w *worker) addresses() []string {
	if w.pod != nil && w.pod.Spec.HostNetwork {
		return w.m.cfg.HostIPs()
	}
	return w.seen.ips()
}

// Pods gives every pod that this node deals with.
func (m *Manager) Pods() []*Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*Snapshot, 0, len(m.workers))
	for _, w := range m.workers {
		if s := w.snapshot.Load(); s != nil {
			all = append(all, s)
		}
	}
	return all
}

// ByUID gives a pod, nil when it is not here.
func (m *Manager) ByUID(uid types.UID) *Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := m.workers[uid]; w != nil {
		return w.snapshot.Load()
	}
	return nil
}

// Pod gives a pod by name: of several incarnations the one that is not being
// deleted. Nil when there is none.
func (m *Manager) Pod(namespace, name string) *Snapshot {
	var found *Snapshot
	for _, s := range m.Pods() {
		if s.Pod.Namespace == namespace && s.Pod.Name == name && (found == nil || s.Pod.DeletionTimestamp == nil) {
			found = s
		}
	}
	return found
}

// ContainerID gives the newest attempt at a container, and false when there is
// none. An empty uid means whichever pod has that name now.
func (m *Manager) ContainerID(namespace, name string, uid types.UID, container string) (Container, bool) {
	s := m.Pod(namespace, name)
	if uid != "" {
		s = m.ByUID(uid)
	}
	if s == nil {
		return Container{}, false
	}
	i := slices.IndexFunc(s.Containers, func(c Container) bool { return c.Name == container })
	if i < 0 {
		return Container{}, false
	}
	return s.Containers[i], true
}

// Sandbox gives a pod's sandbox and first address, "" while it has none.
func (m *Manager) Sandbox(namespace, name string, uid types.UID) (id, ip string) {
	s := m.Pod(namespace, name)
	if uid != "" {
		s = m.ByUID(uid)
	}
	if s == nil {
		return "", ""
	}
	return s.SandboxID, first(s.IPs)
}

// Evict stops a pod for good and marks it Failed with reason and message.
// condition, if set, is the reason of its DisruptionTarget condition; grace
// overrides the pod's own, in seconds. It returns at once.
func (m *Manager) Evict(uid types.UID, reason, message, condition string, grace *int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.workers[uid]
	if w == nil {
		return
	}
	w.mail.post(func() {
		if w.halt == nil {
			w.halt = &halt{reason: reason, message: message, disruption: condition, grace: grace}
			w.event(nil, corev1.EventTypeWarning, reason, message)
		}
	})
}

// Moved has the status of every pod be looked at again: HostIPs are others now.
func (m *Manager) Moved() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.workers {
		w.mail.post(func() {})
	}
}

// Cgroup is the path of a pod's cgroup below where cgroups are mounted.
func (m *Manager) Cgroup(pod *corev1.Pod) string { return m.cgroups.parent(pod) }
