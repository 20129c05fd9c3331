package join

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"golang.org/x/sync/errgroup"

	"orch/server/registry"
)

// Cluster is what the first objects of a cluster say about it.
type Cluster struct {
	CA          []byte // PEM
	ServiceCIDR *net.IPNet
	ServiceIP   net.IP   // of the kubernetes Service: the first of ServiceCIDR
	Servers     []net.IP // under which pods reach the servers, by rising address
	Port        int32
}

// FirstServiceIP is the address of the kubernetes Service.
func FirstServiceIP(cidr *net.IPNet) net.IP {
	ip := make(net.IP, len(cidr.IP))
	copy(ip, cidr.IP)
	for i := len(ip) - 1; i >= 0; i-- {
		if ip[i]++; ip[i] != 0 {
			break
		}
	}
	return ip
}

// Bootstrap makes the objects that every cluster has, where they are missing.
func Bootstrap(ctx context.Context, r *registry.Registry, c Cluster) error {
	// Namespaces come first: admission refuses objects in missing ones.
	namespaces, spaceCtx := errgroup.WithContext(ctx)
	for _, name := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease} {
		namespaces.Go(func() error {
			return ensure(spaceCtx, registry.Of[*corev1.Namespace](r), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
		})
	}
	if err := namespaces.Wait(); err != nil {
		return fmt.Errorf("bootstrap objects: %w", err)
	}
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return EnsurePolicy(ctx, r) })
	all.Go(func() error { return c.ensureAPIService(ctx, r) })
	all.Go(func() error { return c.ensureNetwork(ctx, r) })
	all.Go(func() error { return ensurePriorities(ctx, r) })
	all.Go(func() error { return ensureFlowControl(ctx, r) })
	if err := all.Wait(); err != nil {
		return fmt.Errorf("bootstrap objects: %w", err)
	}
	return nil
}

// ensureAPIService publishes the API inside the cluster.
func (c Cluster) ensureAPIService(ctx context.Context, r *registry.Registry) error {
	meta := metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "kubernetes"}
	service := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		Type:            corev1.ServiceTypeClusterIP,
		ClusterIP:       c.ServiceIP.String(),
		ClusterIPs:      []string{c.ServiceIP.String()},
		SessionAffinity: corev1.ServiceAffinityNone,
		Ports: []corev1.ServicePort{{
			Name: "https", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromInt32(c.Port),
		}},
	}}
	service.Labels = map[string]string{"component": "apiserver", "provider": "kubernetes"}
	return ensure(ctx, registry.Of[*corev1.Service](r), service)
}

// PublishServers makes the kubernetes Service lead to the servers.
func PublishServers(ctx context.Context, r *registry.Registry, c Cluster) error {
	if slices.ContainsFunc(c.Servers, net.IP.IsLoopback) {
		slog.Warn("pods cannot reach the API: this machine has no address but a loopback one; give it one with --advertise-address",
			"component", "join", "address", c.Servers[0])
		return nil
	}
	var addresses []corev1.EndpointAddress
	var ready []discoveryv1.Endpoint
	for _, ip := range c.Servers {
		addresses = append(addresses, corev1.EndpointAddress{IP: ip.String()})
		ready = append(ready, discoveryv1.Endpoint{Addresses: []string{ip.String()}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}})
	}
	meta := metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "kubernetes"}
	endpoints := &corev1.Endpoints{ObjectMeta: meta, Subsets: []corev1.EndpointSubset{{
		Addresses: addresses,
		Ports:     []corev1.EndpointPort{{Name: "https", Port: c.Port, Protocol: corev1.ProtocolTCP}},
	}}}
	endpoints.Labels = map[string]string{discoveryv1.LabelSkipMirror: "true"}
	err := keep(ctx, registry.Of[*corev1.Endpoints](r), endpoints, func(e *corev1.Endpoints) any { return &e.Subsets })
	if err != nil {
		return err
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  meta,
		AddressType: addressType(c.Servers[0]),
		Endpoints:   ready,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("https"), Port: ptr.To(c.Port), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: "kubernetes"}
	return keepSlice(ctx, registry.Of[*discoveryv1.EndpointSlice](r), slice)
}

func addressType(ip net.IP) discoveryv1.AddressType {
	if ip.To4() == nil {
		return discoveryv1.AddressTypeIPv6
	}
	return discoveryv1.AddressTypeIPv4
}

// keep creates want, or gives the present object want's part.
func keep[T registry.Object](ctx context.Context, typed registry.Typed[T], want T, part func(T) any) error {
	current, err := typed.Get(want.GetNamespace(), want.GetName())
	if apierrors.IsNotFound(err) {
		return ensure(ctx, typed, want)
	}
	if err != nil || equality.Semantic.DeepEqual(part(current), part(want)) {
		return err
	}
	return replace(ctx, typed, current, want)
}

// replace puts want in current's place, under the same identity.
func replace[T registry.Object](ctx context.Context, typed registry.Typed[T], current, want T) error {
	want.SetResourceVersion(current.GetResourceVersion())
	want.SetUID(current.GetUID())
	if _, err := typed.Update(ctx, want); err != nil {
		return fmt.Errorf("update %T %s: %w", want, want.GetName(), err)
	}
	return nil
}

