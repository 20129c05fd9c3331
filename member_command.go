package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
	"k8s.io/client-go/rest"

	"orch/store"
)

func memberCommand() *cli.Command {
	flags := []cli.Flag{kubeconfigFlag()}
	return &cli.Command{
		Name:  "member",
		Usage: "look after the servers of the cluster",
		Subcommands: []*cli.Command{
			{Name: "list", Aliases: []string{"ls"}, Usage: "list the servers", Flags: flags, Action: listMembers},
			{Name: "remove", Aliases: []string{"rm"}, Usage: "take a server out of the cluster, for good", ArgsUsage: "NAME", Flags: flags, Action: removeMember},
			{Name: "promote", Usage: "give a learner its vote before it has caught up", ArgsUsage: "NAME", Flags: flags, Action: promoteMember},
		},
	}
}

func listMembers(c *cli.Context) error {
	data, err := askServer(c, http.MethodGet, "/v1-orch/members", nil)
	if err != nil {
		return err
	}
	var members []store.Member
	if err := json.Unmarshal(data, &members); err != nil {
		return fmt.Errorf("the server's answer: %w", err)
	}
	table := tabwriter.NewWriter(c.App.Writer, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tADDRESS\tROLE\tSTATE\tID")
	for _, m := range members {
		role, state := "learner", "unreachable"
		switch {
		case m.Leader:
			role = "leader"
		case m.Voter:
			role = "voter"
		}
		if m.Alive {
			state = "connected"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", m.Name, m.Address, role, state, m.ID)
	}
	return table.Flush()
}

func removeMember(c *cli.Context) error {
	return changeMember(c, http.MethodDelete, "", "removed")
}

func promoteMember(c *cli.Context) error {
	return changeMember(c, http.MethodPost, "/promote", "promoted")
}

func changeMember(c *cli.Context, method, action, done string) error {
	if c.NArg() != 1 {
		return fmt.Errorf("orch member %s: name one server (see orch member list)", c.Command.Name)
	}
	name := c.Args().First()
	if _, err := askServer(c, method, "/v1-orch/members/"+url.PathEscape(name)+action, nil); err != nil {
		return err
	}
	_, err := fmt.Fprintln(c.App.Writer, done, name)
	return err
}

// askServer puts a request of ours to the server that the kubeconfig names.
func askServer(c *cli.Context, method, path string, body io.Reader) ([]byte, error) {
	config, err := clusterConfig(c)
	if err != nil {
		return nil, err
	}
	return ask(c.Context, config, method, path, body)
}

func ask(ctx context.Context, config *rest.Config, method, path string, body io.Reader) ([]byte, error) {
	response, err := send(ctx, config, method, path, body)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}

// askLines is ask for an answer that comes line by line.
func askLines(ctx context.Context, config *rest.Config, method, path string, each func(line []byte) error) error {
	response, err := send(ctx, config, method, path, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return eachLine(response.Body, each)
}

// send gives the answer to a request that was not refused.
func send(ctx context.Context, config *rest.Config, method, path string, body io.Reader) (*http.Response, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(config.Host, "/")+path, body)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil || response.StatusCode == http.StatusOK {
		return response, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err == nil {
		err = errors.New(strings.TrimSpace(string(data)))
	}
	return nil, err
}
