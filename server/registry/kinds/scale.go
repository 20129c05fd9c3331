package kinds

import (
	"fmt"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"orch/server/registry"
)

// scaled says where a kind keeps what its Scale shows.
type scaled[P registry.Object] struct {
	replicas func(P) **int32
	current  func(P) int32
	selector func(P) string
}

// scale is the subresource that horizontal autoscalers and kubectl scale use.
func scale[P registry.Object](of scaled[P]) *registry.Subresource {
	return &registry.Subresource{
		Name: "scale",
		Kind: autoscalingv1.SchemeGroupVersion.WithKind("Scale"),
		New:  func() runtime.Object { return new(autoscalingv1.Scale) },
		Project: &registry.Projection{
			Get: func(obj registry.Object) (runtime.Object, error) { return of.view(obj.(P)), nil },
			Set: func(obj registry.Object, body runtime.Object) error { return of.set(obj.(P), body) },
			Columns: columns(
				column("Name", "string", doc(metav1.ObjectMeta{}, "name")),
				column("Desired", "integer", doc(autoscalingv1.ScaleSpec{}, "replicas")),
				column("Available", "integer", doc(autoscalingv1.ScaleStatus{}, "replicas")),
				ageColumn(),
			),
			Row: func(obj registry.Object, now time.Time) []any {
				s := obj.(*autoscalingv1.Scale)
				return []any{s.Name, int64(s.Spec.Replicas), int64(s.Status.Replicas), age(s, now)}
			},
		},
	}
}

func (of scaled[P]) view(obj P) *autoscalingv1.Scale {
	return &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{
			Name: obj.GetName(), Namespace: obj.GetNamespace(), UID: obj.GetUID(),
			ResourceVersion: obj.GetResourceVersion(), CreationTimestamp: obj.GetCreationTimestamp(),
		},
		Spec:   autoscalingv1.ScaleSpec{Replicas: derefOr(*of.replicas(obj), 0)},
		Status: autoscalingv1.ScaleStatus{Replicas: of.current(obj), Selector: of.selector(obj)},
	}
}

func (of scaled[P]) set(obj P, body runtime.Object) error {
	s, ok := body.(*autoscalingv1.Scale)
	if !ok {
		return errors.NewBadRequest(fmt.Sprintf("wrong object passed to Scale update: %T", body))
	}
	if s.Name != obj.GetName() && s.Name != "" {
		return errors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", s.Name, obj.GetName()))
	}
	if errs := apivalidation.ValidateNonnegativeField(int64(s.Spec.Replicas), field.NewPath("spec", "replicas")); len(errs) > 0 {
		return registry.Invalid(autoscalingv1.SchemeGroupVersion.WithKind("Scale").GroupKind(), obj.GetName(), errs)
	}
	replicas := s.Spec.Replicas
	*of.replicas(obj) = &replicas
	return nil
}
