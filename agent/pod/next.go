package pod

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// action is what a step does.
type action string

const (
	rest          action = "rest"           // nothing to do before the step's wake time
	finish        action = "finish"         // the pod has run to its end
	look          action = "look"           // read what the runtime holds of the pod
	createSandbox action = "create-sandbox" //
	start         action = "start"          // pull, create, start a container
	kill          action = "kill"           // stop containers gracefully
	stopSandbox   action = "stop-sandbox"   // take down sandboxes and their network
	discard       action = "discard"        // remove dead containers from the runtime
	resize        action = "resize"         // change resources of running containers
	release       action = "release"        // give back volumes and cgroups
	confirm       action = "confirm"        // tell the API that the pod is gone
	erase         action = "erase"          // remove the last traces
)

// key is where a failed action is held back; no container is called like that.
func (a action) key() string { return "/" + string(a) }

// step is one lifecycle step of a pod.
type step struct {
	action  action
	unit    unit      // start
	kills   []killing // kill
	ids     []string  // stop-sandbox, discard
	attempt uint32    // create-sandbox
	changed bool      // create-sandbox: there was one before
	wake    time.Time // rest: when to look again; zero: only on news
}

// killing is one container to stop and why. An empty message means that the
// whole pod stops.
type killing struct {
	container *container
	message   string
	probe     *corev1.Probe // whose own grace period applies
	grace     *int64        // overrides all others
}

// halt says that a pod has to stop, and why.
type halt struct {
	reason, message string // failed for this reason; "" when it was deleted or is done
	grace           *int64 // overrides the pod's
	disruption      string // reason of the DisruptionTarget condition, if it gets one
	rejected        bool   // never admitted: nothing was started
	final           bool   // ran to its end: its phase follows from its containers
}

// retry holds back something that failed.
type retry struct {
	at    time.Time
	delay time.Duration
}

// view is all that decides about a pod's next step.
type view struct {
	now     time.Time
	pod     *corev1.Pod // nil: known from the runtime only
	seen    *observed
	halt    *halt
	gone    bool // the API object is gone
	volumes bool // prepared
	// failing holds the verdict of a liveness or startup probe by container ID,
	// started those that passed their startup probe or have none.
	failing  map[string]probeKind
	started  map[string]bool
	retries  map[string]retry // by container name; "" is the sandbox
	resize   bool             // resources of running containers differ from the spec
	remake   map[string]bool  // container IDs whose resize needs a restart
	released bool             // volumes and cgroups were given back
	settled  bool             // the API has the final status, or never will
	unsure   bool             // a call failed: what it made is not known
}

type probeKind string

const (
	livenessProbe  probeKind = "liveness"
	startupProbe   probeKind = "startup"
	readinessProbe probeKind = "readiness"
)

// next decides on the one step to take now.
func next(v *view) step {
	if v.unsure {
		return v.held(step{action: look})
	}
	if v.gone || v.halt != nil || v.pod.DeletionTimestamp != nil {
		return v.down()
	}
	if s, ok := v.sandbox(); ok {
		return s
	}
	if s, ok := v.restartAll(); ok {
		return s
	}
	p := v.plan()
	if len(p.kills) > 0 {
		return v.held(step{action: kill, kills: p.kills})
	}
	if s, ok := v.surplus(); ok {
		return s
	}
	if p.finished {
		return step{action: finish}
	}
	return v.choose(p)
}

// down stops a pod: containers, sandbox, volumes, then its traces.
func (v *view) down() step {
	if alive := v.seen.alive(); len(alive) > 0 {
		var kills []killing
		for _, c := range alive {
			k := killing{container: c}
			if v.halt != nil {
				k.grace = v.halt.grace
			}
			kills = append(kills, k)
		}
		return v.held(step{action: kill, kills: kills})
	}
	ids := v.seen.standing()
	switch {
	case len(ids) > 0:
		return v.held(step{action: stopSandbox, ids: ids})
	case !v.released:
		return v.held(step{action: release})
	case v.gone:
		return v.held(step{action: erase})
	case v.pod.DeletionTimestamp != nil && v.settled:
		return v.held(step{action: confirm})
	}
	return step{action: rest}
}

// held delays a step that failed before.
func (v *view) held(s step) step {
	if r, ok := v.retries[s.action.key()]; ok && v.now.Before(r.at) {
		return step{action: rest, wake: r.at}
	}
	return s
}

