package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"orch/internal/version"
)

// A status names this many images at most, and names per image.
const (
	maxImages     = 50
	maxImageNames = 5
)

// observation is all that a status is made of.
type observation struct {
	machine     *Machine
	name        string
	ips         []net.IP
	externalIPs []net.IP
	disk        int64 // size of the node's file system, bytes
	maxPods     int64
	reserved    corev1.ResourceList
	kubeletPort int32
	runtime     string // "containerd://2.4.2"
	handlers    []corev1.NodeRuntimeHandler
	features    *corev1.NodeFeatures
	images      []corev1.ContainerImage
	notReady    error
	pressure    map[corev1.NodeConditionType]bool
}

// report keeps the node's status true until ctx ends: it is looked at when
// woken and every so often, and written when it changed or was long unsaid.
// While the node is not ready, looks follow each other quickly: what it waits
// for (a network, a runtime) is about to come.
func (m *Manager) report(ctx context.Context) error {
	hurry := backoff{next: 20 * time.Millisecond, limit: checkInterval}
	var written time.Time
	announced := false
	for {
		now := m.cfg.Now()
		observed := m.observe(ctx)
		err := m.writeStatus(ctx, now, observed, &written)
		if err != nil && ctx.Err() == nil {
			m.settle()
			m.log.Warn("cannot write node status", "err", err)
		}
		if err == nil && observed.notReady == nil && !announced {
			announced = true
			m.log.Info("node is ready", "node", m.cfg.NodeName)
			m.cfg.OnReady()
		}
		m.relieve(ctx, now)
		delay := checkInterval
		if observed.notReady != nil {
			delay = hurry.next
			hurry.next = min(hurry.next*3/2, hurry.limit)
		} else {
			hurry.next = 20 * time.Millisecond
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-m.wake:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		timer.Stop()
	}
}

// writeStatus writes the status if it says something new or was last written
// long ago, and records what changed as events.
func (m *Manager) writeStatus(ctx context.Context, now time.Time, o observation, written *time.Time) error {
	old := m.Node()
	if o.notReady != nil && !errors.Is(o.notReady, ErrShuttingDown) && now.Sub(*m.settles.Load()) < settleTime && isReady(&old.Status) {
		return nil // pods ran through the restart; they must not be evicted for it
	}
	status := newStatus(now, &old.Status, o)
	if now.Sub(*written) < reportInterval && sameStatus(&old.Status, &status) && !m.missed.Load() {
		return nil
	}
	err := m.patchStatus(ctx, old, &status)
	if apierrors.IsNotFound(err) { // the leader says so, for it was a write
		m.gone()
		return fmt.Errorf("this node is not in the cluster: %w", err)
	}
	m.missed.Store(false)
	if err != nil {
		return err
	}
	*written = now
	for _, c := range transitions(old.Status.Conditions, status.Conditions) {
		m.event(corev1.EventTypeNormal, eventReason(c), fmt.Sprintf("Node %s status is now: %s", m.cfg.NodeName, eventReason(c)))
	}
	return nil
}

func isReady(s *corev1.NodeStatus) bool {
	return slices.ContainsFunc(s.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// newStatus is the status of a node that was old and is now as observed. Fields
// of old that are not ours (volumes attached, extended resources) stay.
func newStatus(now time.Time, old *corev1.NodeStatus, o observation) corev1.NodeStatus {
	s := *old.DeepCopy()
	s.Addresses = addresses(o)
	capacity := o.machine.capacity(o.disk, o.maxPods)
	s.Capacity = merge(old.Capacity, capacity)
	s.Allocatable = merge(old.Allocatable, allocatable(capacity, o.reserved))
	s.NodeInfo = corev1.NodeSystemInfo{
		MachineID: o.machine.MachineID, SystemUUID: o.machine.SystemUUID, BootID: o.machine.BootID,
		KernelVersion: o.machine.Kernel, OSImage: o.machine.OSImage,
		ContainerRuntimeVersion: o.runtime, KubeletVersion: version.Kubernetes,
		OperatingSystem: goruntime.GOOS, Architecture: goruntime.GOARCH,
	}
	if o.machine.SwapBytes > 0 {
		s.NodeInfo.Swap = &corev1.NodeSwapStatus{Capacity: &o.machine.SwapBytes}
	}
	s.DaemonEndpoints.KubeletEndpoint.Port = o.kubeletPort
	s.RuntimeHandlers, s.Features, s.Images = o.handlers, o.features, o.images
	s.Conditions = conditions(metav1.NewTime(now).Rfc3339Copy(), old.Conditions, o)
	return s
}

// merge keeps what old has under names that fresh does not know and that are
// not the machine's own: extended resources that somebody advertised.
func merge(old, fresh corev1.ResourceList) corev1.ResourceList {
	list := fresh.DeepCopy()
	for name, amount := range old {
		if _, ok := list[name]; !ok && strings.Contains(string(name), "/") {
			list[name] = amount
		}
	}
	return list
}

func addresses(o observation) []corev1.NodeAddress {
	var list []corev1.NodeAddress
	for _, ip := range o.ips {
		list = append(list, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip.String()})
	}
	for _, ip := range o.externalIPs {
		list = append(list, corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: ip.String()})
	}
	return append(list, corev1.NodeAddress{Type: corev1.NodeHostName, Address: o.name})
}

// wording is what a pressure condition says: false first, then true.
var wording = map[corev1.NodeConditionType][2][2]string{
	corev1.NodeMemoryPressure: {
		{"KubeletHasSufficientMemory", "kubelet has sufficient memory available"},
		{"KubeletHasInsufficientMemory", "kubelet has insufficient memory available"},
	},
	corev1.NodeDiskPressure: {
		{"KubeletHasNoDiskPressure", "kubelet has no disk pressure"},
		{"KubeletHasDiskPressure", "kubelet has disk pressure"},
	},
	corev1.NodePIDPressure: {
		{"KubeletHasSufficientPID", "kubelet has sufficient PID available"},
		{"KubeletHasInsufficientPID", "kubelet has insufficient PID available"},
	},
}

// conditions gives old with ours renewed. Ready stays last, as clients expect.
func conditions(now metav1.Time, old []corev1.NodeCondition, o observation) []corev1.NodeCondition {
	list := slices.Clone(old)
	set := func(t corev1.NodeConditionType, holds bool, reason, message string) {
		c := corev1.NodeCondition{Type: t, Status: corev1.ConditionFalse, Reason: reason, Message: message, LastHeartbeatTime: now, LastTransitionTime: now}
		if holds {
			c.Status = corev1.ConditionTrue
		}
		i := slices.IndexFunc(list, func(c corev1.NodeCondition) bool { return c.Type == t })
		if i < 0 {
			list = append(list, c)
			return
		}
		if list[i].Status == c.Status {
			c.LastTransitionTime = list[i].LastTransitionTime
		}
		list[i] = c
	}
	for _, t := range []corev1.NodeConditionType{corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure} {
		words := wording[t][0]
		if o.pressure[t] {
			words = wording[t][1]
		}
		set(t, o.pressure[t], words[0], words[1])
	}
	if o.notReady != nil {
		set(corev1.NodeReady, false, "KubeletNotReady", o.notReady.Error())
	} else {
		set(corev1.NodeReady, true, "KubeletReady", "kubelet is posting ready status")
	}
	return list
}

// sameStatus compares without the heartbeats.
func sameStatus(a, b *corev1.NodeStatus) bool {
	still := func(s *corev1.NodeStatus) corev1.NodeStatus {
		quiet := *s
		quiet.Conditions = slices.Clone(s.Conditions)
		for i := range quiet.Conditions {
			quiet.Conditions[i].LastHeartbeatTime = metav1.Time{}
		}
		return quiet
	}
	return equality.Semantic.DeepEqual(still(a), still(b))
}

// transitions gives the conditions of ours whose status is not what it was.
func transitions(old, now []corev1.NodeCondition) []corev1.NodeCondition {
	var changed []corev1.NodeCondition
	for _, c := range now {
		i := slices.IndexFunc(old, func(o corev1.NodeCondition) bool { return o.Type == c.Type })
		if _, ours := wording[c.Type]; (ours || c.Type == corev1.NodeReady) && (i < 0 || old[i].Status != c.Status) {
			changed = append(changed, c)
		}
	}
	return changed
}

// eventReason names a condition's new state as events do.
func eventReason(c corev1.NodeCondition) string {
	if c.Type == corev1.NodeReady {
		if c.Status == corev1.ConditionTrue {
			return "NodeReady"
		}
		return "NodeNotReady"
	}
	return "Node" + strings.TrimPrefix(c.Reason, "Kubelet")
}

// observe looks at the machine and the runtime.
func (m *Manager) observe(ctx context.Context) observation {
	signals := m.readSignals(ctx)
	o := observation{
		machine: m.machine, name: m.cfg.NodeName, ips: m.cfg.NodeIPs(), externalIPs: m.cfg.ExternalIPs,
		disk: signals.nodeBytes, maxPods: m.cfg.MaxPods, reserved: m.cfg.Reserved, kubeletPort: m.cfg.KubeletPort,
		images: m.images.get(ctx, m.cfg.Now(), m.cfg.Images), notReady: m.cfg.Ready(),
	}
	o.pressure = m.pressure.note(m.cfg.Now(), signals)
	if old := m.Node(); old != nil { // kept while the runtime does not answer
		o.runtime, o.handlers, o.features = old.Status.NodeInfo.ContainerRuntimeVersion, old.Status.RuntimeHandlers, old.Status.Features
	}
	status, err := m.cfg.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		o.notReady = cmp.Or(o.notReady, fmt.Errorf("container runtime is down: %w", err))
		return o
	}
	if err := runtimeReady(status.Status); err != nil && o.notReady == nil {
		o.notReady = err
	}
	o.handlers, o.features = handlers(status), features(status)
	if v, err := m.cfg.Runtime.Version(ctx, &runtimeapi.VersionRequest{}); err == nil {
		number, _, _ := strings.Cut(v.RuntimeVersion, "+")
		o.runtime = v.RuntimeName + "://" + strings.TrimPrefix(number, "v")
	}
	return o
}

