package rules

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Services is where the engine reads services.
type Services interface {
	Get(types.NamespacedName) (*corev1.Service, []*discoveryv1.EndpointSlice)
	Names() []types.NamespacedName
	WaitSynced(context.Context) error
}

// Filter keeps the kernel's rules in step with the desired ones: one for each
// mode of the proxy. Only Prepare may be called while Run does not run.
type Filter interface {
	// SetService puts one service's rules in place of its former ones (nil: none)
	// and SetHostPorts one sandbox's; nothing is in force before Apply. They
	// return the UDP front ends whose connections may then be stale.
	SetService(types.NamespacedName, *corev1.Service, []*discoveryv1.EndpointSlice) []udpFrontend
	SetHostPorts(sandbox string, ports []HostPort) []udpFrontend
	// Prepare puts the rules in force that need no service, and leaves what an
	// earlier process did for services until the first Apply.
	Prepare(context.Context) error
	// Apply puts in force what changed. After a failure nothing is assumed of
	// the kernel.
	Apply(context.Context) error
	// Repair makes the next Apply restore what another program removed, and
	// tells whether there is such.
	Repair(context.Context) (bool, error)
	// SetNode lets a node use the tunnel; an invalid address ends that. NodesKnown
	// shuts all others out.
	SetNode(name string, addr netip.Addr)
	NodesKnown()
	healthPorts() map[uint16]healthPort
}

// Watched is a Filter that tells when others change its rules.
type Watched interface {
	Filter
	Watch(ctx context.Context, changed func()) error
}

// Tracker forgets connections that would bypass new rules.
type Tracker interface {
	Forget([]udpFrontend) error
}

// Report records an API event about an object.
type Report func(object *corev1.ObjectReference, eventType, reason, message string)

// Engine keeps the node's rules as services and host ports ask.
type Engine struct {
	services Services
	reserved *Reserved
	report   Report
	filter   Filter
	tracker  Tracker
	log      *slog.Logger
	wake     chan struct{} // holds one token when there is work
	synced   chan struct{} // closed after the first full sync
	health   healthServers

	mu      sync.Mutex // guards what follows
	dirty   map[types.NamespacedName]bool
	ports   map[string][]HostPort // by sandbox: desired
	changed map[string]bool       // sandboxes to render again
	waiting []chan error          // told the outcome of the next sync
	recheck bool                  // somebody else changed rules
	nodes   map[string]netip.Addr // to let in, or out
	// nodesKnown tells that all nodes were told of, reservedChanged that what is
	// reserved is another than when services were rendered.
	nodesKnown, reservedChanged bool

	// The goroutine of Run alone touches these.
	stale   []udpFrontend                   // not forgotten yet
	closed  bool                            // the tunnel, to others than nodes
	exposed map[types.NamespacedName]string // services with ways in from outside, and which of them were refused
}

// NewEngine returns an engine; Prepare, then Run it. What is reserved must be
// what the filter's facts have.
func NewEngine(filter Filter, services Services, reserved *Reserved, tracker Tracker, report Report, log *slog.Logger) *Engine {
	return &Engine{
		services: services,
		reserved: reserved,
		report:   report,
		filter:   filter,
		tracker:  tracker,
		log:      log,
		wake:     make(chan struct{}, 1),
		synced:   make(chan struct{}),
		health:   healthServers{log: log, servers: make(map[uint16]*healthServer)},
		dirty:    make(map[types.NamespacedName]bool),
		ports:    make(map[string][]HostPort),
		changed:  make(map[string]bool),
		nodes:    make(map[string]netip.Addr),
		exposed:  make(map[types.NamespacedName]string),
	}
}

// Synced is closed once every rule is in force for the first time.
func (e *Engine) Synced() <-chan struct{} { return e.synced }

// ServiceChanged tells that a service or its endpoints changed. Not for an
// engine without services.
func (e *Engine) ServiceChanged(name types.NamespacedName) {
	e.mu.Lock()
	e.dirty[name] = true
	e.mu.Unlock()
	e.signal()
}

func (e *Engine) signal() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Adopt takes host ports that an earlier process published, to be in force
// with the first sync.
func (e *Engine) Adopt(sandbox string, ports []HostPort) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.setPorts(sandbox, ports)
}

// setPorts notes the ports of a sandbox. Call with mu held.
func (e *Engine) setPorts(sandbox string, ports []HostPort) {
	if len(ports) == 0 {
		delete(e.ports, sandbox)
	} else {
		e.ports[sandbox] = ports
	}
	e.changed[sandbox] = true
}

// Publish puts the host ports of a sandbox in force and waits until they are.
// A port that another sandbox holds is an error.
func (e *Engine) Publish(ctx context.Context, sandbox string, ports []HostPort) error {
	e.mu.Lock()
	if err := e.conflict(sandbox, ports); err != nil {
		e.mu.Unlock()
		return err
	}
	e.setPorts(sandbox, ports)
	e.mu.Unlock()
	return e.Flush(ctx)
}

