package kinds

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// validateEvent is lenient about old-style events, which have no event time.
func validateEvent(e *corev1.Event) field.ErrorList {
	var f faults
	object := e.InvolvedObject.Namespace
	elsewhere := func() {
		f.invalid(field.NewPath("involvedObject", "namespace"), object, "does not match event.namespace")
	}
	if e.EventTime.IsZero() {
		if object == "" && e.Namespace != "" && e.Namespace != metav1.NamespaceDefault || object != "" && object != e.Namespace {
			elsewhere()
		}
	} else {
		if object == "" && e.Namespace != metav1.NamespaceDefault && e.Namespace != metav1.NamespaceSystem {
			elsewhere()
		}
		f.newStyleEvent(e)
	}
	f.invalids(field.NewPath("namespace"), e.Namespace, validation.IsDNS1123Subdomain(e.Namespace))
	return f.list
}

func (f *faults) newStyleEvent(e *corev1.Event) {
	controller := field.NewPath("reportingComponent")
	if e.ReportingController == "" {
		f.required(controller, "")
	}
	f.invalids(controller, e.ReportingController, validation.IsQualifiedName(e.ReportingController))
	for _, text := range []struct {
		field, value string
		limit        int
		required     bool
	}{
		{"reportingInstance", e.ReportingInstance, 128, true},
		{"action", e.Action, 128, true},
		{"reason", e.Reason, 128, true},
		{"message", e.Message, 1024, false},
	} {
		if text.required && text.value == "" {
			f.required(field.NewPath(text.field), "")
		}
		if len(text.value) > text.limit {
			f.invalid(field.NewPath(text.field), "", fmt.Sprintf("can have at most %v characters", text.limit))
		}
	}
}
