package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"syscall"

	"github.com/urfave/cli/v2"

	"orch/server/join"
)

func rotateTokens(c *cli.Context) error {
	only := c.String("only")
	if only != "" && only != "server" && only != "agent" {
		return fmt.Errorf("--only %q: use server or agent", only)
	}
	request := join.RotateRequest{
		Server: only != "agent", Agent: only != "server", Grace: c.Duration("grace"),
		ServerSecret: c.String("new-token"), AgentSecret: c.String("new-agent-token"),
	}
	if !request.Server && request.ServerSecret != "" || !request.Agent && request.AgentSecret != "" {
		return fmt.Errorf("--only %s: leaves the other token as it is, and a new one was given for that", only)
	}
	if err := request.Validate(); err != nil {
		return err
	}
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	data, err := askServer(c, http.MethodPost, "/v1-orch/tokens/rotate", bytes.NewReader(body))
	var lost *url.Error // no answer came
	if errors.As(err, &lost) && !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("rotate tokens: %w (%s)", err, join.InForce)
	}
	if err != nil {
		return fmt.Errorf("rotate tokens: %w", err)
	}
	var answer join.RotateAnswer
	if err := json.Unmarshal(data, &answer); err != nil {
		return fmt.Errorf("the server's answer: %w", err)
	}
	if answer.Warning != "" {
		fmt.Fprintln(c.App.ErrWriter, "warning:", answer.Warning)
	}
	if request.Server {
		fmt.Fprintln(c.App.Writer, "server:", answer.Server)
	}
	if request.Agent {
		fmt.Fprintln(c.App.Writer, "agent: ", answer.Agent)
	}
	return nil
}
