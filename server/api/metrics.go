package api

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are the figures of the wire under upstream's names.
type metrics struct {
	handler  http.Handler
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	watchers *prometheus.GaugeVec
}

func newMetrics(s *Server) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_request_total", Help: "Requests by verb, resource and HTTP status code.",
		}, []string{"verb", "group", "version", "resource", "subresource", "scope", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_request_duration_seconds", Help: "Response latency in seconds, streams excluded.",
			Buckets: []float64{.001, .005, .025, .1, .5, 1, 5, 30},
		}, []string{"verb", "group", "version", "resource", "subresource", "scope"}),
		watchers: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "apiserver_longrunning_requests", Help: "Open watches by resource.",
		}, []string{"verb", "group", "version", "resource"}),
	}
	gauge := func(name, help, kind string, count func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: name, Help: help, ConstLabels: prometheus.Labels{"request_kind": kind},
		}, func() float64 { return float64(count()) })
	}
	for kind, s := range map[string]*slots{"readOnly": s.reads, "mutating": s.writes} {
		m.registry.MustRegister(
			gauge("apiserver_current_inflight_requests", "Requests being served now.", kind, s.serving),
			gauge("apiserver_current_inqueue_requests", "Requests that wait to be served.", kind, s.waiting))
	}
	m.registry.MustRegister(m.requests, m.duration, m.watchers,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{DisableCompression: true})
	return m
}

// begin starts the clock of a request; the function it gives records the end.
func (m *metrics) begin(q *request) func(code int) {
	started := time.Now()
	return func(code int) {
		verb := strings.ToUpper(q.verb)
		var group, version, resource, scope string
		if q.res != nil { // only what exists: paths are the clients' to invent
			group, version, resource, scope = q.group, q.version, q.resource, q.scope()
		} else if q.verb != "get" {
			verb = "OTHER"
		}
		var subresource string
		if q.sub != nil {
			subresource = q.subresource
		}
		m.requests.WithLabelValues(verb, group, version, resource, subresource, scope, strconv.Itoa(code)).Inc()
		if !q.longRunning() {
			m.duration.WithLabelValues(verb, group, version, resource, subresource, scope).Observe(time.Since(started).Seconds())
		}
	}
}

func (q *request) scope() string {
	switch {
	case q.name != "":
		return "resource"
	case q.namespace != "":
		return "namespace"
	}
	return "cluster"
}

// watching counts an open watch until the function it gives is called.
func (m *metrics) watching(q *request) func() {
	gauge := m.watchers.WithLabelValues("WATCH", q.group, q.version, q.resource)
	gauge.Inc()
	return gauge.Dec
}

// Register adds figures of other parts of the server to /metrics.
func (s *Server) Register(collectors ...prometheus.Collector) {
	s.metrics.registry.MustRegister(collectors...)
}
