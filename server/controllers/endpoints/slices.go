// Package endpoints keeps the endpoint slices, and the older Endpoints objects,
// of services with a selector.
package endpoints

import (
	"cmp"
	"context"
	"reflect"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"orch/server/controllers/loop"
	"orch/server/registry"
)

// managedBy marks the slices that this controller owns.
const managedBy = "endpointslice-controller.k8s.io"

// maxPerSlice endpoints go into one slice, as upstream's default.
const maxPerSlice = 100

// Slices gives the endpoint slice controller.
func Slices(r *registry.Registry) *loop.Controller {
	c := &sliceController{
		services: registry.Of[*corev1.Service](r), pods: registry.Of[*corev1.Pod](r),
		nodes: registry.Of[*corev1.Node](r), slices: registry.Of[*discoveryv1.EndpointSlice](r), pace: newPace(r),
	}
	return &loop.Controller{
		Name:    "endpointslice",
		Workers: 4,
		Sources: []loop.Source{
			loop.Each[*corev1.Service](r),
			loop.Changes(r, func(old, p *corev1.Pod, deleted bool) []loop.Key { return servicesOf(c.services, old, p, deleted) }),
			loop.Changes(r, func(_, s *discoveryv1.EndpointSlice, _ bool) []loop.Key {
				if s.Labels[discoveryv1.LabelManagedBy] != managedBy || s.Labels[discoveryv1.LabelServiceName] == "" {
					return nil
				}
				return []loop.Key{{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}}
			}),
			nodeZones(r, c.services),
		},
		Reconcile: c.reconcile,
	}
}

type sliceController struct {
	services registry.Typed[*corev1.Service]
	pods     registry.Typed[*corev1.Pod]
	nodes    registry.Typed[*corev1.Node]
	slices   registry.Typed[*discoveryv1.EndpointSlice]
	pace     *pace
}

// nodeZones asks for all services when a node's zone changes, as endpoints carry it.
func nodeZones(r *registry.Registry, services registry.Typed[*corev1.Service]) loop.Source {
	return loop.Changes(r, func(old, n *corev1.Node, deleted bool) []loop.Key {
		if deleted || old == nil || old.Labels[corev1.LabelTopologyZone] == n.Labels[corev1.LabelTopologyZone] {
			return nil
		}
		var keys []loop.Key
		for _, s := range services.List("", nil) {
			keys = append(keys, loop.KeyOf(s))
		}
		return keys
	})
}

// servicesOf gives the services that a changed pod belongs or belonged to;
// changes that no endpoint shows are left out.
func servicesOf(services registry.Typed[*corev1.Service], old, p *corev1.Pod, deleted bool) []loop.Key {
	if old != nil && !deleted && !endpointChanged(old, p) {
		return nil
	}
	var keys []loop.Key
	for _, s := range services.List(p.Namespace, nil) {
		if len(s.Spec.Selector) == 0 {
			continue
		}
		selector := labels.SelectorFromValidatedSet(s.Spec.Selector)
		if selector.Matches(labels.Set(p.Labels)) || (old != nil && selector.Matches(labels.Set(old.Labels))) {
			keys = append(keys, loop.KeyOf(s))
		}
	}
	return keys
}

func endpointChanged(old, p *corev1.Pod) bool {
	return old.DeletionTimestamp.IsZero() != p.DeletionTimestamp.IsZero() ||
		old.Status.Phase != p.Status.Phase || old.Status.PodIP != p.Status.PodIP || old.Spec.NodeName != p.Spec.NodeName ||
		podReady(old) != podReady(p) || old.Spec.Hostname != p.Spec.Hostname ||
		!labels.Equals(old.Labels, p.Labels) || len(old.Status.PodIPs) != len(p.Status.PodIPs)
}

func podReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func (c *sliceController) reconcile(ctx context.Context, key loop.Key) (time.Duration, error) {
	existing := c.slices.List(key.Namespace, labels.SelectorFromValidatedSet(labels.Set{
		discoveryv1.LabelServiceName: key.Name, discoveryv1.LabelManagedBy: managedBy,
	}))
	service, err := c.services.Get(key.Namespace, key.Name)
	if err != nil || len(service.Spec.Selector) == 0 || service.Spec.Type == corev1.ServiceTypeExternalName || service.DeletionTimestamp != nil {
		// Slices go with their owner; those of a service that lost its selector stay
		// in the hands of whoever took them over.
		c.pace.forget(key)
		if err != nil {
			return 0, c.apply(ctx, Plan{Delete: existing})
		}
		return 0, nil
	}
	pods := c.pods.List(key.Namespace, labels.SelectorFromValidatedSet(service.Spec.Selector))
	zones := func(node string) string {
		n, err := c.nodes.Get("", node)
		if err != nil {
			return ""
		}
		return n.Labels[corev1.LabelTopologyZone]
	}
	plan := Reconcile(service, pods, zones, existing)
	if wait := c.pace.hold(key, time.Now(), plan.onlyAdds(existing), plan.gains()); wait > 0 {
		return wait, nil
	}
	return 0, c.apply(ctx, plan)
}

