package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// hello deploys the embedded web server and waits until it is rolled out.
func (s *space) hello(replicas int) {
	s.Helper()
	s.run("create", "deployment", "hello", "--image=orch.local/hello", "--replicas="+fmt.Sprint(replicas))
	s.run("rollout", "status", "deployment/hello", "--timeout=60s")
}

func TestServiceAnswers(t *testing.T) {
	s := newSpace(t)
	s.hello(3)
	s.run("expose", "deployment", "hello", "--port=80", "--target-port=8080", "--type=NodePort")
	clusterIP, nodePort := s.get("service/hello", "{.spec.clusterIP}"), s.get("service/hello", "{.spec.ports[0].nodePort}")
	s.fetchContains("http://"+clusterIP, "Hello from hello-")
	s.fetchContains("http://"+s.node.IP+":"+nodePort, "Hello from hello-")
	s.shell("probe")
	for _, name := range []string{"hello", "hello." + s.name, "hello." + s.name + ".svc.cluster.local"} {
		s.contains(s.run("exec", "probe", "--", "wget", "-qO-", "http://"+name), "Hello from hello-")
	}
	s.contains(s.run("exec", "probe", "--", "nslookup", "kubernetes.default.svc.cluster.local"), "10.43.0.1")
	// All three take part.
	answered := map[string]bool{}
	s.until("every pod answers", func() error {
		out, err := s.fetch("http://" + clusterIP)
		if err != nil {
			return err
		}
		answered[strings.Fields(out)[2]] = true
		if len(answered) < 3 {
			return fmt.Errorf("only %v did", answered)
		}
		return nil
	})
	// A service without endpoints refuses rather than hangs.
	s.run("scale", "deployment/hello", "--replicas=0")
	s.until("refused", func() error {
		if out, err := s.fetch("http://" + clusterIP); err == nil || strings.Contains(err.Error(), "timed out") {
			return fmt.Errorf("answered %q, error %v", out, err)
		}
		return nil
	})
}

func TestScaleAndRollout(t *testing.T) {
	s := newSpace(t)
	s.hello(2)
	pods := func() string { return s.run("get", "pods", "-l", "app=hello", "-o", "name") }
	s.run("scale", "deployment/hello", "--replicas=4")
	s.run("wait", "--for=jsonpath={.status.readyReplicas}=4", "deployment/hello", "--timeout=60s")
	s.run("scale", "deployment/hello", "--replicas=2")
	s.run("wait", "--for=jsonpath={.status.replicas}=2", "deployment/hello", "--timeout=60s")

	before := pods()
	s.run("rollout", "restart", "deployment/hello")
	s.run("rollout", "status", "deployment/hello", "--timeout=60s")
	s.until("old pods are gone", func() error {
		for _, pod := range strings.Fields(before) {
			if strings.Contains(pods(), pod) {
				return fmt.Errorf("%s is there", pod)
			}
		}
		return nil
	})

	s.run("set", "image", "deployment/hello", "hello=orch.local/hello:missing")
	s.until("the bad tag is reported", func() error {
		out := s.run("get", "pods", "-l", "app=hello")
		if !strings.Contains(out, "ErrImagePull") && !strings.Contains(out, "ImagePullBackOff") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	s.refuse([]string{"rollout", "status", "deployment/hello", "--timeout=2s"}, "timed out")
	if ready := s.get("deployment/hello", "{.status.readyReplicas}"); ready != "2" {
		t.Errorf("%s replicas are ready during a bad rollout, want 2", ready)
	}
	s.run("set", "image", "deployment/hello", "hello=orch.local/hello")
	s.run("rollout", "status", "deployment/hello", "--timeout=60s")
	s.run("set", "image", "deployment/hello", "hello=orch.local/hello:missing")
	s.run("rollout", "undo", "deployment/hello")
	s.run("rollout", "status", "deployment/hello", "--timeout=60s")
	if image := s.get("deployment/hello", "{.spec.template.spec.containers[0].image}"); image != "orch.local/hello" {
		t.Errorf("image after undo: %s", image)
	}
	s.contains(s.run("rollout", "history", "deployment/hello"), "REVISION")
	s.contains(s.run("describe", "deployment/hello"), "RollingUpdate", "ScalingReplicaSet", "NewReplicaSetAvailable")
}

func TestDeleteCascades(t *testing.T) {
	s := newSpace(t)
	deploy := func(name string) {
		s.run("create", "deployment", name, "--image=orch.local/hello")
		s.run("rollout", "status", "deployment/"+name, "--timeout=60s")
	}
	gone := func(name string) {
		s.Helper()
		s.until("all of "+name+" is gone", func() error {
			if out := s.run("get", "replicasets,pods", "-l", "app="+name, "-o", "name"); out != "" {
				return fmt.Errorf("left: %s", out)
			}
			return nil
		})
	}
	deploy("background")
	s.run("delete", "deployment/background", "--cascade=background")
	gone("background")

	deploy("foreground")
	s.run("delete", "deployment/foreground", "--cascade=foreground")
	if out := s.run("get", "replicasets", "-l", "app=foreground", "-o", "name"); out != "" {
		t.Errorf("foreground deletion ended before its dependents: %s", out)
	}
	gone("foreground")

	deploy("orphan")
	s.run("delete", "deployment/orphan", "--cascade=orphan")
	s.until("the replica set has no owner", func() error {
		if owners := s.run("get", "replicasets", "-l", "app=orphan", "-o", "jsonpath={.items[*].metadata.ownerReferences}"); owners != "" {
			return fmt.Errorf("owners: %s", owners)
		}
		return nil
	})
	if out := s.run("get", "pods", "-l", "app=orphan", "-o", "name"); out == "" {
		t.Error("orphaned pods are gone")
	}
	// A new deployment with the same selector adopts what is there.
	pod := s.run("get", "pods", "-l", "app=orphan", "-o", "name")
	deploy("orphan")
	if now := s.run("get", "pods", "-l", "app=orphan", "-o", "name"); now != pod {
		t.Errorf("pods after adoption: %s, want %s", now, pod)
	}
	s.run("delete", "deployment/orphan", "--cascade=foreground")
	gone("orphan")
}
