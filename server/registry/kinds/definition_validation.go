package kinds

import (
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateDefinition(d *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
	var f faults
	at, s := field.NewPath("spec"), &d.Spec
	if want := s.Names.Plural + "." + s.Group; d.Name != want {
		f.invalid(field.NewPath("metadata", "name"), d.Name, `must be spec.names.plural+"."+spec.group`)
	}
	f.present(at.Child("group"), s.Group, validation.IsDNS1123Subdomain)
	if s.Group != "" && !strings.Contains(s.Group, ".") {
		f.invalid(at.Child("group"), s.Group, "should be a domain with at least one dot")
	}
	oneOf(&f, at.Child("scope"), s.Scope, apiextensionsv1.ClusterScoped, apiextensionsv1.NamespaceScoped)
	f.definitionVersions(at.Child("versions"), s)
	f.definitionNames(at.Child("names"), &s.Names)
	f.definitionConversion(at.Child("conversion"), s)
	return f.list
}

func (f *faults) definitionVersions(at *field.Path, s *apiextensionsv1.CustomResourceDefinitionSpec) {
	names, stored := sets.New[string](), 0
	for i, v := range s.Versions {
		path := at.Index(i)
		f.invalids(path.Child("name"), v.Name, validation.IsDNS1035Label(v.Name))
		if names.Has(v.Name) {
			f.add(field.Duplicate(path.Child("name"), v.Name))
		}
		names.Insert(v.Name)
		if v.Storage {
			stored++
		}
		if v.Schema == nil || v.Schema.OpenAPIV3Schema == nil {
			f.required(path.Child("schema", "openAPIV3Schema"), "schemas are required")
		} else if t := v.Schema.OpenAPIV3Schema.Type; t != "object" {
			f.invalid(path.Child("schema", "openAPIV3Schema", "type"), t, "must be object at the root")
		}
	}
	if len(s.Versions) == 0 {
		f.required(at, "must have exactly one version marked as storage version")
	} else if stored != 1 {
		f.invalid(at, s.Versions, "must have exactly one version marked as storage version")
	}
}

func (f *faults) definitionNames(at *field.Path, n *apiextensionsv1.CustomResourceDefinitionNames) {
	f.invalids(at.Child("plural"), n.Plural, validation.IsDNS1035Label(n.Plural))
	if n.Singular != "" {
		f.invalids(at.Child("singular"), n.Singular, validation.IsDNS1035Label(n.Singular))
	}
	f.invalids(at.Child("kind"), n.Kind, validation.IsDNS1035Label(strings.ToLower(n.Kind)))
	f.invalids(at.Child("listKind"), n.ListKind, validation.IsDNS1035Label(strings.ToLower(n.ListKind)))
	for i, short := range n.ShortNames {
		f.invalids(at.Child("shortNames").Index(i), short, validation.IsDNS1035Label(short))
	}
	for i, category := range n.Categories {
		f.invalids(at.Child("categories").Index(i), category, validation.IsDNS1035Label(category))
	}
	if n.Kind != "" && n.Kind == n.ListKind {
		f.invalid(at.Child("listKind"), n.ListKind, "kind and listKind may not be the same")
	}
}

func (f *faults) definitionConversion(at *field.Path, s *apiextensionsv1.CustomResourceDefinitionSpec) {
	c := s.Conversion
	supports(f, at.Child("strategy"), c.Strategy, apiextensionsv1.NoneConverter, apiextensionsv1.WebhookConverter)
	switch {
	case c.Strategy == apiextensionsv1.WebhookConverter && (c.Webhook == nil || c.Webhook.ClientConfig == nil):
		f.required(at.Child("webhookClientConfig"), "required when strategy is set to Webhook")
	case c.Strategy == apiextensionsv1.NoneConverter && c.Webhook != nil:
		f.forbidden(at.Child("webhookClientConfig"), "should not be set when strategy is not set to Webhook")
	}
}

// validateDefinitionUpdate: once objects exist, they must stay readable.
func validateDefinitionUpdate(d, old *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
	var f faults
	at := field.NewPath("spec")
	established := slices.ContainsFunc(old.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
		return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
	})
	if established {
		immutable(&f, at.Child("scope"), d.Spec.Scope, old.Spec.Scope)
		immutable(&f, at.Child("names", "kind"), d.Spec.Names.Kind, old.Spec.Names.Kind)
	}
	immutable(&f, at.Child("group"), d.Spec.Group, old.Spec.Group)
	immutable(&f, at.Child("names", "plural"), d.Spec.Names.Plural, old.Spec.Names.Plural)
	served := sets.New[string]()
	for _, v := range d.Spec.Versions {
		served.Insert(v.Name)
	}
	for i, stored := range old.Status.StoredVersions {
		if !served.Has(stored) {
			f.invalid(field.NewPath("status", "storedVersions").Index(i), stored, "missing from spec.versions; "+stored+" was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in "+stored+" and removes "+stored+" from status.storedVersions")
		}
	}
	return f.list
}
