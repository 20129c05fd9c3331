package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Voters asks the server which servers are there and have a vote, and which of
// them leads.
func (n *Node) Voters(ctx context.Context) (names []string, leader string, err error) {
	out, err := output(n.Command(ctx, n.Orch, "member", "list", "--kubeconfig", n.Kubeconfig), nil)
	if err != nil {
		return nil, "", fmt.Errorf("orch member list: %w: %s", err, out)
	}
	for _, line := range strings.Split(out, "\n") {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[3] != "connected" {
			continue
		}
		switch fields[2] {
		case "leader":
			leader = fields[0]
			fallthrough
		case "voter":
			names = append(names, fields[0])
		}
	}
	return names, leader, nil
}

// WaitVoters waits until so many servers have a vote, of which one leads.
func (n *Node) WaitVoters(ctx context.Context, count int) error {
	for {
		names, leader, err := n.Voters(ctx)
		if err == nil && len(names) == count && leader != "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%d servers with a vote were waited for, there are %v, led by %q: %w", count, names, leader, context.Cause(ctx)), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
