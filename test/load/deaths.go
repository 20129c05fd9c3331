package load

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"

	"orch/test/cluster"
	"orch/test/load/stats"
)

// ServerDeath is what was seen of the death of a server.
type ServerDeath struct {
	Name        string
	Led         bool
	Writes      time.Duration // until another server took a write
	Unlisted    time.Duration // until the kubernetes Service left it out
	Failed      []stats.Failure
	APIFailed   int // requests to the kubernetes Service
	APIRequests int
}

// AgentDeath is what was seen of the death of an agent.
type AgentDeath struct {
	Pods      int           // of the deployment, that died with it
	Removed   time.Duration // until its endpoints were gone
	Elsewhere time.Duration // until all pods were Ready on other nodes
	Before    []stats.Failure
	After     []stats.Failure // of requests that began once the endpoints were gone
}

// Deaths are all of them, with the load over the whole time.
type Deaths struct {
	Servers []ServerDeath
	Agent   AgentDeath
	Service stats.Result
	API     stats.Result
}

// rulesTime is what the rules on the client's node may take to follow the
// endpoints, on a busy machine.
const rulesTime = 5 * time.Second

// patience is what anything may take on a busy machine.
const patience = 3 * time.Minute

// Kill powers off each server in turn, the leader first, and then the agent that
// does not hold the client. All come back but the agent.
func (l *Load) Kill(ctx context.Context, servers []*cluster.Node, agent *cluster.Node) (*Deaths, error) {
	d := &Deaths{}
	for left := slices.Clone(servers); len(left) > 0; {
		if err := servers[0].WaitVoters(ctx, len(servers)); err != nil {
			return nil, err
		}
		_, leader, err := servers[0].Voters(ctx)
		if err != nil {
			return nil, err
		}
		i := max(0, slices.IndexFunc(left, func(n *cluster.Node) bool { return n.Name == leader }))
		death, err := l.killServer(ctx, left[i], servers)
		if err != nil {
			return nil, fmt.Errorf("death of server %s: %w", left[i].Name, err)
		}
		death.Led = left[i].Name == leader
		d.Servers = append(d.Servers, *death)
		left = slices.Delete(left, i, i+1)
	}
	var err error
	if d.Agent, err = l.killAgent(ctx, servers[0], agent); err != nil {
		return nil, fmt.Errorf("death of agent %s: %w", agent.Name, err)
	}
	all, err := l.Stats(ctx)
	d.Service, d.API = all[stats.Service], all[stats.API]
	return d, err
}

func clientOf(n *cluster.Node) (*kubernetes.Clientset, error) {
	config, err := n.Config()
	if err != nil {
		return nil, err
	}
	config.Timeout = 10 * time.Second
	return kubernetes.NewForConfig(config)
}

func (l *Load) killServer(ctx context.Context, victim *cluster.Node, all []*cluster.Node) (*ServerDeath, error) {
	witness := all[(slices.Index(all, victim)+1)%len(all)]
	api, err := clientOf(witness)
	if err != nil {
		return nil, err
	}
	before, err := l.Stats(ctx)
	if err != nil {
		return nil, err
	}
	died := time.Now()
	death := &ServerDeath{Name: victim.Name}
	if err := victim.PowerOff(); err != nil {
		return nil, err
	}
	if death.Writes, err = until(ctx, patience, "a write is taken", func() (bool, error) {
		_, err := api.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "after-"}}, metav1.CreateOptions{})
		return err == nil, err
	}); err != nil {
		return nil, err
	}
	if _, err = until(ctx, patience, "the kubernetes Service leaves the server out", listed(ctx, api, len(all)-1)); err != nil {
		return nil, err
	}
	death.Unlisted = time.Since(died)
	if err := pause(ctx, stats.Patience); err != nil { // what was under way fails by then
		return nil, err
	}
	if err := victim.PowerOn(); err != nil {
		return nil, err
	}
	joined, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := witness.WaitVoters(joined, len(all)); err != nil {
		return nil, err
	}
	if _, err := until(ctx, patience, "the kubernetes Service leads to all servers", listed(ctx, api, len(all))); err != nil {
		return nil, err
	}
	after, err := l.Stats(ctx)
	if err != nil {
		return nil, err
	}
	death.Failed = after[stats.Service].Between(died, time.Now())
	death.APIFailed = len(after[stats.API].Between(died, time.Now()))
	death.APIRequests = after[stats.API].Requests - before[stats.API].Requests
	return death, nil
}

// listed says whether the kubernetes Service has so many endpoints.
func listed(ctx context.Context, api kubernetes.Interface, count int) func() (bool, error) {
	return func() (bool, error) {
		slice, err := api.DiscoveryV1().EndpointSlices("default").Get(ctx, "kubernetes", metav1.GetOptions{})
		return err == nil && len(slice.Endpoints) == count, err
	}
}

func (l *Load) killAgent(ctx context.Context, server, agent *cluster.Node) (AgentDeath, error) {
	var death AgentDeath
	api, err := clientOf(server)
	if err != nil {
		return death, err
	}
	if death.Pods, err = endpointsOn(ctx, api, agent.Name); err != nil {
		return death, err
	}
	died := time.Now()
	if err := agent.PowerOff(); err != nil {
		return death, err
	}
	if _, err := until(ctx, patience, "the endpoints of the dead node are gone", func() (bool, error) {
		count, err := endpointsOn(ctx, api, agent.Name)
		return err == nil && count == 0, err
	}); err != nil {
		return death, err
	}
	death.Removed = time.Since(died)
	if _, err := until(ctx, patience, "all pods are Ready on other nodes", func() (bool, error) {
		d, err := api.AppsV1().Deployments("default").Get(ctx, "hello", metav1.GetOptions{})
		if err != nil || d.Status.AvailableReplicas != *d.Spec.Replicas {
			return false, errors.Join(fmt.Errorf("status %v", d.Status), err)
		}
		return true, nil
	}); err != nil {
		return death, err
	}
	death.Elsewhere = time.Since(died)
	if err := pause(ctx, stats.Patience); err != nil {
		return death, err
	}
	all, err := l.Stats(ctx)
	removed := died.Add(death.Removed + rulesTime)
	death.Before = all[stats.Service].Between(died.Add(-stats.Patience), removed)
	death.After = all[stats.Service].Between(removed, time.Now())
	return death, err
}

// endpointsOn counts the service's endpoints on a node that get requests.
func endpointsOn(ctx context.Context, api kubernetes.Interface, node string) (int, error) {
	selector := labels.Set{"kubernetes.io/service-name": "hello"}.String()
	list, err := api.DiscoveryV1().EndpointSlices("default").List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return 0, err
	}
	count := 0
	for _, slice := range list.Items {
		for _, e := range slice.Endpoints {
			if e.NodeName != nil && *e.NodeName == node && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
				count++
			}
		}
	}
	return count, nil
}
