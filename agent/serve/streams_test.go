package serve

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/tools/portforward"
	client "k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
)

// ways are how clients reach a command: kubectl's newest, what older programs
// speak, and what kubectl spoke before.
var ways = map[string]func(w *world, u *url.URL) (client.Executor, error){
	"WebSocket v5": func(w *world, u *url.URL) (client.Executor, error) {
		return client.NewWebSocketExecutor(w.config(), "GET", u.String())
	},
	"SPDY": func(w *world, u *url.URL) (client.Executor, error) {
		return client.NewSPDYExecutor(w.config(), "POST", u)
	},
}

func (w *world) exec(t *testing.T, way, command string, streams client.StreamOptions) error {
	t.Helper()
	query := url.Values{"command": {command}, "output": {"1"}}
	if streams.Stdin != nil {
		query.Set("input", "1")
	}
	if streams.Stderr != nil {
		query.Set("error", "1")
	}
	if streams.Tty {
		query.Set("tty", "1")
	}
	executor, err := ways[way](w, w.at("/exec/ns/web/c", query))
	if err != nil {
		t.Fatal(err)
	}
	return executor.StreamWithContext(t.Context(), streams)
}

func eachWay(t *testing.T, test func(t *testing.T, w *world, way string)) {
	for way := range ways {
		t.Run(way, func(t *testing.T) { test(t, newWorld(t), way) })
	}
}

func TestEndOfInputReachesTheCommand(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world, way string) {
		var out bytes.Buffer
		if err := w.exec(t, way, "cat", client.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out}); err != nil || out.String() != "hello" {
			t.Errorf("%q, %v", out.String(), err)
		}
	})
}

func TestBigTransfer(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world, way string) {
		data := make([]byte, 20<<20)
		if _, err := rand.Read(data); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := w.exec(t, way, "cat", client.StreamOptions{Stdin: bytes.NewReader(data), Stdout: &out}); err != nil || !bytes.Equal(data, out.Bytes()) {
			t.Errorf("%d bytes came back of %d, %v", out.Len(), len(data), err)
		}
	})
}

func TestExitCode(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world, way string) {
		var out, errOut bytes.Buffer
		err := w.exec(t, way, "fail", client.StreamOptions{Stdout: &out, Stderr: &errOut})
		var exit exec.ExitError
		if !errors.As(err, &exit) || exit.ExitStatus() != 3 || out.String() != "out" || errOut.String() != "err" {
			t.Errorf("%v, out %q, err %q", err, out.String(), errOut.String())
		}
		err = w.exec(t, way, "break", client.StreamOptions{Stdout: io.Discard})
		if err == nil || !strings.Contains(err.Error(), "no such command") {
			t.Errorf("failure to start: %v", err)
		}
	})
}

// terminal gives sizes one after the other.
type terminal chan *client.TerminalSize

func (c terminal) Next() *client.TerminalSize { return <-c }

// watched is an output that tells when it contains what is waited for.
type watched struct {
	text bytes.Buffer // not embedded: io.Copy would find its ReadFrom
	want string
	seen chan struct{}
}

func (w *watched) Write(p []byte) (int, error) {
	n, err := w.text.Write(p)
	if w.want != "" && strings.Contains(w.text.String(), w.want) {
		w.want = ""
		close(w.seen)
	}
	return n, err
}

func TestTerminalSizes(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world, way string) {
		sizes := make(terminal, 3)
		sizes <- &client.TerminalSize{Width: 80, Height: 24}
		sizes <- &client.TerminalSize{Width: 132, Height: 50}
		defer close(sizes)
		out := &watched{want: "132x50", seen: make(chan struct{})}
		in, typed := io.Pipe()
		stop := context.AfterFunc(t.Context(), func() { typed.Close() })
		defer stop()
		typing := make(chan error, 1)
		go func() {
			<-out.seen
			_, err := typed.Write([]byte("\n"))
			typing <- err
		}()
		err := w.exec(t, way, "sizes", client.StreamOptions{Stdin: in, Stdout: out, Tty: true, TerminalSizeQueue: sizes})
		if err != nil || !strings.HasPrefix(out.text.String(), "80x24 132x50") {
			t.Errorf("%q, %v", out.text.String(), err)
		}
		if err := within(t, "typing", typing); err != nil {
			t.Error(err)
		}
	})
}

// A command whose client goes away must not flood on for nobody.
func TestClientThatGoesAway(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world, way string) {
		executor, err := ways[way](w, w.at("/exec/ns/web/c", url.Values{"command": {"flood"}, "output": {"1"}}))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		out := &watched{want: "\x00", seen: make(chan struct{})}
		context.AfterFunc(t.Context(), cancel)
		go func() {
			<-out.seen
			cancel()
		}()
		if err := executor.StreamWithContext(ctx, client.StreamOptions{Stdout: out}); err == nil {
			t.Error("no error")
		}
		within(t, "end of the command", w.runtime.ended)
	})
}

