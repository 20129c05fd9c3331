package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"golang.org/x/time/rate"
)

// Events records API events of this node. An event that happens again raises
// the count of the one there is; whoever says too much is not heard for a
// while; nobody ever waits.
type Events struct {
	client kubernetes.Interface
	source corev1.EventSource
	queue  chan happening
	log    *slog.Logger

	// These belong to Run.
	known    map[happened]*corev1.Event
	speakers map[types.UID]*rate.Limiter
	last     int64 // number in the name of the last event
}

// happened is what makes two events the same.
type happened struct {
	uid                               types.UID
	field, eventType, reason, message string
}

type happening struct {
	ref                        corev1.ObjectReference
	eventType, reason, message string
	at                         time.Time
}

const (
	eventQueue    = 1000
	eventMemory   = 1000 // events, and speakers, that are remembered
	eventBurst    = 25   // as client-go has it, per object
	eventRefill   = 5 * time.Minute
	eventAttempts = 5
)

// NewEvents makes a recorder that speaks as this node's kubelet. It writes
// nothing before Run.
func NewEvents(client kubernetes.Interface, node string, log *slog.Logger) *Events {
	if log == nil {
		log = slog.Default()
	}
	return &Events{
		client: client, source: corev1.EventSource{Component: "kubelet", Host: node},
		queue: make(chan happening, eventQueue), log: log.With("component", "events"),
		known: make(map[happened]*corev1.Event), speakers: make(map[types.UID]*rate.Limiter),
	}
}

// Event records that something happened to object, which is an
// *corev1.ObjectReference, a pod or a node. When the queue is full it is lost.
func (e *Events) Event(object kruntime.Object, eventType, reason, message string) {
	h := happening{eventType: eventType, reason: reason, message: message, at: time.Now()}
	switch o := object.(type) {
	case *corev1.ObjectReference:
		h.ref = *o
	case *corev1.Pod:
		h.ref = *objectReference(o, nil)
	case *corev1.Node:
		h.ref = corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: o.Name, UID: o.UID}
	default:
		return
	}
	select {
	case e.queue <- h:
	default:
	}
}

// Run writes events until ctx ends.
func (e *Events) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case h := <-e.queue:
			if e.heard(h) {
				e.write(ctx, h)
			}
		}
	}
}

// heard holds an event against the budget of its object.
func (e *Events) heard(h happening) bool {
	if len(e.speakers) > eventMemory {
		clear(e.speakers)
	}
	l := e.speakers[h.ref.UID]
	if l == nil {
		l = rate.NewLimiter(rate.Every(eventRefill), eventBurst)
		e.speakers[h.ref.UID] = l
	}
	return l.AllowN(h.at, 1)
}

func (e *Events) write(ctx context.Context, h happening) {
	key := happened{h.ref.UID, h.ref.FieldPath, h.eventType, h.reason, h.message}
	delay := 100 * time.Millisecond
	for range eventAttempts {
		err := e.put(ctx, key, h)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			return
		}
		if apierrors.IsForbidden(err) || apierrors.IsNotFound(err) || apierrors.IsInvalid(err) {
			e.log.Debug("event refused", "reason", h.reason, "err", err) // its namespace is going, as a rule
			return
		}
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		delay *= 2
	}
	e.log.Warn("event lost", "reason", h.reason, "object", h.ref.Name)
}

// put raises the count of the event that there is, or makes a new one.
func (e *Events) put(ctx context.Context, key happened, h happening) error {
	at := metav1.NewTime(h.at)
	if old := e.known[key]; old != nil {
		patch, err := json.Marshal(map[string]any{"count": old.Count + 1, "lastTimestamp": at, "message": h.message})
		if err != nil {
			return err
		}
		got, err := e.client.CoreV1().Events(old.Namespace).Patch(ctx, old.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
		if err == nil {
			e.known[key] = trimmed(got)
		}
		if !apierrors.IsNotFound(err) {
			return err
		}
		delete(e.known, key) // it has expired
	}
	namespace := h.ref.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	e.last = max(h.at.UnixNano(), e.last+1)
	got, err := e.client.CoreV1().Events(namespace).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: fmt.Sprintf("%s.%x", h.ref.Name, e.last), Namespace: namespace},
		InvolvedObject: h.ref, Reason: h.reason, Message: h.message, Type: h.eventType,
		Source: e.source, ReportingController: e.source.Component, ReportingInstance: e.source.Host,
		FirstTimestamp: at, LastTimestamp: at, Count: 1,
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	if len(e.known) > eventMemory {
		clear(e.known)
	}
	e.known[key] = trimmed(got)
	return nil
}

// trimmed keeps what a later event of the same kind needs.
func trimmed(e *corev1.Event) *corev1.Event {
	return &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: e.Name, Namespace: e.Namespace}, Count: e.Count}
}
