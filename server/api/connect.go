package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilproxy "k8s.io/apimachinery/pkg/util/proxy"

	"orch/server/registry"
)

// connect serves the subresources that are streams to a node.
func (s *Server) connect(w http.ResponseWriter, r *http.Request, q *request) error {
	if !slices.Contains(q.sub.Connect, q.verb) && !(q.subresource == "proxy" && q.verb == "") {
		return methodNotAllowed()
	}
	if q.query.Has("dryRun") {
		return apierrors.NewBadRequest("dryRun is not supported")
	}
	if s.cfg.Nodes == nil {
		return apierrors.NewServiceUnavailable("this server cannot reach nodes")
	}
	ctx, done := s.streams.add(r.Context())
	defer done()
	r = r.WithContext(ctx)
	if err := s.admitConnect(ctx, q); err != nil {
		return err
	}
	switch q.subresource {
	case "log":
		return s.podLog(w, r, q)
	case "exec", "attach", "portforward":
		return s.podStream(w, r, q)
	case "proxy":
		return s.proxy(w, r, q)
	}
	return methodNotAllowed()
}

// admitConnect asks admission about a stream with its options. Reading a log is
// a get, not a connection.
func (s *Server) admitConnect(ctx context.Context, q *request) error {
	if q.subresource == "log" {
		return nil
	}
	return s.cfg.Registry.Admit(ctx, &registry.Attempt{
		Resource: q.res, Subresource: q.subresource, Operation: registry.OperationConnect,
		Namespace: q.namespace, Name: q.name, Object: connectOptions(q),
	})
}

// connectOptions are what a stream is asked for with.
func connectOptions(q *request) runtime.Object {
	flag := func(name string) bool { return boolParam(q.query, name) }
	container := q.query.Get("container")
	switch q.sub.Kind.Kind {
	case "PodExecOptions":
		return &corev1.PodExecOptions{Stdin: flag("stdin"), Stdout: flag("stdout"), Stderr: flag("stderr"), TTY: flag("tty"),
			Container: container, Command: q.query["command"]}
	case "PodAttachOptions":
		return &corev1.PodAttachOptions{Stdin: flag("stdin"), Stdout: flag("stdout"), Stderr: flag("stderr"), TTY: flag("tty"), Container: container}
	case "PodPortForwardOptions":
		return &corev1.PodPortForwardOptions{Ports: portNumbers(q.query["ports"])}
	case "ServiceProxyOptions":
		return &corev1.ServiceProxyOptions{Path: q.rest}
	case "NodeProxyOptions":
		return &corev1.NodeProxyOptions{Path: q.rest}
	}
	return &corev1.PodProxyOptions{Path: q.rest}
}

// portNumbers leaves out what is no number: the agent refuses it.
func portNumbers(texts []string) (ports []int32) {
	for _, text := range strings.Split(strings.Join(texts, ","), ",") {
		if n, err := strconv.ParseInt(text, 10, 32); err == nil {
			ports = append(ports, int32(n))
		}
	}
	return ports
}

// pod gets the pod of the request; the object is shared.
func (s *Server) pod(ctx context.Context, q *request, name string) (*corev1.Pod, error) {
	obj, err := s.core(ctx, "pods", q.namespace, name)
	if err != nil {
		return nil, err
	}
	return obj.(*corev1.Pod), nil
}

// core gets an object of core/v1, which is shared.
func (s *Server) core(ctx context.Context, plural, namespace, name string) (registry.Object, error) {
	res := s.cfg.Registry.Lookup("", "v1", plural)
	if res == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: plural}, name)
	}
	return s.cfg.Registry.Get(ctx, res, namespace, name, &metav1.GetOptions{})
}

// nodeExists gives the error that tells of a node that is no more.
func (s *Server) nodeExists(ctx context.Context, name string) error {
	_, err := s.core(ctx, "nodes", "", name)
	return err
}

// podStream tunnels exec, attach and port-forward: the agent speaks SPDY or
// WebSocket with the client, and bytes pass through here untouched.
func (s *Server) podStream(w http.ResponseWriter, r *http.Request, q *request) error {
	if q.verb != "create" { // a WebSocket is opened by GET, and still runs things
		a := q.attributes()
		a.Verb = "create"
		if err := s.authorize(r.Context(), a); err != nil {
			return err
		}
	}
	pod, err := s.pod(r.Context(), q, q.name)
	if err != nil {
		return err
	}
	path, params := "/portForward/"+pod.Namespace+"/"+pod.Name, url.Values{}
	if q.subresource == "portforward" {
		if ports := q.query["ports"]; len(ports) > 0 {
			params.Set("port", strings.Join(ports, ","))
		}
	} else {
		container, err := containerOf(pod, q.query.Get("container"))
		if err != nil {
			return err
		}
		path = "/" + q.subresource + "/" + pod.Namespace + "/" + pod.Name + "/" + container
		params = streamParams(q)
	}
	if pod.Spec.NodeName == "" {
		return apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", q.name))
	}
	if err := s.nodeExists(r.Context(), pod.Spec.NodeName); err != nil {
		return err
	}
	location := &url.URL{Scheme: "http", Host: pod.Spec.NodeName, Path: path, RawQuery: params.Encode()}
	s.tunnel(w, r, location, s.agentTransport(pod.Spec.NodeName, establishing), false, true)
	return nil
}

