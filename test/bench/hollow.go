package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"orch/internal/podnet"
	"orch/test/cluster"
)

// What an agent does by the clock, see agent/node.
const (
	renewEvery  = 10 * time.Second
	reportEvery = 5 * time.Minute
)

// hollow is a node without containers. To the server it is an agent: it
// registers, has a connection of its own and the same watches, renews its lease,
// and says of each pod that it runs.
type hollow struct {
	*client
	name  string
	crowd *hollows
}

// hollows are all of them, and what they have seen together.
type hollows struct {
	ready, bound, running atomic.Int64
	putOff, expired       atomic.Int64  // requests that the server was too busy for, watches that fell behind
	changed               chan struct{} // has room for one: some count went up
}

func (h *hollows) count(what *atomic.Int64) {
	what.Add(1)
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// wait waits until what has reached count.
func (h *hollows) wait(ctx context.Context, limit time.Duration, what *atomic.Int64, count int64) error {
	timeout := time.After(limit)
	for what.Load() < count {
		select {
		case <-h.changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timeout:
			return fmt.Errorf("%d of %d after %s", what.Load(), count, limit)
		}
	}
	return nil
}

// newHollow makes a node of the server's cluster. The administrator's
// certificate stands in for its own, its name and rights are a node's.
func newHollow(server *cluster.Node, i int, crowd *hollows) (*hollow, error) {
	c, err := newClient(server)
	if err != nil {
		return nil, err
	}
	h := &hollow{client: c, name: fmt.Sprintf("hollow-%04d", i), crowd: crowd}
	c.http.Transport = asNode{"system:node:" + h.name, c.http.Transport}
	return h, nil
}

// asNode sends requests in the name of a node.
type asNode struct {
	user string
	next http.RoundTripper
}

func (a asNode) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header["Impersonate-User"] = []string{a.user}
	r.Header["Impersonate-Group"] = []string{"system:nodes", "system:authenticated"}
	return a.next.RoundTrip(r)
}

func (a asNode) CloseIdleConnections() { a.next.(*http.Transport).CloseIdleConnections() }

func address(i int) string { return fmt.Sprintf("10.200.%d.%d", i/250, 1+i%250) }

// register makes the node's object and its lease.
func (h *hollow) register(ctx context.Context, i int) (*coordinationv1.Lease, error) {
	size := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("32"), corev1.ResourceMemory: resource.MustParse("64Gi"), corev1.ResourcePods: resource.MustParse("110"),
		corev1.ResourceEphemeralStorage: resource.MustParse("100Gi")}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: h.name, Labels: map[string]string{corev1.LabelHostname: h.name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64"}},
		Status: corev1.NodeStatus{Capacity: size, Allocatable: size, Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address(i)}, {Type: corev1.NodeHostName, Address: h.name}},
			NodeInfo: corev1.NodeSystemInfo{OSImage: "hollow", KubeletVersion: "v1.37.2", OperatingSystem: "linux", Architecture: "amd64"}},
	}
	for _, kind := range []corev1.NodeConditionType{corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure} {
		node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{Type: kind, Status: corev1.ConditionFalse, Reason: "Fine", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()})
	}
	node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()})
	if err := h.send(ctx, http.MethodPost, "/api/v1/nodes", node, new(corev1.Node)); err != nil {
		return nil, err
	}
	duration, now := int32(40), metav1.NowMicro()
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: h.name, Namespace: corev1.NamespaceNodeLease},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &h.name, LeaseDurationSeconds: &duration, RenewTime: &now}}
	made := new(coordinationv1.Lease)
	return made, h.send(ctx, http.MethodPost, leasePath, lease, made)
}

const leasePath = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"

// message is an object with a protobuf form.
type message interface {
	runtime.Object
	Unmarshal([]byte) error
}

// send writes the object and reads what the server made of it into answered,
// which is empty.
func (h *hollow) send(ctx context.Context, method, path string, object runtime.Object, answered message) error {
	body, err := encode(object)
	if err != nil {
		return err
	}
	answer, err := h.open(ctx, method, path, protobufType, protobufType, body)
	if err != nil {
		return err
	}
	defer answer.Close()
	data, err := io.ReadAll(answer)
	if err != nil {
		return err
	}
	return unwrap(data, answered)
}

