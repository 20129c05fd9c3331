package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"orch/runtime"
)

func imagesCommand() *cli.Command {
	flags := []cli.Flag{
		dataDirFlag(),
		stringFlag("container-runtime-endpoint", "", "CRI `socket` of another container runtime (default: the embedded containerd)"),
	}
	return &cli.Command{
		Name:  "images",
		Usage: "look after the container images of this node",
		Subcommands: []*cli.Command{
			{Name: "import", Usage: "take in the images of docker or OCI archives (- reads standard input)", ArgsUsage: "ARCHIVE...", Flags: flags, Action: withImages(importImages)},
			{Name: "check", Usage: "read archives to their end, without importing them", ArgsUsage: "ARCHIVE...", Action: checkArchives},
			{Name: "list", Aliases: []string{"ls"}, Usage: "list the images of this node", Flags: flags, Action: withImages(listImages)},
			{Name: "pull", Usage: "fetch images from their registry", ArgsUsage: "IMAGE...", Flags: flags, Action: withImages(pullImages)},
			{Name: "remove", Aliases: []string{"rm"}, Usage: "remove images with all their names; one whose archive is in the images folder comes back at the next start", ArgsUsage: "IMAGE...", Flags: flags, Action: withImages(removeImages)},
		},
	}
}

// withImages opens the images of this node for an action.
func withImages(action func(*cli.Context, *runtime.ImageStore) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		dir, err := filepath.Abs(c.String("data-dir"))
		if err != nil {
			return fmt.Errorf("--data-dir: %w", err)
		}
		images, err := runtime.OpenImages(dir, c.String("container-runtime-endpoint"))
		if err != nil {
			return fmt.Errorf("--data-dir %s: %w", dir, err)
		}
		defer images.Close()
		return action(c, images)
	}
}

func needArguments(c *cli.Context, what string) error {
	if c.NArg() == 0 {
		return fmt.Errorf("orch images %s: name at least one %s", c.Command.Name, what)
	}
	return nil
}

func checkArchives(c *cli.Context) error {
	if err := needArguments(c, "archive"); err != nil {
		return err
	}
	for _, path := range c.Args().Slice() {
		if err := runtime.CheckArchive(path); err != nil {
			return err
		}
	}
	return nil
}

func importImages(c *cli.Context, images *runtime.ImageStore) error {
	if err := needArguments(c, "archive, or - for standard input"); err != nil {
		return err
	}
	for _, path := range c.Args().Slice() {
		if err := importImage(c, images, path); err != nil {
			return err
		}
	}
	return nil
}

func importImage(c *cli.Context, images *runtime.ImageStore, path string) error {
	in, size := os.Stdin, int64(0)
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("import archive: %w", err)
		}
		defer file.Close()
		if info, err := file.Stat(); err == nil {
			size = info.Size()
		}
		in = file
	}
	names, err := images.Import(c.Context, &progressReader{Reader: in, out: c.App.ErrWriter, what: path, size: size, last: time.Now()})
	if err != nil {
		return fmt.Errorf("import %s: %w", path, err)
	}
	for _, name := range names {
		fmt.Fprintln(c.App.Writer, "imported", name)
	}
	return nil
}

// progressEvery is the pause between two lines of progress; work that is done
// sooner prints none.
const progressEvery = 2 * time.Second

// progressReader tells how much of a long archive was read.
type progressReader struct {
	io.Reader
	out        io.Writer
	what       string
	read, size int64 // bytes; size is 0 when unknown
	last       time.Time
}

func (p *progressReader) Read(buffer []byte) (int, error) {
	n, err := p.Reader.Read(buffer)
	p.read += int64(n)
	if now := time.Now(); now.Sub(p.last) >= progressEvery {
		p.last = now
		of := ""
		if p.size > 0 {
			of = fmt.Sprintf(" of %d MiB", p.size>>20)
		}
		fmt.Fprintf(p.out, "%s: %d MiB%s read\n", p.what, p.read>>20, of)
	}
	return n, err
}

func pullImages(c *cli.Context, images *runtime.ImageStore) error {
	if err := needArguments(c, "image"); err != nil {
		return err
	}
	for _, name := range c.Args().Slice() {
		var ref string
		err := withProgress(c.Context, c.App.ErrWriter, "pulling "+name, func() (err error) {
			ref, err = images.Pull(c.Context, name)
			return err
		})
		if err != nil {
			return err
		}
		fmt.Fprintln(c.App.Writer, "pulled", name, ref)
	}
	return nil
}

// withProgress says at first and then from time to time that work goes on. The
// CRI tells nothing about how far a pull is.
func withProgress(ctx context.Context, out io.Writer, what string, work func() error) error {
	fmt.Fprintln(out, what)
	ctx, done := context.WithCancel(ctx)
	start := time.Now()
	var telling sync.WaitGroup
	telling.Go(func() {
		ticker := time.NewTicker(5 * progressEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				fmt.Fprintf(out, "%s: %s so far\n", what, time.Since(start).Round(time.Second))
			}
		}
	})
	defer telling.Wait()
	defer done()
	return work()
}

func listImages(c *cli.Context, images *runtime.ImageStore) error {
	list, err := images.List(c.Context)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(c.App.Writer, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "IMAGE\tID\tSIZE")
	for _, image := range list {
		names := image.RepoTags
		if len(names) == 0 {
			names = image.RepoDigests
		}
		if len(names) == 0 {
			names = []string{"<none>"}
		}
		_, id, _ := strings.Cut(image.Id, ":")
		for _, name := range names {
			fmt.Fprintf(table, "%s\t%.12s\t%.1f MB\n", name, id, float64(image.Size)/1e6)
		}
	}
	return table.Flush()
}

func removeImages(c *cli.Context, images *runtime.ImageStore) error {
	if err := needArguments(c, "image"); err != nil {
		return err
	}
	for _, name := range c.Args().Slice() {
		names, err := images.Remove(c.Context, name)
		if err != nil {
			return err
		}
		for _, removed := range names {
			fmt.Fprintln(c.App.Writer, "removed", removed)
		}
		if archive := images.Archive(names); archive != "" {
			fmt.Fprintf(c.App.ErrWriter, "%s brings it back at the next start: take the archive away to be rid of it\n", archive)
		}
	}
	return nil
}