// sandbox makes sure that there is one to run in.
func (v *view) sandbox() (step, bool) {
	if v.seen.box() != nil {
		return step{}, false
	}
	if alive := v.seen.alive(); len(alive) > 0 {
		var kills []killing
		for _, c := range alive {
			kills = append(kills, killing{container: c})
		}
		return v.held(step{action: kill, kills: kills}), true
	}
	if ids := v.seen.standing(); len(ids) > 0 {
		return v.held(step{action: stopSandbox, ids: ids}), true
	}
	if v.over() {
		return step{action: finish}, true
	}
	if r := v.retries[""]; v.now.Before(r.at) {
		return step{action: rest, wake: r.at}, true
	}
	if ids := v.initAttempts(); len(ids) > 0 { // initialization starts over
		return v.held(step{action: discard, ids: ids}), true
	}
	return step{action: createSandbox, attempt: v.seen.attempt(), changed: v.seen.attempt() > 0}, true
}

// over tells that a pod without a sandbox needs none any more.
func (v *view) over() bool {
	if v.seen.attempt() == 0 || len(v.seen.containers) == 0 {
		return false
	}
	if v.pod.Spec.RestartPolicy == corev1.RestartPolicyNever && !v.anyOwnPolicy() {
		return true
	}
	created := false
	for _, u := range units(v.pod) {
		if u.class != regular {
			continue
		}
		c := v.seen.latest(u.Name)
		if c == nil || !c.exited() || u.restarts(v.pod, c.ExitCode) {
			return false
		}
		created = true
	}
	return created
}

func (v *view) anyOwnPolicy() bool {
	for _, u := range units(v.pod) {
		if u.class == regular && u.RestartPolicy != nil {
			return true
		}
	}
	return false
}

func (v *view) initAttempts() []string {
	var ids []string
	for _, u := range initUnits(v.pod) {
		for _, c := range v.seen.containers {
			if c.Name == u.Name {
				ids = append(ids, c.ID)
			}
		}
	}
	return ids
}

// restartAll starts the pod over in place when a container's exit demands it
// (KEP-5532). The container that demanded it goes last, so that the demand is
// not lost half-way.
func (v *view) restartAll() (step, bool) {
	var sources, others []string
	var kills []killing
	zero := int64(0)
	demanded := false
	for _, u := range units(v.pod) {
		if u.class == ephemeral {
			continue
		}
		for _, c := range v.seen.containers {
			switch {
			case c.Name != u.Name:
			case c.exited() && u.restartsAll(c.ExitCode):
				demanded = demanded || c == v.seen.latest(u.Name)
				sources = append(sources, c.ID)
			case c.exited():
				others = append(others, c.ID)
			default:
				kills = append(kills, killing{container: c, message: "killing", grace: &zero})
				others = append(others, c.ID)
			}
		}
	}
	if !demanded {
		return step{}, false
	}
	kills = slices.DeleteFunc(kills, func(k killing) bool { return !k.container.running() })
	switch {
	case len(kills) > 0:
		return v.held(step{action: kill, kills: kills}), true
	case len(others) > 0:
		return v.held(step{action: discard, ids: others}), true
	}
	return v.held(step{action: discard, ids: sources}), true
}

// surplus are dead attempts that nobody needs: all but the latest dead one of
// each container, which logs --previous shows.
func (v *view) surplus() (step, bool) {
	kept := make(map[string]bool)
	var ids []string
	for _, c := range v.seen.containers { // newest first
		if c.running() || c == v.seen.latest(c.Name) {
			continue
		}
		if c.exited() && !kept[c.Name] {
			kept[c.Name] = true
			continue
		}
		ids = append(ids, c.ID)
	}
	if len(ids) == 0 {
		return step{}, false
	}
	s := v.held(step{action: discard, ids: ids})
	return s, s.action == discard
}

// plan is what the containers of a pod need.
type plan struct {
	starts   []unit
	kills    []killing
	finished bool
}

func (v *view) plan() plan {
	var p plan
	for _, u := range units(v.pod) { // never restarted, and not bound to initialization
		if u.class == ephemeral && v.seen.latest(u.Name) == nil {
			p.starts = append(p.starts, u)
		}
	}
	initialized, failed := v.planInit(&p)
	if failed {
		return plan{finished: true}
	}
	if !initialized {
		return p
	}
	kept, starting := 0, 0
	for i := range v.pod.Spec.Containers {
		u := unit{Container: &v.pod.Spec.Containers[i], class: regular}
		c := v.seen.latest(u.Name)
		if !c.running() {
			if v.wanted(u, c) {
				p.starts = append(p.starts, u)
				starting++
			}
			continue
		}
		k, again := v.fault(u, c)
		if k == nil {
			kept++
			continue
		}
		if again {
			starting++
			k.message += ", will be restarted"
		}
		p.kills = append(p.kills, *k)
	}
	if kept == 0 && starting == 0 && len(p.kills) == 0 {
		return plan{finished: true}
	}
	return p
}

