package endpoints

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/record"

	"orch/server/controllers/loop"
	"orch/server/registry"
)

// mirroredBy marks the slices that are mirrors.
const mirroredBy = "endpointslicemirroring-controller.k8s.io"

// Mirroring copies hand-made Endpoints of services without a selector into
// endpoint slices, which is what all clients read.
func Mirroring(r *registry.Registry, events record.EventRecorder) *loop.Controller {
	services, endpoints := registry.Of[*corev1.Service](r), registry.Of[*corev1.Endpoints](r)
	slicesDoor := registry.Of[*discoveryv1.EndpointSlice](r)
	apply := (&sliceController{slices: slicesDoor}).apply
	return &loop.Controller{
		Name:    "endpointslicemirroring",
		Workers: 2,
		Sources: []loop.Source{
			loop.Changes(r, func(old, e *corev1.Endpoints, deleted bool) []loop.Key {
				if !mirrored(e) && (old == nil || !mirrored(old)) {
					return nil
				}
				return []loop.Key{loop.KeyOf(e)}
			}),
			loop.Each[*corev1.Service](r),
			loop.Changes(r, func(_, s *discoveryv1.EndpointSlice, _ bool) []loop.Key {
				if s.Labels[discoveryv1.LabelManagedBy] != mirroredBy {
					return nil
				}
				return []loop.Key{{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}}
			}),
		},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			existing := slicesDoor.List(key.Namespace, labels.SelectorFromValidatedSet(labels.Set{
				discoveryv1.LabelServiceName: key.Name, discoveryv1.LabelManagedBy: mirroredBy,
			}))
			service, serviceErr := services.Get(key.Namespace, key.Name)
			e, err := endpoints.Get(key.Namespace, key.Name)
			if err != nil || serviceErr != nil || service.Spec.Selector != nil || !mirrored(e) {
				return 0, apply(ctx, Plan{Delete: existing})
			}
			plan, invalid, skipped := Mirror(e, existing)
			if invalid > 0 {
				events.Eventf(e, corev1.EventTypeWarning, "InvalidIPAddress", "Skipped %d invalid IP addresses when mirroring to EndpointSlices", invalid)
			}
			if skipped > 0 {
				events.Eventf(e, corev1.EventTypeWarning, "TooManyAddressesToMirror",
					"A max of %d addresses can be mirrored to EndpointSlices per Endpoints subset. %d addresses were skipped", maxAddresses, skipped+invalid)
			}
			if e.DeletionTimestamp != nil {
				plan.Create = nil
			}
			return 0, apply(ctx, plan)
		},
	}
}

// mirrored tells whether Endpoints are to be copied: neither those that say no
// nor those that only hold a leader's lock.
func mirrored(e *corev1.Endpoints) bool {
	_, lock := e.Annotations[resourcelock.LeaderElectionRecordAnnotationKey]
	return e.Labels[discoveryv1.LabelSkipMirror] != "true" && !lock
}

// mirror is the slice that one group of addresses should have.
type mirror struct {
	family    discoveryv1.AddressType
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint
}

// Mirror compares the slices that Endpoints should have with those they have:
// one for each set of ports and address family.
func Mirror(e *corev1.Endpoints, existing []*discoveryv1.EndpointSlice) (plan Plan, invalid, skipped int) {
	mirrors, invalid, skipped := mirrorsOf(e)
	left := slices.Clone(existing)
	take := func(match func(*discoveryv1.EndpointSlice) bool) *discoveryv1.EndpointSlice {
		i := slices.IndexFunc(left, match)
		if i < 0 {
			return nil
		}
		found := left[i]
		left = slices.Delete(left, i, i+1)
		return found
	}
	var missing []*discoveryv1.EndpointSlice
	for _, m := range mirrors {
		want := mirrorSlice(e, m)
		old := take(func(s *discoveryv1.EndpointSlice) bool {
			return s.AddressType == m.family && (len(s.Ports) == 0 && len(m.ports) == 0 || reflect.DeepEqual(s.Ports, m.ports))
		})
		if old == nil {
			missing = append(missing, want)
			continue
		}
		plan.renew(old, want)
	}
	for _, want := range missing { // one that nobody needs saves a new one
		if old := take(func(s *discoveryv1.EndpointSlice) bool { return s.AddressType == want.AddressType }); old != nil {
			plan.renew(old, want)
		} else {
			plan.Create = append(plan.Create, want)
		}
	}
	plan.Delete = left
	return plan, invalid, skipped
}

