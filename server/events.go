package server

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"orch/server/registry"
)

// events writes the API events of scheduler and controllers, aggregated and
// rate-limited as client-go does for upstream's.
type events struct {
	registry    *registry.Registry
	broadcaster record.EventBroadcaster
}

func newEvents(r *registry.Registry) *events {
	return &events{registry: r, broadcaster: record.NewBroadcaster()}
}

// recorder gives the event recorder of one component.
func (e *events) recorder(component string) record.EventRecorder {
	return e.broadcaster.NewRecorder(e.registry.Scheme(), corev1.EventSource{Component: component})
}

func (e *events) run(ctx context.Context) error {
	watch := e.broadcaster.StartRecordingToSink(&eventSink{ctx, e.registry})
	defer e.broadcaster.Shutdown()
	defer watch.Stop()
	<-ctx.Done()
	return nil
}

// eventSink is the recorder's way into the registry. The recorder's interface
// has no context, so the sink keeps that of its run.
type eventSink struct {
	ctx      context.Context
	registry *registry.Registry
}

func (s *eventSink) Create(event *corev1.Event) (*corev1.Event, error) {
	return registry.Of[*corev1.Event](s.registry).Create(s.ctx, event.DeepCopy())
}

func (s *eventSink) Update(event *corev1.Event) (*corev1.Event, error) {
	return registry.Of[*corev1.Event](s.registry).Update(s.ctx, event.DeepCopy())
}

func (s *eventSink) Patch(event *corev1.Event, patch []byte) (*corev1.Event, error) {
	if !json.Valid(patch) {
		return nil, io.ErrUnexpectedEOF
	}
	events := registry.Of[*corev1.Event](s.registry)
	obj, _, err := s.registry.Patch(s.ctx, events.Resource(), "", event.Namespace, event.Name, types.StrategicMergePatchType, patch, &metav1.PatchOptions{})
	if err != nil {
		return nil, err
	}
	return obj.(*corev1.Event), nil
}

// quietTLS keeps net/http's complaints about handshakes (port scans, clients
// that gave up) at debug level.
func quietTLS(logger *slog.Logger) *log.Logger {
	return slog.NewLogLogger(logger.With("component", "http").Handler(), slog.LevelDebug)
}
