package probe

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Run probes at the probe's pace until ctx ends or report wants no more. since
// is when the container started: the initial delay counts from there. report
// gets every verdict that crossed its threshold, and only then; heard gets
// every answer that was not a plain success.
func Run(ctx context.Context, p *corev1.Probe, t Target, since time.Time, heard func(Answer), report func(ok bool) (more bool)) {
	period := time.Duration(max(p.PeriodSeconds, 1)) * time.Second
	// A container that started long ago is one that we have adopted.
	delay := time.Until(since.Add(time.Duration(p.InitialDelaySeconds) * time.Second))
	timer := time.NewTimer(max(0, delay))
	defer timer.Stop()
	tally := newTally(p)
	soon := newImpatience(period)
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		answer := Once(ctx, p, t)
		if ctx.Err() != nil {
			return
		}
		if answer.Outcome == Success {
			soon.over = true
		}
		if wait, ok := soon.next(answer); ok {
			timer.Reset(wait)
			continue
		}
		if answer.Outcome != Success || answer.Warning {
			heard(answer)
		}
		if verdict, crossed := tally.add(answer); crossed && !report(verdict) {
			return
		}
		timer.Reset(period)
	}
}

// tally turns attempts into verdicts: so many in a row of one kind.
type tally struct {
	success, failure int32
	last             bool
	run              int32
}

func newTally(p *corev1.Probe) *tally {
	return &tally{success: max(p.SuccessThreshold, 1), failure: max(p.FailureThreshold, 1)}
}

func (t *tally) add(a Answer) (verdict, crossed bool) {
	if a.Outcome == Broken {
		return false, false
	}
	ok := a.Outcome == Success
	if t.run == 0 || ok != t.last {
		t.last, t.run = ok, 0
	}
	t.run++
	if ok {
		return true, t.run >= t.success
	}
	return false, t.run >= t.failure
}

// impatience asks a container that does not listen yet again soon, within what
// would have been its first period: most programs take a moment to open their
// port, and need not wait ten seconds for the next attempt. Those attempts do
// not count.
type impatience struct {
	over bool
	wait time.Duration
	left time.Duration
}

func newImpatience(period time.Duration) *impatience {
	return &impatience{wait: 20 * time.Millisecond, left: period}
}

func (i *impatience) next(a Answer) (time.Duration, bool) {
	if i.over || a.Outcome != Refused || i.wait > i.left {
		i.over = true
		return 0, false
	}
	wait := i.wait
	i.left -= wait
	i.wait *= 2
	return wait, true
}
