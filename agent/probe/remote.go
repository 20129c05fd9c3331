package probe

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
)

// execute runs a command in the container; exit code 0 is a success.
func execute(ctx context.Context, a *corev1.ExecAction, t Target, timeout time.Duration) Answer {
	// The runtime enforces the timeout and says so; ours only backs it up.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout+5*time.Second)
	defer cancel()
	code, output, err := t.Exec(ctx, t.ID, a.Command, timeout)
	text := string(output[:min(len(output), mostBody)])
	switch {
	case status.Code(err) == codes.DeadlineExceeded:
		return Answer{Failure, fmt.Sprintf("command timed out: %q timed out after %s", a.Command, timeout), false}
	case err != nil:
		return Answer{Broken, status.Convert(err).Message(), false}
	case code != 0:
		return Answer{Failure, text, false}
	}
	return Answer{Success, text, false}
}

// health asks the gRPC health service.
func health(ctx context.Context, a *corev1.GRPCAction, t Target, timeout time.Duration) Answer {
	addr := net.JoinHostPort(t.PodIP, strconv.Itoa(int(a.Port)))
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent("kube-probe/1.37"),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", addr)
		}))
	if err != nil {
		return Answer{Failure, fmt.Sprintf("error: failed to connect service at %q: %v", addr, err), false}
	}
	defer conn.Close()
	service := ""
	if a.Service != nil {
		service = *a.Service
	}
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service}, grpc.WaitForReady(true))
	switch status.Code(err) {
	case codes.OK:
	case codes.Unimplemented:
		return Answer{Failure, "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " + status.Convert(err).Message(), false}
	case codes.DeadlineExceeded:
		return Answer{Failure, fmt.Sprintf("timeout: failed to connect service %q within %v: %v", addr, timeout, context.DeadlineExceeded), false}
	default:
		return Answer{Failure, fmt.Sprintf("error: health rpc probe failed: %v", err), false}
	}
	if s := resp.GetStatus(); s != healthpb.HealthCheckResponse_SERVING {
		return Answer{Failure, fmt.Sprintf("service unhealthy (responded with %q)", s.String()), false}
	}
	return Answer{Success, "service healthy", false}
}
