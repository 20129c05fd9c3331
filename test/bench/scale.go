package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orch/test/cluster"
)

const (
	podsPerNode = 30
	// perNamespace deployments of podsPerNode share a namespace.
	perNamespace = 50
	// Every such deployment is behind a service.
	serviceEvery = 10
	scaleIdle    = 30 * time.Second
)

// figures are those of one size.
type figures struct {
	nodes             int
	joined            time.Duration // until all nodes were Ready
	joinCPU           time.Duration // of the server, meanwhile
	bound, running    float64       // pods/s since the first deployment was made
	emptyRSS, fullRSS float64       // MB, nodes alone and with all pods
	emptyCPU, fillCPU float64       // percent of a core
	fullCPU           float64
	get, list, create []time.Duration
	listed            int // pods in one list
	server            *cluster.Node
	profiles          profiler
	hollows           *hollows
	crowd             crowd
}

// scale fills clusters of so many hollow nodes, one after the other.
func (b *bench) scale(ctx context.Context, sizes, plot string) error {
	var all []*figures
	for _, text := range strings.Split(sizes, ",") {
		size, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("-scale: %w", err)
		}
		f := &figures{nodes: size}
		err = b.with(ctx, func(node *cluster.Node) error {
			f.server, f.profiles = node, profiler{folder: b.profiles, prefix: fmt.Sprint(size, ".")}
			return f.measure(ctx)
		}, "--disable-agent", "--cluster-cidr", "10.128.0.0/9")
		if err != nil {
			return fmt.Errorf("%d nodes: %w", size, err)
		}
		all = append(all, f)
		b.sizes = scaleRows(all)
		if plot == "" {
			continue
		}
		if err := os.WriteFile(plot, scalePlot(all), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (f *figures) measure(ctx context.Context) (err error) {
	if f.crowd, err = newCrowd(f.server, 8); err != nil {
		return err
	}
	f.profiles.from = f.crowd[0]
	f.hollows = &hollows{changed: make(chan struct{}, 1)}
	ctx, stop := context.WithCancelCause(ctx)
	var nodes errgroup.Group
	defer func() {
		stop(nil)
		err = errors.Join(err, nodes.Wait())
	}()
	before, err := measureProcess(f.server.PID())
	if err != nil {
		return err
	}
	begin := time.Now()
	var watching errgroup.Group
	watching.Go(func() error { return f.profiles.keep(ctx, "join.cpu", "profile?seconds=10") })
	if err := f.join(ctx, stop, &nodes); err != nil {
		return err
	}
	if err := f.hollows.wait(ctx, 5*time.Minute, &f.hollows.ready, int64(f.nodes)); err != nil {
		return fmt.Errorf("nodes Ready: %w", err)
	}
	f.joined = time.Since(begin)
	after, err := measureProcess(f.server.PID())
	if err != nil {
		return err
	}
	f.joinCPU = after.cpu - before.cpu
	f.say("joined", "%.1f s, %.1f s of a core", f.joined.Seconds(), f.joinCPU.Seconds())
	if err := watching.Wait(); err != nil {
		return err
	}
	if f.emptyCPU, f.emptyRSS, err = f.idle(ctx, "empty"); err != nil {
		return err
	}
	if err := f.fill(ctx); err != nil {
		return err
	}
	if f.fullCPU, f.fullRSS, err = f.idle(ctx, "full"); err != nil {
		return err
	}
	return f.latencies(ctx)
}

func (f *figures) say(what, format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: %d nodes: %s: %s\n", f.nodes, what, fmt.Sprintf(format, args...))
}

// join lets the nodes in, some at a time, and keeps them alive in the group.
func (f *figures) join(ctx context.Context, failed context.CancelCauseFunc, nodes *errgroup.Group) error {
	var joining errgroup.Group
	joining.SetLimit(16)
	for i := range f.nodes {
		joining.Go(func() error {
			h, err := newHollow(f.server, i, f.hollows)
			if err != nil {
				return err
			}
			lease, err := h.register(ctx, i)
			if err != nil {
				return fmt.Errorf("%s: %w", h.name, err)
			}
			nodes.Go(func() error {
				err := h.run(ctx, lease)
				h.http.CloseIdleConnections()
				if err != nil && ctx.Err() == nil {
					failed(err)
					return err
				}
				return nil
			})
			return nil
		})
	}
	return joining.Wait()
}

// idle gives the CPU, in percent of a core, and the memory of a server that has
// nothing to do but hear of its nodes.
func (f *figures) idle(ctx context.Context, name string) (cpu, rss float64, err error) {
	if err := pause(ctx, settleTime); err != nil {
		return 0, 0, err
	}
	before, err := measureProcess(f.server.PID())
	if err != nil {
		return 0, 0, err
	}
	if err := errors.Join(f.profiles.keep(ctx, name+".cpu", fmt.Sprintf("profile?seconds=%d", int(scaleIdle.Seconds()))), f.profiles.keep(ctx, name+".heap", "heap")); err != nil {
		return 0, 0, err
	}
	if f.profiles.folder == "" {
		if err := pause(ctx, scaleIdle); err != nil {
			return 0, 0, err
		}
	}
	after, err := measureProcess(f.server.PID())
	cpu, rss = 100*(after.cpu-before.cpu).Seconds()/scaleIdle.Seconds(), float64(after.rss)/1e6
	f.say(name, "%.1f %% of a core, %.0f MB (anonymous %.0f)", cpu, rss, float64(after.anonymous)/1e6)
	return cpu, rss, err
}

func (f *figures) fill(ctx context.Context) error {
	for i := range (f.nodes + perNamespace - 1) / perNamespace {
		if err := prepare(ctx, f.crowd[0], fmt.Sprint("scale-", i), false); err != nil {
			return err
		}
	}
	pods := int64(f.nodes * podsPerNode)
	before, err := measureProcess(f.server.PID())
	if err != nil {
		return err
	}
	begin := time.Now()
	var watching errgroup.Group
	watching.Go(func() error { return f.profiles.keep(ctx, "fill.cpu", "profile?seconds=20") })
	if _, err := f.crowd.each(ctx, f.nodes, createScaled); err != nil {
		return err
	}
	if err := f.hollows.wait(ctx, 15*time.Minute, &f.hollows.bound, pods); err != nil {
		return fmt.Errorf("pods bound: %w", err)
	}
	f.bound = float64(pods) / time.Since(begin).Seconds()
	if err := f.hollows.wait(ctx, 15*time.Minute, &f.hollows.running, pods); err != nil {
		return fmt.Errorf("pods running: %w", err)
	}
	took := time.Since(begin)
	f.running = float64(pods) / took.Seconds()
	after, err := measureProcess(f.server.PID())
	f.fillCPU = 100 * (after.cpu - before.cpu).Seconds() / took.Seconds()
	f.say("filled", "%.0f pods/s bound, %.0f running, %.0f %% of a core, %d requests put off, %d watches expired", f.bound, f.running, f.fillCPU, f.hollows.putOff.Load(), f.hollows.expired.Load())
	return errors.Join(err, watching.Wait())
}

// createScaled makes the i-th deployment, and now and then a service for it.
func createScaled(ctx context.Context, c *client, i int) error {
	namespace, name := fmt.Sprint("scale-", i/perNamespace), fmt.Sprint("d", i)
	labels, replicas := map[string]string{"app": name}, int32(podsPerNode)
	pod := samplePod("", "")
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod.Spec},
	}}
	objects := map[string]runtime.Object{"/apis/apps/v1/namespaces/" + namespace + "/deployments": deployment}
	if i%serviceEvery == 0 {
		objects["/api/v1/namespaces/"+namespace+"/services"] = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
			Spec: corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}}}
	}
	for path, object := range objects {
		if err := c.create(ctx, path, object); err != nil {
			return err
		}
	}
	return nil
}

