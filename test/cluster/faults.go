package cluster

import (
	"errors"
	"os"
	"syscall"
)

// Pause stops orch as a machine that hangs would; its pods go on running.
func (n *Node) Pause() error { return n.process.Process.Signal(syscall.SIGSTOP) }

// Resume lets a paused orch go on.
func (n *Node) Resume() error {
	if err := n.process.Process.Signal(syscall.SIGCONT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// KillPods ends all containers of the node, as the end of its machine would;
// orch must have been killed before.
func (n *Node) KillPods() error { return killUnder(n.Dir) }

// cutChain holds the node's cuts, ahead of all other rules.
const cutChain = "ORCH-TEST-CUT"

// CutFrom drops what comes from the other nodes, or from everywhere when none
// is named: packets of pods that travel between nodes as well. The other
// direction goes on; cut both nodes from each other for a clean partition.
func (n *Node) CutFrom(others ...*Node) error {
	in := n.inside("iptables -w -t raw ")
	commands := []string{in + "-N " + cutChain, in + "-I PREROUTING -j " + cutChain}
	if run(in+"-S "+cutChain) == nil {
		commands = nil
	}
	for _, other := range others {
		commands = append(commands, in+"-A "+cutChain+" -s "+other.IP+" -j DROP")
	}
	if len(others) == 0 {
		commands = append(commands, in+"-A "+cutChain+" -i eth0 -j DROP")
	}
	return run(commands...)
}

// Isolate cuts the node off from all others, both ways.
func (n *Node) Isolate() error { return run(n.inside("ip link set eth0 down")) }

// Heal undoes CutFrom and Isolate.
func (n *Node) Heal() error {
	commands := []string{n.inside("ip link set eth0 up"), n.inside("ip route replace default via 10.99.0.1")}
	if in := n.inside("iptables -w -t raw "); run(in+"-S "+cutChain) == nil {
		commands = append(commands, in+"-F "+cutChain)
	}
	return run(commands...)
}

// inside prefixes a command so that it runs in the node's network namespace.
func (n *Node) inside(command string) string {
	return "nsenter --net=/run/netns/" + n.Namespace + " " + command
}

// Partition cuts the two groups of nodes off from each other, both ways.
func Partition(one, other []*Node) error {
	for _, a := range one {
		if err := a.CutFrom(other...); err != nil {
			return err
		}
	}
	for _, b := range other {
		if err := b.CutFrom(one...); err != nil {
			return err
		}
	}
	return nil
}

// PowerOff ends the node as a pulled plug would: nobody hears a last word of
// it, and its containers end with it. PowerOn undoes it.
func (n *Node) PowerOff() error {
	if err := n.Isolate(); err != nil {
		return err
	}
	if err := n.Kill(); err != nil {
		return err
	}
	return n.KillPods()
}

// PowerOn starts a node that was powered off.
func (n *Node) PowerOn() error {
	if err := n.Heal(); err != nil {
		return err
	}
	return n.Start()
}
