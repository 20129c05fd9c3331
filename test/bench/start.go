package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"orch/test/cluster"
)

// pollEvery is short against what is measured.
const pollEvery = 2 * time.Millisecond

// poll asks until the answer is yes.
func poll(ctx context.Context, limit time.Duration, yes func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for !yes() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", limit, ctx.Err())
		case <-ticker.C:
		}
	}
	return nil
}

func waitServing(ctx context.Context, node *cluster.Node) error {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{
		DialContext: node.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
	}}
	return poll(ctx, 30*time.Second, func() bool {
		answer, err := client.Get("https://" + node.IP + ":6443/readyz")
		if err != nil {
			return false
		}
		answer.Body.Close()
		_, err = os.Stat(node.Kubeconfig)
		return answer.StatusCode == http.StatusOK && err == nil
	})
}

func waitReady(ctx context.Context, node *cluster.Node) error {
	config, err := node.Config()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	return poll(ctx, 30*time.Second, func() bool {
		n, err := client.CoreV1().Nodes().Get(ctx, node.Name, metav1.GetOptions{})
		return err == nil && slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
	})
}

// startTimes starts the node and gives when it served and when it was Ready.
func startTimes(ctx context.Context, node *cluster.Node) (serving, ready time.Duration, err error) {
	begin := time.Now()
	if err := node.Start(); err != nil {
		return 0, 0, err
	}
	if err := waitServing(ctx, node); err != nil {
		return 0, 0, fmt.Errorf("%w\n%s", err, node.LogTail())
	}
	serving = time.Since(begin)
	if err := waitReady(ctx, node); err != nil {
		return 0, 0, fmt.Errorf("%w\n%s", err, node.LogTail())
	}
	return serving, time.Since(begin), nil
}

// start measures first starts on empty data directories, and second ones.
func (b *bench) start(ctx context.Context) error {
	const runs = 7
	var serving, ready, again []time.Duration
	for range runs {
		node, err := b.network.NewNode()
		if err != nil {
			return err
		}
		err = func() error {
			s, r, err := startTimes(ctx, node)
			if err != nil {
				return err
			}
			serving, ready = append(serving, s), append(ready, r)
			if err := node.Stop(); err != nil {
				return err
			}
			// The kubeconfig of the first run must not count as written.
			if err := os.Remove(node.Kubeconfig); err != nil {
				return err
			}
			s, _, err = startTimes(ctx, node)
			again = append(again, s)
			return err
		}()
		if err := errors.Join(err, node.Close()); err != nil {
			return err
		}
	}
	b.add("start → /readyz ok, empty data dir (median)", "0.5 s", "%.2f s", median(serving).Seconds())
	b.add("start → node Ready, empty data dir (median)", "1.0 s", "%.2f s", median(ready).Seconds())
	b.add("second start → /readyz ok (median)", "", "%.2f s", median(again).Seconds())
	return nil
}

func median(values []time.Duration) time.Duration { return percentile(values, 50) }

func percentile(values []time.Duration, p int) time.Duration {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}
