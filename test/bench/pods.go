package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"orch/test/cluster"
)

// pods measures from creation to Ready with real containers, and what a pod
// costs beside its own processes.
func (b *bench) pods(ctx context.Context) error {
	return b.with(ctx, func(node *cluster.Node) error {
		if err := waitReady(ctx, node); err != nil {
			return err
		}
		config, err := node.Config()
		if err != nil {
			return err
		}
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return err
		}
		starter := podStarter{client, "default"}
		if err := poll(ctx, 10*time.Second, func() bool {
			_, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
			return err == nil
		}); err != nil {
			return err
		}
		var one []time.Duration
		for i := range 25 {
			took, err := starter.start(ctx, fmt.Sprintf("one-%d-", i), 1)
			if err != nil {
				return err
			}
			one = append(one, took)
		}
		one = one[5:] // the first few read the disk
		b.add("pod create → Ready, one at a time, p50", "200 ms", "%.0f ms", median(one).Seconds()*1000)
		b.add("pod create → Ready, one at a time, p95", "", "%.0f ms", percentile(one, 95).Seconds()*1000)
		return b.burst(ctx, node, starter)
	})
}

func (b *bench) burst(ctx context.Context, node *cluster.Node, starter podStarter) error {
	const size = 50
	took, err := starter.start(ctx, "burst-", size)
	if err != nil {
		return err
	}
	b.add("50 pods at once, all Ready", "3.5 s", "%.1f s", took.Seconds())
	processes, err := node.Processes()
	if err != nil {
		return err
	}
	var sum usage
	for _, pid := range processes {
		command, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "cmdline"))
		if err != nil {
			return err
		}
		program, _, _ := strings.Cut(string(command), "\x00")
		if name := filepath.Base(program); name != "pause" && name != "containerd-shim-runc-v2" {
			continue
		}
		u, err := measureProcess(pid)
		if err != nil {
			return err
		}
		sum.rss += u.rss
		sum.anonymous += u.anonymous
	}
	pods := int64(size + 25)
	b.add("each pod beyond its own processes: anonymous · RSS", "5 · 15 MB", "%.1f · %.1f MB", float64(sum.anonymous/pods)/1e6, float64(sum.rss/pods)/1e6)
	u, err := measureProcess(node.PID())
	if err != nil {
		return err
	}
	b.add("server memory with 75 pods: RSS", "", "%.0f MB", float64(u.rss)/1e6)
	return nil
}

type podStarter struct {
	client    *kubernetes.Clientset
	namespace string
}

// start creates pods and waits until all are Ready.
func (s podStarter) start(ctx context.Context, prefix string, count int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	pods := s.client.CoreV1().Pods(s.namespace)
	events, err := pods.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, err
	}
	defer events.Stop()
	begin := time.Now()
	for i := range count {
		if _, err := pods.Create(ctx, samplePod(s.namespace, fmt.Sprint(prefix, i)), metav1.CreateOptions{}); err != nil {
			return 0, err
		}
	}
	ready := map[string]bool{}
	for event := range events.ResultChan() {
		pod, ok := event.Object.(*corev1.Pod)
		if ok && strings.HasPrefix(pod.Name, prefix) && slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}) {
			ready[pod.Name] = true
		}
		if len(ready) == count {
			return time.Since(begin), nil
		}
	}
	return 0, fmt.Errorf("%d of %d pods were Ready when the watch ended", len(ready), count)
}
