package pod

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels and annotations by which pods are recognized in the runtime. The
// first are kubelet's, so that other tools (crictl) know them too.
const (
	labelPod       = "io.kubernetes.pod.name"
	labelNamespace = "io.kubernetes.pod.namespace"
	labelUID       = "io.kubernetes.pod.uid"
	labelContainer = "io.kubernetes.container.name"

	noteHash          = "io.kubernetes.container.hash"
	noteRestarts      = "io.kubernetes.container.restartCount"
	noteMessagePath   = "io.kubernetes.container.terminationMessagePath"
	noteMessagePolicy = "io.kubernetes.container.terminationMessagePolicy"
	notePreStop       = "io.kubernetes.container.preStopHandler"
	notePorts         = "io.kubernetes.container.ports"
	noteGrace         = "io.kubernetes.pod.terminationGracePeriod"
	noteBackoff       = "orch.local/backoff-seconds"
)

// container is one attempt at a container, as the runtime knows it.
type container struct {
	ID, Name, Sandbox          string
	Attempt                    int32
	State                      runtimeapi.ContainerState
	Created, Started, Finished time.Time
	ExitCode                   int32
	Reason, Message            string
	Hash                       string
	Backoff                    time.Duration
	CRI                        *runtimeapi.ContainerStatus
}

func (c *container) running() bool {
	return c != nil && c.State == runtimeapi.ContainerState_CONTAINER_RUNNING
}

func (c *container) exited() bool {
	return c != nil && c.State == runtimeapi.ContainerState_CONTAINER_EXITED
}

func newContainer(s *runtimeapi.ContainerStatus, sandbox string) *container {
	c := &container{
		ID: s.GetId(), Name: s.GetLabels()[labelContainer], Sandbox: sandbox,
		State: s.GetState(), Created: nanoTime(s.GetCreatedAt()),
		Started: nanoTime(s.GetStartedAt()), Finished: nanoTime(s.GetFinishedAt()),
		ExitCode: s.GetExitCode(), Reason: s.GetReason(), Message: s.GetMessage(),
		Hash: s.GetAnnotations()[noteHash], CRI: s,
	}
	if n, err := strconv.ParseInt(s.GetAnnotations()[noteRestarts], 10, 32); err == nil {
		c.Attempt = int32(n)
	}
	if n, err := strconv.Atoi(s.GetAnnotations()[noteBackoff]); err == nil {
		c.Backoff = time.Duration(n) * time.Second
	}
	return c
}

func nanoTime(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

// sandbox is one attempt at a pod's sandbox.
type sandbox struct {
	ID      string
	Attempt uint32
	Ready   bool
	Created time.Time
	IPs     []string
	// Stopped says that we saw its network given back; not known over a restart,
	// but stopping twice does no harm.
	Stopped bool
}

func newSandbox(s *runtimeapi.PodSandboxStatus) *sandbox {
	b := &sandbox{
		ID: s.GetId(), Attempt: s.GetMetadata().GetAttempt(), Created: nanoTime(s.GetCreatedAt()),
		Ready: s.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY,
	}
	if ip := s.GetNetwork().GetIp(); ip != "" {
		b.IPs = append(b.IPs, ip)
	}
	for _, ip := range s.GetNetwork().GetAdditionalIps() {
		b.IPs = append(b.IPs, ip.GetIp())
	}
	return b
}

// observed is what the runtime holds of one pod, newest first. Reports may
// arrive late and out of order: a container never goes back to an earlier
// state, and what we removed does not come back.
type observed struct {
	sandboxes  []*sandbox
	containers []*container
	removed    map[string]bool
}

// report is news from the runtime about one pod.
type report struct {
	namespace, name string
	uid             types.UID
	sandboxes       []*runtimeapi.PodSandboxStatus
	containers      []containerReport
	whole           bool      // everything there is: what is not in it is gone
	since           time.Time // whole: when the reading began
	unsure          bool      // there may be more that a call has made
}

type containerReport struct {
	sandbox string
	status  *runtimeapi.ContainerStatus
}

func (o *observed) merge(r report) {
	if r.whole {
		o.prune(r)
	}
	for _, s := range r.sandboxes {
		o.addSandbox(newSandbox(s))
	}
	for _, c := range r.containers {
		o.addContainer(newContainer(c.status, c.sandbox))
	}
}

func (o *observed) prune(r report) {
	here := make(map[string]bool)
	for _, s := range r.sandboxes {
		here[s.GetId()] = true
	}
	for _, c := range r.containers {
		here[c.status.GetId()] = true
	}
	gone := func(id string, created time.Time) bool {
		return !here[id] && (r.since.IsZero() || !created.After(r.since)) // what was made while the others were read is not missing
	}
	o.sandboxes = slices.DeleteFunc(o.sandboxes, func(s *sandbox) bool { return gone(s.ID, s.Created) })
	o.containers = slices.DeleteFunc(o.containers, func(c *container) bool { return gone(c.ID, c.Created) })
}

func (o *observed) addSandbox(s *sandbox) {
	if o.removed[s.ID] {
		return
	}
	for i, old := range o.sandboxes {
		if old.ID != s.ID {
			continue
		}
		s.Ready = s.Ready && old.Ready
		s.Stopped = old.Stopped
		if len(s.IPs) == 0 {
			s.IPs = old.IPs
		}
		o.sandboxes[i] = s
		return
	}
	o.sandboxes = append(o.sandboxes, s)
	slices.SortStableFunc(o.sandboxes, func(a, b *sandbox) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.Attempt, a.Attempt))
	})
}

