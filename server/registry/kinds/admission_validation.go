package kinds

import (
	"net/url"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// webhook is what mutating and validating webhooks have in common.
type webhook struct {
	name           string
	rules          []admissionv1.RuleWithOperations
	failure        *admissionv1.FailurePolicyType
	match          *admissionv1.MatchPolicyType
	sideEffects    *admissionv1.SideEffectClass
	timeout        *int32
	client         admissionv1.WebhookClientConfig
	reviewVersions []string
}

func validateMutatingWebhooks(c *admissionv1.MutatingWebhookConfiguration) field.ErrorList {
	var f faults
	names := sets.New[string]()
	for i := range c.Webhooks {
		w, at := &c.Webhooks[i], field.NewPath("webhooks").Index(i)
		f.webhook(at, names, webhook{w.Name, w.Rules, w.FailurePolicy, w.MatchPolicy, w.SideEffects, w.TimeoutSeconds, w.ClientConfig, w.AdmissionReviewVersions})
		f.selector(at.Child("namespaceSelector"), w.NamespaceSelector)
		f.selector(at.Child("objectSelector"), w.ObjectSelector)
		if p := w.ReinvocationPolicy; p != nil {
			supports(&f, at.Child("reinvocationPolicy"), *p, admissionv1.IfNeededReinvocationPolicy, admissionv1.NeverReinvocationPolicy)
		}
	}
	return f.list
}

func validateValidatingWebhooks(c *admissionv1.ValidatingWebhookConfiguration) field.ErrorList {
	var f faults
	names := sets.New[string]()
	for i := range c.Webhooks {
		w, at := &c.Webhooks[i], field.NewPath("webhooks").Index(i)
		f.webhook(at, names, webhook{w.Name, w.Rules, w.FailurePolicy, w.MatchPolicy, w.SideEffects, w.TimeoutSeconds, w.ClientConfig, w.AdmissionReviewVersions})
		f.selector(at.Child("namespaceSelector"), w.NamespaceSelector)
		f.selector(at.Child("objectSelector"), w.ObjectSelector)
	}
	return f.list
}

func (f *faults) webhook(at *field.Path, names sets.Set[string], w webhook) {
	f.join(validation.IsFullyQualifiedName(at.Child("name"), w.name))
	if names.Has(w.name) {
		f.add(field.Duplicate(at.Child("name"), w.name))
	}
	names.Insert(w.name)
	for i := range w.rules {
		f.hookRule(at.Child("rules").Index(i), &w.rules[i])
	}
	if w.failure != nil {
		supports(f, at.Child("failurePolicy"), *w.failure, admissionv1.Fail, admissionv1.Ignore)
	}
	if w.match != nil {
		supports(f, at.Child("matchPolicy"), *w.match, admissionv1.Equivalent, admissionv1.Exact)
	}
	if w.sideEffects == nil {
		f.required(at.Child("sideEffects"), "must specify one of None, NoneOnDryRun")
	} else {
		supports(f, at.Child("sideEffects"), *w.sideEffects, admissionv1.SideEffectClassNone, admissionv1.SideEffectClassNoneOnDryRun)
	}
	if t := w.timeout; t != nil && (*t > 30 || *t < 1) {
		f.invalid(at.Child("timeoutSeconds"), *t, "the timeout value must be between 1 and 30 seconds")
	}
	f.reviewVersions(at.Child("admissionReviewVersions"), w.reviewVersions)
	f.hookClient(at.Child("clientConfig"), w.client)
}

func (f *faults) reviewVersions(at *field.Path, versions []string) {
	if len(versions) == 0 {
		f.required(at, "must specify one of v1, v1beta1")
		return
	}
	seen := sets.New[string]()
	for i, v := range versions {
		if seen.Has(v) {
			f.invalid(at.Index(i), v, "duplicate version")
			continue
		}
		seen.Insert(v)
		f.invalids(at.Index(i), v, validation.IsDNS1035Label(v))
	}
	if !seen.HasAny("v1", "v1beta1") {
		f.invalid(at, versions, "must include at least one of v1, v1beta1")
	}
}

func (f *faults) hookRule(at *field.Path, r *admissionv1.RuleWithOperations) {
	for name, list := range map[string][]string{"apiGroups": r.APIGroups, "apiVersions": r.APIVersions, "resources": r.Resources} {
		if len(list) == 0 {
			f.required(at.Child(name), "")
		}
		wild := sets.New(list...).Has("*")
		if wild && len(list) > 1 && name != "resources" {
			f.invalid(at.Child(name), list, "if '*' is present, must not specify other "+map[string]string{"apiGroups": "API groups", "apiVersions": "API versions"}[name])
		}
		if i := slices.Index(list, ""); i >= 0 && name != "apiGroups" { // "" is the core group
			f.required(at.Child(name).Index(i), "")
		}
	}
	if len(r.Operations) == 0 {
		f.required(at.Child("operations"), "")
	}
	if len(r.Operations) > 1 && sets.New(r.Operations...).Has(admissionv1.OperationAll) {
		f.invalid(at.Child("operations"), r.Operations, "if '*' is present, must not specify other operations")
	}
	for i, op := range r.Operations {
		supports(f, at.Child("operations").Index(i), op, admissionv1.OperationAll, admissionv1.Connect, admissionv1.Create, admissionv1.Delete, admissionv1.Update)
	}
	if r.Scope != nil {
		supports(f, at.Child("scope"), *r.Scope, admissionv1.AllScopes, admissionv1.ClusterScope, admissionv1.NamespacedScope)
	}
}

func (f *faults) hookClient(at *field.Path, c admissionv1.WebhookClientConfig) {
	switch {
	case (c.URL == nil) == (c.Service == nil):
		f.required(at, "exactly one of url or service is required")
	case c.URL != nil:
		f.hookURL(at.Child("url"), *c.URL)
	default:
		s, path := c.Service, at.Child("service")
		f.present(path.Child("name"), s.Name, nil)
		f.present(path.Child("namespace"), s.Namespace, nil)
		f.invalids(path.Child("port"), derefOr(s.Port, 443), validation.IsValidPortNum(int(derefOr(s.Port, 443))))
		if s.Path != nil && !strings.HasPrefix(*s.Path, "/") {
			f.invalid(path.Child("path"), *s.Path, "must start with a '/'")
		}
	}
}

func (f *faults) hookURL(at *field.Path, text string) {
	u, err := url.Parse(text)
	if err != nil {
		f.required(at, "url must be a valid URL: "+err.Error()+"; desired format: https://host[/path]")
		return
	}
	const form = "; desired format: https://host[/path]"
	if u.Scheme != "https" {
		f.invalid(at, u.Scheme, "'https' is the only allowed URL scheme"+form)
	}
	if u.Host == "" {
		f.invalid(at, u.Host, "host must be specified"+form)
	}
	if u.User != nil {
		f.invalid(at, u.User.String(), "user information is not permitted in the URL")
	}
	if u.Fragment != "" {
		f.invalid(at, u.Fragment, "fragments are not permitted in the URL")
	}
	if u.RawQuery != "" {
		f.invalid(at, u.RawQuery, "query parameters are not permitted in the URL")
	}
}

func (f *faults) paramKind(at *field.Path, k *admissionv1.ParamKind) {
	if k == nil {
		return
	}
	if k.APIVersion == "" {
		f.required(at.Child("apiVersion"), "")
	} else if _, err := schema.ParseGroupVersion(k.APIVersion); err != nil {
		f.invalid(at.Child("apiVersion"), k.APIVersion, err.Error())
	}
	f.present(at.Child("kind"), k.Kind, nil)
}

func (f *faults) matchConstraints(at *field.Path, m *admissionv1.MatchResources) {
	if m == nil {
		f.required(at, "")
		return
	}
	if len(m.ResourceRules) == 0 {
		f.required(at.Child("resourceRules"), "")
	}
	f.matchResources(at, m)
}

func (f *faults) matchResources(at *field.Path, m *admissionv1.MatchResources) {
	if m == nil {
		return
	}
	f.selector(at.Child("namespaceSelector"), m.NamespaceSelector)
	f.selector(at.Child("objectSelector"), m.ObjectSelector)
	for name, rules := range map[string][]admissionv1.NamedRuleWithOperations{"resourceRules": m.ResourceRules, "excludeResourceRules": m.ExcludeResourceRules} {
		for i := range rules {
			f.hookRule(at.Child(name).Index(i), &rules[i].RuleWithOperations)
		}
	}
	if p := m.MatchPolicy; p != nil {
		supports(f, at.Child("matchPolicy"), *p, admissionv1.Equivalent, admissionv1.Exact)
	}
}

func validateValidatingPolicy(p *admissionv1.ValidatingAdmissionPolicy) field.ErrorList {
	var f faults
	at, s := field.NewPath("spec"), &p.Spec
	supports(&f, at.Child("failurePolicy"), *s.FailurePolicy, admissionv1.Fail, admissionv1.Ignore)
	f.paramKind(at.Child("paramKind"), s.ParamKind)
	f.matchConstraints(at.Child("matchConstraints"), s.MatchConstraints)
	if len(s.Validations) == 0 && len(s.AuditAnnotations) == 0 {
		f.required(at.Child("validations"), "validations or auditAnnotations must contain at least one item")
		f.required(at.Child("auditAnnotations"), "validations or auditAnnotations must contain at least one item")
	}
	for i, v := range s.Validations {
		if strings.TrimSpace(v.Expression) == "" {
			f.required(at.Child("validations").Index(i).Child("expression"), "expression is not specified")
		}
	}
	return f.list
}

func validateMutatingPolicy(p *admissionv1.MutatingAdmissionPolicy) field.ErrorList {
	var f faults
	at, s := field.NewPath("spec"), &p.Spec
	supports(&f, at.Child("failurePolicy"), *s.FailurePolicy, admissionv1.Fail, admissionv1.Ignore)
	f.paramKind(at.Child("paramKind"), s.ParamKind)
	f.matchConstraints(at.Child("matchConstraints"), s.MatchConstraints)
	if len(s.Mutations) == 0 {
		f.required(at.Child("mutations"), "mutations must contain at least one item")
	}
	oneOf(&f, at.Child("reinvocationPolicy"), s.ReinvocationPolicy, admissionv1.IfNeededReinvocationPolicy, admissionv1.NeverReinvocationPolicy)
	return f.list
}

func (f *faults) paramRef(at *field.Path, r *admissionv1.ParamRef) {
	if r == nil {
		return
	}
	switch {
	case r.Name != "" && r.Selector != nil:
		f.forbidden(at.Child("name"), "name and selector are mutually exclusive")
	case r.Name == "" && r.Selector == nil:
		f.required(at, "one of name or selector must be specified")
	case r.Name != "":
		f.invalids(at.Child("name"), r.Name, pathSegment(r.Name))
	}
	if a := r.ParameterNotFoundAction; a == nil {
		f.required(at.Child("parameterNotFoundAction"), "")
	} else {
		supports(f, at.Child("parameterNotFoundAction"), *a, admissionv1.DenyAction, admissionv1.AllowAction)
	}
}

func validateValidatingPolicyBinding(b *admissionv1.ValidatingAdmissionPolicyBinding) field.ErrorList {
	var f faults
	at, s := field.NewPath("spec"), &b.Spec
	f.present(at.Child("policyName"), s.PolicyName, subdomainName)
	f.paramRef(at.Child("paramRef"), s.ParamRef)
	f.matchResources(at.Child("matchResources"), s.MatchResources)
	actions := at.Child("validationActions")
	if len(s.ValidationActions) == 0 {
		f.required(actions, "at least one validation action is required")
	}
	seen := sets.New[admissionv1.ValidationAction]()
	for i, a := range s.ValidationActions {
		supports(&f, actions.Index(i), a, admissionv1.Audit, admissionv1.Deny, admissionv1.Warn)
		if seen.Has(a) {
			f.add(field.Duplicate(actions.Index(i), a))
		}
		seen.Insert(a)
	}
	if seen.HasAll(admissionv1.Deny, admissionv1.Warn) {
		f.invalid(actions, s.ValidationActions, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)")
	}
	return f.list
}

func validateMutatingPolicyBinding(b *admissionv1.MutatingAdmissionPolicyBinding) field.ErrorList {
	var f faults
	at, s := field.NewPath("spec"), &b.Spec
	f.present(at.Child("policyName"), s.PolicyName, subdomainName)
	f.paramRef(at.Child("paramRef"), s.ParamRef)
	f.matchResources(at.Child("matchResources"), s.MatchResources)
	return f.list
}
