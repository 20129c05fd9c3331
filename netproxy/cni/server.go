// Package cni attaches pods to the node: it answers the CNI executable, keeps the addresses and lays the links.
package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"orch/netproxy/wire"
)

// HostPorts publishes the host ports of sandboxes.
type HostPorts interface {
	// Adopt takes ports that an earlier process published.
	Adopt(sandbox string, pod netip.Addr, ports []wire.PortMapping)
	// Publish returns once the rules are in force.
	Publish(ctx context.Context, sandbox string, pod netip.Addr, ports []wire.PortMapping) error
	// Withdraw may take effect a moment later.
	Withdraw(sandbox string)
}

// Config of a Server.
type Config struct {
	Dir       string // <data-dir>/agent: holds cni.sock and cni/
	PodCIDR   netip.Prefix
	MTU       int // of pods' links
	HostPorts HostPorts
	Logger    *slog.Logger
}

// Server is the agent's side of the CNI.
type Server struct {
	cfg     Config
	records records
	wiring  wiring

	mu        sync.Mutex // guards what follows
	pool      *pool
	sandboxes map[string]*record

	busy keyedLock // one call at a time per container
}

// New returns a Server; Open makes it ready.
func New(cfg Config) *Server {
	return &Server{
		cfg:       cfg,
		records:   records{dir: filepath.Join(cfg.Dir, "cni", "sandboxes")},
		sandboxes: make(map[string]*record),
	}
}

// Open adopts what an earlier process left: it loads the records, drops those
// whose sandbox is gone together with links nobody remembers, and publishes the
// host ports of the living again.
func (s *Server) Open() error {
	s.wiring = wiring{mtu: s.cfg.MTU}
	all, err := s.records.load()
	if err != nil {
		return err
	}
	s.pool = newPool(s.cfg.PodCIDR, s.records.loadLast())
	s.wiring.gateway = s.pool.gateway()
	for _, rec := range all {
		s.pool.mark(rec.Addr, rec.ID)
		s.sandboxes[rec.ID] = rec
	}
	for _, rec := range all {
		if !alive(rec.NetNS) {
			if err := s.remove(rec.ID); err != nil {
				return err
			}
			continue
		}
		s.cfg.HostPorts.Adopt(rec.ID, rec.Addr, rec.Ports)
	}
	return s.removeStrayLinks()
}

func (s *Server) removeStrayLinks() error {
	known := make(map[string]bool)
	for _, rec := range s.sandboxes {
		known[rec.HostLink] = true
	}
	names, err := hostLinks()
	if err != nil {
		return err
	}
	for _, name := range names {
		if known[name] {
			continue
		}
		if err := detach(name); err != nil {
			return err
		}
	}
	return nil
}

// Socket is where CNI calls are answered.
func (s *Server) Socket() string { return filepath.Join(s.cfg.Dir, "cni.sock") }

// Serve answers CNI calls until ctx ends. listening is called once calls are
// accepted.
func (s *Server) Serve(ctx context.Context, listening func() error) error {
	listener, err := wire.Listen(s.Socket())
	if err != nil {
		return fmt.Errorf("listen for CNI calls: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	defer listener.Close()
	if err := listening(); err != nil {
		return err
	}
	var calls sync.WaitGroup
	defer calls.Wait()
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept CNI call: %w", err)
		}
		calls.Go(func() { s.serveConn(ctx, conn) })
	}
}

const (
	callTimeout = time.Minute // of a call whose caller is gone
	requestMax  = 1 << 20     // bytes of a call
)

func (s *Server) serveConn(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(callTimeout))
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var request wire.Request
	if err := json.NewDecoder(io.LimitReader(conn, requestMax)).Decode(&request); err != nil {
		return // the caller went away
	}
	result, err := s.Handle(ctx, &request)
	var response wire.Response
	if err != nil {
		response.Error = toError(err)
		s.cfg.Logger.Warn("CNI call failed", "command", request.Command, "container", request.ContainerID, "error", err)
	} else if result != nil {
		response.Result, _ = json.Marshal(result) // plain structs of strings
	}
	_ = json.NewEncoder(conn).Encode(&response)
}

func toError(err error) *wire.Error {
	var known *wire.Error
	if errors.As(err, &known) {
		return known
	}
	return &wire.Error{Code: wire.CodeInternal, Msg: err.Error()}
}

// WriteConfList installs the network configuration list from which the
// container runtime learns of this network. binary is the plugin's name.
func WriteConfList(dir, socket, binary string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make CNI configuration directory: %w", err)
	}
	list, err := json.MarshalIndent(map[string]any{
		"cniVersion": wire.Versions[0],
		"name":       "orch",
		"plugins": []any{map[string]any{
			"type":         binary,
			"socket":       socket,
			"capabilities": map[string]bool{"portMappings": true},
		}},
	}, "", "  ")
	if err != nil {
		return err
	}
	return installFile(filepath.Join(dir, "10-orch.conflist"), append(list, '\n'), 0o644)
}

// keyedLock is a set of mutexes by key.
type keyedLock struct {
	mu   sync.Mutex
	held map[string]*keyState
}

type keyState struct {
	sync.Mutex
	users int // guarded by keyedLock.mu
}

// lock takes the mutex of key and returns how to give it back.
func (l *keyedLock) lock(key string) (unlock func()) {
	l.mu.Lock()
	if l.held == nil {
		l.held = make(map[string]*keyState)
	}
	state := l.held[key]
	if state == nil {
		state = new(keyState)
		l.held[key] = state
	}
	state.users++
	l.mu.Unlock()
	state.Lock()
	return func() {
		state.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if state.users--; state.users == 0 {
			delete(l.held, key)
		}
	}
}
