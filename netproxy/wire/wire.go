// Package wire is what the CNI executable and the agent say to each other over the agent's CNI socket.
//
// It imports nothing but the standard library, because the executable starts
// once for every pod that comes or goes and must start fast.
package wire

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Versions of the CNI specification the plugin speaks.
var Versions = []string{"1.0.0", "1.1.0"}

// Error codes of the CNI specification; codes from 100 on are a plugin's own.
const (
	CodeUnknownContainer = 3
	CodeInvalidEnv       = 4
	CodeDecode           = 6
	CodeTryAgain         = 11
	CodeInternal         = 100
)

// Request is one CNI invocation: its environment and its standard input.
// One request and one answer, each a JSON document, travel per connection.
type Request struct {
	Command     string          `json:"command"`
	ContainerID string          `json:"containerID,omitempty"`
	NetNS       string          `json:"netns,omitempty"`
	IfName      string          `json:"ifName,omitempty"`
	Args        string          `json:"args,omitempty"`
	Config      json.RawMessage `json:"config"`
}

// Response carries a result (null for commands without one) or an error.
type Response struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// Error is the error document of the CNI specification, section 5.
type Error struct {
	CNIVersion string `json:"cniVersion"`
	Code       uint   `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// Config is the part of the network configuration that either side reads.
type Config struct {
	CNIVersion    string `json:"cniVersion"`
	Name          string `json:"name"`
	Type          string `json:"type"`
	Socket        string `json:"socket"`
	RuntimeConfig struct {
		PortMappings []PortMapping `json:"portMappings"`
	} `json:"runtimeConfig"`
	// ValidAttachments is set by the runtime for GC alone.
	ValidAttachments []Attachment `json:"cni.dev/valid-attachments"`
}

// PortMapping is an entry of the portMappings capability.
type PortMapping struct {
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// Attachment names an interface that the runtime still wants.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// socketPathMax is the longest path that fits into sockaddr_un, without its final zero.
const socketPathMax = 107

// Dial connects to the agent's socket.
func Dial(path string, timeout time.Duration) (net.Conn, error) {
	name, done, err := shorten(path)
	if err != nil {
		return nil, err
	}
	defer done()
	return net.DialTimeout("unix", name, timeout)
}

// Listen opens the agent's socket, readable by root alone, in place of any
// older one.
func Listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	name, done, err := shorten(path)
	if err != nil {
		return nil, err
	}
	defer done()
	listener, err := net.Listen("unix", name)
	if err != nil {
		return nil, err
	}
	// The next start removes the file; unlinking here by a shortened name would fail.
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	return listener, os.Chmod(path, 0o600)
}

// shorten returns a name for path that fits into sockaddr_un, valid until done
// is called: long data directories are legal, long socket addresses are not.
func shorten(path string) (name string, done func(), err error) {
	if len(path) <= socketPathMax {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	name = "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + filepath.Base(path)
	return name, func() { dir.Close() }, nil
}