// latencies measures single requests, one after the other.
func (f *figures) latencies(ctx context.Context) error {
	c := f.crowd[0]
	const path = "/api/v1/namespaces/scale-0"
	f.listed = min(f.nodes, perNamespace) * podsPerNode
	for _, m := range []struct {
		times *[]time.Duration
		count int
		call  func(i int) error
	}{
		{&f.get, 1000, func(i int) error {
			_, err := c.do(ctx, http.MethodGet, fmt.Sprintf("/api/v1/nodes/hollow-%04d", i%f.nodes), protobufType, "", nil)
			return err
		}},
		{&f.list, 50, func(int) error {
			_, err := c.do(ctx, http.MethodGet, path+"/pods", protobufType, "", nil)
			return err
		}},
		{&f.create, 500, func(i int) error {
			return c.create(ctx, path+"/configmaps", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("c", i)}, Data: map[string]string{"a": strings.Repeat("x", 500)}})
		}},
	} {
		for i := range m.count {
			begin := time.Now()
			if err := m.call(i); err != nil {
				return err
			}
			*m.times = append(*m.times, time.Since(begin))
		}
	}
	f.say("API", "get %s, list %s, create %s", latency(f.get), latency(f.list), latency(f.create))
	return nil
}

func latency(times []time.Duration) string {
	return fmt.Sprintf("%.1f · %.1f ms", percentile(times, 50).Seconds()*1000, percentile(times, 99).Seconds()*1000)
}
