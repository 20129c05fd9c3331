// Package volume makes the volumes of pods available on the node and keeps
// their content up to date.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"orch/agent/objects"
	"orch/agent/pod"
)

// Config of a Manager.
type Config struct {
	// Dir is the agent's directory. Volumes lie in pods/<uid>/volumes below it,
	// content that may be secret in a tmpfs at secrets/<uid>.
	Dir    string
	Client kubernetes.Interface
	// Node gives this node's object, nil while it is not known.
	Node func() *corev1.Node
	// Events records failures of updates; nil: they are only logged.
	Events pod.Recorder
	// Evict ends a pod that uses more of the disk than it may; nil: its limits
	// are not looked at.
	Evict func(uid types.UID, reason, message string)
	// Written gives what a pod's containers have written, their logs included, in
	// bytes by name; nil: only limits of volumes are looked at.
	Written func(ctx context.Context, uid types.UID) map[string]int64

	Logger *slog.Logger
	Now    func() time.Time // nil: time.Now
}

// Manager prepares and removes volumes. It is the Volumes of package pod.
type Manager struct {
	cfg     Config
	log     *slog.Logger
	Objects *objects.Cache
	tokens  *tokens
	updates *queue // pods whose content is to be looked at again
	sizes   *queue // pods whose use of the disk is to be measured

	secrets sync.Mutex // held while the tmpfs for secrets is mounted

	mu   sync.Mutex
	pods map[types.UID]*podVolumes // guarded by mu
}

// podVolumes is what is known of one pod's volumes.
type podVolumes struct {
	pod *corev1.Pod // as last observed; guarded by Manager.mu

	mu       sync.Mutex // guards everything below, and the pod's files
	prepared bool       // refs are in use
	refs     []objects.Ref
	shown    map[string]bool // volumes with content that was written once
	timer    *time.Timer     // for the next update
	measure  *time.Timer     // for the next look at sizes
	failures int             // of updates, in a row
	gone     bool
}

var _ pod.Volumes = (*Manager)(nil)

// New makes a manager.
func New(cfg Config) *Manager {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Node == nil {
		cfg.Node = func() *corev1.Node { return nil }
	}
	m := &Manager{
		cfg: cfg, log: cfg.Logger.With("component", "volume"),
		tokens:  newTokens(cfg.Client, cfg.Now),
		updates: newQueue(), sizes: newQueue(),
		pods: map[types.UID]*podVolumes{},
	}
	m.Objects = objects.New(cfg.Client, cfg.Logger, m.objectChanged)
	return m
}

// updaters bounds how many pods are updated at once.
const updaters = 4

// Run keeps the content of volumes up to date until ctx ends. Volumes stay as
// they are after that, for the pods that go on running.
func (m *Manager) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return m.Objects.Run(ctx) })
	serve := func(q *queue, do func(context.Context, types.UID)) {
		group.Go(func() error {
			for {
				uid, ok := q.take(ctx)
				if !ok {
					return nil
				}
				do(ctx, uid)
			}
		})
	}
	for range updaters {
		serve(m.updates, m.update)
	}
	serve(m.sizes, m.measure)
	err := group.Wait()
	m.dropEmptySecrets()
	return err
}

func (m *Manager) objectChanged(ref objects.Ref) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid, known := range m.pods {
		if slices.Contains(references(known.pod), ref) {
			m.updates.add(uid)
		}
	}
}

// Observe takes note of a pod's new state: its labels and annotations may be
// the content of a volume.
func (m *Manager) Observe(p *corev1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.pods[p.UID]
	if known == nil {
		if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			m.pods[p.UID] = &podVolumes{pod: p}
			m.watchSize(p)
		}
		return
	}
	old := known.pod
	known.pod = p
	changed := old.Generation != p.Generation || !maps.Equal(old.Labels, p.Labels) || !maps.Equal(old.Annotations, p.Annotations)
	if changed && slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return fromPod(&v) }) {
		m.updates.add(p.UID)
	}
}

// enter gives what is known of a pod, and the newest state of its object.
func (m *Manager) enter(p *corev1.Pod) (*podVolumes, *corev1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.pods[p.UID]
	if known == nil {
		known = &podVolumes{pod: p}
		m.pods[p.UID] = known
		m.watchSize(p)
	}
	return known, known.pod
}