func (c *sliceController) apply(ctx context.Context, plan Plan) error {
	for _, s := range plan.Create {
		if _, err := c.slices.Create(ctx, s); err != nil && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return err
		}
	}
	for _, s := range plan.Update {
		if _, err := c.slices.Update(ctx, s); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	for _, s := range plan.Delete {
		if err := c.slices.Delete(ctx, s.Namespace, s.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// Plan is what makes a service's slices right.
type Plan struct {
	Create, Update, Delete []*discoveryv1.EndpointSlice
}

// Reconcile compares the slices that a service should have with those it has.
// Endpoints stay in the slice they are in, so that a change touches few slices.
func Reconcile(service *corev1.Service, pods []*corev1.Pod, zone func(node string) string, existing []*discoveryv1.EndpointSlice) Plan {
	var plan Plan
	families := service.Spec.IPFamilies
	if len(families) == 0 {
		families = []corev1.IPFamily{corev1.IPv4Protocol}
	}
	left := slices.Clone(existing)
	for _, family := range families {
		wanted := groupByPorts(service, pods, zone, family)
		for _, group := range wanted {
			var mine []*discoveryv1.EndpointSlice
			left = slices.DeleteFunc(left, func(s *discoveryv1.EndpointSlice) bool {
				match := string(s.AddressType) == string(family) && reflect.DeepEqual(s.Ports, group.ports)
				if match {
					mine = append(mine, s)
				}
				return match
			})
			plan.fill(service, group, discoveryv1.AddressType(family), mine)
		}
	}
	plan.Delete = append(plan.Delete, left...)
	return plan
}

// portGroup is the endpoints that serve the same ports (named target ports may
// differ from pod to pod).
type portGroup struct {
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint
}

func groupByPorts(service *corev1.Service, pods []*corev1.Pod, zone func(string) string, family corev1.IPFamily) []*portGroup {
	groups := map[string]*portGroup{}
	var order []string
	for _, p := range pods {
		address := podAddress(p, family)
		if address == "" || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		ports := portsOf(service, p)
		key := portsKey(ports)
		if groups[key] == nil {
			groups[key] = &portGroup{ports: ports}
			order = append(order, key)
		}
		groups[key].endpoints = append(groups[key].endpoints, endpointOf(service, p, address, zone))
	}
	if len(groups) == 0 {
		// A service without endpoints has one empty slice, so that clients can tell
		// it from a service that was not looked at yet.
		return []*portGroup{{ports: []discoveryv1.EndpointPort{}}}
	}
	out := make([]*portGroup, 0, len(order))
	slices.Sort(order)
	for _, key := range order {
		g := groups[key]
		slices.SortFunc(g.endpoints, func(a, b discoveryv1.Endpoint) int { return cmp.Compare(a.TargetRef.Name, b.TargetRef.Name) })
		out = append(out, g)
	}
	return out
}

func podAddress(p *corev1.Pod, family corev1.IPFamily) string {
	for _, ip := range p.Status.PodIPs {
		if isIPv6(ip.IP) == (family == corev1.IPv6Protocol) {
			return ip.IP
		}
	}
	if len(p.Status.PodIPs) == 0 && p.Status.PodIP != "" && isIPv6(p.Status.PodIP) == (family == corev1.IPv6Protocol) {
		return p.Status.PodIP
	}
	return ""
}

func isIPv6(ip string) bool {
	for i := range len(ip) {
		if ip[i] == ':' {
			return true
		}
	}
	return false
}

func portsOf(service *corev1.Service, p *corev1.Pod) []discoveryv1.EndpointPort {
	ports := make([]discoveryv1.EndpointPort, 0, len(service.Spec.Ports))
	for i := range service.Spec.Ports {
		sp := &service.Spec.Ports[i]
		number, ok := targetPort(sp, p)
		if !ok {
			continue
		}
		protocol := sp.Protocol
		name := sp.Name
		ports = append(ports, discoveryv1.EndpointPort{Name: &name, Port: &number, Protocol: &protocol, AppProtocol: sp.AppProtocol})
	}
	return ports
}

// targetPort resolves a service port against a pod's container ports.
func targetPort(sp *corev1.ServicePort, p *corev1.Pod) (int32, bool) {
	if sp.TargetPort.Type == 0 { // a number
		if n := sp.TargetPort.IntVal; n != 0 {
			return n, true
		}
		return sp.Port, true
	}
	containers := slices.Clone(p.Spec.Containers)
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c)
		}
	}
	for _, c := range containers {
		for _, cp := range c.Ports {
			protocol := cp.Protocol
			if protocol == "" {
				protocol = corev1.ProtocolTCP
			}
			if cp.Name == sp.TargetPort.StrVal && protocol == sp.Protocol {
				return cp.ContainerPort, true
			}
		}
	}
	return 0, false
}

