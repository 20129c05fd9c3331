package kinds

import (
	"context"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"orch/server/auth"
	"orch/server/registry"
)

func tokenReviews(cfg Config) *registry.Resource {
	return virtual(authenticationv1.SchemeGroupVersion, "tokenreviews", false,
		func(ctx context.Context, _ *registry.Registry, _ string, t *authenticationv1.TokenReview) (registry.Object, error) {
			if t.Spec.Token == "" {
				return nil, errors.NewBadRequest("token is required for TokenReview in authentication")
			}
			if cfg.ReviewToken == nil {
				return nil, errors.NewServiceUnavailable("no token authenticator")
			}
			out := t.DeepCopy()
			out.Status = authenticationv1.TokenReviewStatus{}
			user, audiences, err := cfg.ReviewToken(ctx, t.Spec.Token, t.Spec.Audiences)
			switch {
			case err != nil:
				out.Status.Error = err.Error()
			case user != nil:
				out.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: userInfo(user), Audiences: audiences}
			}
			return out, nil
		})
}

func userInfo(u *auth.User) authenticationv1.UserInfo {
	info := authenticationv1.UserInfo{Username: u.Name, UID: u.UID, Groups: u.Groups}
	if len(u.Extra) > 0 {
		info.Extra = make(map[string]authenticationv1.ExtraValue, len(u.Extra))
		for k, v := range u.Extra {
			info.Extra[k] = v
		}
	}
	return info
}

func selfSubjectReviews() *registry.Resource {
	return virtual(authenticationv1.SchemeGroupVersion, "selfsubjectreviews", false,
		func(ctx context.Context, _ *registry.Registry, _ string, s *authenticationv1.SelfSubjectReview) (registry.Object, error) {
			out := s.DeepCopy()
			out.Status.UserInfo = userInfo(auth.UserFrom(ctx))
			return out, nil
		})
}

func subjectAccessReviews(cfg Config) *registry.Resource {
	return virtual(authorizationv1.SchemeGroupVersion, "subjectaccessreviews", false,
		func(ctx context.Context, _ *registry.Registry, _ string, s *authorizationv1.SubjectAccessReview) (registry.Object, error) {
			out := s.DeepCopy()
			if errs := append(validateAccessReview(&s.Spec), unnamed(s.ObjectMeta, "must be empty")...); len(errs) > 0 {
				return nil, errors.NewInvalid(authorizationKind("SubjectAccessReview"), "", errs)
			}
			status, err := reviewAccess(ctx, cfg, reviewedUser(&s.Spec), s.Spec.ResourceAttributes, s.Spec.NonResourceAttributes)
			out.Status = status
			return out, err
		})
}

func localSubjectAccessReviews(cfg Config) *registry.Resource {
	return virtual(authorizationv1.SchemeGroupVersion, "localsubjectaccessreviews", true,
		func(ctx context.Context, _ *registry.Registry, ns string, s *authorizationv1.LocalSubjectAccessReview) (registry.Object, error) {
			out := s.DeepCopy()
			if errs := validateLocalAccessReview(s, ns); len(errs) > 0 {
				return nil, errors.NewInvalid(authorizationKind("LocalSubjectAccessReview"), "", errs)
			}
			status, err := reviewAccess(ctx, cfg, reviewedUser(&s.Spec), s.Spec.ResourceAttributes, nil)
			out.Status = status
			return out, err
		})
}

func selfSubjectAccessReviews(cfg Config) *registry.Resource {
	return virtual(authorizationv1.SchemeGroupVersion, "selfsubjectaccessreviews", false,
		func(ctx context.Context, _ *registry.Registry, _ string, s *authorizationv1.SelfSubjectAccessReview) (registry.Object, error) {
			out := s.DeepCopy()
			errs := validateReviewAttributes(s.Spec.ResourceAttributes, s.Spec.NonResourceAttributes)
			if errs = append(errs, unnamed(s.ObjectMeta, "must be empty")...); len(errs) > 0 {
				return nil, errors.NewInvalid(authorizationKind("SelfSubjectAccessReview"), "", errs)
			}
			status, err := reviewAccess(ctx, cfg, auth.UserFrom(ctx), s.Spec.ResourceAttributes, s.Spec.NonResourceAttributes)
			out.Status = status
			return out, err
		})
}

func selfSubjectRulesReviews(cfg Config) *registry.Resource {
	return virtual(authorizationv1.SchemeGroupVersion, "selfsubjectrulesreviews", false,
		func(ctx context.Context, _ *registry.Registry, _ string, s *authorizationv1.SelfSubjectRulesReview) (registry.Object, error) {
			if s.Spec.Namespace == "" {
				return nil, errors.NewBadRequest("no namespace on request")
			}
			if cfg.Rules == nil {
				return nil, errors.NewServiceUnavailable("no rule resolver")
			}
			out := s.DeepCopy()
			status, err := cfg.Rules(ctx, auth.UserFrom(ctx), s.Spec.Namespace)
			out.Status = status
			if err != nil {
				out.Status.EvaluationError = err.Error()
			}
			if out.Status.ResourceRules == nil {
				out.Status.ResourceRules = []authorizationv1.ResourceRule{}
			}
			if out.Status.NonResourceRules == nil {
				out.Status.NonResourceRules = []authorizationv1.NonResourceRule{}
			}
			return out, nil
		})
}

func authorizationKind(kind string) schema.GroupKind {
	return authorizationv1.SchemeGroupVersion.WithKind(kind).GroupKind()
}