// watchSize has a pod measured from now on if it has a limit.
func (m *Manager) watchSize(p *corev1.Pod) {
	if m.cfg.Evict != nil && limited(p) {
		m.sizes.add(p.UID)
	}
}

func (m *Manager) lookup(uid types.UID) (*podVolumes, *corev1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.pods[uid]
	if known == nil {
		return nil, nil
	}
	return known, known.pod
}

func (m *Manager) podDir(uid types.UID) string     { return filepath.Join(m.cfg.Dir, "pods", string(uid)) }
func (m *Manager) volumesDir(uid types.UID) string { return filepath.Join(m.podDir(uid), "volumes") }
func (m *Manager) secretsDir() string              { return filepath.Join(m.cfg.Dir, "secrets") }

// Prepare makes all volumes that a pod's containers use available.
func (m *Manager) Prepare(ctx context.Context, p *corev1.Pod) (map[string]pod.Mount, error) {
	known, p := m.enter(p)
	known.mu.Lock()
	defer known.mu.Unlock()
	if known.gone {
		return nil, errors.New("the pod is being removed")
	}
	if !known.prepared {
		known.prepared, known.refs, known.shown = true, references(p), map[string]bool{}
		for _, ref := range known.refs {
			m.Objects.Use(ref)
		}
	}
	mounts := make(map[string]pod.Mount, len(p.Spec.Volumes))
	var errs []error
	var next time.Time
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.Image != nil || !isUsed(p, v.Name) { // images are mounted by the runtime
			continue
		}
		mount, due, err := m.prepare(ctx, p, v)
		next = sooner(next, due)
		if err != nil {
			errs = append(errs, setUpFailed(v, err))
			continue
		}
		mounts[v.Name] = mount
		known.shown[v.Name] = fromAPI(v)
	}
	m.schedule(known, p.UID, next)
	return mounts, errors.Join(errs...)
}

func setUpFailed(v *corev1.Volume, err error) error {
	return fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.Name, err)
}

// isUsed tells whether a container mounts a volume or reads its environment
// from it.
func isUsed(p *corev1.Pod, volume string) bool {
	for mounts := range mountsOf(&p.Spec) {
		if slices.ContainsFunc(mounts, func(m corev1.VolumeMount) bool { return m.Name == volume }) {
			return true
		}
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			inEnv := func(e corev1.EnvVar) bool {
				return e.ValueFrom != nil && e.ValueFrom.FileKeyRef != nil && e.ValueFrom.FileKeyRef.VolumeName == volume
			}
			asDevice := func(d corev1.VolumeDevice) bool { return d.Name == volume }
			if slices.ContainsFunc(list[i].Env, inEnv) || slices.ContainsFunc(list[i].VolumeDevices, asDevice) {
				return true
			}
		}
	}
	return false
}

// prepare makes one volume available; a time that is not zero is when its
// content is to be renewed.
func (m *Manager) prepare(ctx context.Context, p *corev1.Pod, v *corev1.Volume) (pod.Mount, time.Time, error) {
	switch {
	case v.HostPath != nil:
		return pod.Mount{HostPath: v.HostPath.Path}, time.Time{}, checkHostPath(v.HostPath)
	case v.EmptyDir != nil:
		dir := filepath.Join(m.volumesDir(p.UID), v.Name)
		return pod.Mount{HostPath: dir, SELinuxRelabel: true}, time.Time{}, m.emptyDir(dir, p, v.EmptyDir)
	case fromAPI(v):
		if err := m.mountSecrets(); err != nil {
			return pod.Mount{}, time.Time{}, err
		}
		due, err := m.writeContent(ctx, p, v)
		return pod.Mount{HostPath: m.contentDir(p, v), ReadOnly: true, SELinuxRelabel: true}, due, err
	case v.PersistentVolumeClaim != nil, v.Ephemeral != nil:
		mount, err := m.claim(ctx, p, v)
		return mount, time.Time{}, err
	}
	return pod.Mount{}, time.Time{}, errors.New("this kind of volume is not supported on this node")
}

// updateTimeout bounds what an update may wait for the API.
const updateTimeout = time.Minute

