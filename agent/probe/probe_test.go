package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestOnce(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			fmt.Fprint(w, r.Header.Get("User-Agent"), r.Host, r.Header.Get("X"))
		case "/elsewhere":
			http.Redirect(w, r, "http://other.example/", http.StatusFound)
		case "/here":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case "/slow":
			<-r.Context().Done()
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer web.Close()
	host, portText, _ := net.SplitHostPort(web.Listener.Addr().String())
	port, _ := strconv.Atoi(portText)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := closed.Addr().(*net.TCPAddr).Port
	closed.Close()

	target := Target{PodIP: host, ID: "c1", Container: &corev1.Container{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(port)}}},
		Exec: func(_ context.Context, _ string, command []string, _ time.Duration) (int32, []byte, error) {
			switch command[0] {
			case "late":
				return 0, nil, status.Error(codes.DeadlineExceeded, "late")
			case "broken":
				return 0, nil, errors.New("no such container")
			case "false":
				return 1, []byte("no"), nil
			}
			return 0, []byte("yes"), nil
		}}
	get := func(path string) corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("web"),
			HTTPHeaders: []corev1.HTTPHeader{{Name: "Host", Value: "virtual"}, {Name: "X", Value: "y"}}}}
	}
	exec := func(command string) corev1.ProbeHandler {
		return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{command}}}
	}
	tcp := func(port int) corev1.ProbeHandler {
		return corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(port)}}
	}
	for _, c := range []struct {
		name    string
		handler corev1.ProbeHandler
		outcome Outcome
		text    string
	}{
		{"http", get("/ok"), Success, "kube-probe/1.37virtualy"},
		{"redirect to another host", get("/elsewhere"), Success, "Probe terminated redirects"},
		{"http error", get("/none"), Failure, "HTTP probe failed with statuscode: 503"},
		{"http timeout", get("/slow"), Failure, "deadline exceeded"},
		{"tcp", tcp(port), Success, ""},
		{"nobody listens", tcp(free), Refused, "connection refused"},
		{"exec", exec("true"), Success, "yes"},
		{"exec fails", exec("false"), Failure, "no"},
		{"exec timeout", exec("late"), Failure, "timed out after 1s"},
		{"exec breaks", exec("broken"), Broken, "no such container"},
		{"unknown port", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("none")}}, Broken, "unable to find named port none"},
		{"no handler", corev1.ProbeHandler{}, Broken, "missing probe handler"},
	} {
		got := Once(t.Context(), &corev1.Probe{ProbeHandler: c.handler, TimeoutSeconds: 1}, target)
		if got.Outcome != c.outcome || !strings.Contains(got.Text, c.text) {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

func TestGRPC(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, services := grpc.NewServer(), grpchealth.NewServer()
	healthpb.RegisterHealthServer(server, services)
	services.SetServingStatus("sick", healthpb.HealthCheckResponse_NOT_SERVING)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	defer func() {
		server.Stop()
		<-ended
	}()
	target := Target{PodIP: "127.0.0.1", Container: &corev1.Container{}}
	for service, want := range map[string]Outcome{"": Success, "sick": Failure, "unknown": Failure} {
		probe := &corev1.Probe{TimeoutSeconds: 1, ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{
			Port: int32(listener.Addr().(*net.TCPAddr).Port), Service: &service}}}
		if got := Once(t.Context(), probe, target); got.Outcome != want {
			t.Errorf("%q: %+v", service, got)
		}
	}
}

func TestTally(t *testing.T) {
	tally := newTally(&corev1.Probe{SuccessThreshold: 2, FailureThreshold: 3})
	var got strings.Builder
	for _, o := range []Outcome{Success, Success, Failure, Failure, Broken, Success, Failure, Failure, Refused, Failure, Success, Success} {
		switch verdict, crossed := tally.add(Answer{Outcome: o}); {
		case !crossed:
			got.WriteByte('.')
		case verdict:
			got.WriteByte('+')
		default:
			got.WriteByte('-')
		}
	}
	if want := ".+......--.+"; got.String() != want {
		t.Errorf("got %s, want %s", got.String(), want)
	}
}

// TestPace follows one probe in fake time: what was asked when.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var asked []string
		target := Target{Container: &corev1.Container{}, Exec: func(context.Context, string, []string, time.Duration) (int32, []byte, error) {
			asked = append(asked, time.Since(begin).String())
			return int32(len(asked) % 2), nil, nil
		}}
		p := &corev1.Probe{InitialDelaySeconds: 3, PeriodSeconds: 5, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}}
		verdicts := 0
		Run(t.Context(), p, target, begin.Add(-time.Second), func(Answer) {}, func(bool) bool {
			verdicts++
			return verdicts < 4
		})
		if got := strings.Join(asked, " "); got != "2s 7s 12s 17s" {
			t.Errorf("asked at %s", got)
		}
	})
}

func TestImpatience(t *testing.T) {
	i := newImpatience(time.Second)
	total := time.Duration(0)
	for {
		wait, ok := i.next(Answer{Outcome: Refused})
		if !ok {
			break
		}
		total += wait
	}
	if total < time.Second/2 || total > time.Second {
		t.Errorf("asked for %v in a period of 1s", total)
	}
	if _, ok := newImpatience(time.Second).next(Answer{Outcome: Failure}); ok {
		t.Error("a real failure was not counted")
	}
}
