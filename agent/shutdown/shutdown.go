// Package shutdown ends a node's pods in order before its machine goes down; see
// https://kubernetes.io/docs/concepts/cluster-administration/node-shutdown.
package shutdown

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
)

// ErrDone says that the pods have ended because somebody asked for it: the node
// has nothing left to do.
var ErrDone = errors.New("the node's pods have ended before the machine goes down")

// What a pod's status says, in upstream's words.
const (
	Reason           = "Terminated"
	Message          = "Pod was terminated in response to imminent node shutdown."
	RejectionReason  = "NodeShutdown"
	RejectionMessage = "Pod was rejected as the node is shutting down."
)

// Pod is what the order of things depends on.
type Pod struct {
	UID      types.UID
	Grace    time.Duration // that the pod asks for
	Critical bool          // for the node or the cluster: ends last
	Running  bool
}

// Config of a node's shutdown.
type Config struct {
	// Period is how long all pods together may take, and CriticalPeriod the part
	// of it that is kept for critical ones.
	Period, CriticalPeriod time.Duration
	// Asked delivers when somebody asks for the shutdown, where no logind tells
	// of it; nil: never.
	Asked <-chan os.Signal

	Pods    func() []Pod
	Known   func() bool                              // all pods are: a node that has just started finds out first
	Stop    func(uid types.UID, grace time.Duration) // returns at once
	Changed func(underWay bool)                      // it begins, or was called off
	Settle  func(context.Context)                    // waits until the API knows how the pods ended

	LogindConf string // folder of logind's configuration; "": /etc/systemd/logind.conf.d
	Logger     *slog.Logger
}

// Manager waits for the end of the machine.
type Manager struct {
	cfg      Config
	log      *slog.Logger
	underWay atomic.Bool
}

// New makes a manager; it does no I/O.
func New(cfg Config) *Manager {
	if cfg.LogindConf == "" {
		cfg.LogindConf = "/etc/systemd/logind.conf.d"
	}
	return &Manager{cfg: cfg, log: cfg.Logger.With("component", "shutdown")}
}

// UnderWay tells whether the machine is going down: no pod may start any more.
func (m *Manager) UnderWay() bool { return m.underWay.Load() }

// Run waits for the machine's shutdown, until ctx ends. ErrDone: somebody asked
// for it, and the pods have ended.
func (m *Manager) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return m.keepLogind(ctx) })
	group.Go(func() error {
		select {
		case <-m.cfg.Asked:
			m.begin("somebody asked for it")
			m.endPods(ctx)
			return ErrDone
		case <-ctx.Done():
			return nil
		}
	})
	return group.Wait()
}

func (m *Manager) begin(why string) {
	if m.underWay.Swap(true) {
		return
	}
	m.log.Warn("the machine is shutting down: pods are stopped", "why", why, "within", m.cfg.Period)
	m.cfg.Changed(true)
}

func (m *Manager) callOff() {
	if m.underWay.Swap(false) {
		m.log.Info("the shutdown was called off: pods may start again")
		m.cfg.Changed(false)
	}
}

// endPods stops all pods, the critical ones last, and returns when they have
// ended or their time is over.
func (m *Manager) endPods(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Period)
	defer cancel()
	m.learn(ctx)
	m.endGroup(ctx, false, m.cfg.Period-m.cfg.CriticalPeriod)
	m.endGroup(ctx, true, m.cfg.CriticalPeriod)
	m.cfg.Settle(ctx)
}

// learnTime is how long the API may take to tell which pods there are.
const learnTime = 5 * time.Second

func (m *Manager) learn(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, min(learnTime, m.cfg.Period/4))
	defer cancel()
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	for !m.cfg.Known() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// lookInterval is how often to see which pods run still.
const lookInterval = 100 * time.Millisecond

func (m *Manager) endGroup(ctx context.Context, critical bool, period time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, period)
	defer cancel()
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	asked := make(map[types.UID]bool)
	for {
		left := 0
		for _, pod := range m.cfg.Pods() {
			if !pod.Running || pod.Critical != critical {
				continue
			}
			left++
			if !asked[pod.UID] {
				asked[pod.UID] = true
				m.cfg.Stop(pod.UID, min(pod.Grace, period))
			}
		}
		if left == 0 {
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			m.log.Warn("pods did not end in time", "critical", critical, "left", left)
			return
		}
	}
}
