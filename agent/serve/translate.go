package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	gwebsocket "github.com/gorilla/websocket"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	protocols "k8s.io/apimachinery/pkg/util/portforward"
	"k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	client "k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// Channels of the remote command protocol, by number.
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelError
	channelResize
)

const (
	idleTimeout = 4 * time.Hour
	statusGrace = 10 * time.Second // for the last message, of how the command ended
)

// translate serves a client that speaks version 5 of the remote command
// protocol over WebSocket, whose end-of-input signal runtimes do not know, by
// being a SPDY client of the runtime.
func (s *server) translate(w http.ResponseWriter, r *http.Request, location string, o streamOptions) {
	target, err := url.Parse(location)
	if err != nil {
		s.fail(w, http.StatusInternalServerError, "the runtime's streaming address: %v", err)
		return
	}
	executor, err := client.NewSPDYExecutor(&rest.Config{Host: target.Host}, http.MethodPost, target)
	if err != nil {
		s.fail(w, http.StatusInternalServerError, "%v", err)
		return
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: channelsOf(o)},
	})
	conn.SetIdleTimeout(idleTimeout)
	_, streams, err := conn.Open(w, r)
	if err != nil {
		s.log.Debug("open WebSocket", "err", err)
		return
	}
	// An empty message tells the client that the connection stands.
	first := channelError
	if o.stdout {
		first = channelStdout
	}
	_, _ = streams[first].Write(nil) // a client that is gone is noticed below
	// The channel for sizes is read in any case: its end is how we learn that the
	// client went away. The command would run on without anybody to read it.
	ctx, cancel := context.WithCancel(r.Context())
	resized := make(chan client.TerminalSize)
	var reading sync.WaitGroup
	reading.Go(func() {
		defer cancel()
		defer close(resized)
		if o.tty {
			readSizes(ctx, streams[channelResize], resized)
		}
		_, _ = io.Copy(io.Discard, streams[channelResize])
	})
	defer reading.Wait()
	defer cancel()
	defer conn.Close()
	options := client.StreamOptions{Tty: o.tty}
	if o.stdin {
		options.Stdin = streams[channelStdin]
	}
	if o.stdout {
		options.Stdout = streams[channelStdout]
	}
	if o.stderr {
		options.Stderr = streams[channelStderr]
	}
	if o.tty {
		options.TerminalSizeQueue = sizes(resized)
	}
	err = executor.StreamWithContext(ctx, options)
	conn.SetWriteDeadline(statusGrace)
	if data, err := json.Marshal(outcome(err)); err == nil {
		_, _ = streams[channelError].Write(data) // the client may be gone
	}
}

func channelsOf(o streamOptions) []wsstream.ChannelType {
	pick := func(wanted bool, kind wsstream.ChannelType) wsstream.ChannelType {
		if wanted {
			return kind
		}
		return wsstream.IgnoreChannel
	}
	return []wsstream.ChannelType{
		channelStdin:  pick(o.stdin, wsstream.ReadChannel),
		channelStdout: pick(o.stdout, wsstream.WriteChannel),
		channelStderr: pick(o.stderr, wsstream.WriteChannel),
		channelError:  wsstream.WriteChannel,
		channelResize: wsstream.ReadChannel,
	}
}

// outcome is how a command ended, as clients read it.
func outcome(err error) metav1.Status {
	var exit exec.ExitError
	switch {
	case err == nil:
		return metav1.Status{Status: metav1.StatusSuccess}
	case errors.As(err, &exit) && exit.Exited():
		return metav1.Status{
			Status: metav1.StatusFailure, Reason: remotecommand.NonZeroExitCodeReason,
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", exit),
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{
				{Type: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(exit.ExitStatus())},
			}},
		}
	}
	return metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError, Code: http.StatusInternalServerError, Message: err.Error()}
}

// readSizes passes on the sizes of the client's terminal until the client goes
// away, sends something else, or ctx ends.
func readSizes(ctx context.Context, from io.Reader, to chan<- client.TerminalSize) {
	for decoder := json.NewDecoder(from); ; {
		var size client.TerminalSize
		if err := decoder.Decode(&size); err != nil {
			return
		}
		select {
		case to <- size:
		case <-ctx.Done():
			return
		}
	}
}

// sizes hands the sizes of a terminal to the runtime's client.
type sizes <-chan client.TerminalSize

// Next gives the next size, nil at the end.
func (s sizes) Next() *client.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &size
}

// tunnel serves a port-forward that comes as SPDY inside a WebSocket: the
// frames inside are passed to the runtime as they are.
func (s *server) tunnel(w http.ResponseWriter, r *http.Request, location string) {
	backend, reader, resp, err := upgrade(r, location, func(h http.Header) {
		for _, name := range []string{"Sec-Websocket-Key", "Sec-Websocket-Version", "Sec-Websocket-Protocol", "Sec-Websocket-Extensions"} {
			h.Del(name)
		}
		h.Set("Connection", "Upgrade")
		h.Set("Upgrade", "SPDY/3.1")
		h.Set("X-Stream-Protocol-Version", portforward.PortForwardProtocolV1Name)
	})
	if err != nil {
		s.fail(w, http.StatusBadGateway, "%v", err)
		return
	}
	defer backend.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		message, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // for the error below
		s.fail(w, http.StatusBadGateway, "the runtime's streaming server refused: %s: %s", resp.Status, message)
		return
	}
	upgrader := gwebsocket.Upgrader{Subprotocols: []string{protocols.WebsocketsSPDYTunnelingPortForwardV1}, CheckOrigin: func(*http.Request) bool { return true }}
	socket, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		s.log.Debug("open WebSocket", "err", err)
		return
	}
	tunnel := portforward.NewTunnelingConnection("agent", socket)
	defer tunnel.Close()
	splice(tunnel, &readerConn{backend, reader})
}
