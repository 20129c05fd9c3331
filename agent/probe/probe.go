// Package probe asks containers whether they have started, are alive and are
// ready: by HTTP, TCP, a command or gRPC.
package probe

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Outcome of one attempt.
type Outcome int8

// The outcomes. A Broken attempt could not be made and does not count; Refused
// is a Failure because nobody listens (yet).
const (
	Success Outcome = iota
	Failure
	Refused
	Broken
)

// Answer is an outcome in words, for events.
type Answer struct {
	Outcome Outcome
	Text    string
	Warning bool // a Success worth an event
}

// Exec runs a command in a container. err tells that it could not be run to
// its end.
type Exec func(ctx context.Context, container string, command []string, timeout time.Duration) (code int32, output []byte, err error)

// Target is what is probed.
type Target struct {
	Container *corev1.Container
	ID        string // of the container, for Exec
	PodIP     string
	Exec      Exec
}

// Once makes one attempt.
func Once(ctx context.Context, p *corev1.Probe, t Target) Answer {
	timeout := time.Duration(max(p.TimeoutSeconds, 1)) * time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case p.Exec != nil:
		return execute(ctx, p.Exec, t, timeout)
	case p.HTTPGet != nil:
		return get(ctx, p.HTTPGet, t)
	case p.TCPSocket != nil:
		return dial(ctx, p.TCPSocket, t)
	case p.GRPC != nil:
		return health(ctx, p.GRPC, t, timeout)
	}
	return Answer{Broken, "missing probe handler for " + t.Container.Name, false}
}

// Port resolves a port of a container by number or name.
func Port(port intstr.IntOrString, c *corev1.Container) (int, error) {
	n := port.IntValue()
	if port.Type == intstr.String {
		n = 0
		for _, p := range c.Ports {
			if p.Name == port.StrVal {
				n = int(p.ContainerPort)
			}
		}
		if n == 0 {
			var err error
			if n, err = strconv.Atoi(port.StrVal); err != nil {
				return 0, fmt.Errorf("unable to find named port %s", port.StrVal)
			}
		}
	}
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("invalid port number: %v", n)
	}
	return n, nil
}

func dial(ctx context.Context, a *corev1.TCPSocketAction, t Target) Answer {
	port, err := Port(a.Port, t.Container)
	if err != nil {
		return Answer{Broken, err.Error(), false}
	}
	host := a.Host
	if host == "" {
		host = t.PodIP
	}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return Answer{failureOf(err), err.Error(), false}
	}
	_ = conn.Close() // connecting was the question
	return Answer{Success, "", false}
}
