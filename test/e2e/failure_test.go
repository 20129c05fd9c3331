package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"orch/test/cluster"
)

// refusesToStart starts the node, which must end by itself with an error that
// holds all of the texts.
func refusesToStart(t *testing.T, n *cluster.Node, texts ...string) {
	t.Helper()
	if err := os.WriteFile(n.LogFile(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-n.Exited():
	case <-time.After(20 * time.Second):
		_ = n.Kill()
		t.Fatalf("still running; its log:\n%s", n.LogTail())
	}
	if n.ExitCode() == 0 {
		t.Error("exit status 0")
	}
	lines := strings.Split(n.LogTail(), "\n")
	last := lines[len(lines)-1]
	for _, text := range texts {
		if !strings.Contains(last, text) {
			t.Errorf("want %q in the last line: %s", text, last)
		}
	}
}

func TestBadFlagsAreNamed(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args  []string
		texts []string
	}{
		"proxy mode": {[]string{"--proxy-mode", "magic"}, []string{"--proxy-mode", "magic", "iptables"}},
		"port":       {[]string{"--https-listen-port", "70000"}, []string{"--https-listen-port"}},
		"network":    {[]string{"--service-cidr", "10.43.0.0"}, []string{"--service-cidr", "CIDR"}},
		"overlap":    {[]string{"--service-cidr", "10.42.0.0/16", "--cluster-dns", "10.42.0.10"}, []string{"--cluster-cidr", "--service-cidr", "overlap"}},
		"dns":        {[]string{"--cluster-dns", "192.0.2.1"}, []string{"--cluster-dns", "--service-cidr"}},
		"disable":    {[]string{"--disable", "everything"}, []string{"--disable", "everything", "scheduler"}},
		"label":      {[]string{"--node-label", "a b=c"}, []string{"--node-label"}},
		"taint":      {[]string{"--node-taint", "a=b"}, []string{"--node-taint", "NoSchedule"}},
		"node name":  {[]string{"--node-name", "No_Name"}, []string{"--node-name"}},
		"log level":  {[]string{"--log-level", "loud"}, []string{"--log-level", "debug"}},
		"mode":       {[]string{"--write-kubeconfig-mode", "rw"}, []string{"--write-kubeconfig-mode", "600"}},
		"runtime":    {[]string{"--container-runtime-endpoint", "tcp://127.0.0.1:1"}, []string{"--container-runtime-endpoint", "unix"}},
		"data dir":   {[]string{"--data-dir", ""}, []string{"--data-dir"}},
		"cloud":      {[]string{"--cloud-provider", "sky"}, []string{"--cloud-provider"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := unstarted(t, test.args...)
			refusesToStart(t, n, test.texts...)
		})
	}
}

