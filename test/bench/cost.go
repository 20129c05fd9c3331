package main

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"orch/test/cluster"
)

// profiler keeps profiles of a server when those are wanted.
type profiler struct {
	folder string // "": none are wanted
	prefix string // of the files' names
	from   *client
}

// keep writes the profile what, such as "heap", to a file.
func (p profiler) keep(ctx context.Context, name, what string) error {
	if p.folder == "" {
		return nil
	}
	answer, err := p.from.open(ctx, http.MethodGet, "/debug/pprof/"+what, "*/*", "", nil)
	if err != nil {
		return err
	}
	defer answer.Close()
	out, err := os.Create(filepath.Join(p.folder, p.prefix+name+".pprof"))
	if err != nil {
		return err
	}
	defer out.Close()
	_, err = out.ReadFrom(answer)
	return err
}

// cost runs load, which makes count calls, and gives the processor's time that
// each of them took the server. Other work on the machine changes that less
// than it does the rate.
func (b *bench) cost(ctx context.Context, node *cluster.Node, from *client, name string, count int, load func() error) (time.Duration, error) {
	before, err := measureProcess(node.PID())
	if err != nil {
		return 0, err
	}
	profiles := profiler{b.profiles, name, from}
	var profiling errgroup.Group
	profiling.Go(func() error { return profiles.keep(ctx, ".cpu", "profile?seconds=5") })
	err = load()
	after, failed := measureProcess(node.PID())
	err = errors.Join(err, failed, profiling.Wait(), profiles.keep(ctx, ".heap", "heap"))
	return (after.cpu - before.cpu) / time.Duration(count), err
}
