package cronjob

import (
	"errors"
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // a minimal host has no time zones of its own

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
)

// late is how much after its time a schedule is looked at, so that a clock that
// is a little off does not look too early.
const late = 100 * time.Millisecond

// manyMissed runs in a row hint at a clock or a deadline that is wrong.
const manyMissed = 100

// parse reads a schedule; some mistakes make the parser panic.
func parse(spec string) (schedule cron.Schedule, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("invalid schedule format: %v", v)
		}
	}()
	return cron.ParseStandard(spec)
}

// specOf gives the schedule with its time zone, as the parser wants it.
func specOf(cj *batchv1.CronJob) string {
	if cj.Spec.TimeZone == nil || strings.Contains(cj.Spec.Schedule, "TZ") {
		return cj.Spec.Schedule
	}
	if _, err := time.LoadLocation(*cj.Spec.TimeZone); err != nil {
		return cj.Spec.Schedule
	}
	return fmt.Sprintf("TZ=%s %s", *cj.Spec.TimeZone, cj.Spec.Schedule)
}

// missed is what was due since the last run.
type missed struct {
	since  time.Time  // from when on it was looked for
	latest *time.Time // the last time that was due; nil: none
	count  int64      // about how many, 0 or more than one
}

var errTooOften = errors.New("time difference between two schedules is less than 1 second")

// missedSince finds what is due now. Years may have passed: it does not step
// through all times.
func missedSince(cj *batchv1.CronJob, now time.Time, schedule cron.Schedule, withDeadline bool) (missed, error) {
	m := missed{since: cj.CreationTimestamp.Time}
	if last := cj.Status.LastScheduleTime; last != nil {
		m.since = last.Time
	}
	if deadline := cj.Spec.StartingDeadlineSeconds; withDeadline && deadline != nil {
		if from := now.Add(-time.Duration(*deadline) * time.Second); from.After(m.since) {
			m.since = from
		}
	}
	first := schedule.Next(m.since)
	second := schedule.Next(first)
	if now.Before(first) {
		return m, nil
	}
	if now.Before(second) {
		m.latest = &first
		return m, nil
	}
	step := int64(second.Sub(first).Round(time.Second).Seconds())
	if step < 1 {
		return m, errTooOften
	}
	// A schedule need not be regular: begin a step early and walk the rest.
	m.count = int64(now.Sub(first).Seconds())/step + 1
	for at := schedule.Next(first.Add(time.Duration((m.count-2)*step) * time.Second)); !at.After(now); at = schedule.Next(at) {
		due := at
		m.latest = &due
	}
	return m, nil
}

// untilNext is how long to wait for the next time.
func untilNext(cj *batchv1.CronJob, now time.Time, schedule cron.Schedule) time.Duration {
	m, err := missedSince(cj, now, schedule, false)
	from := now
	switch {
	case err != nil:
	case m.latest != nil:
		from = *m.latest
	case m.count == 0:
		from = m.since
	}
	return schedule.Next(from).Add(late).Sub(now)
}
