package main

import (
	"context"
	"errors"
	"time"

	"orch/test/cluster"
)

// agents measures nodes that join, and what one of them costs while idle.
func (b *bench) agents(ctx context.Context) error {
	const runs = 5
	return b.with(ctx, func(server *cluster.Node) (err error) {
		var ready []time.Duration
		var last *cluster.Node
		for range runs {
			agent, err := b.network.NewAgent(server)
			if err != nil {
				return err
			}
			last = agent
			begin := time.Now()
			err = errors.Join(agent.Start(), waitReady(ctx, agent))
			ready = append(ready, time.Since(begin))
			if err != nil || len(ready) < runs {
				err = errors.Join(err, agent.Close())
			}
			if err != nil {
				return err
			}
		}
		defer func() { err = errors.Join(err, last.Close()) }()
		b.add("agent: start → joined and Ready (median)", "2 s", "%.2f s", median(ready).Seconds())
		if err := pause(ctx, settleTime); err != nil {
			return err
		}
		before, err := measureProcess(last.PID())
		if err != nil {
			return err
		}
		if err := pause(ctx, b.idle); err != nil {
			return err
		}
		after, err := measureProcess(last.PID())
		if err != nil {
			return err
		}
		b.add("idle agent: RSS", "60 MB", "%.0f MB (anonymous %.0f)", float64(after.rss)/1e6, float64(after.anonymous)/1e6)
		b.add("idle agent: CPU", "", "%.2f %%", 100*(after.cpu-before.cpu).Seconds()/b.idle.Seconds())
		return nil
	})
}
