package backup

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// scheduledPrefix marks the snapshots that retention counts.
const scheduledPrefix = "scheduled-"

// Schedule takes snapshots from time to time.
type Schedule struct {
	Interval time.Duration
	Retain   int // scheduled snapshots kept
	Dir      string
	Header   func(name string) (Header, error)
	Store    Store
	Logger   *slog.Logger
}

// Run goes on until ctx ends. The last snapshot of an earlier run counts.
func (s *Schedule) Run(ctx context.Context) error {
	log := s.Logger.With("component", "backup")
	for {
		timer := time.NewTimer(time.Until(s.due(time.Now())))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		info, err := s.take(ctx, time.Now())
		if err == nil {
			log.Info("snapshot saved", "name", info.Name, "size", info.Size)
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		log.Warn("snapshot not saved, trying again", "error", err, "after", retryPause)
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
		}
	}
}

const retryPause = time.Minute

// due is when the next snapshot is.
func (s *Schedule) due(now time.Time) time.Time {
	last := now
	list, err := List(s.Dir)
	if err != nil {
		return now.Add(s.Interval)
	}
	for _, info := range list {
		if strings.HasPrefix(info.Name, scheduledPrefix) {
			last = info.Created
		}
	}
	return last.Add(s.Interval)
}

func (s *Schedule) take(ctx context.Context, now time.Time) (Info, error) {
	header, err := s.Header(scheduledPrefix + now.UTC().Format("20060102-150405.000"))
	if err != nil {
		return Info{}, err
	}
	info, err := Save(ctx, s.Dir, header, s.Store)
	if err != nil {
		return Info{}, err
	}
	return info, s.forget()
}

// forget deletes the oldest scheduled snapshots beyond those to retain.
func (s *Schedule) forget() error {
	list, err := List(s.Dir)
	if err != nil {
		return err
	}
	var scheduled []Info
	for _, info := range list {
		if strings.HasPrefix(info.Name, scheduledPrefix) {
			scheduled = append(scheduled, info)
		}
	}
	// Their names tell their age even when files were copied.
	slices.SortFunc(scheduled, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	for i := 0; i < len(scheduled)-s.Retain; i++ {
		if err := Delete(s.Dir, scheduled[i].Name); err != nil {
			return err
		}
	}
	return nil
}
