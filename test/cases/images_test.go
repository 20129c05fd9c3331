package cases

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"orch/test/cluster"
)

// archive makes an image of busybox with that name.
func archive(t *testing.T, ref string) string {
	t.Helper()
	rootfs, path := t.TempDir(), filepath.Join(t.TempDir(), "image.tar")
	if err := cluster.LayBusybox(rootfs); err != nil {
		t.Fatal(err)
	}
	if err := (cluster.Image{Ref: ref, Rootfs: rootfs}).WriteArchive(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// An image whose archive is laid out is told to come back when it is removed,
// and does at the next start.
func TestNode05AirgapImages(t *testing.T) {
	t.Parallel()
	n := cluster.Start(t)
	data, err := os.ReadFile(archive(t, "docker.io/library/airgap:1"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(n.DataDir(), "images", "airgap.tar")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	b := &bench{t, n}
	for taken := false; !taken; {
		out, err := exec.Command(n.Orch, "images", "list", "--data-dir", n.DataDir()).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		taken = strings.Contains(string(out), "airgap:1")
	}
	removed, err := exec.Command(n.Orch, "images", "remove", "--data-dir", n.DataDir(), "airgap:1").CombinedOutput()
	if err != nil || !strings.Contains(string(removed), path+" brings it back") {
		t.Fatalf("%v\n%s", err, removed)
	}
	if err := n.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := n.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {restartPolicy: Never, terminationGracePeriodSeconds: 0, containers: [{name: c, image: 'airgap:1', imagePullPolicy: IfNotPresent, command: [sleep, '1000']}]}")
	b.kubectl("wait", "--for=condition=Ready", "pod/a", "--timeout=100s")
	out, err := exec.Command(n.Orch, "images", "remove", "--data-dir", n.DataDir(), "orch.local/pause:1").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "part of orch") {
		t.Errorf("removing the pause image: %v\n%s", err, out)
	}
}

// privateRegistry serves one image on the node's loopback to whoever has the password.
func privateRegistry(t *testing.T, n *cluster.Node, image string) {
	t.Helper()
	var listener net.Listener
	if err := n.In(func() (err error) { listener, err = net.Listen("tcp", "127.0.0.1:5000"); return err }); err != nil {
		t.Fatal(err)
	}
	open := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			http.Error(w, `{"errors": [{"code": "UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		open.ServeHTTP(w, r)
	}))
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	push(t, open, image)
}

// push puts an image into a registry.
func push(t *testing.T, to http.Handler, image string) {
	t.Helper()
	content, err := tarball.ImageFromPath(archive(t, image), nil)
	if err != nil {
		t.Fatal(err)
	}
	repository, tag, _ := strings.Cut(image, ":")
	put := func(path, mediaType string, data []byte, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		req := httptest.NewRequest(http.MethodPut, "/v2/"+repository+path, bytes.NewReader(data))
		req.Header.Set("Content-Type", mediaType)
		answer := httptest.NewRecorder()
		if to.ServeHTTP(answer, req); answer.Code != http.StatusCreated {
			t.Fatalf("PUT %s: %d %s", path, answer.Code, answer.Body)
		}
	}
	blob := func(data []byte, err error) {
		t.Helper()
		put(fmt.Sprintf("/blobs/uploads/1?digest=sha256:%x", sha256.Sum256(data)), "application/octet-stream", data, err)
	}
	layers, err := content.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range layers {
		compressed, err := layer.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		blob(io.ReadAll(compressed))
	}
	blob(content.RawConfigFile())
	mediaType, err := content.MediaType()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := content.RawManifest()
	put("/manifests/"+tag, string(mediaType), manifest, err)
}

// An image that one namespace pulled with its secret is not another's.
func TestNode17PrivateImageWithoutCredentials(t *testing.T) {
	t.Parallel()
	n := cluster.Start(t)
	b := &bench{t, n}
	privateRegistry(t, n, "secret/app:1")
	for _, namespace := range []string{"tenant-a", "tenant-b"} {
		b.kubectl("create", "namespace", namespace)
	}
	b.kubectl("-n", "tenant-a", "create", "secret", "docker-registry", "creds", "--docker-server=127.0.0.1:5000", "--docker-username=me", "--docker-password=secret")
	pod := func(namespace, pod, policy, more string) {
		t.Helper()
		b.apply(fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: %s}\nspec: {restartPolicy: Never%s, containers: [{name: c, image: '127.0.0.1:5000/secret/app:1', imagePullPolicy: %s, command: ['true']}]}", pod, namespace, more, policy))
	}
	pod("tenant-a", "owner", "IfNotPresent", ", imagePullSecrets: [{name: creds}]")
	b.becomes("the owner runs", contains("Succeeded"), "-n", "tenant-a", "get", "pod", "owner", "-o", "jsonpath={.status.phase}")
	if err := n.Restart(); err != nil { // what is recorded outlives it
		t.Fatal(err)
	}
	if err := n.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	pod("tenant-b", "thief", "IfNotPresent", "")
	pod("tenant-b", "never", "Never", "")
	pod("tenant-a", "again", "Never", ", imagePullSecrets: [{name: creds}]")
	b.becomes("the thief is refused", contains("Pending", "ImagePull"), "-n", "tenant-b", "get", "pod", "thief", "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].state.waiting}")
	b.becomes("Never is refused", contains("Pending", "ErrImageNeverPull"), "-n", "tenant-b", "get", "pod", "never", "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].state.waiting}")
	b.becomes("the owner's others run", contains("Succeeded"), "-n", "tenant-a", "get", "pod", "again", "-o", "jsonpath={.status.phase}")
}

// mirrors starts registries beside the node, which tell who was asked for
// manifests, and a node that knows them by a registries.yaml.
func mirrors(t *testing.T, yaml string, serve map[int]func(http.Handler) *httptest.Server) *cluster.Node {
	t.Helper()
	network := cluster.StartNetwork(t)
	for port, make := range serve {
		handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
		push(t, handler, "library/app:1")
		server := make(handler)
		listener, err := network.Listen(port)
		if err != nil {
			t.Fatal(err)
		}
		server.Listener.Close()
		server.Listener = listener
		if server.TLS != nil {
			server.StartTLS()
		} else {
			server.Start()
		}
		t.Cleanup(server.Close)
	}
	path := filepath.Join(t.TempDir(), "registries.yaml")
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := network.NewNode("--private-registry", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the server's log:\n%s", n.LogTail())
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if err := n.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

func runsImage(t *testing.T, n *cluster.Node, image string) {
	t.Helper()
	b := &bench{t, n}
	b.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {restartPolicy: Never, terminationGracePeriodSeconds: 0, containers: [{name: c, image: '" + image + "', command: ['true']}]}")
	b.becomes("the pod runs", contains("Succeeded"), "get", "pod", "a", "-o", "jsonpath={.status.phase}")
}

// Mirrors are asked in the order of the file, which is not that of their names.
func TestNode14MirrorOrder(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var asked []int
	serve := map[int]func(http.Handler) *httptest.Server{}
	for _, port := range []int{5001, 5002} {
		serve[port] = func(registry http.Handler) *httptest.Server {
			return httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/manifests/") {
					mu.Lock()
					asked = append(asked, port)
					mu.Unlock()
				}
				registry.ServeHTTP(w, r)
			}))
		}
	}
	n := mirrors(t, `{mirrors: {docker.io: {endpoint: ["http://10.99.0.1:5002", "http://10.99.0.1:5001"]}}}`, serve)
	runsImage(t, n, "docker.io/library/app:1")
	mu.Lock()
	defer mu.Unlock()
	if len(asked) == 0 || slices.Contains(asked, 5001) {
		t.Errorf("asked: %v", asked)
	}
}

// TLS settings of "*" are those of every registry without settings of its own.
func TestNode15WildcardConfig(t *testing.T) {
	t.Parallel()
	secure := func(registry http.Handler) *httptest.Server {
		server := httptest.NewUnstartedServer(registry)
		server.TLS = &tls.Config{}
		return server
	}
	n := mirrors(t, `{configs: {"*": {tls: {insecure_skip_verify: true}}}}`, map[int]func(http.Handler) *httptest.Server{5000: secure})
	runsImage(t, n, "10.99.0.1:5000/library/app:1")
}
