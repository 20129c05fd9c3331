package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"

	"orch/server"
	"orch/server/backup"
)

func snapshotCommand() *cli.Command {
	return &cli.Command{
		Name:  "snapshot",
		Usage: "save the whole cluster's state, and bring it back",
		Description: "A snapshot holds everything that the API knows and the cluster's keys: whoever can read it owns the cluster.\n" +
			"Servers take snapshots by themselves, see --snapshot-interval of orch server.",
		Subcommands: []*cli.Command{
			{
				Name: "save", Usage: "save a snapshot on the server that the kubeconfig names, and in S3 if that server is set up so", Action: saveSnapshot,
				Flags: []cli.Flag{kubeconfigFlag(), stringFlag("name", "", "`name` of the snapshot (default: the time)")},
			},
			{Name: "list", Aliases: []string{"ls"}, Usage: "list the snapshots on this machine and in S3", Flags: snapshotPlaceFlags(), Action: listSnapshots},
			{Name: "delete", Aliases: []string{"rm"}, Usage: "delete snapshots on this machine and in S3", ArgsUsage: "NAME...", Flags: snapshotPlaceFlags(), Action: deleteSnapshots},
			{
				Name: "restore", Usage: "replace the state of this machine's stopped server, which is the only one then",
				Description: "The snapshot is taken from this machine, or else from S3. What was before is kept beside it.\n" +
					"Give the flags that the server runs with; the config file is read. `orch server --recover --from NAME` restores and goes on as server.",
				ArgsUsage: "NAME|PATH", Action: restoreSnapshot,
				Flags: serverFlags(),
			},
		},
	}
}

func saveSnapshot(c *cli.Context) error {
	path := "/v1-orch/snapshots?name=" + url.QueryEscape(c.String("name"))
	config, err := clusterConfig(c)
	if err != nil {
		return err
	}
	var last server.SnapshotAnswer
	err = askLines(c.Context, config, http.MethodPost, path, func(line []byte) error {
		last = server.SnapshotAnswer{}
		if err := json.Unmarshal(line, &last); err != nil {
			return fmt.Errorf("the server's answer: %w", err)
		}
		if last.Total > 0 {
			fmt.Fprintf(c.App.ErrWriter, "%s of %s\n", humanize.IBytes(uint64(last.Done)), humanize.IBytes(uint64(last.Total)))
		}
		return nil
	})
	switch {
	case err != nil:
		return fmt.Errorf("save snapshot: %w", err)
	case last.Info == nil && last.Error == "":
		return errors.New("save snapshot: the server went away before it was done")
	case last.Info == nil:
		return fmt.Errorf("save snapshot: %s", last.Error)
	}
	if last.Behind != "" {
		fmt.Fprintln(c.App.ErrWriter, "warning: the newest writes may be missing:", last.Behind)
	}
	info := last.Info
	if _, err := fmt.Fprintf(c.App.Writer, "saved %s: %s, %d bytes, revision %d\n", info.Name, info.Path, info.Size, info.Revision); err != nil {
		return err
	}
	if last.Error != "" {
		return fmt.Errorf("saved on the server, which goes on trying to upload it: %s", last.Error)
	}
	return nil
}

// eachLine calls fn for the lines of r.
func eachLine(r io.Reader, fn func(line []byte) error) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if err := fn(lines.Bytes()); err != nil {
			return err
		}
	}
	return lines.Err()
}

func listSnapshots(c *cli.Context) error {
	dataDir, bucket, err := snapshotPlaces(c)
	if err != nil {
		return err
	}
	list, err := backup.List(server.SnapshotDir(dataDir))
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(info backup.Info) bool {
		err := backup.Verify(info.Path)
		if err != nil {
			fmt.Fprintf(c.App.ErrWriter, "warning: %v (orch snapshot delete %s)\n", err, info.Name)
		}
		return err != nil
	})
	var remoteErr error
	if bucket != nil {
		var remote []backup.Info
		remote, remoteErr = bucket.List(c.Context)
		list = append(list, remote...)
	}
	table := tabwriter.NewWriter(c.App.Writer, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tCREATED\tBYTES\tWHERE")
	for _, info := range list {
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\n", info.Name, info.Created.UTC().Format(time.RFC3339), info.Size, info.Path)
	}
	return errors.Join(table.Flush(), remoteErr)
}

func deleteSnapshots(c *cli.Context) error {
	if c.NArg() == 0 {
		return errors.New("orch snapshot delete: name at least one snapshot (see orch snapshot list)")
	}
	dataDir, bucket, err := snapshotPlaces(c)
	if err != nil {
		return err
	}
	for _, name := range c.Args().Slice() {
		err := backup.Delete(server.SnapshotDir(dataDir), name)
		if bucket != nil && (err == nil || errors.Is(err, backup.ErrNotFound)) {
			here := err == nil
			if err = bucket.Delete(c.Context, name); here && errors.Is(err, backup.ErrNotFound) {
				err = nil // it was here only
			}
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(c.App.Writer, "deleted", name)
	}
	return nil
}

func restoreSnapshot(c *cli.Context) error {
	if c.NArg() != 1 || c.Args().First() == "" { // a recovery from "" is from the server's own files
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
	if err := cfg.Validate(); err != nil {
		return err
	}
	if err := server.Recover(c.Context, cfg, server.Recovery{From: c.Args().First(), S3: cfg.SnapshotS3}); err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.App.Writer, "restored; start the server again, and then the others, which join by themselves")
	return err
}
