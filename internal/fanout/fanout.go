// Package fanout says how far apart messages are that go to every node. Each costs
// as much as there are nodes, so the more there are, the more is told at once.
package fanout

import "time"

const (
	least   = 100 * time.Millisecond
	perNode = time.Millisecond
	most    = time.Second
)

// Rest is the least time between two messages in a cluster of so many nodes.
func Rest(nodes int) time.Duration {
	return min(max(least, time.Duration(nodes)*perNode), most)
}