// unwrap decodes the envelope of the protobuf media type, and what is in it.
func unwrap(data []byte, into message) error {
	var envelope runtime.Unknown
	if len(data) < 4 {
		return io.ErrUnexpectedEOF
	}
	if err := envelope.Unmarshal(data[4:]); err != nil {
		return err
	}
	return into.Unmarshal(envelope.Raw)
}

// run is the node's life until ctx ends.
func (h *hollow) run(ctx context.Context, lease *coordinationv1.Lease) error {
	group, ctx := errgroup.WithContext(ctx)
	own := "&fieldSelector=metadata.name%3D" + h.name
	ready := false
	group.Go(func() error {
		return h.watch(ctx, "/api/v1/nodes", own, func(_ string, data []byte) error {
			var node corev1.Node
			if err := unwrap(data, &node); err != nil {
				return err
			}
			if !ready && node.Spec.PodCIDR != "" && len(node.Spec.Taints) == 0 {
				ready = true
				h.crowd.count(&h.crowd.ready)
			}
			return nil
		})
	})
	running := map[string]bool{}
	group.Go(func() error {
		return h.watch(ctx, "/api/v1/pods", "&fieldSelector=spec.nodeName%3D"+h.name, func(kind string, data []byte) error {
			var pod corev1.Pod
			if err := unwrap(data, &pod); err != nil || kind != string(watch.Added) || running[pod.Name] {
				return err
			}
			running[pod.Name] = true
			h.crowd.count(&h.crowd.bound)
			if err := h.start(ctx, &pod, len(running)); err != nil {
				return err
			}
			h.crowd.count(&h.crowd.running)
			return nil
		})
	})
	group.Go(func() error { return h.listen(ctx) })
	// The service proxy's, and the balancer's.
	for _, w := range []struct{ path, selector string }{
		{"/api/v1/services", ""}, {"/apis/discovery.k8s.io/v1/endpointslices", ""},
		{"/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", "&labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes"},
	} {
		group.Go(func() error {
			return h.watch(ctx, w.path, w.selector, func(string, []byte) error { return nil })
		})
	}
	group.Go(func() error { return h.renew(ctx, lease) })
	group.Go(func() error { return h.report(ctx) })
	if err := group.Wait(); ctx.Err() == nil || !errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", h.name, err)
	}
	return nil
}

// listen hears where the pods of all other nodes are.
func (h *hollow) listen(ctx context.Context) error {
	return podnet.Follow(ctx, func(ctx context.Context) (io.ReadCloser, error) {
		return h.open(ctx, http.MethodGet, podnet.Path, "*/*", "", nil)
	}, func(podnet.Update) {})
}

// watch follows a list from its present state, and starts over when it fell
// behind, as client-go's reflectors do.
func (h *hollow) watch(ctx context.Context, path, selector string, see func(kind string, object []byte) error) error {
	for {
		if err := h.watchOnce(ctx, path, selector, see); !errors.Is(err, errExpired) {
			return err
		}
		h.crowd.expired.Add(1)
	}
}

var errExpired = errors.New("the watch has fallen behind")

func (h *hollow) watchOnce(ctx context.Context, path, selector string, see func(kind string, object []byte) error) error {
	stream, err := h.open(ctx, http.MethodGet, path+"?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"+selector, protobufType+";stream=watch", "", nil)
	if err != nil {
		return err
	}
	defer stream.Close()
	in := bufio.NewReader(stream)
	var buffer []byte
	var length [4]byte
	for {
		if _, err := io.ReadFull(in, length[:]); err != nil {
			return errors.Join(err, ctx.Err())
		}
		n := int(binary.BigEndian.Uint32(length[:]))
		if cap(buffer) < n {
			buffer = make([]byte, n)
		}
		if _, err := io.ReadFull(in, buffer[:n]); err != nil {
			return errors.Join(err, ctx.Err())
		}
		var event metav1.WatchEvent
		if err := event.Unmarshal(buffer[:n]); err != nil {
			return err
		}
		if event.Type == string(watch.Error) {
			if bytes.Contains(event.Object.Raw, []byte(metav1.StatusReasonExpired)) {
				return errExpired
			}
			return fmt.Errorf("watch of %s: %q", path, event.Object.Raw)
		}
		if err := see(event.Type, event.Object.Raw); err != nil {
			return err
		}
	}
}

