// Package serve is the node's HTTP API, in the shape of the kubelet's: logs,
// exec, attach, port-forward, statistics and metrics. It is served over the
// agent's own connection to the servers, which authorize every request; nothing
// listens on the network.
package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"orch/agent/pod"
	"orch/agent/stats"
)

// Port is what the Node object names as the kubelet's endpoint: clients put it
// into node proxy paths.
const Port = 10250

// Pods finds what runs on this node.
type Pods interface {
	Pods() []*pod.Snapshot
	Pod(namespace, name string) *pod.Snapshot
	ContainerID(namespace, name string, uid types.UID, container string) (pod.Container, bool)
	Sandbox(namespace, name string, uid types.UID) (id, ip string)
}

// Config of the API.
type Config struct {
	Pods    Pods
	Runtime runtimeapi.RuntimeServiceClient
	Stats   *stats.Source
	LogDir  string
	Logger  *slog.Logger
}

type server struct {
	Config
	log *slog.Logger
}

// New gives the handler.
func New(cfg Config) http.Handler {
	s := &server{Config: cfg, log: cfg.Logger.With("component", "serve")}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	mux.HandleFunc("GET /pods", s.pods)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.logs)
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", s.exec)
	mux.HandleFunc("/attach/{namespace}/{pod}/{container}", s.attach)
	mux.HandleFunc("/portForward/{namespace}/{pod}", s.portForward)
	mux.HandleFunc("POST /run/{namespace}/{pod}/{container}", s.run)
	mux.HandleFunc("GET /dial", s.dial)
	mux.HandleFunc("GET /stats/summary", cfg.Stats.ServeSummary)
	mux.HandleFunc("GET /metrics/resource", cfg.Stats.ServeResource)
	mux.HandleFunc("GET /metrics/cadvisor", cfg.Stats.ServeCAdvisor)
	mux.HandleFunc("GET /metrics", cfg.Stats.ServeResource)
	mux.Handle("GET /logs/", http.StripPrefix("/logs/", http.FileServerFS(logFiles(cfg.LogDir))))
	return mux
}

// fail answers with a plain error, as the kubelet does; the API server makes a
// Status of it.
func (s *server) fail(w http.ResponseWriter, code int, format string, args ...any) {
	http.Error(w, fmt.Sprintf(format, args...), code)
}

func (s *server) pods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{Items: []corev1.Pod{}}
	list.APIVersion, list.Kind = "v1", "PodList"
	for _, snapshot := range s.Pods.Pods() {
		if snapshot.Pod != nil {
			list.Items = append(list.Items, *snapshot.Pod)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(&list); err != nil {
		s.log.Debug("client went away", "err", err)
	}
}

// pod finds a pod that the API knows; others are on their way out.
func (s *server) pod(namespace, name string) *pod.Snapshot {
	snapshot := s.Pods.Pod(namespace, name)
	if snapshot == nil || snapshot.Pod == nil {
		return nil
	}
	return snapshot
}

// container finds the running container that a request names.
func (s *server) container(w http.ResponseWriter, r *http.Request) (pod.Container, bool) {
	namespace, name, container := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")
	if s.pod(namespace, name) == nil {
		s.fail(w, http.StatusNotFound, "pod does not exist")
		return pod.Container{}, false
	}
	c, ok := s.Pods.ContainerID(namespace, name, types.UID(r.URL.Query().Get("uid")), container)
	if !ok || c.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		s.fail(w, http.StatusNotFound, "container not found (%q)", container)
		return pod.Container{}, false
	}
	return c, true
}

// run executes a command and answers with what it prints.
func (s *server) run(w http.ResponseWriter, r *http.Request) {
	c, ok := s.container(w, r)
	if !ok {
		return
	}
	resp, err := s.Runtime.ExecSync(r.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: strings.Split(r.URL.Query().Get("cmd"), " ")})
	if err != nil {
		s.fail(w, http.StatusInternalServerError, "%v", err)
		return
	}
	_, err = w.Write(append(resp.Stdout, resp.Stderr...))
	if err != nil {
		s.log.Debug("client went away", "err", err)
	}
}

const dialTimeout = 30 * time.Second

// dial opens a TCP connection from this node, for the API server's proxies to
// pods and services.
func (s *server) dial(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "orch-dial") {
		s.fail(w, http.StatusBadRequest, "this path needs the header Upgrade: orch-dial")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), dialTimeout)
	defer cancel()
	target, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.URL.Query().Get("address"))
	if err != nil {
		s.fail(w, http.StatusBadGateway, "%v", err)
		return
	}
	defer target.Close()
	client, err := hijack(w, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: orch-dial\r\n\r\n")
	if err != nil {
		s.log.Debug("dial", "err", err)
		return
	}
	defer client.Close()
	splice(client, target)
}

// hijack takes over a request's connection and answers with head.
func hijack(w http.ResponseWriter, head string) (net.Conn, error) {
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		return nil, errors.New("the connection cannot be upgraded")
	}
	conn, buffered, err := hijacker.Hijack()
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write([]byte(head)); err != nil {
		conn.Close()
		return nil, err
	}
	return &readerConn{conn, buffered.Reader}, nil
}
