package kinds

import (
	"context"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"orch/server/registry"
)

func serviceAccounts(cfg Config) *registry.Resource {
	return entry[corev1.ServiceAccount, corev1.ServiceAccountList](corev1.SchemeGroupVersion, "serviceaccounts", traits[*corev1.ServiceAccount]{
		ShortNames: []string{"sa"},
		PrepareCreate: func(_ context.Context, _ *registry.Registry, sa *corev1.ServiceAccount) error {
			namesOnly(sa)
			return nil
		},
		PrepareUpdate: func(_ context.Context, _ *registry.Registry, sa, _ *corev1.ServiceAccount) error {
			namesOnly(sa)
			return nil
		},
		UnconditionalUpdate: true,
		Columns:             columns(nameColumn(), ageColumn()),
		Row:                 func(sa *corev1.ServiceAccount, now time.Time) []any { return []any{sa.Name, age(sa, now)} },
		Subresources: []*registry.Subresource{{
			Name: "token", Kind: tokenRequestKind(),
			New: func() runtime.Object { return new(authenticationv1.TokenRequest) },
			Create: func(ctx context.Context, r *registry.Registry, ns, name string, body runtime.Object, opts *metav1.CreateOptions) (runtime.Object, error) {
				req, ok := body.(*authenticationv1.TokenRequest)
				if !ok {
					return nil, errors.NewBadRequest(fmt.Sprintf("not a TokenRequest object: %T", body))
				}
				return issueToken(ctx, cfg, r, ns, name, req)
			},
		}},
	})
}

// namesOnly drops what references to secrets say beside the name: they are
// always of the account's own namespace.
func namesOnly(sa *corev1.ServiceAccount) {
	for i := range sa.Secrets {
		sa.Secrets[i] = corev1.ObjectReference{Name: sa.Secrets[i].Name}
	}
}

func tokenRequestKind() schema.GroupVersionKind {
	return authenticationv1.SchemeGroupVersion.WithKind("TokenRequest")
}

// issueToken signs a token for the account name, bound to the object that the
// request names.
func issueToken(ctx context.Context, cfg Config, r *registry.Registry, ns, name string, req *authenticationv1.TokenRequest) (runtime.Object, error) {
	if cfg.IssueToken == nil {
		return nil, errors.NewServiceUnavailable("no token issuer")
	}
	sa, err := registry.Of[*corev1.ServiceAccount](r).Get(ns, name)
	if err != nil {
		return nil, err
	}
	out := req.DeepCopy()
	out.Status = authenticationv1.TokenRequestStatus{}
	if err := checkTokenRequest(out, sa, cfg.Audiences); err != nil {
		return nil, err
	}
	holder, err := tokenHolder(r, sa, out.Spec.BoundObjectRef)
	if err != nil {
		return nil, err
	}
	token, expires, err := cfg.IssueToken(ctx, holder, out.Spec)
	if err != nil {
		return nil, errors.NewInternalError(fmt.Errorf("failed to generate token: %w", err))
	}
	out.CreationTimestamp = metav1.Now().Rfc3339Copy()
	out.Status = authenticationv1.TokenRequestStatus{Token: token, ExpirationTimestamp: metav1.NewTime(expires).Rfc3339Copy()}
	return out, nil
}

// checkTokenRequest completes and checks what does not depend on other objects.
func checkTokenRequest(req *authenticationv1.TokenRequest, sa *corev1.ServiceAccount, audiences []string) error {
	kind, path := tokenRequestKind(), field.NewPath("metadata")
	var errs field.ErrorList
	if req.Name != "" && req.Name != sa.Name {
		errs = append(errs, field.Invalid(path.Child("name"), req.Name, "must match the service account name if specified"))
	}
	if req.Namespace != "" && req.Namespace != sa.Namespace {
		errs = append(errs, field.Invalid(path.Child("namespace"), req.Namespace, "must match the service account namespace if specified"))
	}
	if req.UID != "" && req.UID != sa.UID {
		return errors.NewConflict(schema.GroupResource{Group: kind.Group, Resource: kind.Kind}, sa.Name, fmt.Errorf(
			"the UID in the token request (%s) does not match the UID of the service account (%s)", req.UID, sa.UID))
	}
	if len(errs) > 0 {
		return registry.Invalid(kind.GroupKind(), sa.Name, errs)
	}
	req.Name, req.Namespace, req.UID = sa.Name, sa.Namespace, sa.UID
	if len(req.Spec.Audiences) == 0 {
		req.Spec.Audiences = audiences
	}
	setDefault(&req.Spec.ExpirationSeconds, 3600)
	spec := field.NewPath("spec")
	switch seconds := *req.Spec.ExpirationSeconds; {
	case seconds < 10*60:
		errs = append(errs, field.Invalid(spec.Child("expirationSeconds"), seconds, "may not specify a duration less than 10 minutes"))
	case seconds > 1<<32:
		errs = append(errs, field.Invalid(spec.Child("expirationSeconds"), seconds, "may not specify a duration larger than 2^32 seconds"))
	}
	if len(errs) > 0 {
		return registry.Invalid(kind.GroupKind(), "", errs) // upstream has not named it yet
	}
	return nil
}

func tokenHolder(r *registry.Registry, sa *corev1.ServiceAccount, ref *authenticationv1.BoundObjectReference) (TokenHolder, error) {
	holder := TokenHolder{ServiceAccount: sa}
	if ref == nil {
		return holder, nil
	}
	kind := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind)
	var (
		uid types.UID
		err error
	)
	switch kind.GroupKind() {
	case schema.GroupKind{Kind: "Pod"}:
		if holder.Pod, err = registry.Of[*corev1.Pod](r).Get(sa.Namespace, ref.Name); err != nil {
			return holder, err
		}
		if holder.Pod.Spec.ServiceAccountName != sa.Name {
			return holder, errors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name.", sa.Name))
		}
		uid, holder.Node = holder.Pod.UID, nodeOfPod(r, holder.Pod)
	case schema.GroupKind{Kind: "Node"}:
		if holder.Node, err = registry.Of[*corev1.Node](r).Get("", ref.Name); err != nil {
			return holder, err
		}
		uid = holder.Node.UID
	case schema.GroupKind{Kind: "Secret"}:
		if holder.Secret, err = registry.Of[*corev1.Secret](r).Get(sa.Namespace, ref.Name); err != nil {
			return holder, err
		}
		uid = holder.Secret.UID
	default:
		return holder, errors.NewBadRequest(fmt.Sprintf("cannot bind token to object of type %s", kind.String()))
	}
	if ref.UID != "" && ref.UID != uid {
		return holder, errors.NewConflict(schema.GroupResource{Group: kind.Group, Resource: kind.Kind}, ref.Name, fmt.Errorf(
			"the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID))
	}
	return holder, nil
}

// nodeOfPod is nil for a pod without node; a node that is gone still gives its name.
func nodeOfPod(r *registry.Registry, p *corev1.Pod) *corev1.Node {
	if p.Spec.NodeName == "" {
		return nil
	}
	node, err := registry.Of[*corev1.Node](r).Get("", p.Spec.NodeName)
	if err != nil {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: p.Spec.NodeName}}
	}
	return node
}
