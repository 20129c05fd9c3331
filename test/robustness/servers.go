package robustness

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"orch/test/cluster"
)

// serverFlags make a store do within seconds what else takes hours: flush, cut
// its log and forget, so that servers that were away are sent snapshots.
var serverFlags = []string{"--disable-agent", "--flush-delay", "500ms", "--log-bytes", "65536"}

// smallDisk is the size in megabytes of the one disk that is filled up.
const smallDisk = 48

// servers is three servers. The last one's disk is small.
type servers struct {
	network *cluster.Network
	all     []*cluster.Node
	token   string
}

// start brings the servers up; close takes down what there is of them, even
// after an error.
func (s *servers) start(ctx context.Context) error {
	var err error
	if s.network, err = cluster.NewNetwork(); err != nil {
		return err
	}
	for i := range 3 {
		var n *cluster.Node
		if i == 0 {
			n, err = s.network.NewNode(serverFlags...)
		} else {
			n, err = s.network.NewServer(s.all[0], serverFlags...)
		}
		if err != nil {
			return err
		}
		s.all = append(s.all, n)
		if i == 2 {
			if err := n.SmallDisk(smallDisk); err != nil {
				return err
			}
		}
		if err := n.Start(); err != nil {
			return err
		}
		if err := s.ready(ctx, n); err != nil {
			return err
		}
		token, err := os.ReadFile(filepath.Join(s.all[0].DataDir(), "server", "token"))
		if err != nil {
			return err
		}
		s.token = strings.TrimSpace(string(token))
	}
	return s.voting(ctx)
}

func (s *servers) close() error {
	var errs []error
	for _, n := range s.all {
		errs = append(errs, n.Close())
	}
	if s.network != nil {
		errs = append(errs, s.network.Close())
	}
	return errors.Join(errs...)
}

// healTimeout is how long servers may take to be well again when the faults are
// over; a loaded machine is slow.
const healTimeout = 60 * time.Second

const retry = 50 * time.Millisecond

// until repeats try until it succeeds.
func until(ctx context.Context, what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, healTimeout)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// ready waits until the server answers reads that need a leader.
func (s *servers) ready(ctx context.Context, n *cluster.Node) error {
	return until(ctx, n.Name+" is not ready", func(ctx context.Context) error {
		select {
		case <-n.Exited():
			return fmt.Errorf("it ended:\n%s", n.LogTail())
		default:
		}
		a, err := newAccess(n)
		if err != nil {
			return err
		}
		defer a.close()
		answer, status, err := a.do(ctx, http.MethodGet, mapsPath, nil)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, answer.Message)
		}
		return err
	})
}

// voting waits until all three have a vote.
func (s *servers) voting(ctx context.Context) error {
	return until(ctx, "there are no three servers with a vote", func(ctx context.Context) error {
		voters := 0
		all, err := s.members(ctx, s.all[0])
		for _, m := range all {
			if m.Voter && m.Alive {
				voters++
			}
		}
		if err == nil && (voters != 3 || len(all) != 3) {
			err = fmt.Errorf("%+v", all)
		}
		return err
	})
}

// member is a server as the others see it.
type member struct {
	Name   string `json:"name"`
	Voter  bool   `json:"voter"`
	Leader bool   `json:"leader"`
	Alive  bool   `json:"alive"`
}

const membersPath = "/v1-orch/members"

func (s *servers) members(ctx context.Context, at *cluster.Node) ([]member, error) {
	a, err := newAccess(at)
	if err != nil {
		return nil, err
	}
	defer a.close()
	var all []member
	return all, a.ask(ctx, http.MethodGet, membersPath, &all)
}

// leader asks the others than those that are not well; nil: nobody knows.
func (s *servers) leader(ctx context.Context, well []*cluster.Node) *cluster.Node {
	for _, at := range well {
		short, cancel := context.WithTimeout(ctx, time.Second)
		all, err := s.members(short, at)
		cancel()
		if err != nil {
			continue
		}
		for _, m := range all {
			if i := slices.IndexFunc(s.all, func(n *cluster.Node) bool { return n.Name == m.Name }); i >= 0 && m.Leader {
				return s.all[i]
			}
		}
	}
	return nil
}

// replace takes a server out of the cluster and lets it join anew without data,
// as when its machine is replaced. A server that could not be removed goes on.
func (s *servers) replace(ctx context.Context, n *cluster.Node) error {
	removed := false
	for _, at := range s.others(n) {
		a, err := newAccess(at)
		if err != nil {
			return err
		}
		err = a.ask(ctx, http.MethodDelete, membersPath+"/"+n.Name, nil)
		a.close()
		// An earlier attempt without an answer may have succeeded.
		if removed = err == nil || errors.Is(err, errNotFound); removed {
			break
		}
	}
	if err := n.Kill(); err != nil {
		return err
	}
	if !removed {
		return n.Start()
	}
	return s.anew(ctx, n)
}

func (s *servers) others(than *cluster.Node) (others []*cluster.Node) {
	for _, n := range s.all {
		if n != than {
			others = append(others, n)
		}
	}
	return others
}

// anew starts a removed server without its data.
func (s *servers) anew(ctx context.Context, n *cluster.Node) error {
	if err := n.Wipe(); err != nil {
		return err
	}
	via := s.leader(ctx, s.others(n))
	if via == nil || via == n {
		via = s.others(n)[0]
	}
	if at := slices.Index(n.Args, "--join"); at >= 0 {
		n.Args[at+1] = "https://" + via.IP + ":6443"
	} else {
		n.Args = append(n.Args, "--join", "https://"+via.IP+":6443", "--token", s.token)
	}
	return n.Start()
}