func portsKey(ports []discoveryv1.EndpointPort) string {
	key := ""
	for _, p := range ports {
		key += *p.Name + "/" + strconv.Itoa(int(*p.Port)) + "/" + string(*p.Protocol) + ";"
	}
	return key
}

func endpointOf(service *corev1.Service, p *corev1.Pod, address string, zone func(string) string) discoveryv1.Endpoint {
	terminating := p.DeletionTimestamp != nil
	serving := podReady(p)
	ready := service.Spec.PublishNotReadyAddresses || (serving && !terminating)
	e := discoveryv1.Endpoint{
		Addresses:  []string{address},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
	}
	if p.Spec.NodeName != "" {
		node := p.Spec.NodeName
		e.NodeName = &node
		if z := zone(node); z != "" {
			e.Zone = &z
		}
	}
	if p.Spec.Hostname != "" && p.Spec.Subdomain == service.Name && p.Namespace == service.Namespace {
		host := p.Spec.Hostname
		e.Hostname = &host
	}
	return e
}

// fill spreads a group's endpoints over the slices there are, changing as few
// as it can.
func (plan *Plan) fill(service *corev1.Service, group *portGroup, family discoveryv1.AddressType, existing []*discoveryv1.EndpointSlice) {
	wanted := make(map[string]discoveryv1.Endpoint, len(group.endpoints))
	for _, e := range group.endpoints {
		wanted[string(e.TargetRef.UID)] = e
	}
	slices.SortFunc(existing, func(a, b *discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
	kept := make([][]discoveryv1.Endpoint, len(existing))
	for i, s := range existing {
		for _, e := range s.Endpoints {
			if e.TargetRef == nil {
				continue
			}
			if now, ok := wanted[string(e.TargetRef.UID)]; ok {
				kept[i] = append(kept[i], now)
				delete(wanted, string(e.TargetRef.UID))
			}
		}
	}
	var fresh []discoveryv1.Endpoint
	for _, e := range group.endpoints {
		if _, ok := wanted[string(e.TargetRef.UID)]; ok {
			fresh = append(fresh, e)
		}
	}
	remaining := len(existing)
	for i, s := range existing {
		room := maxPerSlice - len(kept[i])
		take := min(room, len(fresh))
		kept[i] = append(kept[i], fresh[:take]...)
		fresh = fresh[take:]
		if len(kept[i]) == 0 && remaining > 1 {
			plan.Delete = append(plan.Delete, s)
			remaining--
			continue
		}
		want := sliceFor(service, group.ports, family, kept[i])
		want.ObjectMeta.Name, want.GenerateName = s.Name, s.GenerateName
		if !sameSlice(s, want) {
			changed := s.DeepCopy()
			changed.Labels, changed.Endpoints, changed.Ports = want.Labels, want.Endpoints, want.Ports
			changed.Annotations = want.Annotations
			changed.OwnerReferences = want.OwnerReferences
			plan.Update = append(plan.Update, changed)
		}
	}
	for len(fresh) > 0 || remaining == 0 {
		take := min(maxPerSlice, len(fresh))
		plan.Create = append(plan.Create, sliceFor(service, group.ports, family, fresh[:take]))
		fresh = fresh[take:]
		remaining++
	}
}

func sameSlice(a, b *discoveryv1.EndpointSlice) bool {
	return len(a.Endpoints) == len(b.Endpoints) && (len(a.Endpoints) == 0 || reflect.DeepEqual(a.Endpoints, b.Endpoints)) &&
		reflect.DeepEqual(a.Labels, b.Labels) && (len(a.Ports) == 0 && len(b.Ports) == 0 || reflect.DeepEqual(a.Ports, b.Ports)) &&
		a.Annotations[corev1.EndpointsLastChangeTriggerTime] == b.Annotations[corev1.EndpointsLastChangeTriggerTime] &&
		reflect.DeepEqual(a.OwnerReferences, b.OwnerReferences)
}

func sliceFor(service *corev1.Service, ports []discoveryv1.EndpointPort, family discoveryv1.AddressType, endpoints []discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	owner := metav1.NewControllerRef(service, corev1.SchemeGroupVersion.WithKind("Service"))
	set := map[string]string{}
	for k, v := range service.Labels {
		set[k] = v
	}
	delete(set, corev1.IsHeadlessService)
	set[discoveryv1.LabelServiceName] = service.Name
	set[discoveryv1.LabelManagedBy] = managedBy
	if service.Spec.ClusterIP == corev1.ClusterIPNone {
		set[corev1.IsHeadlessService] = ""
	}
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: service.Namespace, GenerateName: service.Name + "-", Labels: set,
			OwnerReferences: []metav1.OwnerReference{*owner},
		},
		AddressType: family, Ports: ports, Endpoints: slices.Clone(endpoints),
	}
	if s.Endpoints == nil {
		s.Endpoints = []discoveryv1.Endpoint{}
	}
	return s
}
