package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"orch/internal/joining"
	"orch/internal/podnet"
	"orch/internal/version"
)

// newAPIClient gives this node's way to the API, over whichever server answers.
// hangUp closes its connections that nobody uses.
func newAPIClient(server string, balancer *servers, credentials *joining.Credentials, log *slog.Logger) (client kubernetes.Interface, hangUp func(), err error) {
	transport := &http.Transport{
		TLSClientConfig: credentials.TLSConfig(), ForceAttemptHTTP2: true, DialTLSContext: balancer.dialTLS(credentials.TLSConfig()),
		IdleConnTimeout: 90 * time.Second,
		// Finds a server that died without a word, early enough for the node's
		// lease to be renewed at another; watches would wait for ever.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
	}
	client, err = kubernetes.NewForConfig(&rest.Config{
		Host: server, Transport: observed{transport, balancer, log}, UserAgent: "orch-agent/" + version.Orch,
		ContentConfig: rest.ContentConfig{ContentType: kruntime.ContentTypeProtobuf, AcceptContentTypes: kruntime.ContentTypeProtobuf + ",application/json"},
		QPS:           -1, // the server protects itself
	})
	if err != nil {
		return nil, nil, fmt.Errorf("make a client for %s: %w", server, err)
	}
	return client, transport.CloseIdleConnections, nil
}

// podCIDR waits until the node's object has its share of the pod network.
func (a *assembly) podCIDR(ctx context.Context) (netip.Prefix, error) {
	options := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", a.cfg.NodeName).String()}
	for {
		share, err := a.watchPodCIDR(ctx, options)
		if share != "" {
			return netip.ParsePrefix(share)
		}
		a.cfg.Logger.Debug("waiting for the node's pod network", "component", "agent", "err", err)
		select {
		case <-ctx.Done():
			return netip.Prefix{}, context.Cause(ctx)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (a *assembly) watchPodCIDR(ctx context.Context, options metav1.ListOptions) (string, error) {
	cluster, err := netip.ParsePrefix(a.credentials.Settings.ClusterCIDR)
	if err != nil {
		return "", fmt.Errorf("cluster settings: %w", err)
	}
	stream, err := a.api.CoreV1().Nodes().Watch(ctx, options)
	if err != nil {
		return "", err
	}
	defer stream.Stop()
	for event := range stream.ResultChan() {
		n, ok := event.Object.(*corev1.Node)
		if !ok || event.Type == watch.Deleted || n.Spec.PodCIDR == "" {
			continue
		}
		// A share that is no part of the cluster network would cut this machine
		// off from what is there; nobody else would follow it either.
		if _, err := podnet.Share(n, cluster); err != nil {
			a.cfg.Logger.Error("the part of the pod network in this node's spec.podCIDR cannot be used: delete the Node, and the server gives another",
				"component", "agent", "node", n.Name, "err", err)
			continue
		}
		return n.Spec.PodCIDR, nil
	}
	return "", ctx.Err()
}

// peers opens a server's word of where all nodes and their pods are.
func (a *assembly) peers(ctx context.Context) (io.ReadCloser, error) {
	return a.api.CoreV1().RESTClient().Get().AbsPath(podnet.Path).Stream(ctx)
}
