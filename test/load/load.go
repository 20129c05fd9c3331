// Package load keeps a service of a cluster under steady requests from inside a
// pod while machines die or are replaced.
package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"orch/test/cluster"
	"orch/test/load/stats"
)

// imageRef is the client's image, which is made and imported here.
const imageRef = "test.local/load:1"

// manifest is a deployment behind a service, and the client's right to read.
const manifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: %d
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
%s
      containers:
      - name: hello
        image: orch.local/hello
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 5}
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec: {selector: {app: hello}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: load}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: default, namespace: default}]
`

// clientPod is the pod that asks.
const clientPod = `
apiVersion: v1
kind: Pod
metadata: {name: load}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers:
  - name: client
    image: ` + imageRef + `
    env:
    - {name: TARGET, value: "http://%s"}
    - {name: API, value: "https://%s/api/v1/namespaces/default/configmaps/kube-root-ca.crt"}
`

// Load is a running deployment with a client that asks it.
type Load struct {
	at *cluster.Node // where the client runs
	ip string
}

// Start deploys replicas of the web server through the server's API, and then
// the client onto a node. The replicas stay bound to a dead node for as long as
// they tolerate that, 0 for the cluster's default.
func Start(ctx context.Context, server, at *cluster.Node, replicas int, tolerate time.Duration) (*Load, error) {
	if err := importClient(ctx, at); err != nil {
		return nil, err
	}
	deployment := fmt.Sprintf(manifest, replicas, tolerations(tolerate))
	if out, err := server.KubectlInput(ctx, strings.NewReader(deployment), "apply", "-f", "-"); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	if _, err := kubectl(ctx, server, "rollout", "status", "deployment/hello", "--timeout=120s"); err != nil {
		return nil, err
	}
	var addresses []string
	for _, service := range []string{"hello", "kubernetes"} {
		address, err := kubectl(ctx, server, "get", "service", service, "-o", "jsonpath={.spec.clusterIP}")
		if err != nil {
			return nil, err
		}
		addresses = append(addresses, address)
	}
	pod := fmt.Sprintf(clientPod, at.Name, addresses[0], addresses[1])
	if out, err := server.KubectlInput(ctx, strings.NewReader(pod), "apply", "-f", "-"); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	if _, err := kubectl(ctx, server, "wait", "--for=condition=Ready", "pod/load", "--timeout=120s"); err != nil {
		return nil, err
	}
	ip, err := kubectl(ctx, server, "get", "pod", "load", "-o", "jsonpath={.status.podIP}")
	if err != nil {
		return nil, err
	}
	l := &Load{at: at, ip: ip}
	return l, l.waitAsking(ctx)
}

func tolerations(d time.Duration) string {
	if d == 0 {
		return ""
	}
	const one = "{key: node.kubernetes.io/%s, operator: Exists, effect: NoExecute, tolerationSeconds: %d}"
	seconds := int(d.Seconds())
	return fmt.Sprintf("      tolerations: ["+one+", "+one+"]", "unreachable", seconds, "not-ready", seconds)
}

// kubectl gives what it prints, also in the error.
func kubectl(ctx context.Context, n *cluster.Node, args ...string) (string, error) {
	out, err := n.Kubectl(ctx, args...)
	if err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return out, nil
}

// importClient builds the client and makes an image of it.
func importClient(ctx context.Context, at *cluster.Node) error {
	rootfs, err := os.MkdirTemp(at.Dir, "load")
	if err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(rootfs, "client"), "orch/test/load/client")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the client: %w: %s", err, out)
	}
	return at.Import(cluster.Image{Ref: imageRef, Rootfs: rootfs, Entrypoint: []string{"/client"}})
}

// Stats asks the client what became of its requests so far.
func (l *Load) Stats(ctx context.Context) (stats.ByTarget, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DialContext: l.at.Dial, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.ip+":9090/", nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask the client: %w", err)
	}
	defer answer.Body.Close()
	all := stats.ByTarget{}
	return all, json.NewDecoder(answer.Body).Decode(&all)
}

// waitAsking waits until both targets have answered a good while without
// failing: rules on the client's node follow the endpoints a little later.
func (l *Load) waitAsking(ctx context.Context) error {
	deadline := time.Now().Add(patience)
	for {
		all, err := l.Stats(ctx)
		calm := err == nil
		for _, name := range []string{stats.Service, stats.API} {
			r := all[name]
			recent := r.Between(time.Now().Add(-time.Second), time.Now())
			calm = calm && r.Requests-len(r.Failures) >= 20 && len(recent) == 0
		}
		if calm {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("the load does not get going: %v", all), err)
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// until looks until ok, and gives how long that took.
func until(ctx context.Context, limit time.Duration, what string, ok func() (bool, error)) (time.Duration, error) {
	began := time.Now()
	for {
		done, err := ok()
		if done {
			return time.Since(began), nil
		}
		if time.Since(began) > limit {
			return 0, errors.Join(fmt.Errorf("not within %s: %s", limit, what), err)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return 0, err
		}
	}
}