// streamParams are the options of exec and attach in the agent's words.
func streamParams(q *request) url.Values {
	params := url.Values{}
	for option, param := range map[string]string{"stdin": "input", "stdout": "output", "stderr": "error", "tty": "tty"} {
		if boolParam(q.query, option) {
			params.Set(param, "1")
		}
	}
	if q.subresource == "exec" {
		params["command"] = q.query["command"]
	}
	return params
}

// boolParam reads a flag of the query: anything but "false" and "0" is true.
func boolParam(query url.Values, name string) bool {
	values := query[name]
	return len(values) > 0 && values[0] != "0" && !strings.EqualFold(values[0], "false")
}

// containerOf settles which container of pod is meant.
func containerOf(pod *corev1.Pod, asked string) (string, error) {
	var names []string
	for i := range pod.Spec.InitContainers {
		names = append(names, pod.Spec.InitContainers[i].Name)
	}
	for i := range pod.Spec.Containers {
		names = append(names, pod.Spec.Containers[i].Name)
	}
	for i := range pod.Spec.EphemeralContainers {
		names = append(names, pod.Spec.EphemeralContainers[i].Name)
	}
	switch {
	case asked != "" && slices.Contains(names, asked):
		return asked, nil
	case asked != "":
		return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", asked, pod.Name))
	case len(pod.Spec.Containers) == 1:
		return pod.Spec.Containers[0].Name, nil
	case len(pod.Spec.Containers) == 0:
		return "", apierrors.NewBadRequest("a container name must be specified for pod " + pod.Name)
	}
	return "", apierrors.NewBadRequest(fmt.Sprintf("a container name must be specified for pod %s, choose one of: %s", pod.Name, names))
}

// agentTransport opens a connection of its own to the agent of node, which an
// upgrade then takes over; prepare has the first look at it.
func (s *Server) agentTransport(node string, prepare func(net.Conn) net.Conn) *http.Transport {
	return &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := s.cfg.Nodes.Dial(ctx, node)
			if err != nil {
				return nil, unreachable{err}
			}
			return prepare(bound(ctx, conn)), nil
		},
		MaxResponseHeaderBytes: maxAnswerHeader,
	}
}

const (
	// establishTime is how long a node may take to answer the request that makes
	// a connection a stream.
	establishTime = time.Minute
	// maxAnswerHeader bounds the header of that answer, in bytes.
	maxAnswerHeader = 64 << 10
)

// establishing gives a connection a deadline until the header of the answer has
// been read, which may not go on without end.
func establishing(conn net.Conn) net.Conn {
	conn.SetReadDeadline(time.Now().Add(establishTime))
	return &youngConn{Conn: conn}
}

type youngConn struct {
	net.Conn
	established bool // used by the one goroutine that reads
	size        int
	matched     int // bytes of the blank line that ends the header
}

var errEndlessHeader = errors.New("the node's answer has a header without end")

// Read ends the deadline when the header has ended.
func (c *youngConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.established {
		return n, err
	}
	const blank = "\r\n\r\n"
	for _, b := range p[:n] {
		switch {
		case b == blank[c.matched]:
			c.matched++
		case b == '\r':
			c.matched = 1
		default:
			c.matched = 0
		}
		if c.matched == len(blank) {
			c.established = true
			c.Conn.SetReadDeadline(time.Time{})
			return n, err
		}
	}
	if c.size += n; c.size > maxAnswerHeader {
		return 0, errEndlessHeader
	}
	return n, err
}

// unreachable is a node without a connection. It says by itself that dialing
// failed only where nobody has said so before: what upgrades does.
type unreachable struct{ error }

func (u unreachable) Status() metav1.Status {
	return apierrors.NewServiceUnavailable("error dialing backend: " + u.Error()).Status()
}

// boundConn closes with the stream that it serves, so that a closing server
// does not wait for it.
type boundConn struct {
	net.Conn
	release func() bool
}

func bound(ctx context.Context, conn net.Conn) net.Conn {
	return &boundConn{conn, context.AfterFunc(ctx, func() { conn.Close() })}
}

func (c *boundConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// tunnel passes the request to location, upgraded or not.
func (s *Server) tunnel(w http.ResponseWriter, r *http.Request, location *url.URL, transport http.RoundTripper, rewrite, upgradeRequired bool) {
	handler := utilproxy.NewUpgradeAwareHandler(location, transport, rewrite, upgradeRequired, s)
	handler.ServeHTTP(w, r)
}

// Error reports a failed tunnel to the client; the proxy calls it.
func (s *Server) Error(w http.ResponseWriter, r *http.Request, err error) {
	s.fail(w, r, err)
}
