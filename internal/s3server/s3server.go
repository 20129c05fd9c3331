// Package s3server starts a real S3 server for tests: the Versity gateway, which keeps
// objects as files and checks signatures, sums and certificates as others do. It
// is built from the module in versitygw/, which keeps its libraries out of ours.
package s3server

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"orch/internal/pki"
)

// Credentials that the server takes, and its only region and bucket.
const (
	AccessKey = "test-access"
	SecretKey = "test-secret"
	Region    = "test-1"
	Bucket    = "snapshots"
)

// Server is a running S3 server.
type Server struct {
	Address string // host:port
	CAFile  string // of its certificate
	dir     string
	path    []string // of the executable, after what it is started with
	process *exec.Cmd
	reaping sync.WaitGroup
	ended   chan struct{}
}

// Start starts a server at address (port 0: any that is free) until the test
// ends. prefix, such as nsenter with its arguments, starts the executable.
func Start(t testing.TB, address string, prefix ...string) *Server {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	if port == "0" {
		address = freeAddress(t, host)
	}
	dir := t.TempDir()
	s := &Server{Address: address, CAFile: filepath.Join(dir, "ca.crt"), dir: dir, path: append(prefix, executable(t))}
	for _, name := range []string{s.objects(), filepath.Join(dir, "meta")} {
		if err := os.MkdirAll(name, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.certify(host); err != nil {
		t.Fatal(err)
	}
	s.Run(t)
	t.Cleanup(func() { s.Kill(t) })
	return s
}

func freeAddress(t testing.TB, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// executable builds the server, which takes a minute when Go's cache is cold.
func executable(t testing.TB) string {
	t.Helper()
	_, here, _, _ := goruntime.Caller(0)
	module := filepath.Join(filepath.Dir(here), "versitygw")
	path := filepath.Join(filepath.Dir(here), "..", "..", "bin", "versitygw")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	temporary := fmt.Sprintf("%s.%d", path, os.Getpid()) // other tests may be building it too
	cmd := exec.Command("go", "build", "-C", module, "-o", temporary, "github.com/versity/versitygw/cmd/versitygw")
	cmd.Env = append(os.Environ(), "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the S3 server: %v: %s", err, out)
	}
	if err := os.Rename(temporary, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func (s *Server) certify(host string) error {
	ca, err := pki.LoadOrCreateAuthority(s.dir, time.Now()) // leaves ca.crt there
	if err != nil {
		return err
	}
	pair, err := ca.Issue(pki.ServingProfile([]string{host}, net.ParseIP(host), "test"), time.Now())
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(s.dir, "tls.crt"), pair.Cert, 0o600),
		os.WriteFile(filepath.Join(s.dir, "tls.key"), pair.Key, 0o600),
	)
}

// objects is the folder whose folders are buckets.
func (s *Server) objects() string { return filepath.Join(s.dir, "objects") }

// File is where the server keeps an object of the bucket.
func (s *Server) File(key string) string { return filepath.Join(s.objects(), Bucket, key) }

// Run starts the server again after Kill.
func (s *Server) Run(t testing.TB) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(s.objects(), Bucket), 0o700); err != nil {
		t.Fatal(err)
	}
	args := append(slices.Clone(s.path[1:]), "--port", s.Address, "--access", AccessKey, "--secret", SecretKey, "--region", Region, "--quiet",
		"--cert", filepath.Join(s.dir, "tls.crt"), "--key", filepath.Join(s.dir, "tls.key"), "--health", "/health",
		"posix", "--sidecar", filepath.Join(s.dir, "meta"), s.objects())
	var out bytes.Buffer
	s.process, s.ended = exec.Command(s.path[0], args...), make(chan struct{})
	s.process.Stdout, s.process.Stderr = &out, &out
	s.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.process.Start(); err != nil {
		t.Fatal(err)
	}
	process, ended := s.process, s.ended
	s.reaping.Go(func() { // Kill waits for it
		defer close(ended)
		_ = process.Wait()
	})
	for deadline := time.Now().Add(30 * time.Second); ; {
		probe := append(s.path[:len(s.path)-1:len(s.path)-1], "curl", "-fsk", "-o", "/dev/null", "https://"+s.Address+"/health")
		if exec.Command(probe[0], probe[1:]...).Run() == nil {
			return
		}
		select {
		case <-ended:
			t.Fatalf("the S3 server ended: %s", out.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatal("the S3 server does not answer")
		}
	}
}

// Kill ends the server; its objects stay.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	if err := syscall.Kill(-s.process.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Error(err)
	}
	s.reaping.Wait()
}
