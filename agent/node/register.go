package node

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	goruntime "runtime"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// backoff waits between attempts: from first up to limit, doubling.
type backoff struct{ next, limit time.Duration }

// wait gives false when ctx ended first.
func (b *backoff) wait(ctx context.Context) bool {
	timer := time.NewTimer(b.next)
	defer timer.Stop()
	b.next = min(2*b.next, b.limit)
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// register creates the node, or brings an existing one up to date, trying again
// until it works, ctx ends or this node is refused.
func (m *Manager) register(ctx context.Context) error {
	wait := backoff{next: 50 * time.Millisecond, limit: 7 * time.Second}
	refusals := 0
	for attempt := 0; ; attempt++ {
		err := m.tryRegister(ctx)
		if err == nil {
			m.event(corev1.EventTypeNormal, "Starting", "Starting kubelet.")
			m.log.Info("registered node", "node", m.cfg.NodeName)
			return nil
		}
		if ctx.Err() == nil && attempt%5 == 4 { // the server may just be starting
			m.log.Warn("cannot register this node yet", "node", m.cfg.NodeName, "err", err)
		}
		if apierrors.IsUnauthorized(err) {
			refusals++
		} else {
			refusals = 0
		}
		if refusals == refusalsBelieved {
			return ErrRefused
		}
		if !wait.wait(ctx) {
			return nil
		}
	}
}

func (m *Manager) tryRegister(ctx context.Context) error {
	nodes := m.cfg.Client.CoreV1().Nodes()
	fresh := m.newNode(ctx)
	created, err := nodes.Create(ctx, fresh, metav1.CreateOptions{})
	if err == nil {
		m.node.Store(created)
		return nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create node: %w", err)
	}
	old, err := nodes.Get(ctx, m.cfg.NodeName, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get node: %w", err)
	}
	if old.Status.NodeInfo.BootID != "" && old.Status.NodeInfo.BootID != m.machine.BootID {
		m.event(corev1.EventTypeWarning, "Rebooted", fmt.Sprintf("Node %s has been rebooted, boot id: %s", m.cfg.NodeName, m.machine.BootID))
	}
	// Labels that come from the machine or the command line follow them; what
	// others put on the node stays.
	labels := maps.Clone(old.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, fresh.Labels)
	if !maps.Equal(labels, old.Labels) {
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
		if err != nil {
			return err
		}
		if old, err = nodes.Patch(ctx, m.cfg.NodeName, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("update node labels: %w", err)
		}
	}
	m.node.Store(old)
	return nil
}

// newNode is the node as it is first registered, status included.
func (m *Manager) newNode(ctx context.Context) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:        m.cfg.NodeName,
			Labels:      m.labels(),
			Annotations: map[string]string{"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
		},
		Spec: corev1.NodeSpec{ProviderID: m.cfg.ProviderID, Taints: m.cfg.Taints},
	}
	if m.cfg.PodCIDR != "" {
		n.Spec.PodCIDR, n.Spec.PodCIDRs = m.cfg.PodCIDR, []string{m.cfg.PodCIDR}
	}
	n.Status = newStatus(m.cfg.Now(), &n.Status, m.observe(ctx))
	return n
}

func (m *Manager) labels() map[string]string {
	labels := map[string]string{
		corev1.LabelHostname:      m.cfg.NodeName,
		corev1.LabelOSStable:      goruntime.GOOS,
		corev1.LabelArchStable:    goruntime.GOARCH,
		"beta.kubernetes.io/os":   goruntime.GOOS,
		"beta.kubernetes.io/arch": goruntime.GOARCH,
	}
	if m.cfg.InstanceType != "" {
		labels[corev1.LabelInstanceTypeStable] = m.cfg.InstanceType
		labels[corev1.LabelInstanceType] = m.cfg.InstanceType
	}
	maps.Copy(labels, m.cfg.Labels)
	return labels
}

