package rules

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// healthPort is a service's healthCheckNodePort: load balancers ask there
// whether this node has endpoints of it.
type healthPort struct {
	service types.NamespacedName
	port    uint16
	local   int
}

// healthOf is the health port of a service under externalTrafficPolicy Local,
// nil for others.
func healthOf(service *corev1.Service, ports []ServicePort) *healthPort {
	port := uint16(service.Spec.HealthCheckNodePort)
	if port == 0 || service.Spec.Type != corev1.ServiceTypeLoadBalancer || !ports[0].ExternalLocal {
		return nil
	}
	// The ready ones alone: a load balancer should turn away while those that end
	// still serve what comes all the same.
	addrs := make(map[netip.Addr]bool)
	for i := range ports {
		for _, e := range ports[i].LocalReady {
			addrs[e.Addr.Addr()] = true
		}
	}
	return &healthPort{service: ports[0].Service, port: port, local: len(addrs)}
}

// renderHealth adds the health port of a service.
func renderHealth(f *fragment, service *corev1.Service, ports []ServicePort) {
	if f.health = healthOf(service, ports); f.health != nil {
		f.dispatch(fixedBucket(chainHealth), fmt.Sprintf("-p tcp -m tcp --dport %d%s -j ACCEPT", f.health.port, ports[0].comment("health")))
	}
}

// healthServers answers on the health ports of services.
type healthServers struct {
	log *slog.Logger

	mu      sync.Mutex // guards servers and their healthPort
	servers map[uint16]*healthServer
	running sync.WaitGroup
}

type healthServer struct {
	healthPort
	http *http.Server
}

// sync starts, updates and stops servers to match want, which is keyed by port.
func (h *healthServers) sync(ctx context.Context, want map[uint16]healthPort) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for port, server := range h.servers {
		if _, wanted := want[port]; !wanted {
			_ = server.http.Close()
			delete(h.servers, port)
		}
	}
	for port, health := range want {
		if server := h.servers[port]; server != nil {
			server.healthPort = health
			continue
		}
		if err := h.start(ctx, health); err != nil {
			h.log.Warn("service health port not served", "service", health.service, "port", port, "error", err)
		}
	}
}

// start listens for one service. Call with mu held.
func (h *healthServers) start(ctx context.Context, health healthPort) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", ":"+strconv.Itoa(int(health.port)))
	if err != nil {
		return err
	}
	server := &healthServer{healthPort: health}
	server.http = &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { h.answer(w, server) }),
	}
	h.servers[health.port] = server
	h.running.Go(func() {
		if err := server.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			h.log.Warn("service health port failed", "port", health.port, "error", err)
		}
	})
	return nil
}

func (h *healthServers) answer(w http.ResponseWriter, server *healthServer) {
	h.mu.Lock()
	health := server.healthPort
	h.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(health.local))
	if health.local == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"service":             map[string]string{"namespace": health.service.Namespace, "name": health.service.Name},
		"localEndpoints":      health.local,
		"serviceProxyHealthy": true,
	})
}

// close stops every server and waits for them.
func (h *healthServers) close(ctx context.Context) {
	h.sync(ctx, nil)
	h.running.Wait()
}
