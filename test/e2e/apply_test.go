package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const settings = `apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue, size: small}
`

func TestServerSideApply(t *testing.T) {
	s := newSpace(t)
	s.feed(settings, "apply", "--server-side", "--field-manager=first", "-f", "-")
	// Another manager may not take a field unless it insists.
	other := strings.Replace(settings, "blue", "red", 1)
	out, err := s.try(other, "apply", "--server-side", "--field-manager=second", "-f", "-")
	if err == nil {
		t.Errorf("a conflicting apply succeeded: %s", out)
	}
	s.contains(out, "conflict", ".data.colour", "first")
	s.feed(other, "apply", "--server-side", "--field-manager=second", "--force-conflicts", "-f", "-")
	if colour := s.get("configmap/settings", "{.data.colour}"); colour != "red" {
		t.Errorf("colour after a forced apply: %s", colour)
	}
	// What only the first manager owned goes when it no longer applies it.
	s.feed("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {}\n", "apply", "--server-side", "--field-manager=second", "-f", "-")
	if data := s.get("configmap/settings", "{.data}"); data != `{"size":"small"}` {
		t.Errorf("data after the second manager gave up its fields: %s", data)
	}
	s.contains(s.run("get", "configmap/settings", "-o", "yaml", "--show-managed-fields"), "manager: first", "operation: Apply")
}

func TestApplyAndDiff(t *testing.T) {
	s := newSpace(t)
	s.feed(settings, "apply", "-f", "-")
	s.contains(s.feed(settings, "apply", "-f", "-"), "unchanged")
	if out := s.feed(settings, "diff", "-f", "-"); out != "" {
		t.Errorf("a difference where there is none: %s", out)
	}
	changed := strings.Replace(settings, "size: small", "shape: round", 1)
	out, err := s.try(changed, "diff", "-f", "-")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("exit code of diff: %v", err)
	}
	s.contains(out, "-  size: small", "+  shape: round")
	s.contains(s.feed(changed, "apply", "-f", "-"), "configured")
	if data := s.get("configmap/settings", "{.data}"); data != `{"colour":"blue","shape":"round"}` {
		t.Errorf("data after apply: %s", data)
	}
	s.contains(s.feed(changed, "apply", "--dry-run=server", "-f", "-"), "server dry run")
}

func TestEveryPatchType(t *testing.T) {
	s := newSpace(t)
	s.run("create", "deployment", "web", "--image=orch.local/hello", "--replicas=0")
	image := "{.spec.template.spec.containers[*].name}"
	s.run("patch", "deployment/web", "-p", `{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"orch.local/hello"}]}}}}`)
	if got := s.get("deployment/web", image); got != "side hello" && got != "hello side" {
		t.Errorf("containers after a strategic merge: %s", got)
	}
	s.run("patch", "deployment/web", "--type=merge", "-p", `{"spec":{"template":{"spec":{"containers":[{"name":"only","image":"orch.local/hello"}]}}}}`)
	if got := s.get("deployment/web", image); got != "only" {
		t.Errorf("containers after a merge: %s", got)
	}
	s.run("patch", "deployment/web", "--type=json", "-p", `[{"op":"test","path":"/spec/replicas","value":0},{"op":"replace","path":"/spec/template/spec/containers/0/name","value":"json"}]`)
	if got := s.get("deployment/web", image); got != "json" {
		t.Errorf("containers after a JSON patch: %s", got)
	}
	s.refuse([]string{"patch", "deployment/web", "--type=json", "-p", `[{"op":"test","path":"/spec/replicas","value":9}]`})
	s.run("label", "deployment/web", "tier=front")
	s.run("annotate", "deployment/web", "note=yes")
	s.contains(s.run("get", "deployments", "-l", "tier=front", "-o", "wide"), "web", "json")
}

func TestWait(t *testing.T) {
	s := newSpace(t)
	s.hello(1)
	s.run("wait", "--for=condition=Available", "deployment/hello", "--timeout=60s")
	s.refuse([]string{"wait", "--for=condition=Ready", "pod/none", "--timeout=1s"}, "not found")
	s.run("delete", "deployment/hello", "--wait=false")
	s.run("wait", "--for=delete", "deployment/hello", "--timeout=60s")
}

func TestJobs(t *testing.T) {
	s := newSpace(t)
	s.run("create", "job", "sum", "--image=test.local/busybox:1", "--", "sh", "-c", "echo $((6 * 7))")
	s.run("wait", "--for=condition=Complete", "job/sum", "--timeout=60s")
	s.contains(s.run("logs", "job/sum"), "42")
	s.run("create", "cronjob", "tick", "--image=test.local/busybox:1", "--schedule=* * * * *", "--", "true")
	s.run("create", "job", "now", "--from=cronjob/tick")
	s.run("wait", "--for=condition=Complete", "job/now", "--timeout=60s")
}

func TestStatefulSetAndDaemonSet(t *testing.T) {
	s := newSpace(t)
	dir := t.TempDir()
	manifest := filepath.Join(dir, "set.yaml")
	text := `apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: db, image: orch.local/hello}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec: {containers: [{name: it, image: orch.local/hello}]}
`
	if err := os.WriteFile(manifest, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.run("apply", "-f", manifest)
	s.run("rollout", "status", "statefulset/db", "--timeout=60s")
	s.run("rollout", "status", "daemonset/everywhere", "--timeout=60s")
	s.shell("probe")
	s.contains(s.run("exec", "probe", "--", "wget", "-qO-", "http://db-1.db:8080"), "Hello from db-1")
	s.run("delete", "-f", manifest)
}
