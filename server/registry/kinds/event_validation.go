package kinds

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"orch/server/registry"
)

// validateEvent is lenient about old-style events, which have no event time.
func validateEvent(e *corev1.Event) field.ErrorList {
	var f faults
	f.event(e, "reportingComponent")
	return f.list
}

// event names the reporting controller's field as the version written does.
func (f *faults) event(e *corev1.Event, controller string) {
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
		f.newStyleEvent(e, field.NewPath(controller))
	}
	f.invalids(field.NewPath("namespace"), e.Namespace, validation.IsDNS1123Subdomain(e.Namespace))
}

func (f *faults) newStyleEvent(e *corev1.Event, controller *field.Path) {
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

// validateEventV1 is what events.k8s.io/v1 asks: all that is deprecated is
// unset, and once written an event changes in its series alone.
func validateEventV1(obj, old registry.Object) field.ErrorList {
	var f faults
	e := obj.(*corev1.Event)
	f.event(e, "reportingController")
	if old != nil {
		f.eventUpdate(e, old.(*corev1.Event))
		return f.list
	}
	f.eventSeries(e.Series)
	if e.EventTime.IsZero() {
		f.required(field.NewPath("eventTime"), "")
	}
	if e.Type != corev1.EventTypeNormal && e.Type != corev1.EventTypeWarning {
		f.invalid(field.NewPath("type"), "", "has invalid value: "+e.Type)
	}
	for _, deprecated := range []struct {
		name string
		set  bool
	}{
		{"firstTimestamp", !e.FirstTimestamp.IsZero()},
		{"lastTimestamp", !e.LastTimestamp.IsZero()},
		{"count", e.Count != 0},
		{"source", e.Source != corev1.EventSource{}},
	} {
		if deprecated.set {
			f.invalid(field.NewPath(deprecated.name), "", "needs to be unset")
		}
	}
	return f.list
}

func (f *faults) eventSeries(s *corev1.EventSeries) {
	if s == nil {
		return
	}
	if s.Count < 2 {
		f.invalid(field.NewPath("series.count"), "", "should be at least 2")
	}
	if s.LastObservedTime.IsZero() {
		f.required(field.NewPath("series.lastObservedTime"), "")
	}
}

func (f *faults) eventUpdate(e, old *corev1.Event) {
	if !sameValue(e.Series, old.Series) {
		f.eventSeries(e.Series)
	}
	immutable(f, field.NewPath("involvedObject"), e.InvolvedObject, old.InvolvedObject)
	immutable(f, field.NewPath("reason"), e.Reason, old.Reason)
	immutable(f, field.NewPath("message"), e.Message, old.Message)
	immutable(f, field.NewPath("source"), e.Source, old.Source)
	immutable(f, field.NewPath("firstTimestamp"), e.FirstTimestamp, old.FirstTimestamp)
	immutable(f, field.NewPath("lastTimestamp"), e.LastTimestamp, old.LastTimestamp)
	immutable(f, field.NewPath("count"), e.Count, old.Count)
	immutable(f, field.NewPath("type"), e.Type, old.Type)
	// Clients write either micro- or nanoseconds of the same time.
	if !e.EventTime.Truncate(time.Microsecond).Equal(old.EventTime.Truncate(time.Microsecond)) {
		immutable(f, field.NewPath("eventTime"), e.EventTime, old.EventTime)
	}
	immutable(f, field.NewPath("action"), e.Action, old.Action)
	immutable(f, field.NewPath("related"), e.Related, old.Related)
	immutable(f, field.NewPath("reportingController"), e.ReportingController, old.ReportingController)
	immutable(f, field.NewPath("reportingInstance"), e.ReportingInstance, old.ReportingInstance)
}
