package registry

import (
	"context"
	"errors"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// The operations of an Attempt.
const (
	OperationCreate  = "CREATE"
	OperationUpdate  = "UPDATE"
	OperationDelete  = "DELETE"
	OperationConnect = "CONNECT"
)

// Admission sees every write before validation. It may change Object. An error
// that is not an API status becomes 403 Forbidden.
type Admission interface {
	Admit(ctx context.Context, a *Attempt) error
}

// Attempt is a write that asks to be admitted. Objects are in the form that is
// stored; Resource is the entry of that form.
type Attempt struct {
	Registry    *Registry
	Resource    *Resource
	Subresource string
	Operation   string // CREATE UPDATE DELETE CONNECT
	Namespace   string
	Name        string
	Object      runtime.Object // nil for DELETE
	Old         Object         // nil for CREATE; shared
	DryRun      bool

	riders []func() ([]Rider, error) // see Ride
}

// Admit asks the whole chain; the API layer calls it for CONNECT.
func (r *Registry) Admit(ctx context.Context, a *Attempt) error {
	a.Registry = r
	for _, chain := range r.admission {
		if err := chain.Admit(ctx, a); err != nil {
			return a.refusal(err)
		}
	}
	return nil
}

func (a *Attempt) refusal(err error) error {
	var status apierrors.APIStatus
	if errors.As(err, &status) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return apierrors.NewForbidden(a.Resource.GroupResource(), a.name(), err)
}

func (a *Attempt) name() string {
	if a.Name != "" {
		return a.Name
	}
	if obj, ok := a.Object.(Object); ok && obj != nil {
		if obj.GetName() != "" {
			return obj.GetName()
		}
		if obj.GetGenerateName() != "" {
			return obj.GetGenerateName()
		}
	}
	return "Unknown"
}

// Act performs the action of a subresource that is created, such as a binding,
// an eviction or a token, for the object of that name. It is the only way to
// it, for requests, the scheduler and controllers alike: what admission says of
// one holds for all.
func (r *Registry) Act(ctx context.Context, res *Resource, subresource, ns, name string, body runtime.Object, opts *metav1.CreateOptions) (runtime.Object, error) {
	sub := r.entryOf(res).views[subresource]
	if sub == nil || sub.Create == nil {
		return nil, apierrors.NewMethodNotSupported(res.GroupResource(), "create "+subresource)
	}
	if opts == nil {
		opts = &metav1.CreateOptions{}
	}
	if err := r.Admit(ctx, &Attempt{Resource: r.entryOf(res).storage.Resource, Subresource: subresource, Operation: OperationCreate,
		Namespace: ns, Name: name, Object: body, DryRun: isDryRun(opts.DryRun)}); err != nil {
		return nil, err
	}
	return sub.Create(ctx, r, ns, name, body, opts)
}