// watchNode keeps the node's object up to date: others cordon it and label it,
// and pods are admitted against it.
func (m *Manager) watchNode(ctx context.Context) error {
	list := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (kruntime.Object, error) {
			o.FieldSelector = "metadata.name=" + m.cfg.NodeName
			return m.cfg.Client.CoreV1().Nodes().List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = "metadata.name=" + m.cfg.NodeName
			return m.cfg.Client.CoreV1().Nodes().Watch(ctx, o)
		},
	}, m.cfg.Client)
	reflector := cache.NewReflectorWithOptions(list, &corev1.Node{}, nodeSink{m}, cache.ReflectorOptions{})
	reflector.RunWithContext(ctx)
	return nil
}

// nodeSink takes what the reflector sees.
type nodeSink struct{ m *Manager }

func (s nodeSink) Add(obj any) error    { s.m.seen(obj.(*corev1.Node)); return nil }
func (s nodeSink) Update(obj any) error { s.m.seen(obj.(*corev1.Node)); return nil }
func (s nodeSink) Resync() error        { return nil }

func (s nodeSink) Delete(any) error { s.m.gone(); return nil }

func (s nodeSink) Replace(list []any, _ string) error {
	for _, obj := range list {
		s.m.seen(obj.(*corev1.Node))
	}
	if len(list) == 0 { // a server that lags behind, or one that was restored: a write tells
		s.m.missed.Store(true)
		s.m.Wake()
	}
	return nil
}

// gone ends Run: the Node was deleted. Nothing of this process makes it again.
func (m *Manager) gone() { m.goneOnce.Do(func() { close(m.removed) }) }

// seen takes the node from the API. When somebody changed its status, the next
// report puts it right.
func (m *Manager) seen(n *corev1.Node) {
	old, ok := m.advance(n)
	if ok && old != nil && old.ResourceVersion != n.ResourceVersion && !equality.Semantic.DeepEqual(old.Status, n.Status) {
		m.Wake()
	}
}

// advance takes over a state of the node unless a newer one is known: the
// answer to a write may arrive after the event of a later change.
func (m *Manager) advance(n *corev1.Node) (old *corev1.Node, ok bool) {
	for {
		old = m.node.Load()
		if old != nil && old.UID == n.UID {
			if order, err := resourceversion.CompareResourceVersion(old.ResourceVersion, n.ResourceVersion); err == nil && order > 0 {
				return old, false
			}
		}
		if m.node.CompareAndSwap(old, n) {
			return old, true
		}
	}
}

// patchStatus writes the difference between the two statuses.
func (m *Manager) patchStatus(ctx context.Context, old *corev1.Node, status *corev1.NodeStatus) error {
	changed := old.DeepCopy()
	changed.Status = *status
	before, err := json.Marshal(old)
	if err != nil {
		return err
	}
	after, err := json.Marshal(changed)
	if err != nil {
		return err
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Node{})
	if err != nil {
		return err
	}
	if len(old.Status.Addresses) > 0 && !equality.Semantic.DeepEqual(old.Status.Addresses, status.Addresses) {
		// Merged by type, addresses of the same type would override each other.
		if patch, err = replaceAddresses(patch, status.Addresses); err != nil {
			return err
		}
	}
	written, err := m.cfg.Client.CoreV1().Nodes().Patch(ctx, m.cfg.NodeName, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return err
	}
	m.advance(written)
	return nil
}

// replaceAddresses makes patch set the whole list of addresses.
func replaceAddresses(patch []byte, addresses []corev1.NodeAddress) ([]byte, error) {
	var body map[string]any
	if err := json.Unmarshal(patch, &body); err != nil {
		return nil, err
	}
	status, _ := body["status"].(map[string]any)
	if status == nil {
		status = map[string]any{}
		body["status"] = status
	}
	list := []any{map[string]any{"$patch": "replace"}}
	for _, a := range addresses {
		list = append(list, map[string]any{"type": a.Type, "address": a.Address})
	}
	status["addresses"] = list
	return json.Marshal(body)
}