// update writes a pod's content anew where it has changed.
func (m *Manager) update(ctx context.Context, uid types.UID) {
	known, p := m.lookup(uid)
	if known == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, updateTimeout)
	defer cancel()
	known.mu.Lock()
	defer known.mu.Unlock()
	if known.gone {
		return
	}
	var next time.Time
	failed := false
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if !known.shown[v.Name] {
			continue
		}
		due, err := m.writeContent(ctx, p, v)
		next = sooner(next, due)
		if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
			failed = true
			m.updateFailed(p, v, err)
		}
	}
	if known.failures++; !failed {
		known.failures = 0
	} else {
		next = sooner(next, m.cfg.Now().Add(retryAfter(known.failures)))
	}
	m.schedule(known, uid, next)
}

func (m *Manager) updateFailed(p *corev1.Pod, v *corev1.Volume, err error) {
	if p.DeletionTimestamp != nil {
		return // what it shows is often deleted along with it
	}
	if apierrors.IsForbidden(err) {
		// A node may read what its pods refer to: this one is gone already, with its
		// namespace perhaps, and this node hears of it in a moment.
		m.log.Debug("a volume is not updated any more", "pod", p.Namespace+"/"+p.Name, "volume", v.Name, "err", err)
		return
	}
	m.log.Warn("cannot update a volume; it keeps its content", "pod", p.Namespace+"/"+p.Name, "volume", v.Name, "err", err)
	if m.cfg.Events != nil {
		m.cfg.Events.Event(p, corev1.EventTypeWarning, "FailedMount", setUpFailed(v, err).Error())
	}
}

// retryAfter doubles from a second to two minutes.
func retryAfter(failures int) time.Duration {
	return min(time.Second<<min(failures-1, 10), 2*time.Minute)
}

// schedule asks for the pod's next update, if there is to be one; known.mu is held.
func (m *Manager) schedule(known *podVolumes, uid types.UID, at time.Time) {
	if known.timer != nil {
		known.timer.Stop()
	}
	if !at.IsZero() {
		known.timer = time.AfterFunc(max(at.Sub(m.cfg.Now()), time.Second), func() { m.updates.add(uid) })
	}
}

// Remove undoes Prepare. What a killed agent left is found by the pod's name
// in our directories and in the kernel's table of mounts.
func (m *Manager) Remove(_ context.Context, uid types.UID) error {
	m.mu.Lock()
	known := m.pods[uid]
	delete(m.pods, uid)
	m.mu.Unlock()
	if known != nil {
		known.mu.Lock()
		defer known.mu.Unlock()
		m.forget(known, uid)
	}
	return errors.Join(
		removeTree(filepath.Join(m.podDir(uid), "subpaths")),
		removeTree(m.volumesDir(uid)),
		removeTree(filepath.Join(m.secretsDir(), string(uid))),
	)
}

// forget ends all that goes on for a pod; known.mu is held.
func (m *Manager) forget(known *podVolumes, uid types.UID) {
	known.gone = true
	for _, timer := range []*time.Timer{known.timer, known.measure} {
		if timer != nil {
			timer.Stop()
		}
	}
	for _, ref := range known.refs {
		m.Objects.Release(ref)
	}
	known.refs = nil
	m.tokens.forget(uid)
}

// mountSecrets mounts the tmpfs for secrets, once for all pods: a mount for
// each volume would cost every pod start. Only root may look into it.
func (m *Manager) mountSecrets() error {
	m.secrets.Lock()
	defer m.secrets.Unlock()
	dir := m.secretsDir()
	if isTmpfs(dir) {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return mountTmpfs(dir, unix.MS_NOSUID|unix.MS_NODEV, "mode=0700")
}

// dropEmptySecrets unmounts the tmpfs when no pod is left that needs it.
func (m *Manager) dropEmptySecrets() {
	m.secrets.Lock()
	defer m.secrets.Unlock()
	dir := m.secretsDir()
	if entries, err := os.ReadDir(dir); err == nil && len(entries) == 0 && isTmpfs(dir) {
		_ = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW) // it may stay
	}
}

// Dirs gives the directories of a pod's volumes on this node by name, for
// statistics.
func (m *Manager) Dirs(uid types.UID) map[string]string {
	dirs := map[string]string{}
	_, p := m.lookup(uid)
	if p == nil {
		return dirs
	}
	for i := range p.Spec.Volumes {
		switch v := &p.Spec.Volumes[i]; {
		case v.EmptyDir != nil:
			dirs[v.Name] = filepath.Join(m.volumesDir(uid), v.Name)
		case fromAPI(v):
			dirs[v.Name] = m.contentDir(p, v)
		}
	}
	return dirs
}
