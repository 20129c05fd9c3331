package registry

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/applyconfigurations"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

// scaleSchema describes autoscaling/v1 Scale, which client-go's schema lacks.
const scaleSchema = `types:
- name: io.k8s.api.autoscaling.v1.Scale
  map:
    fields:
    - {name: apiVersion, type: {scalar: string}}
    - {name: kind, type: {scalar: string}}
    - {name: metadata, type: {namedType: __untyped_deduced_}}
    - name: spec
      type: {map: {fields: [{name: replicas, type: {scalar: numeric}}]}}
    - name: status
      type:
        map:
          fields:
          - {name: replicas, type: {scalar: numeric}}
          - {name: selector, type: {scalar: string}}
- name: __untyped_deduced_
  scalar: untyped
  list:
    elementType: {namedType: __untyped_atomic_}
    elementRelationship: atomic
  map:
    elementType: {namedType: __untyped_deduced_}
    elementRelationship: separable
- name: __untyped_atomic_
  scalar: untyped
  list:
    elementType: {namedType: __untyped_atomic_}
    elementRelationship: atomic
  map:
    elementType: {namedType: __untyped_atomic_}
    elementRelationship: atomic
`

// typeConverter knows the schema of the built-in kinds and of Scale.
type typeConverter struct {
	managedfields.TypeConverter
	scale managedfields.TypeConverter
}

func newTypeConverter(scheme *runtime.Scheme) managedfields.TypeConverter {
	parser, err := typed.NewParser(scaleSchema)
	if err != nil {
		panic(err) // the constant above is wrong
	}
	return typeConverter{applyconfigurations.NewTypeConverter(scheme), managedfields.NewSchemeTypeConverter(scheme, parser)}
}

// ObjectToTyped implements managedfields.TypeConverter.
func (c typeConverter) ObjectToTyped(obj runtime.Object, opts ...typed.ValidationOptions) (*typed.TypedValue, error) {
	if obj.GetObjectKind().GroupVersionKind() == (schema.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"}) {
		return c.scale.ObjectToTyped(obj, opts...)
	}
	return c.TypeConverter.ObjectToTyped(obj, opts...)
}
