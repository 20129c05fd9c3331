package children

import (
	"cmp"
	"context"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/server/registry"
)

// Index finds pods by owner and by node without a look at all others. It reads
// the store's history up to the present whenever it is asked, so it is never
// behind a write that was acknowledged before; nothing runs in between.
type Index struct {
	registry *registry.Registry
	pods     registry.Typed[*corev1.Pod]

	mu    sync.Mutex // guards what follows
	watch *registry.Watch
	known map[string]*corev1.Pod // by namespace and name
	by    map[place]map[string]*corev1.Pod
}

// place is one way to find a pod; exactly one field is set.
type place struct {
	owner   types.UID
	node    string
	orphans string // the namespace of a pod that nothing controls
}

// NewIndex makes an index that reads nothing before it is asked.
func NewIndex(r *registry.Registry) *Index {
	return &Index{registry: r, pods: registry.Of[*corev1.Pod](r)}
}

// OfOwner gives the pods that uid controls, by name.
func (x *Index) OfOwner(uid types.UID) []*corev1.Pod { return x.at(place{owner: uid}) }

// Orphans gives the pods of a namespace that nothing controls, by name.
func (x *Index) Orphans(namespace string) []*corev1.Pod { return x.at(place{orphans: namespace}) }

// OnNode gives the pods that are bound to a node, by namespace and name.
func (x *Index) OnNode(name string) []*corev1.Pod { return x.at(place{node: name}) }

func (x *Index) at(p place) []*corev1.Pod {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.catchUp() != nil {
		return x.search(p)
	}
	out := make([]*corev1.Pod, 0, len(x.by[p]))
	for _, pod := range x.by[p] {
		out = append(out, pod)
	}
	slices.SortFunc(out, func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// search does without the index: the store is going down.
func (x *Index) search(p place) []*corev1.Pod {
	return slices.DeleteFunc(x.pods.List("", nil), func(pod *corev1.Pod) bool { return !slices.Contains(placesOf(pod), p) })
}

// catchUp takes in what has happened since the last time.
func (x *Index) catchUp() error {
	for {
		err := x.drain()
		if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
			return err
		}
		x.watch.Stop()
		x.watch = nil
	}
}

func (x *Index) drain() error {
	over, cancel := context.WithCancel(context.Background())
	cancel() // with it Next gives what there is and does not wait
	if x.watch == nil {
		watch, err := x.registry.Watch(context.Background(), x.pods.Resource(), registry.Selection{}, &metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return err
		}
		x.watch = watch
		x.known, x.by = map[string]*corev1.Pod{}, map[place]map[string]*corev1.Pod{}
	}
	for {
		events, err := x.watch.Next(over)
		if err == over.Err() {
			return nil
		}
		if err != nil {
			return err
		}
		for _, event := range events {
			x.see(event.Object.(*corev1.Pod), event.Type == "DELETED")
		}
	}
}

func (x *Index) see(pod *corev1.Pod, deleted bool) {
	name := pod.Namespace + "/" + pod.Name
	if old := x.known[name]; old != nil {
		for _, p := range placesOf(old) {
			delete(x.by[p], name)
			if len(x.by[p]) == 0 {
				delete(x.by, p)
			}
		}
	}
	if deleted {
		delete(x.known, name)
		return
	}
	x.known[name] = pod
	for _, p := range placesOf(pod) {
		if x.by[p] == nil {
			x.by[p] = map[string]*corev1.Pod{}
		}
		x.by[p][name] = pod
	}
}

func placesOf(pod *corev1.Pod) []place {
	places := make([]place, 0, 2)
	if ref := metav1.GetControllerOfNoCopy(pod); ref != nil {
		places = append(places, place{owner: ref.UID})
	} else {
		places = append(places, place{orphans: pod.Namespace})
	}
	if pod.Spec.NodeName != "" {
		places = append(places, place{node: pod.Spec.NodeName})
	}
	return places
}
