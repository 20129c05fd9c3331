package api

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"orch/server/registry"
)

// backend is where a proxied request goes: an address as seen from a node.
type backend struct {
	scheme, node, host, port string
}

// proxy serves pods/proxy, services/proxy and nodes/proxy. The name in the
// path may be name, name:port or scheme:name:port.
func (s *Server) proxy(w http.ResponseWriter, r *http.Request, q *request) error {
	scheme, name, port, ok := utilnet.SplitSchemeNamePort(q.name)
	if !ok {
		return apierrors.NewBadRequest(fmt.Sprintf("invalid %s request %q", q.res.Singular, q.name))
	}
	if scheme == "" {
		scheme = "http"
	}
	to := backend{scheme: scheme, port: port}
	var err error
	switch q.resource {
	case "pods":
		err = s.podBackend(r.Context(), q, name, &to)
	case "services":
		err = s.serviceBackend(r.Context(), q, name, &to)
	case "nodes":
		return s.nodeProxy(w, r, q, name, to)
	default:
		return methodNotAllowed()
	}
	if err != nil {
		return err
	}
	s.forward(w, r, q, to)
	return nil
}

// forward sends the request to the backend through its node.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, q *request, to backend) {
	host := net.JoinHostPort(to.host, to.port)
	if to.port == "" {
		host = strings.TrimSuffix(host, ":")
	}
	location := &url.URL{Scheme: to.scheme, Host: host, Path: q.rest}
	transport := &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // a pod's certificate names nothing that could be checked
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return s.dialThrough(ctx, to.node, address)
		},
	}
	s.tunnel(w, r, location, transport, true, false)
}

func (s *Server) podBackend(ctx context.Context, q *request, name string, to *backend) error {
	pod, err := s.pod(ctx, q, name)
	if err != nil {
		return err
	}
	if to.port == "" {
		to.port = firstPort(pod)
	}
	if err := to.checkPort(q); err != nil {
		return err
	}
	to.host, to.node = pod.Status.PodIP, pod.Spec.NodeName
	if !proxyable(to.host) {
		return apierrors.NewBadRequest("address not allowed")
	}
	return nil
}

// proxyable keeps proxies from what listens for its own machine or link alone.
func proxyable(address string) bool {
	ip := net.ParseIP(address)
	return ip != nil && ip.IsGlobalUnicast()
}

// checkPort refuses what is no port, before an address is made of it that nobody
// can parse. A number beyond those of ports is refused as dialing it would be.
func (to *backend) checkPort(q *request) error {
	if to.port == "" {
		return nil
	}
	if n, err := strconv.ParseUint(to.port, 10, 16); err == nil && n > 0 {
		return nil
	}
	if strings.Trim(to.port, "0123456789") == "" {
		return apierrors.NewServiceUnavailable(fmt.Sprintf("error trying to reach service: dial tcp: address %s: invalid port", to.port))
	}
	return apierrors.NewBadRequest(fmt.Sprintf("invalid %s request %q", q.res.Singular, q.name))
}

func firstPort(pod *corev1.Pod) string {
	for i := range pod.Spec.Containers {
		if ports := pod.Spec.Containers[i].Ports; len(ports) > 0 {
			return strconv.Itoa(int(ports[0].ContainerPort))
		}
	}
	return ""
}

// serviceBackend picks a ready endpoint at random.
func (s *Server) serviceBackend(ctx context.Context, q *request, name string, to *backend) error {
	wanted := to.port
	if number, err := strconv.ParseInt(wanted, 10, 64); err == nil {
		obj, err := s.cfg.Registry.Get(ctx, q.res, q.namespace, name, &metav1.GetOptions{})
		if err != nil {
			return err
		}
		port := servicePort(obj.(*corev1.Service), number)
		if port == nil {
			return apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %d found for service %q", number, name))
		}
		wanted = port.Name
	}
	written, err := s.endpointSlices(ctx, q.namespace, name)
	if err != nil {
		return err
	}
	found := s.behindPods(ctx, q.namespace, readyEndpoints(written, wanted))
	if len(found) == 0 {
		if _, err := s.cfg.Registry.Get(ctx, q.res, q.namespace, name, &metav1.GetOptions{}); err != nil {
			return err
		}
		return apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", q.name))
	}
	chosen := found[rand.IntN(len(found))]
	to.node, to.host, to.port = chosen.node, chosen.host, chosen.port
	return nil
}

func servicePort(service *corev1.Service, number int64) *corev1.ServicePort {
	for i := range service.Spec.Ports {
		if int64(service.Spec.Ports[i].Port) == number {
			return &service.Spec.Ports[i]
		}
	}
	return nil
}

func (s *Server) endpointSlices(ctx context.Context, ns, service string) ([]registry.Object, error) {
	res := s.cfg.Registry.Lookup("discovery.k8s.io", "v1", "endpointslices")
	if res == nil {
		return nil, apierrors.NewServiceUnavailable("endpoint slices are not served")
	}
	of := labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: service})
	page, err := s.cfg.Registry.List(ctx, res, registry.Selection{Namespace: ns, Labels: of}, &metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	return page.Items, nil
}

// endpoint is what an EndpointSlice says, which anybody may write.
type endpoint struct {
	pod corev1.ObjectReference
	to  backend
}