func reviewedUser(s *authorizationv1.SubjectAccessReviewSpec) *auth.User {
	u := &auth.User{Name: s.User, UID: s.UID, Groups: s.Groups}
	if len(s.Extra) > 0 {
		u.Extra = make(map[string][]string, len(s.Extra))
		for k, v := range s.Extra {
			u.Extra[k] = v
		}
	}
	return u
}

func reviewAccess(ctx context.Context, cfg Config, u *auth.User, res *authorizationv1.ResourceAttributes, path *authorizationv1.NonResourceAttributes) (authorizationv1.SubjectAccessReviewStatus, error) {
	var status authorizationv1.SubjectAccessReviewStatus
	if cfg.Authorizer == nil {
		return status, errors.NewServiceUnavailable("no authorizer")
	}
	a := &auth.Attributes{User: u}
	if res != nil {
		a.ResourceRequest = true
		a.Verb, a.Group, a.Version = res.Verb, res.Group, res.Version
		a.Resource, a.Subresource, a.Namespace, a.Name = res.Resource, res.Subresource, res.Namespace, res.Name
		if s := res.FieldSelector; s != nil {
			a.FieldSelector = s.RawSelector
		}
		if s := res.LabelSelector; s != nil {
			a.LabelSelector = s.RawSelector
		}
	} else {
		a.Verb, a.Path = path.Verb, path.Path
	}
	allowed, reason, err := cfg.Authorizer.Authorize(ctx, a)
	status.Allowed, status.Reason = allowed, reason
	if err != nil {
		status.EvaluationError = err.Error()
	}
	return status, nil
}

func validateAccessReview(s *authorizationv1.SubjectAccessReviewSpec) field.ErrorList {
	errs := validateReviewAttributes(s.ResourceAttributes, s.NonResourceAttributes)
	if s.User == "" && len(s.Groups) == 0 {
		errs = append(errs, field.Invalid(field.NewPath("spec", "user"), s.User, "at least one of user or group must be specified"))
	}
	return errs
}

func validateReviewAttributes(res *authorizationv1.ResourceAttributes, path *authorizationv1.NonResourceAttributes) field.ErrorList {
	spec := field.NewPath("spec")
	switch {
	case res != nil && path != nil:
		return field.ErrorList{field.Invalid(spec.Child("nonResourceAttributes"), path, "cannot be specified in combination with resourceAttributes")}
	case res == nil && path == nil:
		return field.ErrorList{field.Invalid(spec.Child("resourceAttributes"), res, "exactly one of nonResourceAttributes or resourceAttributes must be specified")}
	case res != nil:
		return validateReviewSelectors(spec.Child("resourceAttributes"), res)
	}
	return nil
}

// validateReviewSelectors lets unknown operators pass: newer clients may know
// more of them, and what is not understood narrows nothing.
func validateReviewSelectors(at *field.Path, res *authorizationv1.ResourceAttributes) field.ErrorList {
	var errs field.ErrorList
	if s := res.FieldSelector; s != nil {
		path := at.Child("fieldSelector")
		errs = append(errs, eitherSelector(path, s.RawSelector, len(s.Requirements))...)
		for i, r := range s.Requirements {
			errs = append(errs, metavalidation.ValidateFieldSelectorRequirement(r,
				metavalidation.FieldSelectorValidationOptions{AllowUnknownOperatorInRequirement: true}, path.Child("requirements").Index(i))...)
		}
	}
	if s := res.LabelSelector; s != nil {
		path := at.Child("labelSelector")
		errs = append(errs, eitherSelector(path, s.RawSelector, len(s.Requirements))...)
		for i, r := range s.Requirements {
			errs = append(errs, metavalidation.ValidateLabelSelectorRequirement(r,
				metavalidation.LabelSelectorValidationOptions{AllowUnknownOperatorInRequirement: true}, path.Child("requirements").Index(i))...)
		}
	}
	return errs
}

func eitherSelector(at *field.Path, raw string, requirements int) field.ErrorList {
	switch {
	case raw != "" && requirements > 0:
		return field.ErrorList{field.Invalid(at.Child("rawSelector"), raw, "may not specified at the same time as requirements")}
	case raw == "" && requirements == 0:
		return field.ErrorList{field.Required(at.Child("requirements"), fmt.Sprintf("when %s is specified, requirements or rawSelector is required", at))}
	}
	return nil
}

// unnamed refuses metadata: a review is no object that could be found again.
func unnamed(meta metav1.ObjectMeta, detail string) field.ErrorList {
	meta.ManagedFields = nil
	if sameValue(meta, metav1.ObjectMeta{}) {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("metadata"), meta, detail)}
}

func validateLocalAccessReview(s *authorizationv1.LocalSubjectAccessReview, ns string) field.ErrorList {
	meta, spec := s.ObjectMeta, field.NewPath("spec")
	meta.Namespace = ""
	errs := append(validateAccessReview(&s.Spec), unnamed(meta, "must be empty except for namespace")...)
	if s.Spec.ResourceAttributes != nil && s.Spec.ResourceAttributes.Namespace != ns {
		errs = append(errs, field.Invalid(spec.Child("resourceAttributes", "namespace"), s.Spec.ResourceAttributes.Namespace, "must match metadata.namespace"))
	}
	if s.Spec.NonResourceAttributes != nil {
		errs = append(errs, field.Invalid(spec.Child("nonResourceAttributes"), s.Spec.NonResourceAttributes, "disallowed on this kind of request"))
	}
	return errs
}
