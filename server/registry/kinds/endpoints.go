package kinds

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"orch/server/registry"
)

func endpoints() *registry.Resource {
	return entry[corev1.Endpoints, corev1.EndpointsList](corev1.SchemeGroupVersion, "endpoints", traits[*corev1.Endpoints]{
		ShortNames: []string{"ep"}, Singular: "endpoints",
		Default:        defaultEndpoints,
		Validate:       validateEndpoints,
		CreateOnUpdate: true, UnconditionalUpdate: true,
		Columns: columns(nameColumn(), column("Endpoints", "string", doc(corev1.Endpoints{}, "subsets")), ageColumn()),
		Row: func(e *corev1.Endpoints, now time.Time) []any {
			return []any{e.Name, endpointsCell(e), age(e, now)}
		},
		Warnings:   endpointsWarnings,
		Deprecated: "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
	})
}

func endpointsWarnings(e *corev1.Endpoints) []string {
	var w warnings
	for i := range e.Subsets {
		at := field.NewPath("subsets").Index(i)
		for j, a := range e.Subsets[i].Addresses {
			w.ip(at.Child("addresses").Index(j).Child("ip"), a.IP)
		}
		for j, a := range e.Subsets[i].NotReadyAddresses {
			w.ip(at.Child("notReadyAddresses").Index(j).Child("ip"), a.IP)
		}
	}
	return w
}

func defaultEndpoints(e *corev1.Endpoints) {
	for i := range e.Subsets {
		for j := range e.Subsets[i].Ports {
			setZero(&e.Subsets[i].Ports[j].Protocol, corev1.ProtocolTCP)
		}
	}
}

// endpointsCell shows the first three addresses and tells how many more there are.
func endpointsCell(e *corev1.Endpoints) string {
	const limit = 3
	if len(e.Subsets) == 0 {
		return "<none>"
	}
	var list []string
	count := 0
	for i := range e.Subsets {
		ss := &e.Subsets[i]
		if len(ss.Ports) == 0 { // headless
			for _, a := range ss.Addresses {
				if len(list) < limit {
					list = append(list, a.IP)
				}
			}
			count += len(ss.Addresses)
			continue
		}
		for _, p := range ss.Ports {
			for _, a := range ss.Addresses {
				if len(list) < limit {
					list = append(list, net.JoinHostPort(a.IP, strconv.Itoa(int(p.Port))))
				}
			}
			count += len(ss.Addresses)
		}
	}
	cell := strings.Join(list, ",")
	if count > limit {
		return fmt.Sprintf("%s + %d more...", cell, count-limit)
	}
	return cell
}
