package fairness

import (
	"runtime"
	"slices"
	"strings"
	"time"
)

// Levels are the fixed priority levels. Each has room of its own; the work of
// nodes, of leaders and of the system goes on whatever everybody else does.
type Levels struct {
	Exempt    *Level // administrators, who may have to mend an overload, and health: never waits
	System    *Level // controllers, schedulers and what else runs the cluster
	Leader    *Level // the leases by which programs choose their leader
	Nodes     *Level // what nodes report and ask
	Workloads *Level // service accounts
	Everybody *Level // all others
}

// Patience is how long a request waits for a seat.
const Patience = 7 * time.Second

// NewLevels gives the levels with their seats: on a large machine about as many
// as upstream's 600, on a small one fewer, for what is worked on shares the CPU.
func NewLevels() *Levels {
	const mb = 1 << 20
	cores := runtime.GOMAXPROCS(0)
	level := func(name string, seats int, bytes, flowBytes int64) *Level {
		return NewLevel(name, Limits{
			Seats: seats, Queued: 10 * seats, FlowQueued: 5 * seats, Patience: Patience, Bytes: bytes, FlowBytes: flowBytes,
		})
	}
	return &Levels{
		Exempt:    NewLevel("exempt", Limits{}),
		System:    level("system", 80, 256*mb, 128*mb),
		Leader:    level("leader-election", 30, 64*mb, 16*mb),
		Nodes:     level("nodes", min(60+20*cores, 200), 512*mb, 64*mb),
		Workloads: level("workloads", min(20+10*cores, 150), 256*mb, 64*mb),
		Everybody: level("everybody", min(15+8*cores, 100), 128*mb, 32*mb),
	}
}

// All gives every level.
func (l *Levels) All() []*Level {
	return []*Level{l.Exempt, l.System, l.Leader, l.Nodes, l.Workloads, l.Everybody}
}

// Subject is what the choice of a level looks at.
type Subject struct {
	User   string
	Groups []string
	// Group and Resource are those of the API; Health is true for the paths that
	// tell of the server's health.
	Group, Resource string
	Health          bool
}

const kubeSystemAccounts = "system:serviceaccounts:kube-system"

// Of chooses the level, much as upstream's suggested FlowSchemas do.
func (l *Levels) Of(s Subject) *Level {
	has := func(group string) bool { return slices.Contains(s.Groups, group) }
	if s.Health || has("system:masters") {
		return l.Exempt
	}
	if has("system:nodes") {
		return l.Nodes
	}
	component := strings.HasPrefix(s.User, "system:kube-") || has(kubeSystemAccounts)
	account := has("system:serviceaccounts")
	switch {
	case (component || account) && s.Group == "coordination.k8s.io" && s.Resource == "leases":
		return l.Leader
	case component:
		return l.System
	case account:
		return l.Workloads
	}
	return l.Everybody
}