func TestUnknownConfigKey(t *testing.T) {
	t.Parallel()
	n := unstarted(t)
	if err := os.WriteFile(filepath.Join(n.Dir, "config.yaml"), []byte("data_dir: /x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refusesToStart(t, n, "config.yaml", `"data_dir"`, "--help")
	if err := os.WriteFile(filepath.Join(n.Dir, "config.yaml"), []byte("proxy-mode: magic\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refusesToStart(t, n, "--proxy-mode", "magic")
	if err := os.WriteFile(filepath.Join(n.Dir, "config.yaml"), []byte("{not yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	refusesToStart(t, n, "config.yaml")
}

func TestBusyPort(t *testing.T) {
	t.Parallel()
	n := unstarted(t)
	holder := n.Command(t.Context(), "busybox", "nc", "-l", "-p", "6443")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Process.Kill(); _ = holder.Wait() }()
	for range 100 { // until it listens
		if out, _ := n.Exec(t.Context(), "ss", "-ltn", "sport = :6443"); strings.Contains(out, "LISTEN") {
			break
		}
	}
	refusesToStart(t, n, "6443", "address already in use", "--https-listen-port")
	if _, err := os.Stat(filepath.Join(n.DataDir(), "server")); err == nil {
		t.Error("the data directory was touched")
	}
}

func TestReadOnlyKubeconfigPath(t *testing.T) {
	t.Parallel()
	n := unstarted(t)
	dir := filepath.Join(n.Dir, "sealed")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	mount(t, "-t", "tmpfs", "-o", "ro", "tmpfs", dir)
	n.Args = append(n.Args, "--write-kubeconfig", filepath.Join(dir, "kubeconfig.yaml"))
	refusesToStart(t, n, "--write-kubeconfig", "read-only file system")
}

func mount(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
		t.Fatalf("mount %s: %v %s", args, err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", args[len(args)-1]).Run() })
}

func TestMissingIPTables(t *testing.T) {
	t.Parallel()
	n := unstarted(t)
	bin := filepath.Join(n.Dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	// `env` changes the PATH of orch alone.
	script := filepath.Join(bin, "orch")
	if err := os.WriteFile(script, []byte(fmt.Sprintf("#!/bin/sh\nPATH=%s exec %s \"$@\"\n", bin, n.Orch)), 0o755); err != nil {
		t.Fatal(err)
	}
	n.Orch = script
	refusesToStart(t, n, "iptables", "install")
}

func TestDamagedState(t *testing.T) {
	t.Parallel()
	n := unstarted(t)
	start(t, n)
	if out, err := n.Kubectl(t.Context(), "create", "configmap", "kept"); err != nil {
		t.Fatal(out)
	}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(n.DataDir(), "server", "store", "*.db"))
	if len(files) == 0 {
		t.Fatal("no state files")
	}
	for _, file := range files {
		saved, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		damaged := append([]byte(nil), saved...)
		for i := range damaged[:min(len(damaged), 64<<10)] {
			damaged[i] ^= 0x5a
		}
		if err := os.WriteFile(file, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		refusesToStart(t, n, filepath.Base(file))
		if now, err := os.ReadFile(file); err != nil || string(now) != string(damaged) {
			t.Errorf("%s was changed although it could not be read", file)
		}
		if err := os.WriteFile(file, saved, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	start(t, n)
	if out, err := n.Kubectl(t.Context(), "get", "configmap", "kept"); err != nil {
		t.Errorf("after the files were put back: %s", out)
	}
}

// TestFullDisk fills the data disk under a running server: writes fail with a
// message that names the cause, reads go on, and with space writes are taken again.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	n := unstarted(t, "--disable-agent")
	if err := os.MkdirAll(n.DataDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	mount(t, "-t", "tmpfs", "-o", "size=48m", "tmpfs", n.DataDir())
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	s := waitAPI(t, n)
	s.run("create", "configmap", "before")
	ballast := filepath.Join(n.DataDir(), "ballast")
	fill(t, ballast)
	big := strings.Repeat("x", 200<<10)
	var refusal string
	for i := 0; i < 400 && refusal == ""; i++ {
		if out, err := s.try("", "create", "configmap", fmt.Sprint("fill-", i), "--from-literal=x="+big[:100<<10]); err != nil {
			refusal = out
		}
	}
	if refusal == "" {
		t.Fatal("no write was refused on a full disk")
	}
	s.contains(refusal, "no space left", n.DataDir())
	s.run("get", "configmap", "before")
	s.refuse([]string{"get", "--raw", "/readyz"}, "store-writable")
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	s.until("writes succeed again", func() error {
		out, err := s.try("", "create", "configmap", "after")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	s.run("get", "configmap", "before")
}

// fill writes a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	block := make([]byte, 64<<10)
	for {
		if _, err := file.Write(block); err != nil {
			return
		}
	}
}

// waitAPI waits for a server without a node.
func waitAPI(t *testing.T, n *cluster.Node) *space {
	t.Helper()
	s := &space{t, n, "default"}
	s.until("the server is ready", func() error {
		out, err := n.Kubectl(t.Context(), "get", "--raw", "/readyz")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	return s
}

// TestFullDiskOfNode: a node whose disk is full goes on, and starts again; the
// store says what it lacks, and all of it gets well by itself.
func TestFullDiskOfNode(t *testing.T) {
	t.Parallel()
	n := unstarted(t)
	if err := n.SmallDisk(256); err != nil {
		t.Fatal(err)
	}
	start(t, n)
	s := spaceOn(t, n)
	s.run("create", "deployment", "hello", "--image=orch.local/hello")
	s.run("wait", "--for=condition=Available", "deployment/hello", "--timeout=60s")
	if err := n.FillDisk(0); err != nil {
		t.Fatal(err)
	}
	asked := 0
	s.until("the store is read-only", func() error {
		asked++
		out, err := s.try("", "create", "configmap", fmt.Sprint("more-", asked), "--from-literal=x="+strings.Repeat("x", 60<<10))
		if err == nil || !strings.Contains(out, "no space left") {
			return fmt.Errorf("writes are taken: %v %s", err, out)
		}
		return nil
	})
	condition := `jsonpath={.status.conditions[?(@.type=="StoreReadOnly")].status} {.status.conditions[?(@.type=="Ready")].status}`
	s.until("condition and event say so", func() error {
		if got, _ := s.try("", "get", "node", n.Name, "-o", condition); !strings.HasPrefix(got, "True") {
			return fmt.Errorf("StoreReadOnly and Ready are %q", got)
		}
		out, err := s.try("", "get", "events", "-n", "default", "--field-selector=reason=StoreDiskFull", "-o", "name")
		if err != nil || out == "" {
			return fmt.Errorf("event: %v %s", err, out)
		}
		return nil
	})
	if err := n.Restart(); err != nil {
		t.Fatal(err)
	}
	s.until("the server answers after a start on the full disk", func() error {
		out, err := s.try("", "get", "deployment", "hello")
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	if err := n.FreeDisk(); err != nil {
		t.Fatal(err)
	}
	s.until("writes are taken and the condition follows", func() error {
		out, err := s.try("", "get", "node", n.Name, "-o", condition)
		if err == nil && out != "False True" {
			err = fmt.Errorf("StoreReadOnly and Ready are %q", out)
		}
		return err
	})
	if !n.Running() {
		t.Error("orch has ended")
	}
	s.run("create", "configmap", "after")
}
