package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"orch/test/cluster"
)

// scheduling measures from creation to binding on nodes that are objects only.
func (b *bench) scheduling(ctx context.Context) error {
	for _, size := range []int{1000, 5000} {
		err := b.with(ctx, func(node *cluster.Node) error {
			rate, cost, err := b.bindRate(ctx, node, size, 10_000)
			if err == nil {
				b.add(fmt.Sprintf("create → bound, %d nodes, pods/s", size), "3,000", "%.0f (server CPU %d µs each)", rate, cost.Microseconds())
			}
			return err
		}, "--disable-agent", "--disable", "controllers")
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) bindRate(ctx context.Context, node *cluster.Node, nodes, pods int) (rate float64, cost time.Duration, err error) {
	crowd, err := newCrowd(node, clients)
	if err != nil {
		return 0, 0, err
	}
	if err := prepare(ctx, crowd[0], "bind", true); err != nil {
		return 0, 0, err
	}
	if _, err := crowd.each(ctx, nodes, func(ctx context.Context, c *client, i int) error { return c.createNode(ctx, i) }); err != nil {
		return 0, 0, err
	}
	config, err := node.Config()
	if err != nil {
		return 0, 0, err
	}
	config.ContentType = protobufType
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return 0, 0, err
	}
	bound, err := client.CoreV1().Pods("bind").Watch(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName!="})
	if err != nil {
		return 0, 0, err
	}
	defer bound.Stop()
	cost, err = b.cost(ctx, node, crowd[0], fmt.Sprint("bind ", nodes), pods, func() error {
		begin := time.Now()
		var creating errgroup.Group
		creating.Go(func() error {
			_, err := crowd.createPods(ctx, "bind", pods)
			return err
		})
		count := 0
		for event := range bound.ResultChan() {
			if event.Type == watch.Added {
				count++
			}
			if count == pods {
				break
			}
		}
		rate = float64(pods) / time.Since(begin).Seconds()
		err := creating.Wait()
		if err == nil && count < pods {
			err = fmt.Errorf("the watch ended after %d of %d bindings", count, pods)
		}
		return err
	})
	return rate, cost, err
}

func (c *client) createNode(ctx context.Context, i int) error {
	name := fmt.Sprintf("n%04d", i)
	size := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("32"), corev1.ResourceMemory: resource.MustParse("64Gi"), corev1.ResourcePods: resource.MustParse("110")}
	object := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": fmt.Sprint("z", i%3)}},
		Status: corev1.NodeStatus{Capacity: size, Allocatable: size, Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}}},
	}
	if err := c.create(ctx, "/api/v1/nodes", object); err != nil {
		return err
	}
	// Admission taints new nodes until a controller finds them ready.
	_, err := c.do(ctx, "PATCH", "/api/v1/nodes/"+name, protobufType, "application/merge-patch+json", []byte(`{"spec":{"taints":null}}`))
	return err
}
