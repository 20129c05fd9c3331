package kinds

import (
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/registry"
)

func apiExtensions() []string { return []string{"api-extensions"} }

func webhookColumns() []metav1.TableColumnDefinition {
	return columns(nameColumn(), column("Webhooks", "integer", "Webhooks indicates the number of webhooks registered in this configuration"), ageColumn())
}

func mutatingWebhookConfigurations() *registry.Resource {
	return entry[admissionv1.MutatingWebhookConfiguration, admissionv1.MutatingWebhookConfigurationList](admissionv1.SchemeGroupVersion, "mutatingwebhookconfigurations", traits[*admissionv1.MutatingWebhookConfiguration]{
		Categories: apiExtensions(), Cluster: true,
		Spec: within(func(c *admissionv1.MutatingWebhookConfiguration) *[]admissionv1.MutatingWebhook { return &c.Webhooks }),
		Default: func(c *admissionv1.MutatingWebhookConfiguration) {
			for i := range c.Webhooks {
				w := &c.Webhooks[i]
				defaultHookMatching(&w.FailurePolicy, &w.MatchPolicy, &w.NamespaceSelector, &w.ObjectSelector)
				setDefault(&w.TimeoutSeconds, 10)
				setDefault(&w.ReinvocationPolicy, admissionv1.NeverReinvocationPolicy)
				defaultHookClient(&w.ClientConfig, w.Rules)
			}
		},
		Validate: validateMutatingWebhooks,
		Columns:  webhookColumns(),
		Row: func(c *admissionv1.MutatingWebhookConfiguration, now time.Time) []any {
			return []any{c.Name, int64(len(c.Webhooks)), age(c, now)}
		},
	})
}

func validatingWebhookConfigurations() *registry.Resource {
	return entry[admissionv1.ValidatingWebhookConfiguration, admissionv1.ValidatingWebhookConfigurationList](admissionv1.SchemeGroupVersion, "validatingwebhookconfigurations", traits[*admissionv1.ValidatingWebhookConfiguration]{
		Categories: apiExtensions(), Cluster: true,
		Spec: within(func(c *admissionv1.ValidatingWebhookConfiguration) *[]admissionv1.ValidatingWebhook {
			return &c.Webhooks
		}),
		Default: func(c *admissionv1.ValidatingWebhookConfiguration) {
			for i := range c.Webhooks {
				w := &c.Webhooks[i]
				defaultHookMatching(&w.FailurePolicy, &w.MatchPolicy, &w.NamespaceSelector, &w.ObjectSelector)
				setDefault(&w.TimeoutSeconds, 10)
				defaultHookClient(&w.ClientConfig, w.Rules)
			}
		},
		Validate: validateValidatingWebhooks,
		Columns:  webhookColumns(),
		Row: func(c *admissionv1.ValidatingWebhookConfiguration, now time.Time) []any {
			return []any{c.Name, int64(len(c.Webhooks)), age(c, now)}
		},
	})
}

func defaultHookMatching(failure **admissionv1.FailurePolicyType, match **admissionv1.MatchPolicyType, selectors ...**metav1.LabelSelector) {
	setDefault(failure, admissionv1.Fail)
	defaultMatching(match, selectors...)
}

func defaultMatching(match **admissionv1.MatchPolicyType, selectors ...**metav1.LabelSelector) {
	setDefault(match, admissionv1.Equivalent)
	for _, s := range selectors {
		if *s == nil {
			*s = &metav1.LabelSelector{}
		}
	}
}

func defaultHookClient(c *admissionv1.WebhookClientConfig, rules []admissionv1.RuleWithOperations) {
	if c.Service != nil {
		setDefault(&c.Service.Port, 443)
	}
	for i := range rules {
		setDefault(&rules[i].Scope, admissionv1.AllScopes)
	}
}

// defaultMatchResources completes what a policy or binding applies to.
func defaultMatchResources(m *admissionv1.MatchResources) {
	if m == nil {
		return
	}
	defaultMatching(&m.MatchPolicy, &m.NamespaceSelector, &m.ObjectSelector)
	for _, rules := range [][]admissionv1.NamedRuleWithOperations{m.ResourceRules, m.ExcludeResourceRules} {
		for i := range rules {
			setDefault(&rules[i].Scope, admissionv1.AllScopes)
		}
	}
}

func validatingAdmissionPolicies() *registry.Resource {
	return entry[admissionv1.ValidatingAdmissionPolicy, admissionv1.ValidatingAdmissionPolicyList](admissionv1.SchemeGroupVersion, "validatingadmissionpolicies", traits[*admissionv1.ValidatingAdmissionPolicy]{
		Categories: apiExtensions(), Cluster: true,
		Spec: within(func(p *admissionv1.ValidatingAdmissionPolicy) *admissionv1.ValidatingAdmissionPolicySpec {
			return &p.Spec
		}),
		Status: within(func(p *admissionv1.ValidatingAdmissionPolicy) *admissionv1.ValidatingAdmissionPolicyStatus {
			return &p.Status
		}),
		Default: func(p *admissionv1.ValidatingAdmissionPolicy) {
			setDefault(&p.Spec.FailurePolicy, admissionv1.Fail)
			defaultMatchResources(p.Spec.MatchConstraints)
		},
		Validate: validateValidatingPolicy,
		Columns: columns(
			nameColumn(),
			column("Validations", "integer", "Validations indicates the number of validation rules defined in this configuration"),
			column("ParamKind", "string", "ParamKind specifies the kind of resources used to parameterize this policy"),
			ageColumn(),
		),
		Row: func(p *admissionv1.ValidatingAdmissionPolicy, now time.Time) []any {
			return []any{p.Name, int64(len(p.Spec.Validations)), paramKindCell(p.Spec.ParamKind), age(p, now)}
		},
	})
}