// Flush waits until all that was told the engine before is in force.
func (e *Engine) Flush(ctx context.Context) error {
	done := make(chan error, 1)
	e.mu.Lock()
	e.waiting = append(e.waiting, done)
	e.mu.Unlock()
	e.signal()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for rules: %w", context.Cause(ctx))
	}
}

func (e *Engine) conflict(sandbox string, ports []HostPort) error {
	for _, p := range ports {
		if e.reserved.Port(p.Protocol, p.Port) {
			return fmt.Errorf("host port %s is not for pods: orch itself is reached there", p)
		}
	}
	for other, held := range e.ports {
		if other == sandbox {
			continue
		}
		for _, h := range held {
			for _, p := range ports {
				if h.overlaps(p) {
					return fmt.Errorf("host port %s is in use by another pod on this node (%s)", p, h.Pod.Addr())
				}
			}
		}
	}
	return nil
}

// Withdraw takes the host ports of a sandbox out of force, soon.
func (e *Engine) Withdraw(sandbox string) {
	e.mu.Lock()
	_, held := e.ports[sandbox]
	if held {
		e.setPorts(sandbox, nil)
	}
	e.mu.Unlock()
	if held {
		e.signal()
	}
}

// Prepare puts the rules in force that need no service: pods reach the
// outside. What an earlier process did for services keeps working until the
// first sync has read the services.
func (e *Engine) Prepare(ctx context.Context) error { return e.filter.Prepare(ctx) }

// Retries after a failed sync wait this long, doubling up to the second.
const (
	retryFirst = time.Second
	retryMax   = 30 * time.Second
)

// Run keeps the rules in force until ctx ends. It leaves them behind: pods and
// their services outlive the process.
func (e *Engine) Run(ctx context.Context) error {
	defer e.health.close(context.WithoutCancel(ctx))
	defer e.abandon()
	if err := e.services.WaitSynced(ctx); err != nil {
		return nil
	}
	e.mu.Lock()
	for _, name := range e.services.Names() {
		e.dirty[name] = true
	}
	e.mu.Unlock()
	var retry <-chan time.Time
	delay := retryFirst
	for e.signal(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-e.wake:
		case <-retry:
		}
		if err := e.sync(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			e.log.Warn("rules not applied, will retry", "error", err, "after", delay)
			retry, delay = time.After(delay), min(2*delay, retryMax)
			continue
		}
		retry, delay = nil, retryFirst
		e.markSynced()
	}
}

func (e *Engine) markSynced() {
	select {
	case <-e.synced:
	default:
		close(e.synced)
	}
}

// abandon tells who still waits that nothing more will come.
func (e *Engine) abandon() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, done := range e.waiting {
		done <- errors.New("the service proxy is stopping")
	}
	e.waiting = nil
}

// sync renders what changed and applies it.
func (e *Engine) sync(ctx context.Context) error {
	waiting, recheck := e.render()
	var err error
	if recheck {
		var damaged bool
		if damaged, err = e.filter.Repair(ctx); damaged {
			e.log.Info("another program removed service rules, restoring them")
		}
	}
	if err == nil {
		err = e.apply(ctx)
	}
	if err == nil {
		e.health.sync(ctx, e.filter.healthPorts())
	}
	for _, done := range waiting {
		done <- err
	}
	return err
}

// render brings the rule set up to date; it returns who waits for it, and
// whether the kernel must be looked at first.
func (e *Engine) render() (waiting []chan error, recheck bool) {
	e.mu.Lock()
	dirty, changed := e.dirty, e.changed
	waiting, recheck = e.waiting, e.recheck
	reservedChanged := e.reservedChanged
	e.dirty, e.changed, e.waiting, e.recheck, e.reservedChanged = make(map[types.NamespacedName]bool), make(map[string]bool), nil, false, false
	e.renderNodes()
	for sandbox := range changed {
		e.stale = append(e.stale, e.filter.SetHostPorts(sandbox, e.ports[sandbox])...)
	}
	e.mu.Unlock()
	e.reserve(dirty, reservedChanged)
	for name := range dirty {
		service, endpointSlices := e.services.Get(name)
		e.expose(name, service)
		e.stale = append(e.stale, e.filter.SetService(name, service, endpointSlices)...)
	}
	return waiting, recheck
}

func (e *Engine) apply(ctx context.Context) error {
	if err := e.filter.Apply(ctx); err != nil {
		return err
	}
	if len(e.stale) > 0 {
		if err := e.tracker.Forget(e.stale); err != nil {
			e.log.Warn("stale connections kept", "error", err)
		}
		e.stale = nil
	}
	return nil
}

// Recheck tells that another program changed the machine's rules, perhaps ours.
func (e *Engine) Recheck() {
	e.mu.Lock()
	e.recheck = true
	e.mu.Unlock()
	e.signal()
}
