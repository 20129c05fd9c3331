package serve

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"orch/agent/pod"
	"orch/agent/stats"
)

// world is the node's API before a runtime with the streaming server that
// containerd has, whose "containers" are the functions below.
type world struct {
	t       *testing.T
	url     *url.URL
	pods    []*pod.Snapshot
	runtime *fakeRuntime
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, runtime: &fakeRuntime{ended: make(chan struct{}, 1)}}
	listener := httptest.NewUnstartedServer(nil)
	config := streaming.DefaultConfig
	config.BaseURL = &url.URL{Scheme: "http", Host: listener.Listener.Addr().String()}
	server, err := streaming.NewServer(config, played{w.runtime})
	if err != nil {
		t.Fatal(err)
	}
	w.runtime.streaming = server
	listener.Config.Handler = server
	listener.Start()
	t.Cleanup(listener.Close)

	handler := New(Config{
		Pods: w, Runtime: w.runtime, LogDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler),
		Stats: stats.New(stats.Config{NodeName: "n", DataDir: t.TempDir(), Pods: w.Pods}),
	})
	api := httptest.NewServer(handler)
	t.Cleanup(api.Close)
	if w.url, err = url.Parse(api.URL); err != nil {
		t.Fatal(err)
	}
	w.pods = []*pod.Snapshot{{
		Pod: &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "u"},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}},
		},
		SandboxID:  "box",
		Containers: []pod.Container{{Name: "c", ID: "c1", State: runtimeapi.ContainerState_CONTAINER_RUNNING}},
	}}
	return w
}

func (w *world) config() *rest.Config { return &rest.Config{Host: w.url.Host} }

// at gives the URL of a path of the API.
func (w *world) at(path string, query url.Values) *url.URL {
	return &url.URL{Scheme: "http", Host: w.url.Host, Path: path, RawQuery: query.Encode()}
}

func (w *world) get(path string) (int, string) {
	w.t.Helper()
	resp, err := http.Get("http://" + w.url.Host + path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// The world is the Pods of its API.

func (w *world) Pods() []*pod.Snapshot { return w.pods }

func (w *world) Pod(namespace, name string) *pod.Snapshot {
	for _, s := range w.pods {
		if s.Pod.Namespace == namespace && s.Pod.Name == name {
			return s
		}
	}
	return nil
}

func (w *world) ContainerID(namespace, name string, _ types.UID, container string) (pod.Container, bool) {
	if s := w.Pod(namespace, name); s != nil {
		for _, c := range s.Containers {
			if c.Name == container {
				return c, true
			}
		}
	}
	return pod.Container{}, false
}

func (w *world) Sandbox(namespace, name string, _ types.UID) (id, ip string) {
	if s := w.Pod(namespace, name); s != nil {
		return s.SandboxID, ""
	}
	return "", ""
}

// fakeRuntime runs no containers: commands are played.
type fakeRuntime struct {
	runtimeapi.RuntimeServiceClient
	streaming streaming.Server
	ended     chan struct{} // gets a value when a played command ends
	running   atomic.Bool   // that is what containers are
}

func (f *fakeRuntime) ContainerStatus(_ context.Context, in *runtimeapi.ContainerStatusRequest, _ ...grpc.CallOption) (*runtimeapi.ContainerStatusResponse, error) {
	state := runtimeapi.ContainerState_CONTAINER_EXITED
	if f.running.Load() {
		state = runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{Id: in.ContainerId, State: state}}, nil
}

func (f *fakeRuntime) ExecSync(_ context.Context, in *runtimeapi.ExecSyncRequest, _ ...grpc.CallOption) (*runtimeapi.ExecSyncResponse, error) {
	return &runtimeapi.ExecSyncResponse{Stdout: fmt.Append(nil, in.Cmd)}, nil
}

func (f *fakeRuntime) Exec(_ context.Context, in *runtimeapi.ExecRequest, _ ...grpc.CallOption) (*runtimeapi.ExecResponse, error) {
	return f.streaming.GetExec(in)
}

func (f *fakeRuntime) Attach(_ context.Context, in *runtimeapi.AttachRequest, _ ...grpc.CallOption) (*runtimeapi.AttachResponse, error) {
	return f.streaming.GetAttach(in)
}

func (f *fakeRuntime) PortForward(_ context.Context, in *runtimeapi.PortForwardRequest, _ ...grpc.CallOption) (*runtimeapi.PortForwardResponse, error) {
	return f.streaming.GetPortForward(in)
}

// played turns the fake into the streaming server's runtime.
type played struct{ *fakeRuntime }

var _ streaming.Runtime = played{}

func (p played) Exec(ctx context.Context, _ string, cmd []string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	defer func() {
		select {
		case p.ended <- struct{}{}:
		default:
		}
	}()
	switch cmd[0] {
	case "cat":
		_, err := io.Copy(out, in)
		return err
	case "fail":
		fmt.Fprint(out, "out")
		fmt.Fprint(errOut, "err")
		return utilexec.CodeExitError{Err: fmt.Errorf("exit status 3"), Code: 3}
	case "break":
		return fmt.Errorf("no such command")
	case "sizes": // of the terminal, until the input ends
		var reading sync.WaitGroup
		reading.Go(func() {
			for size := range resize {
				fmt.Fprintf(out, "%dx%d ", size.Width, size.Height)
			}
		})
		if _, err := bufio.NewReader(in).ReadString('\n'); err != nil {
			return err
		}
		return nil
	case "flood": // until nobody reads
		for zeros := make([]byte, 32<<10); ; {
			if _, err := out.Write(zeros); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("unknown command %v", cmd)
}

func (p played) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return p.Exec(ctx, id, []string{"cat"}, in, out, errOut, tty, resize)
}

// PortForward answers in capitals: port 1 is closed.
func (p played) PortForward(_ context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
	if port == 1 {
		return fmt.Errorf("connection refused")
	}
	_, err := io.Copy(stream, stream)
	return err
}

// within fails the test when ch stays silent.
func within[T any](t *testing.T, what string, ch <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-ch:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: not within 10 seconds", what)
	}
	return value
}

// echoServer answers each connection with what it sends.
func echoServer(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() { listener.Close(); serving.Wait() })
	return listener.Addr().String()
}
