package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"orch/server"
	"orch/server/backup"
)

func snapshotCommand() *cli.Command {
	return &cli.Command{
		Name:  "snapshot",
		Usage: "save the whole cluster's state, and bring it back",
		Subcommands: []*cli.Command{
			{
				Name: "save", Usage: "save a snapshot on the server that the kubeconfig names", Action: saveSnapshot,
				Flags: []cli.Flag{kubeconfigFlag(), stringFlag("name", "", "`name` of the snapshot (default: the time)")},
			},
			{Name: "list", Aliases: []string{"ls"}, Usage: "list the snapshots on this machine", Flags: []cli.Flag{dataDirFlag()}, Action: listSnapshots},
			{Name: "delete", Aliases: []string{"rm"}, Usage: "delete snapshots on this machine", ArgsUsage: "NAME...", Flags: []cli.Flag{dataDirFlag()}, Action: deleteSnapshots},
			{
				Name: "restore", Usage: "replace the state of this machine's stopped server, which is the only one then",
				ArgsUsage: "NAME|PATH", Action: restoreSnapshot,
				Flags: serverFlags(),
			},
		},
	}
}

func saveSnapshot(c *cli.Context) error {
	path := "/v1-orch/snapshots?name=" + url.QueryEscape(c.String("name"))
	data, err := askServer(c, http.MethodPost, path, nil)
	if err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	var info backup.Info
	if err := json.Unmarshal(data, &info); err != nil {
		return fmt.Errorf("the server's answer: %w", err)
	}
	_, err = fmt.Fprintf(c.App.Writer, "saved %s: %s, %d bytes, revision %d\n", info.Name, info.Path, info.Size, info.Revision)
	return err
}

func listSnapshots(c *cli.Context) error {
	list, err := backup.List(server.SnapshotDir(c.String("data-dir")))
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(c.App.Writer, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tCREATED\tBYTES\tFILE")
	for _, info := range list {
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\n", info.Name, info.Created.UTC().Format(time.RFC3339), info.Size, info.Path)
	}
	return table.Flush()
}

func deleteSnapshots(c *cli.Context) error {
	if c.NArg() == 0 {
		return errors.New("orch snapshot delete: name at least one snapshot (see orch snapshot list)")
	}
	for _, name := range c.Args().Slice() {
		if err := backup.Delete(server.SnapshotDir(c.String("data-dir")), name); err != nil {
			return fmt.Errorf("delete snapshot: %w", err)
		}
		fmt.Fprintln(c.App.Writer, "deleted", name)
	}
	return nil
}

func restoreSnapshot(c *cli.Context) error {
	if c.NArg() != 1 {
		return errors.New("orch snapshot restore: name one snapshot (see orch snapshot list)")
	}
	node, err := nodeConfig(c)
	if err != nil {
		return err
	}
	cfg, err := serverConfig(c, node)
	if err != nil {
		return err
	}
	if err := server.Recover(c.Context, cfg, c.Args().First()); err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.App.Writer, "restored; start the server again, and then the others, which join by themselves")
	return err
}
