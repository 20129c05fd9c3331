package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"orch/test/load"
)

// steady keeps a service under requests from a pod while each of three servers
// and then one of two agents loses its power.
func (b *bench) steady(ctx context.Context) (err error) {
	c, err := load.NewCluster(ctx, b.network, "")
	defer func() { err = errors.Join(err, c.Close()) }()
	if err != nil {
		return err
	}
	asking, err := load.Start(ctx, c.Servers[0], c.Agents[0], 20, 0)
	if err != nil {
		return err
	}
	deaths, err := asking.Kill(ctx, c.Servers, c.Agents[1])
	if err != nil {
		return err
	}
	var writes []time.Duration
	failed, api, led := 0, 0, 0
	for _, s := range deaths.Servers {
		failed, api = failed+len(s.Failed), api+s.APIFailed
		if s.Led {
			led++
			writes = append(writes, s.Writes)
		}
	}
	b.add(fmt.Sprintf("leader powered off → write accepted, worst of %d", led), "2 s", "%.2f s", slices.Max(writes).Seconds())
	b.add("requests to a service that failed meanwhile", "0", "%d", failed)
	b.add("requests of pods to the kubernetes Service that failed", "", "%d", api)
	a := deaths.Agent
	b.add(fmt.Sprintf("agent with %d of 20 pods powered off → its endpoints gone", a.Pods), "", "%.1f s", a.Removed.Seconds())
	b.add("agent powered off → all pods Ready elsewhere", "60 s", "%.1f s", a.Elsewhere.Seconds())
	b.add("requests failed until its endpoints were gone · after", "0 after", "%d · %d", len(a.Before), len(a.After))
	b.add("all requests: number · p50 · p99 of those answered", "", "%d · %.1f ms · %.1f ms", deaths.Service.Requests,
		deaths.Service.P50.Seconds()*1000, deaths.Service.P99.Seconds()*1000)
	return nil
}
