package e2e

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/blake2b"

	"orch/test/cluster"
)

func installer(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../scripts/install.sh")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// foreign are things of others on the machine, and how to see that they are
// still there.
var foreign = []struct{ make, check string }{
	{"iptables -t nat -N KUBE-MINE; iptables -t nat -A OUTPUT -m comment --comment 'not for -j ORCH-x' -j KUBE-MINE",
		"iptables-save -t nat | grep -- '-j KUBE-MINE'"},
	{"nft add table ip orchard", "nft list table ip orchard"},
	{"ip link add orchard0 type bridge", "ip link show orchard0"},
	{"ip netns add foreign-$$ && ls /run/netns | grep foreign >/run/mine", "ls /run/netns | grep -f /run/mine"},
	{"mkdir -p /run/mine.d && mount -t tmpfs mine /run/mine.d", "grep /run/mine.d /proc/self/mounts"},
	{"setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >/run/sleeper", "kill -0 $(cat /run/sleeper)"},
	{"mkdir -p $ORCH_DATA_DIR/mine /etc/orch; touch /etc/orch/mine.yaml", "ls $ORCH_DATA_DIR/mine /etc/orch/mine.yaml"},
}

// TestInstall is a machine without an init system: install, run again, upgrade
// under a running pod, kill all, start again, uninstall.
func TestInstall(t *testing.T) {
	t.Parallel()
	b := newSandbox(t)
	t.Cleanup(func() { _, _ = b.Try("ip netns del $(cat /run/mine)") })
	for _, f := range foreign {
		b.Shell(f.make)
	}
	install, from := installer(t), "ORCH_BIN="+b.Node.Orch
	if out := b.Shell(install, from); !strings.Contains(out, " Ready ") || !strings.Contains(out, "create deployment hello") {
		t.Errorf("install.sh printed:\n%s", out)
	}
	if mode := b.Shell("stat -c %a /etc/orch/kubeconfig.yaml /etc/orch/orch.env"); mode != "600\n600" {
		t.Errorf("modes of kubeconfig and settings: %s", mode)
	}
	b.Shell("orch kubectl create deployment hello --image=orch.local/hello && orch kubectl rollout status deployment/hello --timeout=60s")
	pods, orch := b.Pods(), b.Orch()
	if out := b.Shell(install, from); !strings.Contains(out, "nothing changed") || b.Orch() != orch {
		t.Errorf("a second run printed:\n%s\norch was process %s and is %s", out, orch, b.Orch())
	}

	upgrade := b.Node.Dir + "/orch-next"
	b.Shell("cp " + b.Node.Orch + " " + upgrade + " && echo >>" + upgrade)
	b.Shell(install, "ORCH_BIN="+upgrade)
	if now := b.Orch(); now == orch || now == "" {
		t.Errorf("orch was process %s before the upgrade and is %q", orch, now)
	}
	// A shim may be running a helper just then; what ran before must still run.
	if after := b.Pods(); slices.ContainsFunc(pods, func(pid int) bool { return !slices.Contains(after, pid) }) {
		t.Errorf("processes of pods before and after an upgrade: %v, %v", pods, after)
	}

	b.Shell("orch-killall.sh")
	b.checkStopped()
	b.Shell(install, "ORCH_BIN="+upgrade)
	b.Shell("orch kubectl wait --for=condition=Ready pod -l app=hello --timeout=60s")

	out := b.Shell("orch-uninstall.sh")
	b.checkStopped()
	if !strings.Contains(out, "mine.yaml") || !strings.Contains(out, "data/mine") {
		t.Errorf("uninstalling does not tell what it kept:\n%s", out)
	}
	if out, err := b.Try("ls -d /usr/local/bin/*orch* /etc/orch/kubeconfig.yaml /etc/orch/orch.env /var/log/orch* /run/orch* $ORCH_DATA_DIR/[!m]* 2>/dev/null"); err == nil || out != "" {
		t.Errorf("files after uninstalling: %s", out)
	}
	for _, f := range foreign {
		if out, err := b.Try(f.check); err != nil {
			t.Errorf("gone with orch: %s (%v %s)", f.make, err, out)
		}
	}
}

// checkStopped finds nothing of orch that runs or is set up.
func (b *sandbox) checkStopped() {
	b.Helper()
	if left := b.Pods(); len(left) > 0 {
		b.Errorf("processes of pods: %v", left)
	}
	if pid := b.Orch(); pid != "" {
		b.Errorf("orch runs: %s", pid)
	}
	for _, look := range []string{
		"iptables-save | grep -v 'not for' | grep ORCH", "nft list tables | grep -x 'table ip orch'",
		"ip -o link | grep -E ' (orch0|orch-vxlan|veth)'", "ip route show type unreachable | grep .",
		"ls -d /sys/fs/cgroup/*/kubepods/*/pod* /sys/fs/cgroup/*/kubepods/pod* 2>/dev/null | grep -F \"$(ls $ORCH_DATA_DIR/agent/pods 2>/dev/null | grep . || echo none)\"",
		"grep $ORCH_DATA_DIR/ /proc/self/mounts",
	} {
		if out, err := b.Try(look); err == nil {
			b.Errorf("still there: %s\n%s", look, out)
		}
	}
}

// release makes a folder as `make release` does, of the executable under test.
func release(t *testing.T, orch string) string {
	t.Helper()
	dir := t.TempDir()
	name := "orch-" + goruntime.GOARCH
	for _, version := range []string{"v1", "bad"} {
		if err := os.MkdirAll(filepath.Join(dir, version), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(orch, filepath.Join(dir, version, name)); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.Open(orch)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile(installer(t))
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string]string{
		"v1/sha256sums.txt":  fmt.Sprintf("%x  %s\n", sum.Sum(nil), name),
		"bad/sha256sums.txt": fmt.Sprintf("%x  %s\n", sha256.Sum256(nil), name),
		"channels/stable":    "v1\n",
		"install.sh":         string(script),
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestInstallOverHTTP has two machines install from a place of releases: a
// server under systemd, and a node that joins it under OpenRC.
func TestInstallOverHTTP(t *testing.T) {
	t.Parallel()
	server, agent := newSandbox(t), newSandbox(t)
	server.fakeSystemd()
	agent.fakeOpenRC()
	listener, err := network.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{Handler: http.FileServer(http.Dir(release(t, server.Node.Orch)))}
	var serving sync.WaitGroup
	serving.Go(func() { _ = web.Serve(listener) })
	t.Cleanup(func() {
		_ = web.Close()
		serving.Wait()
	})
	url := "http://" + listener.Addr().String()
	curl, from := "curl -sSfL "+url+"/install.sh | sh -s - ", "ORCH_RELEASES="+url

	if out, err := server.Try(curl, from, "ORCH_VERSION=bad"); err == nil || !strings.Contains(out, "the checksum of orch-") {
		t.Errorf("with a wrong checksum: %v\n%s", err, out)
	}
	if out, err := server.Try(curl, from, "ORCH_CHANNEL=nightly"); err == nil || !strings.Contains(out, "cannot download "+url+"/channels/nightly") {
		t.Errorf("with a channel that is not there: %v\n%s", err, out)
	}
	if out, err := server.Try(curl+"--nod-name a", from); err == nil || !strings.Contains(out, "orch server has no flag --nod-name") {
		t.Errorf("with a flag that is not there: %v\n%s", err, out)
	}
	if out, err := server.Try("ls /usr/local/bin/*orch*"); err == nil {
		t.Errorf("files of an installation that failed: %s", out)
	}

	out := server.Shell(curl+"server --node-label zone=a --node-label=rack=2 --token sesame-$((40+2))", from)
	if !strings.Contains(out, " Ready ") {
		t.Errorf("install.sh printed:\n%s", out)
	}
	if calls := server.Shell("cat /var/log/systemctl.calls"); !strings.Contains(calls, "daemon-reload\nenable -q orch\nrestart --no-block orch") {
		t.Errorf("systemctl was called with:\n%s", calls)
	}
	if out := server.Shell("orch kubectl get nodes -l zone=a,rack=2 -o name"); out != "node/"+server.Node.Name {
		t.Errorf("nodes with the labels that were given: %q", out)
	}

	token := strings.TrimSpace(server.Shell("cat $ORCH_DATA_DIR/server/agent-token"))
	join := "ORCH_URL=https://" + server.Node.IP + ":6443"
	if out, err := agent.Try(curl, from, join); err == nil || !strings.Contains(out, "needs ORCH_TOKEN") {
		t.Errorf("without a token: %v\n%s", err, out)
	}
	if out, err := agent.Try(curl, from, join, "ORCH_TOKEN="+token+"x"); err == nil || !strings.Contains(out, "the token's secret is wrong") {
		t.Errorf("with a wrong token: %v\n%s", err, out)
	}
	agent.Shell(curl, from, join, "ORCH_TOKEN="+token, "ORCH_LOG_LEVEL=warn") // the log does not tell that it is ready
	if calls := agent.Shell("cat /var/log/rc.calls"); !strings.Contains(calls, "rc-update -q add orch default\nrc-service orch restart") {
		t.Errorf("OpenRC was called with:\n%s", calls)
	}
	server.Shell("orch kubectl wait --for=condition=Ready node/" + agent.Node.Name + " --timeout=30s")
	for b, secret := range map[*sandbox]string{server: "sesame-42", agent: token} {
		b.Write("/run/secret", secret)
		if out, err := b.Try("grep -rlaF -f /run/secret /etc/systemd /etc/init.d /var/log /proc/[0-9]*/cmdline 2>/dev/null"); err == nil {
			t.Errorf("the token can be read in %s", out)
		}
		if mode := b.Shell("stat -c %a /etc/orch/orch.env"); mode != "600" {
			t.Errorf("mode of the settings: %s", mode)
		}
	}
	// Settings stay when it is run again without any.
	pid := agent.Orch()
	if out := agent.Shell(curl, from); !strings.Contains(out, "nothing changed") || agent.Orch() != pid {
		t.Errorf("a second run printed:\n%s", out)
	}
	if out, err := agent.Try(curl+"server", from); err == nil || !strings.Contains(out, "this machine runs orch agent") {
		t.Errorf("as something else: %v\n%s", err, out)
	}
	// When the machine goes down, OpenRC has the pods end first.
	server.Shell("orch kubectl cordon " + server.Node.Name + " && orch kubectl create deployment hello --image=orch.local/hello && orch kubectl rollout status deployment/hello --timeout=60s")
	if pods := agent.Pods(); len(pods) == 0 {
		t.Error("no pod runs on the agent")
	}
	shims := strings.ReplaceAll(agent.Shell("grep -l containerd-shim /proc/[0-9]*/cmdline"), "cmdline", "environ")
	if out, err := agent.Try("grep -laF -f /run/secret " + strings.ReplaceAll(shims, "\n", " ")); err == nil || strings.Contains(out, "Permission") {
		t.Errorf("programs that orch started inherit the token: %s", out)
	}
	agent.Shell("rc-service orch stop", "RC_GOINGDOWN=YES")
	if pods := agent.Pods(); len(pods) > 0 {
		t.Errorf("pods go on while the machine goes down: %v", pods)
	}
	for _, b := range []*sandbox{agent, server} {
		b.Shell("orch-uninstall.sh")
		b.checkStopped()
		if out, err := b.Try("ls -d /etc/orch /etc/systemd/system/orch* /etc/init.d/orch /usr/local/bin/orch* $ORCH_DATA_DIR 2>/dev/null"); err == nil || out != "" {
			t.Errorf("files after uninstalling: %s", out)
		}
	}
}

// TestInstallWithoutNetwork installs from a folder that holds an archive of an
// image as well.
func TestInstallWithoutNetwork(t *testing.T) {
	t.Parallel()
	b := newSandbox(t)
	folder := filepath.Join(release(t, b.Node.Orch), "v1")
	rootfs := t.TempDir()
	if err := os.WriteFile(rootfs+"/hello", []byte("world"), 0o644); err != nil {
		t.Fatal(err)
	}
	image := cluster.Image{Ref: "test.local/airgap:1", Rootfs: rootfs, Entrypoint: []string{"/hello"}}
	if err := image.WriteArchive(folder + "/airgap.tar"); err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile(installer(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(folder+"/install.sh", script, 0o755); err != nil {
		t.Fatal(err)
	}
	b.Shell("ip route del default && " + folder + "/install.sh")
	if out := b.Shell("orch images list"); !strings.Contains(out, "test.local/airgap") {
		t.Errorf("images: %s", out)
	}
	if path, err := exec.LookPath("shellcheck"); err == nil {
		b.Shell(path + " /usr/local/bin/orch-killall.sh /usr/local/bin/orch-uninstall.sh")
	} else {
		t.Log("shellcheck is not installed: the scripts that install.sh writes were not checked")
	}
	// A damaged copy is refused.
	if err := os.WriteFile(folder+"/sha256sums.txt", fmt.Appendf(nil, "%064d  orch-%s\n", 0, goruntime.GOARCH), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := b.Try(folder + "/install.sh"); err == nil || !strings.Contains(out, "damaged or was tampered with") {
		t.Errorf("with a wrong checksum: %v\n%s", err, out)
	}
	b.Shell("orch-uninstall.sh --keep-data")
	b.checkStopped()
	b.Shell("ls $ORCH_DATA_DIR/server")
}

// signed makes a key and what minisign -S makes of a file with it.
func signed(t *testing.T, message string) (publicKey, signature string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	sum := blake2b.Sum512([]byte(message))
	sig := ed25519.Sign(private, sum[:])
	encode := base64.StdEncoding.EncodeToString
	signature = "untrusted comment: a\n" + encode(append([]byte("ED12345678"), sig...)) + "\ntrusted comment: b\n" + encode(ed25519.Sign(private, append(sig, 'b'))) + "\n"
	return encode(append([]byte("Ed12345678"), public...)), signature
}

// TestInstallSigned upgrades from a folder whose checksums are signed, by an orch
// that checks them, and never from one whose checksums or archives are not in order.
func TestInstallSigned(t *testing.T) {
	t.Parallel()
	b := newSandbox(t)
	folder := filepath.Join(release(t, b.Node.Orch), "v1")
	install := installer(t)
	sums, err := os.ReadFile(folder + "/sha256sums.txt")
	if err != nil {
		t.Fatal(err)
	}
	key, signature := signed(t, string(sums))
	_, foreign := signed(t, string(sums))
	from, check := "ORCH_BIN="+folder, "ORCH_PUBLIC_KEY="+key
	if out := b.Shell(install, from, check, "ORCH_DISABLE_AGENT=true"); !strings.Contains(out, "could not be checked against their signature") {
		t.Errorf("nothing is told where nobody can check:\n%s", out)
	}
	pid := b.Orch()
	for want, content := range map[string]string{
		"is not signed":          "",
		"the signature is wrong": foreign,
		"four lines":             "RWQ",
	} {
		if content != "" {
			if err := os.WriteFile(folder+"/sha256sums.txt.minisig", []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		} else if err := os.RemoveAll(folder + "/sha256sums.txt.minisig"); err != nil {
			t.Fatal(err)
		}
		if out, err := b.Try(install, from, check); err == nil || !strings.Contains(out, want) {
			t.Errorf("%v; want %q:\n%s", err, want, out)
		}
	}
	if err := os.WriteFile(folder+"/sha256sums.txt.minisig", []byte(signature), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(folder+"/cut.tar", make([]byte, 700), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := b.Try(install, from, check); err == nil || !strings.Contains(out, "image archive "+folder+"/cut.tar: ") {
		t.Errorf("with a damaged archive: %v\n%s", err, out)
	}
	if err := os.Remove(folder + "/cut.tar"); err != nil {
		t.Fatal(err)
	}
	if out := b.Shell(install, from, check); !strings.Contains(out, "nothing changed") || strings.Contains(out, "signature") {
		t.Errorf("with the right signature:\n%s", out)
	}
	if now := b.Orch(); now != pid {
		t.Errorf("orch was process %s and is %q", pid, now)
	}
	// The line to paste names the address, and the token when that is asked for.
	out := b.Shell(install, from, check, "ORCH_PRINT_TOKEN=true", "ORCH_LOG_LEVEL=warn")
	token := b.Shell("cat $ORCH_DATA_DIR/server/agent-token")
	if line := "ORCH_URL=https://" + b.Node.IP + ":6443 ORCH_TOKEN=" + token + " sh install.sh"; !strings.Contains(out, line) {
		t.Errorf("there is no line %q in\n%s", line, out)
	}
	b.Shell("orch-uninstall.sh")
}
