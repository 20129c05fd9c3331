package server

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"orch/server/controllers/accounts"
	"orch/server/controllers/certificates"
	"orch/server/controllers/children"
	"orch/server/controllers/cronjob"
	"orch/server/controllers/daemonset"
	"orch/server/controllers/deployment"
	"orch/server/controllers/disruption"
	"orch/server/controllers/endpoints"
	"orch/server/controllers/garbage"
	"orch/server/controllers/job"
	"orch/server/controllers/loop"
	"orch/server/controllers/namespaces"
	"orch/server/controllers/nodes"
	"orch/server/controllers/quota"
	"orch/server/controllers/replicaset"
	"orch/server/controllers/roles"
	"orch/server/controllers/statefulset"
	"orch/server/controllers/volumes"
	"orch/server/scheduler"
)

// lead runs what must run once in the cluster, until the leadership ends.
func (a *assembly) lead(ctx context.Context) error {
	select {
	case <-a.gate.opened: // the first objects are there
	case <-ctx.Done():
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.publishServers(ctx) })
	if !a.cfg.Disabled("scheduler") {
		group.Go(func() error { return a.schedule(ctx) })
	}
	if !a.cfg.Disabled("controllers") {
		group.Go(func() error {
			return garbage.New(a.registry, a.cfg.Logger, a.events.recorder("garbage-collector-controller")).Run(ctx)
		})
		group.Go(func() error { return loop.Run(ctx, a.cfg.Logger, a.controllers()...) })
	}
	return group.Wait()
}

func (a *assembly) schedule(ctx context.Context) error {
	door := scheduler.NewRegistryDoor(a.registry, a.events.recorder(scheduler.Name))
	return scheduler.New(scheduler.Config{Door: door, Logger: a.cfg.Logger}).Run(ctx)
}

func (a *assembly) controllers() []*loop.Controller {
	r := a.registry
	pods := children.NewIndex(r)
	nodeEvents := a.events.recorder("node-controller")
	return []*loop.Controller{
		namespaces.Controller(r, time.Now),
		accounts.ServiceAccount(r),
		accounts.RootCA(r, a.keys.CA.PEM()),
		accounts.Tokens(r, a.guard.Issuer, a.keys.CA.PEM()),
		replicaset.Controller(r, pods, a.events.recorder("replicaset-controller"), time.Now),
		replicaset.ReplicationControllers(r, pods, a.events.recorder("replication-controller"), time.Now),
		deployment.Controller(r, pods, a.events.recorder("deployment-controller"), time.Now),
		daemonset.Controller(r, pods, a.events.recorder("daemonset-controller"), time.Now),
		statefulset.Controller(r, pods, a.events.recorder("statefulset-controller"), time.Now),
		job.Controller(r, pods, a.events.recorder("job-controller"), time.Now),
		job.Orphans(r, pods),
		cronjob.Controller(r, a.events.recorder("cronjob-controller"), time.Now),
		endpoints.Slices(r),
		endpoints.Endpoints(r),
		endpoints.Mirroring(r, a.events.recorder("endpoint-slice-mirroring-controller")),
		disruption.Controller(r, a.events.recorder("controllermanager"), time.Now),
		disruption.Stale(r, time.Now),
		quota.Controller(r, time.Now),
		roles.Aggregation(r),
		certificates.Signing(r, a.keys.CA, time.Now),
		certificates.Cleaning(r, time.Now),
		volumes.Binder(r, a.events.recorder("persistentvolume-controller"), time.Now),
		volumes.Ephemeral(r, a.events.recorder("ephemeral_volume")),
		volumes.ClaimProtection(r),
		volumes.VolumeProtection(r),
		nodes.PodNetwork(r, a.cfg.ClusterCIDR),
		nodes.PodNetworkCheck(r, prefixOf(a.cfg.ClusterCIDR), nodeEvents, time.Now),
		nodes.Lifecycle(r, pods, nodeEvents, time.Now),
		nodes.Eviction(r, pods, a.events.recorder("taint-eviction-controller"), time.Now),
		nodes.Orphans(r, pods, time.Now),
		nodes.Keys(r, time.Now),
		garbage.FinishedJobs(r, time.Now),
	}
}