// running is what an agent reports of a pod whose container runs.
const running = `{"metadata":{"uid":%q},"status":{"phase":"Running","hostIP":%q,"hostIPs":[{"ip":%[2]q}],"podIP":%[3]q,"podIPs":[{"ip":%[3]q}],"startTime":%[4]q,
"conditions":[{"type":"PodReadyToStartContainers","status":"True","lastTransitionTime":%[4]q},{"type":"Initialized","status":"True","lastTransitionTime":%[4]q},
{"type":"Ready","status":"True","lastTransitionTime":%[4]q},{"type":"ContainersReady","status":"True","lastTransitionTime":%[4]q}],
"containerStatuses":[{"name":"main","image":"orch.local/hello","imageID":"sha256:%064[5]d","containerID":"containerd://%064[5]d","ready":true,"started":true,"restartCount":0,"state":{"running":{"startedAt":%[4]q}}}]}}`

func (h *hollow) start(ctx context.Context, pod *corev1.Pod, n int) error {
	now := time.Now().UTC().Format(time.RFC3339)
	body := fmt.Appendf(nil, running, pod.UID, "10.200.0.1", fmt.Sprintf("10.128.%d.%d", n/250, 1+n%250), now, n)
	_, err := h.do(ctx, http.MethodPatch, "/api/v1/namespaces/"+pod.Namespace+"/pods/"+pod.Name+"/status", protobufType, "application/strategic-merge-patch+json", body)
	return err
}

// open tries again, as client-go does, what a busy server has put off.
func (h *hollow) open(ctx context.Context, method, path, accept, contentType string, body []byte) (io.ReadCloser, error) {
	for {
		answer, err := h.client.open(ctx, method, path, accept, contentType, body)
		var refused *statusError
		if !errors.As(err, &refused) || refused.code != http.StatusTooManyRequests {
			return answer, err
		}
		h.crowd.putOff.Add(1)
		if err := pause(ctx, time.Second); err != nil {
			return nil, err
		}
	}
}

// do is client.do by way of this open.
func (h *hollow) do(ctx context.Context, method, path, accept, contentType string, body []byte) (int64, error) {
	answer, err := h.open(ctx, method, path, accept, contentType, body)
	if err != nil {
		return 0, err
	}
	defer answer.Close()
	return io.Copy(io.Discard, answer)
}

func (h *hollow) renew(ctx context.Context, lease *coordinationv1.Lease) error {
	if err := pause(ctx, rand.N(renewEvery)); err != nil {
		return err
	}
	for {
		now := metav1.NowMicro()
		lease.Spec.RenewTime = &now
		next := new(coordinationv1.Lease)
		if err := h.send(ctx, http.MethodPut, leasePath+"/"+h.name, lease, next); err != nil {
			return err
		}
		lease = next
		if err := pause(ctx, renewEvery); err != nil {
			return err
		}
	}
}

// report says now and then that nothing has changed.
func (h *hollow) report(ctx context.Context) error {
	for wait := rand.N(reportEvery); ; wait = reportEvery {
		if err := pause(ctx, wait); err != nil {
			return err
		}
		body := fmt.Appendf(nil, `{"status":{"conditions":[{"type":"Ready","lastHeartbeatTime":%q}]}}`, time.Now().UTC().Format(time.RFC3339))
		if _, err := h.do(ctx, http.MethodPatch, "/api/v1/nodes/"+h.name+"/status", protobufType, "application/strategic-merge-patch+json", body); err != nil {
			return err
		}
	}
}