// behindPods gives the endpoints whose address is that of the pod they name, in
// the service's namespace, with the pod's node: a slice leads nowhere else.
func (s *Server) behindPods(ctx context.Context, namespace string, endpoints []endpoint) (found []backend) {
	for _, e := range endpoints {
		if e.pod.Namespace != "" && e.pod.Namespace != namespace {
			continue
		}
		obj, err := s.core(ctx, "pods", namespace, e.pod.Name)
		if err != nil {
			continue
		}
		pod := obj.(*corev1.Pod)
		has := pod.Status.PodIP == e.to.host ||
			slices.ContainsFunc(pod.Status.PodIPs, func(ip corev1.PodIP) bool { return ip.IP == e.to.host })
		if !has || !proxyable(e.to.host) || pod.Spec.NodeName == "" {
			continue
		}
		e.to.node = pod.Spec.NodeName
		found = append(found, e.to)
	}
	return found
}

// readyEndpoints are the pods behind the port of that name.
func readyEndpoints(written []registry.Object, portName string) []endpoint {
	var found []endpoint
	for _, obj := range written {
		slice := obj.(*discoveryv1.EndpointSlice)
		for _, port := range slice.Ports {
			if port.Port == nil || value(port.Name) != portName {
				continue
			}
			for i := range slice.Endpoints {
				e := &slice.Endpoints[i]
				if e.Conditions.Ready != nil && !*e.Conditions.Ready || len(e.Addresses) == 0 ||
					e.TargetRef == nil || e.TargetRef.Kind != "Pod" {
					continue
				}
				found = append(found, endpoint{*e.TargetRef, backend{host: e.Addresses[0], port: strconv.Itoa(int(*port.Port))}})
			}
		}
	}
	return found
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// agentPort is the port at which clients expect a node's agent.
const agentPort = "10250"

// nodeProxy reaches the agent's own HTTP API, or another port of the node.
func (s *Server) nodeProxy(w http.ResponseWriter, r *http.Request, q *request, name string, to backend) error {
	obj, err := s.cfg.Registry.Get(r.Context(), q.res, "", name, &metav1.GetOptions{})
	if err != nil {
		return err
	}
	if err := s.mayUseAgent(r.Context(), q); err != nil {
		return err
	}
	if to.port == "" || to.port == agentPort {
		if agentAction(q.rest) == "dial" {
			return apierrors.NewNotFound(schema.GroupResource{Resource: "nodes/proxy"}, q.rest) // the servers' own
		}
		location := &url.URL{Scheme: "http", Host: name, Path: q.rest}
		asIs := func(conn net.Conn) net.Conn { return conn } // an upload may come before the answer, and take long
		s.tunnel(w, r, location, s.agentTransport(name, asIs), true, false)
		return nil
	}
	if err := to.checkPort(q); err != nil {
		return err
	}
	for _, address := range obj.(*corev1.Node).Status.Addresses {
		if address.Type == corev1.NodeInternalIP && proxyable(address.Address) {
			to.node, to.host = name, address.Address
			s.forward(w, r, q, to)
			return nil
		}
	}
	return apierrors.NewServiceUnavailable(fmt.Sprintf("no preferred addresses found for node %q", name))
}

// mayUseAgent: the agent's API is one of GET and POST alike, and what runs
// something in a pod, or takes the connection over, is no reading whatever the
// method says. It takes the right to create.
func (s *Server) mayUseAgent(ctx context.Context, q *request) error {
	if q.verb == "create" {
		return nil
	}
	switch agentAction(q.rest) {
	case "exec", "run", "attach", "portForward", "dial":
		a := q.attributes()
		a.Verb = "create"
		return s.authorize(ctx, a)
	}
	return nil
}

// agentAction is the first part of a path of the agent's API, as the agent
// reads it.
func agentAction(rest string) string {
	action, _, _ := strings.Cut(strings.TrimPrefix(path.Clean("/"+rest), "/"), "/")
	return action
}

// dialThrough gives a TCP connection to address that starts at the node: the
// agent is asked to open it and then passes bytes.
func (s *Server) dialThrough(ctx context.Context, node, address string) (net.Conn, error) {
	conn, err := s.cfg.Nodes.Dial(ctx, node)
	if err != nil {
		return nil, fmt.Errorf("dial node %s: %w", node, err)
	}
	conn = establishing(bound(ctx, conn))
	reader := bufio.NewReader(conn)
	if err := askDial(conn, reader, node, address); err != nil {
		conn.Close()
		return nil, err
	}
	return &bufferedConn{conn, reader}, nil
}

func askDial(conn net.Conn, reader *bufio.Reader, node, address string) error {
	req, err := http.NewRequest(http.MethodGet, "http://"+node+"/dial?address="+url.QueryEscape(address), nil)
	if err != nil {
		return fmt.Errorf("dial %s from node %s: %w", address, node, err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "orch-dial")
	if err := req.Write(conn); err != nil {
		return fmt.Errorf("dial %s from node %s: %w", address, node, err)
	}
	resp, err := http.ReadResponse(reader, req)
	if err != nil {
		return fmt.Errorf("dial %s from node %s: %w", address, node, err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		return fmt.Errorf("dial %s from node %s: %s", address, node, firstLine(resp.Body))
	}
	return nil
}

// bufferedConn reads first what came along with the answer to the upgrade.
type bufferedConn struct {
	net.Conn
	reader *bufio.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.reader.Read(p) }
