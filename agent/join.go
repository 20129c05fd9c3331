package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"orch/agent/node"
	"orch/internal/joining"
	"orch/runtime"
)

// belong joins the cluster and is a node of it until ctx ends. A cluster that
// no longer knows this node's key is joined again with the token. A node that
// was deleted stays away until it is started again.
func belong(ctx context.Context, cfg Config, r *runtime.Runtime) error {
	for fresh := false; ; {
		a := &assembly{cfg: cfg, runtime: r}
		err := a.join(ctx, fresh)
		if err == nil {
			err = a.assemble()
		}
		if err == nil {
			err = a.run(ctx)
		}
		switch {
		case errors.Is(err, node.ErrRefused):
			cfg.Logger.Warn("the cluster does not accept this node's credentials any more; joining again", "component", "agent")
			fresh = true
		case errors.Is(err, node.ErrRemoved) && a.stillTrusted(ctx):
			cfg.Logger.Warn("the cluster does not know this node, but trusts it: it was restored to a state of before; joining again", "component", "agent")
			fresh = true // so that it learns this node's key, and can revoke it
		case errors.Is(err, node.ErrRemoved):
			cfg.Logger.Warn("this node was deleted from the cluster: its pods are stopped, its credentials are revoked; start orch again to join anew",
				"component", "agent", "node", cfg.NodeName)
			<-ctx.Done()
			return nil
		default:
			return err
		}
	}
}

// stillTrusted tells whether the cluster still accepts the credentials of a node
// whose Node is gone. Those of a deleted Node are revoked within moments; when
// they are not, nobody deleted it, but the cluster was restored to a state from
// before this node joined.
func (a *assembly) stillTrusted(ctx context.Context) bool {
	for until := time.Now().Add(revocationTime); time.Now().Before(until); {
		_, err := a.api.CoreV1().Nodes().Get(ctx, a.cfg.NodeName, metav1.GetOptions{})
		switch {
		case err == nil:
			return true // somebody made it again
		case apierrors.IsUnauthorized(err), apierrors.IsForbidden(err):
			return false
		case !apierrors.IsNotFound(err):
			until = time.Now().Add(revocationTime) // no server says anything
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// revocationTime is how long the revocation of a deleted Node's credentials may
// take, a change of leaders included.
const revocationTime = 15 * time.Second

// Attempts to join.
const (
	attemptTime = 10 * time.Second // one attempt
	firstRetry  = 250 * time.Millisecond
	lastRetry   = 5 * time.Second
	joinReport  = 30 * time.Second // between lines about the same trouble
	// takenTime is how long to wait for the machine that has this node's name: a
	// node that was installed anew may have to outlast its former self, which
	// becomes NotReady after 25 s.
	takenTime = 45 * time.Second
)

// join gets the node's credentials; fresh ones mean that those kept from an
// earlier start are no good. A server that cannot be reached yet is waited for;
// a refusal ends the agent.
func (a *assembly) join(ctx context.Context, fresh bool) error {
	server, token, err := a.cfg.Servers(ctx)
	if err != nil {
		return err
	}
	log := a.cfg.Logger.With("component", "agent", "server", server)
	a.servers = newServers(hostPort(server), filepath.Join(a.cfg.DataDir, "agent", "servers.json"))
	cfg := joining.Config{
		Server: server, Token: token, NodeName: a.cfg.NodeName, Addresses: []string{a.cfg.NodeIP.String()},
		Dir: filepath.Join(a.cfg.DataDir, "agent"), Fresh: fresh, Dial: a.servers.dial,
	}
	start, reported, retry := time.Now(), time.Time{}, firstRetry
	for attempt := 1; ; attempt++ {
		attempting, cancel := context.WithTimeout(ctx, attemptTime)
		a.credentials, err = joining.Join(attempting, cfg)
		cancel()
		trouble := "waiting for the server"
		if joining.NameTaken(err) && time.Since(start) < takenTime {
			trouble = "waiting for the node's name, in case it was this machine's before it was installed anew"
		} else if err == nil || ctx.Err() != nil || !joining.Retry(err) {
			break
		}
		if now := time.Now(); now.Sub(reported) >= joinReport {
			reported = now
			log.Warn(trouble, "attempt", attempt, "waited", now.Sub(start).Round(time.Second), "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retry):
		}
		retry = min(2*retry, lastRetry)
	}
	if err != nil {
		return fmt.Errorf("join %s: %w", server, err)
	}
	if !reported.IsZero() {
		log.Info("reached the server", "waited", time.Since(start).Round(time.Second))
	}
	a.api, a.hangUp, err = newAPIClient(server, a.servers, a.credentials, a.cfg.Logger)
	return err
}

// hostPort is the address in a URL; a URL that is none is refused by joining.
func hostPort(text string) string {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return ""
	case u.Port() == "":
		return net.JoinHostPort(u.Hostname(), "443")
	}
	return u.Host
}

// stopPods ends all that runs on this node: nobody looks after it any more.
func (a *assembly) stopPods(ctx context.Context) error {
	client := a.runtime.Runtime()
	list, err := client.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list pod sandboxes: %w", err)
	}
	var stopping errgroup.Group
	stopping.SetLimit(8)
	for _, s := range list.Items {
		stopping.Go(func() error {
			if _, err := client.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id}); err != nil {
				return err
			}
			_, err := client.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id})
			return err
		})
	}
	return stopping.Wait()
}
