package cases

import (
	"os"
	"strings"
	"testing"
)

// TestApi01: broken pods of an old revision do not hold up the one that mends
// them, where the set knows no order.
func TestApi01(t *testing.T) {
	s := newSteps(t)
	s.kubectl("apply", "-f", file("api-01-sts-parallel-broken-pods.yaml"))
	const waiting = "jsonpath={.items[*].status.containerStatuses[0].state.waiting.reason}"
	s.eventually("ErrImageNeverPull ErrImageNeverPull", "get", "pods", "-l", "app=par", "-o", waiting)
	s.kubectl("set", "image", "sts/par", "c=orch.local/hello:1.0")
	s.eventually("2 2 2", "get", "sts", "par", "-o", "jsonpath={.status.readyReplicas} {.status.updatedReplicas} {.status.currentReplicas}")
}

// TestApi02: an update takes away one pod at a time, and the set says so.
func TestApi02(t *testing.T) {
	s := newSteps(t)
	s.kubectl("apply", "-f", file("api-02-sts-default-maxunavailable.yaml"))
	if got := s.kubectl("get", "sts", "dm", "-o", "jsonpath={.spec.updateStrategy}"); got != `{"rollingUpdate":{"maxUnavailable":1,"partition":0},"type":"RollingUpdate"}` {
		t.Errorf("got %s", got)
	}
}

// TestApi03: a negative history limit is warned of, and nothing panics.
func TestApi03(t *testing.T) {
	s := newSteps(t)
	a := s.call("POST", "/apis/apps/v1/namespaces/default/statefulsets", "application/yaml", read(t, "api-03-sts-negative-history-panics.yaml"))
	if warning := a.header.Get("Warning"); a.code != 201 || !strings.Contains(warning, "spec.revisionHistoryLimit: a negative value retains all historical revisions") {
		t.Errorf("%d, warning %q: %s", a.code, warning, a.body)
	}
	s.eventually("1", "get", "sts", "neg", "-o", "jsonpath={.status.observedGeneration}")
	log, err := os.ReadFile(s.node.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(log), "panic") {
		t.Errorf("a controller panicked:\n%s", s.node.LogTail())
	}
}

// TestApi14: an object whose owner is in another namespace goes, and an event
// says why.
func TestApi14(t *testing.T) {
	s := newSteps(t)
	s.kubectl("apply", "-f", file("api-14-gc-invalid-owner-no-event.yaml"))
	uid := s.kubectl("-n", "oa", "get", "cm", "owner", "-o", "jsonpath={.metadata.uid}")
	owners := `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"ConfigMap","name":"owner","uid":"` + uid + `"}]}}`
	s.kubectl("-n", "ob", "patch", "cm", "child", "--type", "merge", "-p", owners)
	const message = "jsonpath={.items[*].type} {.items[*].message}"
	s.eventually(`Warning ownerRef [v1/ConfigMap, namespace: ob, name: owner, uid: `+uid+`] does not exist in namespace "ob"`,
		"-n", "ob", "get", "events", "--field-selector", "reason=OwnerRefInvalidNamespace", "-o", message)
	s.eventually("", "-n", "ob", "get", "cm", "child", "--ignore-not-found", "-o", "name")
	// An object of the whole cluster stays, and is told of, too.
	s.kubectl("create", "clusterrole", "wide", "--verb=get", "--resource=pods")
	s.kubectl("patch", "clusterrole", "wide", "--type", "merge", "-p", owners)
	s.eventually(`Warning ownerRef [v1/ConfigMap, namespace: , name: owner, uid: `+uid+`] does not exist in namespace ""`,
		"-n", "default", "get", "events", "--field-selector", "reason=OwnerRefInvalidNamespace", "-o", message)
	s.kubectl("get", "clusterrole", "wide")
}
