package kinds

import (
	"context"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/registry"
)

func customResourceDefinitions() *registry.Resource {
	return entry[apiextensionsv1.CustomResourceDefinition, apiextensionsv1.CustomResourceDefinitionList](apiextensionsv1.SchemeGroupVersion, "customresourcedefinitions", traits[*apiextensionsv1.CustomResourceDefinition]{
		ShortNames: []string{"crd", "crds"}, Categories: apiExtensions(), Cluster: true,
		Spec: within(func(d *apiextensionsv1.CustomResourceDefinition) *apiextensionsv1.CustomResourceDefinitionSpec {
			return &d.Spec
		}),
		Status: within(func(d *apiextensionsv1.CustomResourceDefinition) *apiextensionsv1.CustomResourceDefinitionStatus {
			return &d.Status
		}),
		StatusPrepare: func(d, old *apiextensionsv1.CustomResourceDefinition) { metav1.ResetObjectMetaForStatus(d, old) },
		Default:       defaultDefinition,
		PrepareCreate: func(_ context.Context, _ *registry.Registry, d *apiextensionsv1.CustomResourceDefinition) error {
			for _, v := range d.Spec.Versions {
				if v.Storage {
					d.Status.StoredVersions = []string{v.Name}
				}
			}
			return nil
		},
		PrepareUpdate:  keepStoredVersions,
		Validate:       validateDefinition,
		ValidateUpdate: validateDefinitionUpdate,
		Columns:        plainColumns(),
		Row:            plainRow[*apiextensionsv1.CustomResourceDefinition],
	})
}

func defaultDefinition(d *apiextensionsv1.CustomResourceDefinition) {
	setZero(&d.Spec.Names.Singular, strings.ToLower(d.Spec.Names.Kind))
	if d.Spec.Names.ListKind == "" && d.Spec.Names.Kind != "" {
		d.Spec.Names.ListKind = d.Spec.Names.Kind + "List"
	}
	if d.Spec.Conversion == nil {
		d.Spec.Conversion = &apiextensionsv1.CustomResourceConversion{}
	}
	setZero(&d.Spec.Conversion.Strategy, apiextensionsv1.NoneConverter)
	if w := d.Spec.Conversion.Webhook; w != nil && w.ClientConfig != nil && w.ClientConfig.Service != nil {
		setDefault(&w.ClientConfig.Service.Port, 443)
	}
}

// keepStoredVersions remembers each version that objects may be stored in.
func keepStoredVersions(_ context.Context, _ *registry.Registry, d, old *apiextensionsv1.CustomResourceDefinition) error {
	stored := append([]string(nil), old.Status.StoredVersions...)
	for _, v := range d.Spec.Versions {
		if v.Storage {
			stored = withString(stored, v.Name)
		}
	}
	d.Status.StoredVersions = stored
	return nil
}
