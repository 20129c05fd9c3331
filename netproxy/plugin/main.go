// Package main is orch-cni, the CNI executable: a client that hands every call to the agent of this node.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"orch/netproxy/wire"
)

const (
	dialTimeout = 2 * time.Second
	// answerTimeout is below the two minutes a container runtime commonly grants
	// a sandbox call, so that the caller learns the cause.
	answerTimeout = 60 * time.Second
	configMax     = 1 << 20
)

func main() {
	os.Exit(run(os.Stdin, os.Stdout))
}

// run does one invocation and returns the exit status.
func run(stdin io.Reader, stdout io.Writer) int {
	request := wire.Request{
		Command:     os.Getenv("CNI_COMMAND"),
		ContainerID: os.Getenv("CNI_CONTAINERID"),
		NetNS:       os.Getenv("CNI_NETNS"),
		IfName:      os.Getenv("CNI_IFNAME"),
		Args:        os.Getenv("CNI_ARGS"),
	}
	config, err := readConfig(stdin)
	if err != nil {
		return fail(stdout, config.CNIVersion, &wire.Error{Code: wire.CodeDecode, Msg: "decode network configuration", Details: err.Error()})
	}
	request.Config = config.raw
	if request.Command == "VERSION" {
		return version(stdout, config.CNIVersion)
	}
	response, err := ask(config.Socket, &request)
	if err != nil {
		return fail(stdout, config.CNIVersion, unreachable(config.Socket, err))
	}
	if response.Error != nil {
		return fail(stdout, config.CNIVersion, response.Error)
	}
	if len(response.Result) > 0 {
		_, _ = stdout.Write(append(response.Result, '\n'))
	}
	return 0
}

type config struct {
	wire.Config
	raw json.RawMessage
}

func readConfig(stdin io.Reader) (config, error) {
	var c config
	raw, err := io.ReadAll(io.LimitReader(stdin, configMax))
	if err != nil {
		return c, err
	}
	c.raw = raw
	return c, json.Unmarshal(raw, &c.Config)
}

func version(stdout io.Writer, cniVersion string) int {
	if cniVersion == "" {
		cniVersion = wire.Versions[0]
	}
	_ = json.NewEncoder(stdout).Encode(map[string]any{"cniVersion": cniVersion, "supportedVersions": wire.Versions})
	return 0
}

// ask sends the request and waits for the answer.
func ask(socket string, request *wire.Request) (*wire.Response, error) {
	if socket == "" {
		return nil, errors.New("the network configuration has no \"socket\"")
	}
	conn, err := wire.Dial(socket, dialTimeout)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return nil, err
	}
	if err := json.NewEncoder(conn).Encode(request); err != nil {
		return nil, fmt.Errorf("send: %w", err)
	}
	var response wire.Response
	if err := json.NewDecoder(conn).Decode(&response); err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	return &response, nil
}

// unreachable words a failure to talk to the agent. It is the specification's
// "try again later": the runtime keeps the sandbox and repeats the call, and
// the agent collects at its next start what was missed meanwhile.
func unreachable(socket string, err error) *wire.Error {
	msg := "the orch agent does not answer on " + socket
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		msg = "the orch agent is not running (" + socket + "); the call will succeed once it is started again"
	}
	return &wire.Error{Code: wire.CodeTryAgain, Msg: msg, Details: err.Error()}
}

func fail(stdout io.Writer, cniVersion string, e *wire.Error) int {
	if e.CNIVersion == "" {
		e.CNIVersion = cniVersion
	}
	if e.CNIVersion == "" {
		e.CNIVersion = wire.Versions[0]
	}
	_ = json.NewEncoder(stdout).Encode(e)
	return 1
}
