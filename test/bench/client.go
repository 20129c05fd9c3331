package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"orch/test/cluster"
)

const protobufType = "application/vnd.kubernetes.protobuf"

// client is one connection of HTTP/2 to the server. It reads answers and does
// not decode them: the clients share this machine's cores with the server.
type client struct {
	http *http.Client
	host string
}

func newClient(node *cluster.Node) (*client, error) {
	config, err := node.Config()
	if err != nil {
		return nil, err
	}
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	return &client{&http.Client{Transport: &http.Transport{DialContext: node.Dial, TLSClientConfig: tlsConfig, Protocols: protocols}}, config.Host}, nil
}

// do sends a request and gives the answer's size.
func (c *client) do(ctx context.Context, method, path, accept, contentType string, body []byte) (int64, error) {
	answer, err := c.open(ctx, method, path, accept, contentType, body)
	if err != nil {
		return 0, err
	}
	defer answer.Close()
	return io.Copy(io.Discard, answer)
}

func (c *client) open(ctx context.Context, method, path, accept, contentType string, body []byte) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.host+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", accept)
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode >= 300 {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 500))
		answer.Body.Close()
		return nil, &statusError{answer.StatusCode, fmt.Sprintf("%s %s: %s: %s", method, path, answer.Status, text)}
	}
	return answer.Body, nil
}

// statusError is an answer that is no success.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

func (c *client) create(ctx context.Context, path string, object runtime.Object) error {
	body, err := encode(object)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, http.MethodPost, path, protobufType, protobufType, body)
	return err
}

func encode(object runtime.Object) ([]byte, error) {
	var buffer bytes.Buffer
	kinds, _, err := scheme.Scheme.ObjectKinds(object)
	if err != nil {
		return nil, err
	}
	object.GetObjectKind().SetGroupVersionKind(kinds[0])
	err = protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(object, &buffer)
	return buffer.Bytes(), err
}

// crowd is many clients, each with a connection of its own.
type crowd []*client

func newCrowd(node *cluster.Node, size int) (crowd, error) {
	clients := make(crowd, size)
	for i := range clients {
		var err error
		if clients[i], err = newClient(node); err != nil {
			return nil, err
		}
	}
	return clients, nil
}

// each shares count calls out among the clients, and gives calls per second.
func (c crowd) each(ctx context.Context, count int, call func(context.Context, *client, int) error) (float64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var working sync.WaitGroup
	begin := time.Now()
	for _, one := range c {
		working.Go(func() {
			for i := int(next.Add(1)) - 1; i < count && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if err := call(ctx, one, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	working.Wait()
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	return float64(count) / time.Since(begin).Seconds(), nil
}

// samplePod is a pod of the usual size.
func samplePod(namespace, name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{"app": "bench"},
			Annotations: map[string]string{"at": time.Now().Format(stamp)}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "main", Image: "orch.local/hello", ImagePullPolicy: corev1.PullIfNotPresent,
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("16Mi")}},
		}}},
	}
}

// prepare makes a namespace with the account that pods need where no
// controller makes it.
func prepare(ctx context.Context, c *client, namespace string, account bool) error {
	if err := c.create(ctx, "/api/v1/namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
		return err
	}
	if !account {
		return nil
	}
	return c.create(ctx, "/api/v1/namespaces/"+namespace+"/serviceaccounts", &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
}