func TestAttach(t *testing.T) {
	eachWay(t, func(t *testing.T, w *world, way string) {
		executor, err := ways[way](w, w.at("/attach/ns/web/c", url.Values{"input": {"1"}, "output": {"1"}}))
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := executor.StreamWithContext(t.Context(), client.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out}); err != nil || out.String() != "hello" {
			t.Errorf("%q, %v", out.String(), err)
		}
	})
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	w.pods[0].Containers = append(w.pods[0].Containers, w.pods[0].Containers[0])
	w.pods[0].Containers[1].Name, w.pods[0].Containers[1].State = "ended", 2
	for path, want := range map[string]string{
		"/exec/ns/none/c?command=x&output=1":    "404 pod does not exist\n",
		"/exec/ns/web/none?command=x&output=1":  "404 container not found (\"none\")\n",
		"/exec/ns/web/ended?command=x&output=1": "404 container not found (\"ended\")\n",
		"/portForward/ns/none":                  "404 pod ns/none is not running here\n",
		"/dial?address=127.0.0.1:1":             "400 this path needs the header Upgrade: orch-dial\n",
		"/healthz":                              "200 ok",
	} {
		code, body := w.get(path)
		if got := fmt.Sprintf("%d %s", code, body); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

func TestNoGoroutineIsLeft(t *testing.T) {
	w := newWorld(t)
	run := func() {
		for way := range ways {
			if err := w.exec(t, way, "cat", client.StreamOptions{Stdin: strings.NewReader("x"), Stdout: io.Discard}); err != nil {
				t.Fatal(err)
			}
		}
	}
	run()
	before := goruntime.NumGoroutine()
	for range 10 {
		run()
	}
	deadline := time.After(10 * time.Second)
	for goruntime.NumGoroutine() > before+5 {
		select {
		case <-deadline:
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", goruntime.NumGoroutine(), before, stacks[:goruntime.Stack(stacks, true)])
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestPortForward(t *testing.T) {
	dialers := map[string]func(w *world, u *url.URL) (httpstream.Dialer, error){
		"SPDY in WebSocket": func(w *world, u *url.URL) (httpstream.Dialer, error) {
			return portforward.NewSPDYOverWebsocketDialer(u, w.config())
		},
		"SPDY": func(w *world, u *url.URL) (httpstream.Dialer, error) {
			transport, upgrader, err := spdy.RoundTripperFor(w.config())
			return spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", u), err
		},
	}
	for name, dialer := range dialers {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			dial, err := dialer(w, w.at("/portForward/ns/web", nil))
			if err != nil {
				t.Fatal(err)
			}
			ready := make(chan struct{})
			ctx, cancel := context.WithCancel(t.Context())
			forwarder, err := portforward.NewOnAddressesWithContext(ctx, dial, []string{"127.0.0.1"}, []string{"0:80"}, ready, io.Discard, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- forwarder.ForwardPorts() }()
			within(t, "listening", ready)
			ports, err := forwarder.GetPorts()
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				data := make([]byte, 1<<20)
				if got := sendAndClose(t, fmt.Sprintf("127.0.0.1:%d", ports[0].Local), data); !bytes.Equal(got, data) {
					t.Errorf("%d bytes came back", len(got))
				}
			}
			cancel()
			if err := within(t, "end", done); err != nil {
				t.Error(err)
			}
		})
	}
}

// sendAndClose sends data, says that this was all, and reads the answer.
func sendAndClose(t *testing.T, address string, data []byte) []byte {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(data)
		sent <- errors.Join(err, conn.(*net.TCPConn).CloseWrite())
	}()
	answer, err := io.ReadAll(conn)
	if err := errors.Join(err, within(t, "sending", sent)); err != nil {
		t.Error(err)
	}
	return answer
}

func TestDial(t *testing.T) {
	w := newWorld(t)
	conn, err := net.Dial("tcp", w.url.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /dial?address=%s HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: orch-dial\r\n\r\n", echoServer(t))
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	fmt.Fprint(conn, "hello")
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(reader); err != nil || string(answer) != "hello" {
		t.Errorf("%q, %v", answer, err)
	}
}

func TestRun(t *testing.T) {
	w := newWorld(t)
	resp, err := http.Post(w.at("/run/ns/web/c", url.Values{"cmd": {"echo hi"}}).String(), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "[echo hi]" {
		t.Errorf("%q, %v", body, err)
	}
}