// runtimeReady tells which of the runtime's own conditions is amiss.
func runtimeReady(status *runtimeapi.RuntimeStatus) error {
	for _, c := range status.GetConditions() {
		if c.Status {
			continue
		}
		switch c.Type {
		case runtimeapi.RuntimeReady:
			return fmt.Errorf("container runtime not ready: %s=%v reason:%s message:%s", c.Type, c.Status, c.Reason, c.Message)
		case runtimeapi.NetworkReady:
			return fmt.Errorf("container runtime network not ready: %s=%v reason:%s message:%s", c.Type, c.Status, c.Reason, c.Message)
		}
	}
	return nil
}

func handlers(s *runtimeapi.StatusResponse) []corev1.NodeRuntimeHandler {
	var list []corev1.NodeRuntimeHandler
	for _, h := range s.RuntimeHandlers {
		recursive, users := h.GetFeatures().GetRecursiveReadOnlyMounts(), h.GetFeatures().GetUserNamespaces()
		list = append(list, corev1.NodeRuntimeHandler{
			Name:     h.Name,
			Features: &corev1.NodeRuntimeHandlerFeatures{RecursiveReadOnlyMounts: &recursive, UserNamespaces: &users},
		})
	}
	slices.SortFunc(list, func(a, b corev1.NodeRuntimeHandler) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func features(s *runtimeapi.StatusResponse) *corev1.NodeFeatures {
	if s.Features == nil {
		return nil
	}
	groups := s.Features.SupplementalGroupsPolicy
	return &corev1.NodeFeatures{SupplementalGroupsPolicy: &groups}
}

// imageList is the images as last listed, and where they lie.
type imageList struct {
	at          time.Time
	list        []corev1.ContainerImage
	dir         string
	nextReclaim time.Time
}

func (l *imageList) get(ctx context.Context, now time.Time, cri runtimeapi.ImageServiceClient) []corev1.ContainerImage {
	if now.Sub(l.at) < imagesInterval {
		return l.list
	}
	if answer, err := cri.ListImages(ctx, &runtimeapi.ListImagesRequest{}); err == nil {
		l.at, l.list = now, nodeImages(answer.Images)
	}
	return l.list
}

// nodeImages gives the largest images, largest first.
func nodeImages(images []*runtimeapi.Image) []corev1.ContainerImage {
	list := make([]corev1.ContainerImage, 0, len(images))
	for _, i := range images {
		names := slices.Concat(i.RepoDigests, i.RepoTags)
		list = append(list, corev1.ContainerImage{Names: names[:min(len(names), maxImageNames)], SizeBytes: int64(i.Size)})
	}
	slices.SortStableFunc(list, func(a, b corev1.ContainerImage) int {
		return cmp.Or(cmp.Compare(b.SizeBytes, a.SizeBytes), slices.Compare(a.Names, b.Names))
	})
	return list[:min(len(list), maxImages)]
}
