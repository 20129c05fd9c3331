package runtime

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// linuxImage makes an image of random content that runs nothing.
func linuxImage(t *testing.T) v1.Image {
	t.Helper()
	image, err := random.Image(1024, 2)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	return image
}

// dockerArchive is what docker save would write for one image.
func dockerArchive(t *testing.T, tag string) []byte {
	t.Helper()
	ref, err := name.NewTag(tag)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	// Layers must be tar files to be unpacked; random ones are.
	if err := tarball.Write(ref, linuxImage(t), &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func waitImage(t *testing.T, store *ImageStore, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !store.has(ctx, []string{name}) {
		if ctx.Err() != nil {
			t.Fatalf("%s does not appear", name)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func TestArchives(t *testing.T) {
	needReal(t)
	dir := shortDir(t)
	images := filepath.Join(dir, "images")
	if err := os.MkdirAll(images, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(file string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(images, file), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("before.tar", dockerArchive(t, "example.com/before:1"))
	write("broken.tar", []byte("this is no archive"))
	r := startRuntime(t, Config{DataDir: dir, Logger: testLogger(t.Output())})
	store := r.ImageStore()
	waitImage(t, store, "example.com/before:1")
	write("after.tar.gz", zipped(t, dockerArchive(t, "busybox:2")))
	waitImage(t, store, "docker.io/library/busybox:2")
	waitImage(t, store, "busybox:2")

	if record := readLedger(r.layout.ledger)[filepath.Join(images, "before.tar")]; record.Size == 0 {
		t.Error("the import was not recorded")
	}
	list, err := store.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		if pinned := strings.HasPrefix(i.RepoTags[0], embeddedDomain); i.Pinned != pinned {
			t.Errorf("%v: pinned %v", i.RepoTags, i.Pinned)
		}
	}
	archive := filepath.Join(images, "after.tar.gz")
	for readLedger(r.layout.ledger)[archive].Size == 0 { // it is written after the image is there
		select {
		case <-t.Context().Done():
			t.Fatal("the import was not recorded")
		case <-time.After(5 * time.Millisecond):
		}
	}
	if names, err := store.Remove(t.Context(), "busybox:2"); err != nil || store.Archive(names) != archive {
		t.Errorf("%v, %v", names, err)
	}
	if _, err := store.Remove(t.Context(), "busybox:2"); err == nil {
		t.Error("removed twice")
	}
	if _, err := store.Remove(t.Context(), PauseImage); err == nil || !strings.Contains(err.Error(), "part of orch") {
		t.Errorf("the pause image: %v", err)
	}
	if freed, err := r.GarbageCollect(t.Context(), time.Now(), 1<<40); err != nil || freed != 0 || !store.has(t.Context(), []string{"example.com/before:1"}) {
		t.Errorf("garbage collection freed %d of what an archive brought, %v", freed, err)
	}
	r.importArchives(t.Context(), ledger{}) // as at a start
	if !store.has(t.Context(), []string{"busybox:2"}) {
		t.Error("an image that is gone is not imported again at a start")
	}
	if err := os.Remove(filepath.Join(images, "before.tar")); err != nil {
		t.Fatal(err)
	}
	if freed, err := r.GarbageCollect(t.Context(), time.Now(), 1<<40); err != nil || freed == 0 || store.has(t.Context(), []string{"example.com/before:1"}) {
		t.Errorf("garbage collection freed %d, %v", freed, err)
	}
	if !store.has(t.Context(), []string{PauseImage}) {
		t.Error("the pause image was collected")
	}
}

// push uploads an image to repository, the address of one in a registry.
func push(t *testing.T, repository, tag string, image v1.Image) {
	t.Helper()
	put := func(url, mediaType string, data []byte) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url, bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", mediaType)
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusCreated {
			t.Fatalf("PUT %s: %s", url, answer.Status)
		}
	}
	blob := func(data []byte) {
		t.Helper()
		put(fmt.Sprintf("%s/blobs/uploads/1?digest=sha256:%x", repository, sha256.Sum256(data)), "application/octet-stream", data)
	}
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range layers {
		content, err := layer.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(content)
		if err != nil {
			t.Fatal(err)
		}
		blob(data)
	}
	config, err := image.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	blob(config)
	manifest, err := image.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	mediaType, err := image.MediaType()
	if err != nil {
		t.Fatal(err)
	}
	put(repository+"/manifests/"+tag, string(mediaType), manifest)
}

func TestPullThroughMirror(t *testing.T) {
	needReal(t)
	server := httptest.NewServer(registry.New())
	defer server.Close()
	push(t, server.URL+"/v2/library/redis", "7", linuxImage(t))
	registries := filepath.Join(t.TempDir(), "registries.yaml")
	if err := os.WriteFile(registries, fmt.Appendf(nil, "mirrors: {docker.io: {endpoint: [%q]}}", server.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	r := startRuntime(t, Config{DataDir: shortDir(t), Registries: registries, Logger: testLogger(t.Output())})
	id, err := r.ImageStore().Pull(t.Context(), "redis:7")
	if err != nil || !strings.HasPrefix(id, "sha256:") {
		t.Errorf("pull: %q, %v", id, err)
	}
	if _, err := r.ImageStore().Pull(t.Context(), "redis:absent"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("pull of an absent tag: %v", err)
	}
}

// The mirror has the image by another name, and is asked through a rewriter.
func TestPullThroughRewrite(t *testing.T) {
	needReal(t)
	server := httptest.NewServer(registry.New())
	defer server.Close()
	push(t, server.URL+"/v2/cache/hub-redis", "7", linuxImage(t))
	registries := filepath.Join(t.TempDir(), "registries.yaml")
	text := fmt.Appendf(nil, `mirrors: {docker.io: {endpoint: [%q], rewrite: {"^library/(.*)$": "cache/hub-$1"}}}`, server.URL)
	if err := os.WriteFile(registries, text, 0o600); err != nil {
		t.Fatal(err)
	}
	r := startRuntime(t, Config{DataDir: shortDir(t), Registries: registries, Logger: testLogger(t.Output())})
	if id, err := r.ImageStore().Pull(t.Context(), "redis:7"); err != nil || !strings.HasPrefix(id, "sha256:") {
		t.Errorf("pull: %q, %v", id, err)
	}
}

// Two mirrors have the image, of which the first in the file must be asked,
// whatever the order of their names.
func TestMirrorsAreAskedInOrder(t *testing.T) {
	needReal(t)
	var asked []string
	var mu sync.Mutex
	var mirrors []string
	for range 2 {
		handler := registry.New()
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/manifests/") && r.Method != http.MethodPut {
				mu.Lock()
				asked = append(asked, "http://"+r.Host)
				mu.Unlock()
			}
			handler.ServeHTTP(w, r)
		}))
		t.Cleanup(server.Close)
		push(t, server.URL+"/v2/library/redis", "7", linuxImage(t))
		mirrors = append(mirrors, server.URL)
	}
	slices.Sort(mirrors)
	slices.Reverse(mirrors)
	registries := filepath.Join(t.TempDir(), "registries.yaml")
	if err := os.WriteFile(registries, fmt.Appendf(nil, "mirrors: {docker.io: {endpoint: [%q, %q]}}", mirrors[0], mirrors[1]), 0o600); err != nil {
		t.Fatal(err)
	}
	r := startRuntime(t, Config{DataDir: shortDir(t), Registries: registries, Logger: testLogger(t.Output())})
	if _, err := r.ImageStore().Pull(t.Context(), "redis:7"); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(asked) == 0 || asked[0] != mirrors[0] {
		t.Errorf("asked %v, of %v", asked, mirrors)
	}
}

func TestEmbeddedImagesComeBack(t *testing.T) {
	needReal(t)
	dir := shortDir(t)
	first := startChild(t, dir)
	if _, err := first.img.Remove(t.Context(), "orch.local/hello:latest"); err != nil {
		t.Fatal(err)
	}
	record := readLedger(newLayout(dir).ledger)
	delete(record, "embedded:hello.tar")
	if err := record.write(newLayout(dir).ledger); err != nil {
		t.Fatal(err)
	}
	first.kill()
	startChild(t, dir) // waits for both images
}

func TestDamagedMetadata(t *testing.T) {
	needReal(t)
	dir := shortDir(t)
	db := filepath.Join(dir, "agent/containerd/root/io.containerd.metadata.v1.bolt/meta.db")
	if err := os.MkdirAll(filepath.Dir(db), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(db, bytes.Repeat([]byte("garbage "), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := New(Config{DataDir: dir, Logger: testLogger(t.Output())})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "move "+dir) {
		t.Errorf("Run: %v", err)
	}
}

func TestExternalEndpointWithoutCRI(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	go server.Serve(listener)
	defer server.Stop()
	r, err := New(Config{DataDir: t.TempDir(), Endpoint: "unix://" + socket})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "does not serve the CRI") {
		t.Errorf("Run: %v", err)
	}
}

func TestExternalEndpointRunsContainers(t *testing.T) {
	needReal(t)
	dir := shortDir(t)
	startChild(t, dir)
	r := startRuntime(t, Config{DataDir: t.TempDir(), Endpoint: "unix://" + newLayout(dir).socket})
	p := startPod(t, r.Runtime())
	defer p.remove(t, r.Runtime())
	p.pid(t, r.Runtime())
	if r.Embedded() {
		t.Error("taken for the embedded runtime")
	}
}

// fakeCRI answers Version alone.
type fakeCRI struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	api string
}

func (f fakeCRI) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "fake", RuntimeVersion: "1", RuntimeApiVersion: f.api}, nil
}

func TestExternalEndpoint(t *testing.T) {
	for _, c := range []struct{ api, want string }{{"v1", ""}, {"v1alpha2", "orch needs v1"}} {
		socket := filepath.Join(t.TempDir(), "s")
		listener, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		runtimeapi.RegisterRuntimeServiceServer(server, fakeCRI{api: c.api})
		go server.Serve(listener)
		defer server.Stop()
		r, err := New(Config{DataDir: t.TempDir(), Endpoint: socket})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-r.Ready()
			cancel()
		}()
		err = r.Run(ctx)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", c.api, err)
		}
		cancel()
	}
}

func TestDecompress(t *testing.T) {
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	w.WriteHeader(&tar.Header{Name: "x", Size: 1, Mode: 0o644})
	w.Write([]byte("y"))
	w.Close()
	for name, data := range map[string][]byte{"plain": plain.Bytes(), "gzip": zipped(t, plain.Bytes())} {
		stream, err := decompress(bytes.NewReader(data))
		if err != nil {
			t.Fatal(name, err)
		}
		if h, err := tar.NewReader(stream).Next(); err != nil || h.Name != "x" {
			t.Errorf("%s: %v, %v", name, h, err)
		}
	}
	if _, err := decompress(strings.NewReader("")); err == nil {
		t.Error("an empty archive was taken")
	}
}

func FuzzDecompress(f *testing.F) {
	f.Add([]byte("plain text"))
	f.Add([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x24, 1, 0, 0, 'x'})
	f.Fuzz(func(t *testing.T, data []byte) {
		stream, err := decompress(bytes.NewReader(data))
		if err != nil {
			return
		}
		defer stream.Close()
		for archive := tar.NewReader(io.LimitReader(stream, 1<<20)); err == nil; {
			_, err = archive.Next()
		}
	})
}