func mutatingAdmissionPolicies() *registry.Resource {
	return entry[admissionv1.MutatingAdmissionPolicy, admissionv1.MutatingAdmissionPolicyList](admissionv1.SchemeGroupVersion, "mutatingadmissionpolicies", traits[*admissionv1.MutatingAdmissionPolicy]{
		Categories: apiExtensions(), Cluster: true,
		Spec: within(func(p *admissionv1.MutatingAdmissionPolicy) *admissionv1.MutatingAdmissionPolicySpec { return &p.Spec }),
		Default: func(p *admissionv1.MutatingAdmissionPolicy) {
			setDefault(&p.Spec.FailurePolicy, admissionv1.Fail)
			defaultMatchResources(p.Spec.MatchConstraints)
		},
		Validate: validateMutatingPolicy,
		Columns: columns(
			nameColumn(),
			column("Mutations", "integer", "Mutation indicates the number of mutations rules defined in this configuration"),
			column("ParamKind", "string", "ParamKind specifies the kind of resources used to parameterize this policy"),
			ageColumn(),
		),
		Row: func(p *admissionv1.MutatingAdmissionPolicy, now time.Time) []any {
			return []any{p.Name, int64(len(p.Spec.Mutations)), paramKindCell(p.Spec.ParamKind), age(p, now)}
		},
	})
}

func paramKindCell(k *admissionv1.ParamKind) string {
	if k == nil {
		return "<unset>"
	}
	return k.APIVersion + "/" + k.Kind
}

func policyBindingColumns() []metav1.TableColumnDefinition {
	return columns(
		nameColumn(),
		column("PolicyName", "string", "PolicyName indicates the policy definition which the policy binding binded to"),
		column("ParamRef", "string", "ParamRef indicates the param resource which sets the configuration param"),
		ageColumn(),
	)
}

// paramRefCell shows */ for the namespace that a parameter may or may not have.
func paramRefCell(ref *admissionv1.ParamRef) string {
	switch {
	case ref == nil:
		return "<unset>"
	case ref.Name != "":
		return orText(ref.Namespace, "*") + "/" + ref.Name
	case ref.Selector != nil:
		return ref.Selector.String()
	}
	return "<unset>"
}

func validatingAdmissionPolicyBindings() *registry.Resource {
	return entry[admissionv1.ValidatingAdmissionPolicyBinding, admissionv1.ValidatingAdmissionPolicyBindingList](admissionv1.SchemeGroupVersion, "validatingadmissionpolicybindings", traits[*admissionv1.ValidatingAdmissionPolicyBinding]{
		Categories: apiExtensions(), Cluster: true,
		Spec: within(func(b *admissionv1.ValidatingAdmissionPolicyBinding) *admissionv1.ValidatingAdmissionPolicyBindingSpec {
			return &b.Spec
		}),
		Default:  func(b *admissionv1.ValidatingAdmissionPolicyBinding) { defaultMatchResources(b.Spec.MatchResources) },
		Validate: validateValidatingPolicyBinding,
		Columns:  policyBindingColumns(),
		Row: func(b *admissionv1.ValidatingAdmissionPolicyBinding, now time.Time) []any {
			return []any{b.Name, b.Spec.PolicyName, paramRefCell(b.Spec.ParamRef), age(b, now)}
		},
	})
}

func mutatingAdmissionPolicyBindings() *registry.Resource {
	return entry[admissionv1.MutatingAdmissionPolicyBinding, admissionv1.MutatingAdmissionPolicyBindingList](admissionv1.SchemeGroupVersion, "mutatingadmissionpolicybindings", traits[*admissionv1.MutatingAdmissionPolicyBinding]{
		Categories: apiExtensions(), Cluster: true,
		Spec: within(func(b *admissionv1.MutatingAdmissionPolicyBinding) *admissionv1.MutatingAdmissionPolicyBindingSpec {
			return &b.Spec
		}),
		Default:  func(b *admissionv1.MutatingAdmissionPolicyBinding) { defaultMatchResources(b.Spec.MatchResources) },
		Validate: validateMutatingPolicyBinding,
		Columns:  policyBindingColumns(),
		Row: func(b *admissionv1.MutatingAdmissionPolicyBinding, now time.Time) []any {
			return []any{b.Name, b.Spec.PolicyName, paramRefCell(b.Spec.ParamRef), age(b, now)}
		},
	})
}
