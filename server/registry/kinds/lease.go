package kinds

import (
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"orch/server/registry"
)

func leases() *registry.Resource {
	return entry[coordinationv1.Lease, coordinationv1.LeaseList](coordinationv1.SchemeGroupVersion, "leases", traits[*coordinationv1.Lease]{
		Validate:       validateLease,
		CreateOnUpdate: true,
		Columns:        columns(nameColumn(), column("Holder", "string", doc(coordinationv1.LeaseSpec{}, "holderIdentity")), ageColumn()),
		Row: func(l *coordinationv1.Lease, now time.Time) []any {
			return []any{l.Name, derefOr(l.Spec.HolderIdentity, ""), age(l, now)}
		},
	})
}
