// Package pod makes the pods bound to this node run: one worker per pod takes
// one lifecycle step at a time between what the API asks for and what the
// container runtime reports, and writes the pod's status back.
package pod

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	goruntime "runtime"
	"time"

	corev1 "k8s.io/api/core/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Mount says where a prepared volume lies on the host.
type Mount struct {
	HostPath       string
	ReadOnly       bool // whatever the container asks for
	SELinuxRelabel bool
}

// Volumes makes a pod's volumes available on this node.
type Volumes interface {
	// Prepare returns, by volume name, where the volumes of pod lie once all of
	// them have their content. An error is shown in an event and retried. Volumes
	// that the runtime mounts itself (image volumes) are left out.
	Prepare(ctx context.Context, pod *corev1.Pod) (map[string]Mount, error)
	// Remove undoes Prepare. It succeeds when there is nothing to undo.
	Remove(ctx context.Context, pod types.UID) error
	// Subpath gives the host path of a directory or file inside a volume, safe
	// against symbolic links that lead outside.
	Subpath(ctx context.Context, pod *corev1.Pod, container string, mount int, volume Mount, path string) (string, error)
}

// Objects gives the objects that containers take their environment from.
// Errors are API status errors.
type Objects interface {
	ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
}

// Recorder records API events. client-go's record.EventRecorder and our own
// Events both do.
type Recorder interface {
	Event(object kruntime.Object, eventType, reason, message string)
}

// Config of a Manager.
type Config struct {
	NodeName string
	Dir      string // the agent's data directory: pods and logs lie below it

	// LogLinks gets pods/ and containers/ with links to logs, where collectors look
	// for them; "": none.
	LogLinks string

	Client  kubernetes.Interface
	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient
	Volumes Volumes
	Objects Objects  // nil: read through Client
	Events  Recorder // nil: events are dropped

	// Node gives this node's API object, nil while it is not known. Pods are
	// admitted against it.
	Node func() *corev1.Node
	// Refuse tells why no new pod may start on this node; no reason: they may.
	Refuse func() (reason, message string)
	// UnsafeSysctls are names, or patterns that end in *, of sysctls that pods may
	// set beyond the safe ones.
	UnsafeSysctls []string
	// Services gives the services of a namespace, for environment variables. It
	// may block until they are known.
	Services func(namespace string) []*corev1.Service
	// HostIPs are the node's addresses, the primary one first.
	HostIPs func() []string

	ClusterDNS    []string
	ClusterDomain string
	ResolvConf    string // the host's; "": it has none that pods may use

	// CgroupParent holds the pods' cgroups; "": /kubepods. CgroupFS is where
	// cgroups are mounted; "": /sys/fs/cgroup.
	CgroupParent string
	CgroupFS     string
	SeccompDir   string // Localhost profiles; "": <Dir>/seccomp
	MemoryBytes  int64  // of the machine, for oom_score_adj

	// Starts bounds how many sandboxes and containers are being started at once;
	// 0: twice the number of processors.
	Starts int64
	// Pulls bounds how many images are being pulled at once; 0: 4.
	Pulls int64

	// Sweep, when set, ends what the runtime started for sandboxes that it does not
	// know, and tells how many there were. It calls settled between the look at
	// what runs and at what is known.
	Sweep func(ctx context.Context, settled func(context.Context) error) (ended int, err error)
	// EndSandbox, when set, ends all processes of a sandbox that the runtime cannot stop.
	EndSandbox func(id string) error

	// Observed is called, when set, with every new state of a pod, before its
	// worker sees it. It must return quickly.
	Observed func(*corev1.Pod)
	// Removed is called, when set, after the last trace of a pod is gone.
	Removed func(types.UID)

	Logger *slog.Logger     // nil: slog.Default
	Now    func() time.Time // nil: time.Now
}

// Validate fills in defaults and reports what is missing.
func (c *Config) Validate() error {
	switch {
	case c.NodeName == "":
		return errors.New("pod: node name is missing")
	case c.Dir == "":
		return errors.New("pod: data directory is missing")
	case c.Client == nil || c.Runtime == nil || c.Images == nil || c.Volumes == nil:
		return errors.New("pod: client, runtime, images and volumes are all needed")
	}
	if c.Objects == nil {
		c.Objects = apiObjects{c.Client}
	}
	if c.Events == nil {
		c.Events = noEvents{}
	}
	if c.Node == nil {
		c.Node = func() *corev1.Node { return nil }
	}
	if c.Refuse == nil {
		c.Refuse = func() (string, string) { return "", "" }
	}
	if c.Services == nil {
		c.Services = func(string) []*corev1.Service { return nil }
	}
	if c.HostIPs == nil {
		c.HostIPs = func() []string { return nil }
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Starts == 0 {
		c.Starts = int64(2 * goruntime.NumCPU())
	}
	if c.Pulls == 0 {
		c.Pulls = 4
	}
	setDefault(&c.CgroupParent, "/kubepods")
	setDefault(&c.CgroupFS, "/sys/fs/cgroup")
	setDefault(&c.SeccompDir, filepath.Join(c.Dir, "seccomp"))
	return nil
}

func setDefault(field *string, value string) {
	if *field == "" {
		*field = value
	}
}

type noEvents struct{}

func (noEvents) Event(kruntime.Object, string, string, string) {}
