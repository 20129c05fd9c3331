package kinds

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"

	"orch/server/registry"
)

func events() *registry.Resource {
	return entry[corev1.Event, corev1.EventList](corev1.SchemeGroupVersion, "events", traits[*corev1.Event]{
		ShortNames:     []string{"ev"},
		Validate:       validateEvent,
		Fields:         eventFields,
		CreateOnUpdate: true, UnconditionalUpdate: true,
		Columns: columns(
			column("Last Seen", "string", doc(corev1.Event{}, "lastTimestamp")),
			column("Type", "string", doc(corev1.Event{}, "type")),
			column("Reason", "string", doc(corev1.Event{}, "reason")),
			column("Object", "string", doc(corev1.Event{}, "involvedObject")),
			wide("Subobject", "string", doc(corev1.ObjectReference{}, "fieldPath")),
			wide("Source", "string", doc(corev1.Event{}, "source")),
			column("Message", "string", doc(corev1.Event{}, "message")),
			wide("First Seen", "string", doc(corev1.Event{}, "firstTimestamp")),
			wide("Count", "string", doc(corev1.Event{}, "count")),
			wideName(),
		),
		Row: eventRow,
	})
}

func eventFields(e *corev1.Event) fields.Set {
	return fields.Set{
		"involvedObject.kind":            e.InvolvedObject.Kind,
		"involvedObject.namespace":       e.InvolvedObject.Namespace,
		"involvedObject.name":            e.InvolvedObject.Name,
		"involvedObject.uid":             string(e.InvolvedObject.UID),
		"involvedObject.apiVersion":      e.InvolvedObject.APIVersion,
		"involvedObject.resourceVersion": e.InvolvedObject.ResourceVersion,
		"involvedObject.fieldPath":       e.InvolvedObject.FieldPath,
		"reason":                         e.Reason,
		"reportingComponent":             e.ReportingController,
		"source":                         orText(e.Source.Component, e.ReportingController),
		"type":                           e.Type,
	}
}

func eventRow(e *corev1.Event, now time.Time) []any {
	first := since(e.FirstTimestamp, now)
	if e.FirstTimestamp.IsZero() {
		first = elapsed(e.EventTime.Time, now)
	}
	last, count := first, max(e.Count, 1)
	if !e.LastTimestamp.IsZero() {
		last = since(e.LastTimestamp, now)
	}
	if e.Series != nil {
		last, count = elapsed(e.Series.LastObservedTime.Time, now), e.Series.Count
	}
	object := strings.ToLower(e.InvolvedObject.Kind)
	if e.InvolvedObject.Name != "" {
		object += "/" + e.InvolvedObject.Name
	}
	return []any{
		last, e.Type, e.Reason, object, e.InvolvedObject.FieldPath, eventSource(e),
		strings.TrimSpace(e.Message), first, int64(count), e.Name,
	}
}

func eventSource(e *corev1.Event) string {
	component := orText(e.Source.Component, e.ReportingController)
	if instance := orText(e.Source.Host, e.ReportingInstance); instance != "" {
		return component + ", " + instance
	}
	return component
}
