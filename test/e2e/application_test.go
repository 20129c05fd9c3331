package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"orch/test/cluster"
)

const redisManifest = `apiVersion: v1
kind: Secret
metadata: {name: redis}
stringData: {password: s3cret}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: redis}
data:
  redis.conf: |
    dir /data
    appendonly yes
    appendfsync always
    bind 0.0.0.0
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: redis}
spec:
  selector: {matchLabels: {app: redis}}
  strategy: {type: Recreate}
  template:
    metadata: {labels: {app: redis}}
    spec:
      securityContext: {runAsUser: 1234, runAsGroup: 1234, fsGroup: 1234, runAsNonRoot: true}
      containers:
      - name: redis
        image: test.local/redis:1
        command: [sh, -c, 'exec redis-server /etc/redis/redis.conf --requirepass "$PASSWORD"']
        env:
        - name: PASSWORD
          valueFrom: {secretKeyRef: {name: redis, key: password}}
        ports: [{containerPort: 6379, name: redis}]
        resources: {requests: {cpu: 50m, memory: 32Mi}, limits: {memory: 256Mi}}
        startupProbe: {exec: {command: [sh, -c, 'redis-cli -a "$PASSWORD" ping']}, periodSeconds: 1, failureThreshold: 30}
        readinessProbe: {tcpSocket: {port: redis}, periodSeconds: 1}
        livenessProbe: {tcpSocket: {port: 6379}, periodSeconds: 2}
        volumeMounts:
        - {name: data, mountPath: /data}
        - {name: config, mountPath: /etc/redis, readOnly: true}
      volumes:
      - {name: data, emptyDir: {}}
      - {name: config, configMap: {name: redis}}
---
apiVersion: v1
kind: Service
metadata: {name: redis}
spec: {selector: {app: redis}, ports: [{port: 6379, targetPort: redis}]}
`

// debianImage makes an image of Debian packages, with all they depend on and a
// busybox shell.
func debianImage(t *testing.T, ref string, packages ...string) cluster.Image {
	t.Helper()
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("the packages come from Debian's apt, which is not here")
	}
	dir := t.TempDir()
	debs, rootfs := filepath.Join(dir, "debs"), filepath.Join(dir, "rootfs")
	for _, d := range []string{filepath.Join(debs, "partial"), rootfs} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	call := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
	}
	// As if nothing was installed, so that the whole closure is fetched.
	install := append([]string{"install", "-y", "-qq", "--download-only", "--no-install-recommends",
		"-o", "Dir::State::status=/dev/null", "-o", "Dir::Cache::archives=" + debs, "-o", "APT::Sandbox::User=root"}, packages...)
	if lists, _ := filepath.Glob("/var/lib/apt/lists/*_Packages*"); len(lists) == 0 {
		call("apt-get", "update", "-qq")
	}
	call("apt-get", install...)
	files, _ := filepath.Glob(filepath.Join(debs, "*.deb"))
	for _, deb := range files {
		call("dpkg-deb", "-x", deb, rootfs)
	}
	if _, err := os.Stat(filepath.Join(rootfs, "bin", "sh")); err != nil {
		if err := cluster.LayBusybox(rootfs); err != nil {
			t.Fatal(err)
		}
	}
	return cluster.Image{Ref: ref, Rootfs: rootfs}
}

// TestRedis runs an application that nobody here wrote, and ends its process.
func TestRedis(t *testing.T) {
	s := newSpace(t)
	if err := s.node.Import(debianImage(t, "test.local/redis:1", "redis-server", "redis-tools", "dash", "coreutils")); err != nil {
		t.Fatal(err)
	}
	s.feed(redisManifest, "apply", "-f", "-")
	s.run("rollout", "status", "deployment/redis", "--timeout=80s")
	pod := s.run("get", "pods", "-l", "app=redis", "-o", "name")
	redis := func(args ...string) (string, error) {
		return s.try("", append([]string{"exec", pod, "--", "redis-cli", "-h", "redis", "-a", "s3cret", "--no-auth-warning"}, args...)...)
	}
	s.until("redis answers through its service", func() error {
		out, err := redis("set", "kept", "yes")
		if err != nil || out != "OK" {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	s.contains(s.run("exec", pod, "--", "id", "-u"), "1234")

	s.kill(pod, "redis")
	s.until("redis is ready again", func() error {
		if state := s.get(pod, "{.status.containerStatuses[0].restartCount}/{.status.containerStatuses[0].ready}"); state != "1/true" {
			return fmt.Errorf("restarts/ready: %s", state)
		}
		return nil
	})
	s.until("what was stored is there", func() error {
		out, err := redis("get", "kept")
		if err != nil || out != "yes" {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	s.contains(s.get(pod, "{.status.containerStatuses[0].lastState.terminated}"), `"exitCode":137`)
}

// kill ends the first process of a container from the host, as a fault would.
func (s *space) kill(pod, container string) {
	s.Helper()
	pid := s.pid(pod, container)
	if out, err := exec.Command("kill", "-9", pid).CombinedOutput(); err != nil {
		s.Fatalf("kill %s: %v %s", pid, err, out)
	}
}

// pid is the host's process id of a container, which its cgroup tells.
func (s *space) pid(pod, container string) string {
	s.Helper()
	id := s.get(pod, fmt.Sprintf("{.status.containerStatuses[?(@.name==%q)].containerID}", container))
	_, id, _ = strings.Cut(id, "://")
	for _, pattern := range []string{"/sys/fs/cgroup/*/kubepods/*/*/%s/cgroup.procs", "/sys/fs/cgroup/*/kubepods/*/%s/cgroup.procs", "/sys/fs/cgroup/kubepods/*/*/%s/cgroup.procs", "/sys/fs/cgroup/kubepods/*/%s/cgroup.procs"} {
		files, _ := filepath.Glob(fmt.Sprintf(pattern, id))
		for _, file := range files {
			data, _ := os.ReadFile(file)
			if pids := strings.Fields(string(data)); len(pids) > 0 {
				return pids[0]
			}
		}
	}
	s.Fatalf("no process of container %s (%s) of %s", container, id, pod)
	return ""
}

// TestKilledContainerBacksOff ends a container again and again.
func TestKilledContainerBacksOff(t *testing.T) {
	s := newSpace(t)
	s.run("run", "victim", "--image=orch.local/hello")
	s.run("wait", "--for=condition=Ready", "pod/victim", "--timeout=60s")
	s.kill("pod/victim", "victim")
	s.run("wait", "--for=jsonpath={.status.containerStatuses[0].restartCount}=1", "pod/victim", "--timeout=60s")
	s.run("wait", "--for=jsonpath={.status.containerStatuses[0].state.running.startedAt}", "pod/victim", "--timeout=60s")
	s.kill("pod/victim", "victim")
	s.run("wait", "--for=jsonpath={.status.containerStatuses[0].state.waiting.reason}=CrashLoopBackOff", "pod/victim", "--timeout=60s")
	s.run("wait", "--for=condition=Ready", "pod/victim", "--timeout=60s")
}