// rank orders container states by how far the container has come.
func rank(s runtimeapi.ContainerState) int {
	switch s {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return 0
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return 2
	default:
		return 1
	}
}

func (o *observed) addContainer(c *container) {
	if o.removed[c.ID] || c.Name == "" {
		return
	}
	for i, old := range o.containers {
		if old.ID != c.ID {
			continue
		}
		if rank(c.State) >= rank(old.State) && !old.exited() {
			c.Sandbox = cmp.Or(c.Sandbox, old.Sandbox)
			o.containers[i] = c
		}
		return
	}
	o.containers = append(o.containers, c)
	slices.SortStableFunc(o.containers, func(a, b *container) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.Attempt, a.Attempt))
	})
}

// forget drops what was removed from the runtime, for good.
func (o *observed) forget(ids ...string) {
	if o.removed == nil {
		o.removed = make(map[string]bool)
	}
	for _, id := range ids {
		o.removed[id] = true
	}
	o.sandboxes = slices.DeleteFunc(o.sandboxes, func(s *sandbox) bool { return o.removed[s.ID] })
	o.containers = slices.DeleteFunc(o.containers, func(c *container) bool { return o.removed[c.ID] })
}

// exited tells that the container of that ID is known to be dead.
func (o *observed) exited(id string) bool {
	for _, c := range o.containers {
		if c.ID == id {
			return c.exited()
		}
	}
	return false
}

// latest is the newest attempt at a container; nil when there was none.
func (o *observed) latest(name string) *container {
	for _, c := range o.containers {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// latestExited is the newest dead attempt at a container.
func (o *observed) latestExited(name string) *container {
	for _, c := range o.containers {
		if c.Name == name && c.exited() {
			return c
		}
	}
	return nil
}

// alive are the containers that need killing before the pod is down.
func (o *observed) alive() []*container {
	var live []*container
	for _, c := range o.containers {
		if c.running() || c.State == runtimeapi.ContainerState_CONTAINER_UNKNOWN {
			live = append(live, c)
		}
	}
	return live
}

// box is the sandbox in use, nil when a new one is needed.
func (o *observed) box() *sandbox {
	if len(o.sandboxes) == 0 || !o.sandboxes[0].Ready {
		return nil
	}
	for _, s := range o.sandboxes[1:] {
		if s.Ready {
			return nil // two at once: start over
		}
	}
	return o.sandboxes[0]
}

// standing are the sandboxes that have not been taken down for certain.
func (o *observed) standing() []string {
	var ids []string
	for _, s := range o.sandboxes {
		if s.Ready || !s.Stopped {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// attempt is the number that the next sandbox gets.
func (o *observed) attempt() uint32 {
	if len(o.sandboxes) == 0 {
		return 0
	}
	return o.sandboxes[0].Attempt + 1
}

// ips are the pod's addresses, the last known when the sandbox is down.
func (o *observed) ips() []string {
	if len(o.sandboxes) == 0 {
		return nil
	}
	return o.sandboxes[0].IPs
}

// ids are those of all containers and sandboxes.
func (o *observed) ids() (containers, sandboxes []string) {
	for _, c := range o.containers {
		containers = append(containers, c.ID)
	}
	for _, s := range o.sandboxes {
		sandboxes = append(sandboxes, s.ID)
	}
	return containers, sandboxes
}
