package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// Slow makes the node's link carry no more than the rate (as tc writes it:
// "200kbit") and lose one of every so many packets that come in. Mend undoes it.
func (n *Node) Slow(rate string, lost int) error {
	if err := n.Mend(); err != nil {
		return err
	}
	return run(
		n.inside("tc qdisc replace dev eth0 root tbf rate "+rate+" burst 32kb latency 2s"),
		n.inside(fmt.Sprintf("iptables -w -t mangle -A PREROUTING -i eth0 -m statistic --mode nth --every %d --packet 0 -j DROP", lost)),
	)
}

// Mend undoes Slow.
func (n *Node) Mend() error {
	_ = run(n.inside("tc qdisc del dev eth0 root")) // there may be none
	return run(n.inside("iptables -w -t mangle -F PREROUTING"))
}

// SmallDisk puts the data directory on a disk of its own with that many
// megabytes; orch must not have been started yet.
func (n *Node) SmallDisk(megabytes int) error {
	if err := os.MkdirAll(n.DataDir(), 0o700); err != nil {
		return err
	}
	return syscall.Mount("orch-test", n.DataDir(), "tmpfs", 0, fmt.Sprintf("size=%dm,mode=700", megabytes))
}

// filler takes what is left of a small disk.
func (n *Node) filler() string { return filepath.Join(n.DataDir(), "filler") }

// FillDisk leaves so many bytes on the disk that SmallDisk made.
func (n *Node) FillDisk(left int64) error {
	file, err := os.Create(n.filler())
	if err != nil {
		return err
	}
	defer file.Close()
	var size int64
	for block := 1 << 20; block > 0; {
		written, err := file.Write(make([]byte, block))
		size += int64(written)
		if errors.Is(err, syscall.ENOSPC) {
			block /= 2 // to the last byte
		} else if err != nil {
			return err
		}
	}
	return file.Truncate(max(0, size-left))
}

// FreeDisk undoes FillDisk.
func (n *Node) FreeDisk() error {
	if err := os.Remove(n.filler()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Wipe deletes the data of a node that is not running, as a new machine has none.
func (n *Node) Wipe() error {
	entries, err := os.ReadDir(n.DataDir())
	for _, e := range entries { // the folder itself may be a disk
		err = errors.Join(err, os.RemoveAll(filepath.Join(n.DataDir(), e.Name())))
	}
	return err
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