func (plan *Plan) renew(old, want *discoveryv1.EndpointSlice) {
	if sameSlice(old, want) && (len(old.Annotations) == 0 && len(want.Annotations) == 0 || maps.Equal(old.Annotations, want.Annotations)) {
		return
	}
	changed := old.DeepCopy()
	changed.Labels, changed.Annotations, changed.OwnerReferences = want.Labels, want.Annotations, want.OwnerReferences
	changed.Ports, changed.Endpoints = want.Ports, want.Endpoints
	plan.Update = append(plan.Update, changed)
}

func mirrorsOf(e *corev1.Endpoints) (mirrors []*mirror, invalid, skipped int) {
	for i := range e.Subsets {
		subset := &e.Subsets[i]
		ports := mirrorPorts(subset.Ports)
		added := 0
		add := func(addresses []corev1.EndpointAddress, ready bool) {
			for j := range addresses {
				a := &addresses[j]
				ip, err := netip.ParseAddr(a.IP)
				switch {
				case added >= maxAddresses:
					skipped++
				case err != nil:
					invalid++
				default:
					added++
					family := discoveryv1.AddressTypeIPv4
					if ip.Is6() && !ip.Is4In6() {
						family = discoveryv1.AddressTypeIPv6
					}
					m := mirrorFor(&mirrors, family, ports)
					m.endpoints = append(m.endpoints, mirrorEndpoint(a, ip.Unmap().String(), ready))
				}
			}
		}
		add(subset.Addresses, true)
		add(subset.NotReadyAddresses, false)
	}
	for _, m := range mirrors {
		slices.SortStableFunc(m.endpoints, func(a, b discoveryv1.Endpoint) int { return cmp.Compare(a.Addresses[0], b.Addresses[0]) })
		m.endpoints = m.endpoints[:min(len(m.endpoints), maxAddresses)]
	}
	return mirrors, invalid, skipped
}

func mirrorFor(all *[]*mirror, family discoveryv1.AddressType, ports []discoveryv1.EndpointPort) *mirror {
	for _, m := range *all {
		if m.family == family && reflect.DeepEqual(m.ports, ports) {
			return m
		}
	}
	m := &mirror{family: family, ports: ports}
	*all = append(*all, m)
	return m
}

func mirrorPorts(ports []corev1.EndpointPort) []discoveryv1.EndpointPort {
	out := make([]discoveryv1.EndpointPort, 0, len(ports))
	for i := range ports {
		p := ports[i]
		out = append(out, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol, AppProtocol: p.AppProtocol})
	}
	return out
}

func mirrorEndpoint(a *corev1.EndpointAddress, ip string, ready bool) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{
		Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		TargetRef: a.TargetRef, NodeName: a.NodeName,
	}
	if a.Hostname != "" {
		e.Hostname = &a.Hostname
	}
	return e
}

func mirrorSlice(e *corev1.Endpoints, m *mirror) *discoveryv1.EndpointSlice {
	set := maps.Clone(e.Labels)
	if set == nil {
		set = map[string]string{}
	}
	set[discoveryv1.LabelServiceName], set[discoveryv1.LabelManagedBy] = e.Name, mirroredBy
	annotations := maps.Clone(e.Annotations)
	delete(annotations, corev1.EndpointsLastChangeTriggerTime)
	delete(annotations, corev1.LastAppliedConfigAnnotation)
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: e.Namespace, GenerateName: e.Name + "-", Labels: set, Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(e, corev1.SchemeGroupVersion.WithKind("Endpoints"))},
		},
		AddressType: m.family, Ports: m.ports, Endpoints: m.endpoints,
	}
}
