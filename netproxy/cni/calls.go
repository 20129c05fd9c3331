package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"orch/netproxy/wire"
)

// Result is the success document of ADD (CNI specification, section 5).
type Result struct {
	CNIVersion string      `json:"cniVersion"`
	Interfaces []Interface `json:"interfaces"`
	IPs        []IP        `json:"ips"`
	Routes     []Route     `json:"routes"`
	DNS        struct{}    `json:"dns"`
}

// Interface is a link of a Result.
type Interface struct {
	Name    string `json:"name"`
	Mac     string `json:"mac"`
	Sandbox string `json:"sandbox,omitempty"`
}

// IP is an address of a Result; Interface is the index of its link.
type IP struct {
	Interface int    `json:"interface"`
	Address   string `json:"address"`
	Gateway   string `json:"gateway"`
}

// Route is a route of a Result.
type Route struct {
	Dst string `json:"dst"`
	GW  string `json:"gw"`
}

// Container ids name files, so only what the specification allows passes.
var containerID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`)

const interfaceNameMax = 15

// Handle does one CNI call. The result is nil for commands without one.
func (s *Server) Handle(ctx context.Context, request *wire.Request) (any, error) {
	var config wire.Config
	if err := json.Unmarshal(request.Config, &config); err != nil {
		return nil, &wire.Error{Code: wire.CodeDecode, Msg: "decode network configuration", Details: err.Error()}
	}
	if !slices.Contains(wire.Versions, config.CNIVersion) {
		return nil, &wire.Error{Code: 1, Msg: fmt.Sprintf("CNI version %q is not supported", config.CNIVersion),
			Details: "supported: " + strings.Join(wire.Versions, ", ")}
	}
	switch request.Command {
	case "STATUS":
		return nil, nil
	case "GC":
		return nil, s.collect(config.ValidAttachments)
	}
	if err := checkNames(request); err != nil {
		return nil, err
	}
	defer s.busy.lock(request.ContainerID)()
	switch request.Command {
	case "ADD":
		rec, err := s.add(ctx, request, &config)
		if err != nil {
			return nil, err
		}
		return s.result(config.CNIVersion, rec), nil
	case "DEL":
		return nil, s.remove(request.ContainerID)
	case "CHECK":
		return nil, s.check(request)
	}
	return nil, &wire.Error{Code: wire.CodeInvalidEnv, Msg: fmt.Sprintf("unknown CNI_COMMAND %q", request.Command)}
}

func checkNames(request *wire.Request) error {
	if !containerID.MatchString(request.ContainerID) || len(request.ContainerID) > 200 {
		return &wire.Error{Code: wire.CodeInvalidEnv, Msg: fmt.Sprintf("invalid CNI_CONTAINERID %q", request.ContainerID)}
	}
	if request.IfName == "" || len(request.IfName) > interfaceNameMax || strings.ContainsAny(request.IfName, "/: \t\n\x00") {
		return &wire.Error{Code: wire.CodeInvalidEnv, Msg: fmt.Sprintf("invalid CNI_IFNAME %q", request.IfName)}
	}
	if request.Command == "ADD" && request.NetNS == "" {
		return &wire.Error{Code: wire.CodeInvalidEnv, Msg: "CNI_NETNS is empty"}
	}
	return nil
}

// add attaches a sandbox. The record is written before the first effect, so
// that a crash at any point leaves nothing that DEL or the next start does not
// find; a repeated ADD begins anew with the same address.
func (s *Server) add(ctx context.Context, request *wire.Request, config *wire.Config) (*record, error) {
	rec := &record{
		ID: request.ContainerID, NetNS: request.NetNS, IfName: request.IfName,
		HostLink: hostLinkName(request.ContainerID, request.IfName),
		Pod:      podOf(request.Args), Ports: config.RuntimeConfig.PortMappings,
	}
	if err := s.reserve(rec); err != nil {
		return nil, err
	}
	err := s.records.save(rec)
	if err == nil {
		err = detach(rec.HostLink)
	}
	if err == nil {
		err = s.wiring.attach(rec)
	}
	if err == nil {
		err = s.cfg.HostPorts.Publish(ctx, rec.ID, rec.Addr, rec.Ports)
	}
	if err != nil {
		return nil, errors.Join(err, s.remove(rec.ID))
	}
	return rec, nil
}

// reserve gives rec an address: the one it has, or the next.
func (s *Server) reserve(rec *record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.sandboxes[rec.ID]; old != nil {
		rec.Addr = old.Addr
	} else {
		addr, err := s.pool.allocate(rec.ID)
		if err != nil {
			return &wire.Error{Code: wire.CodeTryAgain, Msg: err.Error(), Details: s.pool.prefix.String()}
		}
		rec.Addr = addr
		s.records.saveLast(addr)
	}
	s.sandboxes[rec.ID] = rec
	return nil
}

// remove detaches a sandbox and frees its address; unknown sandboxes are fine.
// The record goes last, so that an interrupted removal is repeated.
func (s *Server) remove(id string) error {
	s.mu.Lock()
	rec := s.sandboxes[id]
	s.mu.Unlock()
	if rec == nil {
		return nil
	}
	s.cfg.HostPorts.Withdraw(id)
	if err := detach(rec.HostLink); err != nil {
		return err
	}
	if err := s.records.remove(id); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sandboxes, id)
	s.pool.release(rec.Addr, id)
	return nil
}

func (s *Server) check(request *wire.Request) error {
	s.mu.Lock()
	rec := s.sandboxes[request.ContainerID]
	s.mu.Unlock()
	if rec == nil {
		return &wire.Error{Code: wire.CodeUnknownContainer, Msg: "the container is not attached"}
	}
	names, err := hostLinks()
	if err != nil {
		return err
	}
	if !slices.Contains(names, rec.HostLink) {
		return &wire.Error{Code: wire.CodeInternal, Msg: "the container's link " + rec.HostLink + " is gone"}
	}
	return nil
}

// collect removes every sandbox the runtime no longer names.
func (s *Server) collect(valid []wire.Attachment) error {
	keep := make(map[string]bool)
	for _, attachment := range valid {
		keep[attachment.ContainerID] = true
	}
	return s.Collect(keep)
}

// Collect removes every sandbox whose id is not in live.
func (s *Server) Collect(live map[string]bool) error {
	s.mu.Lock()
	var stale []string
	for id := range s.sandboxes {
		if !live[id] {
			stale = append(stale, id)
		}
	}
	s.mu.Unlock()
	for _, id := range stale {
		unlock := s.busy.lock(id)
		err := s.remove(id)
		unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) result(version string, rec *record) *Result {
	gateway := s.wiring.gateway.String()
	return &Result{
		CNIVersion: version,
		Interfaces: []Interface{
			{Name: rec.HostLink, Mac: hostMAC.String()},
			{Name: rec.IfName, Mac: podMAC(rec.Addr).String(), Sandbox: rec.NetNS},
		},
		IPs:    []IP{{Interface: 1, Address: netip.PrefixFrom(rec.Addr, rec.Addr.BitLen()).String(), Gateway: gateway}},
		Routes: []Route{{Dst: "0.0.0.0/0", GW: gateway}},
	}
}

// podOf reads namespace/name from CNI_ARGS, where Kubernetes runtimes put it.
func podOf(args string) string {
	var namespace, name string
	for pair := range strings.SplitSeq(args, ";") {
		key, value, _ := strings.Cut(pair, "=")
		switch key {
		case "K8S_POD_NAMESPACE":
			namespace = value
		case "K8S_POD_NAME":
			name = value
		}
	}
	return namespace + "/" + name
}
