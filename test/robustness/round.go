package robustness

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// round is one stretch of calls and faults with keys of its own, checked before
// the next, so that a long run takes no more memory than a short one.
type round struct {
	number  int
	seed    uint64
	lasting time.Duration
	servers *servers
	nemesis *nemesis
}

const (
	keysOfRound      = 8
	clientsPerServer = 2
	pauseOfClient    = 25 * time.Millisecond
	// settleTime before and after the faults: clients and watches get going, and
	// use the mended cluster.
	settleTime = time.Second
)

// play makes the round's history.
func (p *round) play(ctx context.Context) (*history, error) {
	keys := make([]string, keysOfRound)
	for i := range keys {
		keys[i] = fmt.Sprintf("r%d-%d", p.number, i)
	}
	r := newRecorder(keys)
	first, err := newAccess(p.servers.all[0])
	if err != nil {
		return nil, err
	}
	defer first.close()
	before, err := first.listing(ctx, r, 1)
	if err != nil {
		return nil, err
	}
	r.h.Base = before.Revision

	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	var watches errgroup.Group
	watchers, err := p.watchers(r)
	if err != nil {
		return nil, err
	}
	for _, w := range watchers {
		watches.Go(func() error { return w.run(watching) })
	}
	watches.Go(func() error {
		return resume(watching, p.servers.all, r, rand.New(rand.NewPCG(p.seed, 2)))
	})
	err = p.calls(ctx, r)
	if err == nil {
		err = p.finish(ctx, r, watchers)
	}
	stopWatching()
	err = errors.Join(err, watches.Wait())
	r.mu.Lock()
	defer r.mu.Unlock()
	return &r.h, err
}

func (p *round) watchers(r *recorder) ([]*watcher, error) {
	var all []*watcher
	for _, n := range p.servers.all {
		w, err := newWatcher(n, r, r.h.Base)
		if err != nil {
			return nil, err
		}
		all = append(all, w)
	}
	return all, nil
}

// calls lets clients and the nemesis loose, and the clients go on a little after
// the faults are over.
func (p *round) calls(ctx context.Context, r *recorder) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	for i := range clientsPerServer * len(p.servers.all) {
		c, err := newClient(i, p.servers.all[i%len(p.servers.all)], r, p.seed)
		if err != nil {
			return err
		}
		group.Go(func() error { return c.run(ctx, pauseOfClient) })
	}
	group.Go(func() error {
		defer stop()
		pause(ctx, settleTime)
		harm, end := context.WithTimeout(ctx, p.lasting)
		defer end()
		if err := p.nemesis.run(harm); err != nil {
			return err
		}
		err := p.nemesis.recover(context.WithoutCancel(ctx))
		pause(ctx, settleTime)
		return err
	})
	return group.Wait()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// finish makes one last write, reads all at each server, and waits until each
// watch has told of everything.
func (p *round) finish(ctx context.Context, r *recorder, watchers []*watcher) error {
	var last int64
	for i, n := range p.servers.all {
		a, err := newAccess(n)
		if err != nil {
			return err
		}
		defer a.close()
		if i == 0 {
			if last, err = a.mark(ctx, r); err != nil {
				return err
			}
		}
		l, err := a.listing(ctx, r, 1)
		if err != nil {
			return err
		}
		r.h.Final = append(r.h.Final, l)
	}
	ctx, cancel := context.WithTimeout(ctx, healTimeout)
	defer cancel()
	for _, w := range watchers {
		if err := w.await(ctx, last); err != nil {
			return err
		}
	}
	return nil
}

// mark writes an object that is not among the keys, for watches to be seen to
// get there, and gives its revision.
func (a *access) mark(ctx context.Context, r *recorder) (int64, error) {
	name := fmt.Sprintf("%s-end", r.h.Keys[0])
	answer, status, err := a.do(ctx, http.MethodPost, mapsPath, configMap{APIVersion: "v1", Kind: "ConfigMap", Metadata: metadata{Name: name}})
	if err == nil && status != http.StatusCreated {
		err = fmt.Errorf("the last write: %d %s", status, answer.Message)
	}
	if err != nil {
		return 0, err
	}
	return answer.revision(), nil
}
