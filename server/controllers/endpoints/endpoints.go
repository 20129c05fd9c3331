package endpoints

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"

	"orch/server/controllers/loop"
	"orch/server/registry"
)

// managedEndpoints marks Endpoints that this controller owns; mirrors of them
// would only repeat the slices.
const managedEndpoints = "endpoints.kubernetes.io/managed-by"

// maxAddresses are kept in one Endpoints object; more are cut and marked so.
const maxAddresses = 1000

// Endpoints gives the controller of the older Endpoints objects.
func Endpoints(r *registry.Registry) *loop.Controller {
	services, pods, endpoints := registry.Of[*corev1.Service](r), registry.Of[*corev1.Pod](r), registry.Of[*corev1.Endpoints](r)
	pace := newPace(r)
	return &loop.Controller{
		Name:    "endpoints",
		Workers: 4,
		Sources: []loop.Source{
			loop.Each[*corev1.Service](r),
			loop.Changes(r, func(old, p *corev1.Pod, deleted bool) []loop.Key { return servicesOf(services, old, p, deleted) }),
			loop.Each[*corev1.Endpoints](r),
		},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			existing, getErr := endpoints.Get(key.Namespace, key.Name)
			service, err := services.Get(key.Namespace, key.Name)
			switch {
			case err != nil:
				pace.forget(key)
				if getErr == nil && existing.Labels[managedEndpoints] != "" {
					return 0, ignoreNotFound(endpoints.Delete(ctx, key.Namespace, key.Name, metav1.DeleteOptions{}))
				}
				return 0, nil
			case len(service.Spec.Selector) == 0:
				return 0, nil
			}
			want := endpointsFor(service, pods.List(key.Namespace, labels.SelectorFromValidatedSet(service.Spec.Selector)))
			if getErr != nil {
				_, err := endpoints.Create(ctx, want)
				if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
					return 0, nil
				}
				return 0, err
			}
			if sameEndpoints(existing, want) {
				return 0, nil
			}
			before, after := readyAddresses(existing), readyAddresses(want)
			if wait := pace.hold(key, time.Now(), after.IsSuperset(before), len(after) > 0); wait > 0 {
				return wait, nil
			}
			changed := existing.DeepCopy()
			changed.Subsets, changed.Labels = want.Subsets, want.Labels
			changed.Annotations = mergeOverCapacity(changed.Annotations, want.Annotations)
			_, err = endpoints.Update(ctx, changed)
			return 0, ignoreNotFound(err)
		},
	}
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func mergeOverCapacity(old, want map[string]string) map[string]string {
	if want[corev1.EndpointsOverCapacity] != "" {
		if old == nil {
			old = map[string]string{}
		}
		old[corev1.EndpointsOverCapacity] = want[corev1.EndpointsOverCapacity]
	} else {
		delete(old, corev1.EndpointsOverCapacity)
	}
	return old
}

func sameEndpoints(a, b *corev1.Endpoints) bool {
	return (len(a.Subsets) == 0 && len(b.Subsets) == 0 || reflect.DeepEqual(a.Subsets, b.Subsets)) &&
		reflect.DeepEqual(a.Labels, b.Labels) && a.Annotations[corev1.EndpointsOverCapacity] == b.Annotations[corev1.EndpointsOverCapacity]
}

// readyAddresses are those that get traffic, each with the ports of its subset.
func readyAddresses(e *corev1.Endpoints) sets.Set[string] {
	ready := sets.Set[string]{}
	for i := range e.Subsets {
		ports := fmt.Sprint(" ", len(e.Subsets[i].Ports))
		for _, p := range e.Subsets[i].Ports {
			ports += fmt.Sprint(" ", p.Name, " ", p.Port, p.Protocol)
		}
		for j := range e.Subsets[i].Addresses {
			ready.Insert(e.Subsets[i].Addresses[j].IP + ports)
		}
	}
	return ready
}

// endpointsFor gives the Endpoints of a service: one subset per set of ports.
func endpointsFor(service *corev1.Service, pods []*corev1.Pod) *corev1.Endpoints {
	set := map[string]string{}
	for k, v := range service.Labels {
		set[k] = v
	}
	delete(set, corev1.IsHeadlessService)
	set[managedEndpoints] = "endpoint-controller"
	if service.Spec.ClusterIP == corev1.ClusterIPNone {
		set[corev1.IsHeadlessService] = ""
	}
	out := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: service.Namespace, Name: service.Name, Labels: set}}
	family := corev1.IPv4Protocol
	if len(service.Spec.IPFamilies) > 0 {
		family = service.Spec.IPFamilies[0]
	}
	live := slices.DeleteFunc(slices.Clone(pods), func(p *corev1.Pod) bool {
		return p.DeletionTimestamp != nil && !service.Spec.PublishNotReadyAddresses
	})
	total := 0
	for _, group := range groupByPorts(service, live, func(string) string { return "" }, family) {
		if len(group.endpoints) == 0 {
			continue
		}
		if total += len(group.endpoints); total > maxAddresses {
			group.endpoints = group.endpoints[:max(0, len(group.endpoints)-(total-maxAddresses))]
			out.Annotations = map[string]string{corev1.EndpointsOverCapacity: "truncated"}
		}
		out.Subsets = append(out.Subsets, subsetOf(group))
	}
	return out
}

func subsetOf(group *portGroup) corev1.EndpointSubset {
	var subset corev1.EndpointSubset
	for _, p := range group.ports {
		subset.Ports = append(subset.Ports, corev1.EndpointPort{Name: *p.Name, Port: *p.Port, Protocol: *p.Protocol, AppProtocol: p.AppProtocol})
	}
	slices.SortFunc(subset.Ports, func(a, b corev1.EndpointPort) int { return cmp.Compare(a.Name, b.Name) })
	for i := range group.endpoints {
		e := &group.endpoints[i]
		address := addressOf(e)
		if *e.Conditions.Ready {
			subset.Addresses = append(subset.Addresses, address)
		} else {
			subset.NotReadyAddresses = append(subset.NotReadyAddresses, address)
		}
	}
	byIP := func(a, b corev1.EndpointAddress) int { return cmp.Compare(a.IP, b.IP) }
	slices.SortFunc(subset.Addresses, byIP)
	slices.SortFunc(subset.NotReadyAddresses, byIP)
	return subset
}

func addressOf(e *discoveryv1.Endpoint) corev1.EndpointAddress {
	address := corev1.EndpointAddress{IP: e.Addresses[0], NodeName: e.NodeName, TargetRef: e.TargetRef}
	if e.Hostname != nil {
		address.Hostname = *e.Hostname
	}
	return address
}
