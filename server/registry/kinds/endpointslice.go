package kinds

import (
	"context"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"orch/server/registry"
)

func endpointSlices() *registry.Resource {
	return entry[discoveryv1.EndpointSlice, discoveryv1.EndpointSliceList](discoveryv1.SchemeGroupVersion, "endpointslices", traits[*discoveryv1.EndpointSlice]{
		Spec: endpointSliceContent{},
		Default: func(s *discoveryv1.EndpointSlice) {
			for i := range s.Ports {
				setDefault(&s.Ports[i].Name, "")
				setDefault(&s.Ports[i].Protocol, corev1.ProtocolTCP)
			}
		},
		PrepareCreate: func(_ context.Context, _ *registry.Registry, s *discoveryv1.EndpointSlice) error {
			dropTopology(s)
			return nil
		},
		PrepareUpdate: func(_ context.Context, _ *registry.Registry, s, old *discoveryv1.EndpointSlice) error {
			if hasTopology(s) && !sameValue(s.Endpoints, old.Endpoints) {
				dropTopology(s)
			}
			return nil
		},
		Validate:            validateEndpointSlice,
		ValidateUpdate:      validateEndpointSliceUpdate,
		UnconditionalUpdate: true,
		Columns: columns(
			nameColumn(),
			column("AddressType", "string", doc(discoveryv1.EndpointSlice{}, "addressType")),
			column("Ports", "string", doc(discoveryv1.EndpointSlice{}, "ports")),
			column("Endpoints", "string", doc(discoveryv1.EndpointSlice{}, "endpoints")),
			ageColumn(),
		),
		Row: endpointSliceRow,
	})
}

// dropTopology: the field is left from an older version of the API and cannot
// be written by this one.
func dropTopology(s *discoveryv1.EndpointSlice) {
	for i := range s.Endpoints {
		s.Endpoints[i].DeprecatedTopology = nil
	}
}

func hasTopology(s *discoveryv1.EndpointSlice) bool {
	return slices.ContainsFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool { return e.DeprecatedTopology != nil })
}

// endpointSliceContent is everything but most of the metadata: a slice has no
// spec, but its generation rises with what it says and its labels.
type endpointSliceContent struct{}

func (endpointSliceContent) of(s *discoveryv1.EndpointSlice) any {
	content := &discoveryv1.EndpointSlice{AddressType: s.AddressType, Endpoints: s.Endpoints, Ports: s.Ports}
	content.Labels = s.Labels
	return content
}

func (endpointSliceContent) reset(s *discoveryv1.EndpointSlice) {
	s.AddressType, s.Endpoints, s.Ports = "", nil, nil
}

func (endpointSliceContent) carry(to, from *discoveryv1.EndpointSlice) {
	to.AddressType, to.Endpoints, to.Ports = from.AddressType, from.Endpoints, from.Ports
}

func endpointSliceRow(s *discoveryv1.EndpointSlice, now time.Time) []any {
	const limit = 3
	var ports, addresses []string
	for _, p := range s.Ports {
		switch {
		case p.Port != nil:
			ports = append(ports, strconv.Itoa(int(*p.Port)))
		case p.Name != nil:
			ports = append(ports, *p.Name)
		default:
			ports = append(ports, "*")
		}
	}
	for i := range s.Endpoints {
		addresses = append(addresses, s.Endpoints[i].Addresses...)
	}
	return []any{s.Name, string(s.AddressType), upTo(limit, ports), upTo(limit, addresses), age(s, now)}
}