// wanted says whether a container that is not running is to be started.
func (v *view) wanted(u unit, c *container) bool {
	if c.exited() {
		return u.runsAgain(v.pod, c.ExitCode)
	}
	return true
}

// fault tells why a running container has to go, and whether it comes back.
func (v *view) fault(u unit, c *container) (*killing, bool) {
	what := "Container"
	if u.class == sidecar {
		what = "Init container"
	}
	again := u.class == sidecar || u.runsAgainAfterKill(v.pod)
	switch {
	case c.Hash != "" && c.Hash != hashOf(u.Container):
		return &killing{container: c, message: fmt.Sprintf("%s %s definition changed", what, u.Name)}, true
	case v.failing[c.ID] == livenessProbe:
		return &killing{container: c, message: fmt.Sprintf("%s %s failed liveness probe", what, u.Name), probe: u.LivenessProbe}, again
	case v.failing[c.ID] == startupProbe:
		return &killing{container: c, message: fmt.Sprintf("%s %s failed startup probe", what, u.Name), probe: u.StartupProbe}, again
	case v.remake[c.ID]:
		return &killing{container: c, message: fmt.Sprintf("%s %s resize requires restart", what, u.Name)}, true
	}
	return nil, false
}

// initializedBefore tells that a regular container was made in this sandbox:
// then initialization was complete, whatever became of its containers.
func (v *view) initializedBefore() bool {
	for i := range v.pod.Spec.Containers {
		c := v.seen.latest(v.pod.Spec.Containers[i].Name)
		if c == nil {
			continue
		}
		if c.running() || c.State == runtimeapi.ContainerState_CONTAINER_CREATED || c.Sandbox == v.seen.sandboxes[0].ID {
			return true
		}
	}
	return false
}

// planInit brings the init containers on, in their order. It tells whether the
// regular containers may run, and whether initialization failed for good.
func (v *view) planInit(p *plan) (initialized, failed bool) {
	all := initUnits(v.pod)
	before := v.initializedBefore()
	for _, u := range all {
		c := v.seen.latest(u.Name)
		if u.class == sidecar {
			if !v.planSidecar(p, u, c) && !before && !v.passed(all, u) {
				return false, false
			}
			continue
		}
		if before {
			continue
		}
		switch {
		case c == nil:
			if v.passed(all, u) { // its container was already cleared away
				continue
			}
			p.starts = append(p.starts, u)
			return false, false
		case c.running():
			return false, false
		case c.exited() && c.ExitCode == 0:
			continue
		case c.exited() && !u.restarts(v.pod, c.ExitCode):
			return false, true
		default:
			p.starts = append(p.starts, u)
			return false, false
		}
	}
	return true, false
}

// passed tells that a later init container exists, so that u must have run.
func (v *view) passed(all []unit, u unit) bool {
	later := false
	for _, o := range all {
		if later && v.seen.latest(o.Name) != nil {
			return true
		}
		later = later || o.Name == u.Name
	}
	return false
}

// planSidecar keeps a sidecar running. It tells whether the ones after it may
// start.
func (v *view) planSidecar(p *plan, u unit, c *container) bool {
	if !c.running() {
		p.starts = append(p.starts, u)
		return false
	}
	if k, _ := v.fault(u, c); k != nil {
		p.kills = append(p.kills, *k)
		return false
	}
	return v.started[c.ID]
}

// choose picks the first container that may start now.
func (v *view) choose(p plan) step {
	var wake time.Time
	earlier := func(t time.Time) {
		if wake.IsZero() || t.Before(wake) {
			wake = t
		}
	}
	for _, u := range p.starts {
		if !v.volumes {
			continue
		}
		if dead := v.seen.latest(u.Name); dead.exited() {
			if until := dead.Finished.Add(backoffAfter(dead)); v.now.Before(until) {
				earlier(until)
				continue
			}
		}
		if r, ok := v.retries[u.Name]; ok && v.now.Before(r.at) {
			earlier(r.at)
			continue
		}
		return step{action: start, unit: u}
	}
	if v.resize {
		if s := v.held(step{action: resize}); s.action == resize {
			return s
		}
	}
	return step{action: rest, wake: wake}
}

// backingOff tells until when a crashed container waits, if it does.
func (v *view) backingOff(u unit) (*container, time.Duration) {
	dead := v.seen.latest(u.Name)
	if !dead.exited() || !v.wanted(u, dead) {
		return nil, 0
	}
	delay := backoffAfter(dead)
	if delay == 0 || !v.now.Before(dead.Finished.Add(delay)) {
		return nil, 0
	}
	return dead, delay
}
