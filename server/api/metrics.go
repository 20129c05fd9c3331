package api

import (
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"orch/server/fairness"
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
	gauge := func(name, help, kind string, count *atomic.Int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: name, Help: help, ConstLabels: prometheus.Labels{"request_kind": kind},
		}, func() float64 { return float64(count.Load()) })
	}
	for kind, g := range map[string]*gauges{"readOnly": &s.reads, "mutating": &s.writes} {
		m.registry.MustRegister(
			gauge("apiserver_current_inflight_requests", "Requests being served now.", kind, &g.inflight),
			gauge("apiserver_current_inqueue_requests", "Requests that wait to be served.", kind, &g.inqueue))
	}
	for _, level := range s.cfg.Levels.All() {
		m.registry.MustRegister(newLevelFigures(level))
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

// levelFigures are those of a priority level, under upstream's names.
type levelFigures struct {
	level                                       *fairness.Level
	seats, executing, inqueue, held, full, late *prometheus.Desc
}

func newLevelFigures(level *fairness.Level) *levelFigures {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		constant := prometheus.Labels{"priority_level": level.Name}
		for i := 0; i < len(labels); i += 2 {
			constant[labels[i]] = labels[i+1]
		}
		return prometheus.NewDesc("apiserver_flowcontrol_"+name, help, nil, constant)
	}
	const refused = "Requests that were refused, by reason."
	return &levelFigures{
		level:     level,
		seats:     desc("nominal_limit_seats", "Requests of the level that are worked on at once, at most."),
		executing: desc("current_executing_requests", "Requests that are worked on.", "flow_schema", level.Name),
		inqueue:   desc("current_inqueue_requests", "Requests that wait for a seat.", "flow_schema", level.Name),
		held:      desc("held_bytes", "What the level's requests hold, by estimate."),
		full:      desc("rejected_requests_total", refused, "flow_schema", level.Name, "reason", fairness.ErrQueueFull.Error()),
		late:      desc("rejected_requests_total", refused, "flow_schema", level.Name, "reason", fairness.ErrTimeOut.Error()),
	}
}

// Describe implements prometheus.Collector.
func (f *levelFigures) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(f, to) }

// Collect implements prometheus.Collector.
func (f *levelFigures) Collect(to chan<- prometheus.Metric) {
	now := f.level.Figures()
	send := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64) {
		to <- prometheus.MustNewConstMetric(desc, kind, value)
	}
	send(f.seats, prometheus.GaugeValue, float64(now.Seats))
	send(f.executing, prometheus.GaugeValue, float64(now.Executing))
	send(f.inqueue, prometheus.GaugeValue, float64(now.Waiting))
	send(f.held, prometheus.GaugeValue, float64(now.Held))
	send(f.full, prometheus.CounterValue, float64(now.QueueFull))
	send(f.late, prometheus.CounterValue, float64(now.TimeOut))
}