// keepSlice makes the slice anew when its addresses became of the other
// family, for the type of an EndpointSlice cannot change.
func keepSlice(ctx context.Context, slices registry.Typed[*discoveryv1.EndpointSlice], want *discoveryv1.EndpointSlice) error {
	current, err := slices.Get(want.Namespace, want.Name)
	if err == nil && current.AddressType != want.AddressType {
		if err := slices.Delete(ctx, want.Namespace, want.Name, metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	return keep(ctx, slices, want, func(s *discoveryv1.EndpointSlice) any { return [2]any{s.Endpoints, s.Ports} })
}

// ensureNetwork publishes the service addresses and how clients are
// authenticated, for API servers that extend this one.
func (c Cluster) ensureNetwork(ctx context.Context, r *registry.Registry) error {
	cidr := &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"},
		Spec:       networkingv1.ServiceCIDRSpec{CIDRs: []string{c.ServiceCIDR.String()}},
	}
	cidrs := registry.Of[*networkingv1.ServiceCIDR](r)
	if err := ensure(ctx, cidrs, cidr); err != nil {
		return err
	}
	_, err := cidrs.MutateStatus(ctx, "", "kubernetes", func(s *networkingv1.ServiceCIDR) error {
		if len(s.Status.Conditions) == 0 {
			s.Status.Conditions = []metav1.Condition{{
				Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue,
				Message: "Kubernetes Service CIDR is ready", LastTransitionTime: s.CreationTimestamp,
			}}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("service CIDR: %w", err)
	}
	config := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "extension-apiserver-authentication"},
		Data:       map[string]string{"client-ca-file": string(c.CA)},
	}
	return keep(ctx, registry.Of[*corev1.ConfigMap](r), config, func(m *corev1.ConfigMap) any { return m.Data })
}

func ensurePriorities(ctx context.Context, r *registry.Registry) error {
	classes := []*schedulingv1.PriorityClass{
		{
			ObjectMeta:  metav1.ObjectMeta{Name: "system-node-critical"},
			Value:       2000001000,
			Description: "Used for system critical pods that must not be moved from their current node.",
		},
		{
			ObjectMeta:  metav1.ObjectMeta{Name: "system-cluster-critical"},
			Value:       2000000000,
			Description: "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
		},
	}
	for _, class := range classes {
		if err := ensure(ctx, registry.Of[*schedulingv1.PriorityClass](r), class); err != nil {
			return err
		}
	}
	return nil
}

// ensureFlowControl makes the two mandatory levels and their schemas. The
// server itself limits requests in flight without them.
func ensureFlowControl(ctx context.Context, r *registry.Registry) error {
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Annotations: map[string]string{flowcontrolv1.AutoUpdateAnnotationKey: "true"}}
	}
	levels := registry.Of[*flowcontrolv1.PriorityLevelConfiguration](r)
	exempt := flowcontrolv1.PriorityLevelConfigurationSpec{
		Type:   flowcontrolv1.PriorityLevelEnablementExempt,
		Exempt: &flowcontrolv1.ExemptPriorityLevelConfiguration{NominalConcurrencyShares: ptr.To[int32](0), LendablePercent: ptr.To[int32](0)},
	}
	catchAll := flowcontrolv1.PriorityLevelConfigurationSpec{
		Type: flowcontrolv1.PriorityLevelEnablementLimited,
		Limited: &flowcontrolv1.LimitedPriorityLevelConfiguration{
			NominalConcurrencyShares: ptr.To[int32](5),
			LendablePercent:          ptr.To[int32](0),
			LimitResponse:            flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeReject},
		},
	}
	for name, spec := range map[string]flowcontrolv1.PriorityLevelConfigurationSpec{"exempt": exempt, "catch-all": catchAll} {
		level := &flowcontrolv1.PriorityLevelConfiguration{ObjectMeta: meta(name), Spec: spec}
		if err := ensure(ctx, levels, level); err != nil {
			return err
		}
	}
	schemas := registry.Of[*flowcontrolv1.FlowSchema](r)
	for _, schema := range []*flowcontrolv1.FlowSchema{
		{ObjectMeta: meta("exempt"), Spec: flowSchema("exempt", 1, nil, "system:masters")},
		{ObjectMeta: meta("catch-all"), Spec: flowSchema("catch-all", 10000, &flowcontrolv1.FlowDistinguisherMethod{
			Type: flowcontrolv1.FlowDistinguisherMethodByUserType,
		}, "system:unauthenticated", "system:authenticated")},
	} {
		if err := ensure(ctx, schemas, schema); err != nil {
			return err
		}
	}
	return nil
}

// flowSchema sends everything that members of groups ask for to one level.
func flowSchema(level string, precedence int32, by *flowcontrolv1.FlowDistinguisherMethod, groups ...string) flowcontrolv1.FlowSchemaSpec {
	all := []string{rbacv1.ResourceAll}
	rule := flowcontrolv1.PolicyRulesWithSubjects{
		ResourceRules:    []flowcontrolv1.ResourcePolicyRule{{Verbs: all, APIGroups: all, Resources: all, ClusterScope: true, Namespaces: all}},
		NonResourceRules: []flowcontrolv1.NonResourcePolicyRule{{Verbs: all, NonResourceURLs: all}},
	}
	for _, g := range groups {
		rule.Subjects = append(rule.Subjects, flowcontrolv1.Subject{
			Kind: flowcontrolv1.SubjectKindGroup, Group: &flowcontrolv1.GroupSubject{Name: g},
		})
	}
	return flowcontrolv1.FlowSchemaSpec{
		PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: level},
		MatchingPrecedence:         precedence,
		DistinguisherMethod:        by,
		Rules:                      []flowcontrolv1.PolicyRulesWithSubjects{rule},
	}
}
