package backup

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// scheduledPrefix marks the snapshots that retention counts.
const scheduledPrefix = "scheduled-"

// Keeper takes a server's snapshots, when asked and by schedule, and brings them
// to S3. A snapshot that could not be uploaded stays here, and its upload is
// tried again until it succeeds, in later processes as well.
type Keeper struct {
	Config
	uploading sync.Mutex    // held while one is
	wished    chan struct{} // tells that a snapshot waits to be uploaded
}

// Config of a Keeper.
type Config struct {
	Dir      string
	Server   string        // name of this one
	Interval time.Duration // between scheduled snapshots; 0: there are none
	Retain   int           // scheduled snapshots of this server kept, in each place
	Bucket   *Bucket       // nil: no S3
	Header   func(name string) (Header, error)
	Store    Store
	Logger   *slog.Logger
	Report   Report // nil: nobody is told
}

// NewKeeper makes a Keeper; nothing happens before Run.
func NewKeeper(cfg Config) *Keeper {
	if cfg.Report == nil {
		cfg.Report = func(Outcome) {}
	}
	cfg.Logger = cfg.Logger.With("component", "backup")
	return &Keeper{Config: cfg, wished: make(chan struct{}, 1)}
}

// Report is told how each snapshot and each upload ended.
type Report func(o Outcome)

// Outcome of saving or uploading a snapshot.
type Outcome struct {
	Where string // OnDisk or InS3
	Info  Info
	Took  time.Duration
	Err   error // nil: it succeeded
}

// Places of snapshots.
const (
	OnDisk = "disk"
	InS3   = "s3"
)

// Run takes scheduled snapshots and retries uploads until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	if err := sweep(k.Dir); err != nil {
		k.Logger.Warn("unfinished snapshots are in the way", "error", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	if k.Interval > 0 {
		group.Go(func() error { k.schedule(ctx); return nil })
	}
	if k.Bucket != nil {
		group.Go(func() error { k.keepUploading(ctx); return nil })
	}
	return group.Wait()
}

// Pauses after failures.
const (
	firstPause = time.Minute
	lastPause  = time.Hour
)

// firstSnapshot is how long a server that has none yet waits with its first.
const firstSnapshot = 10 * time.Minute

func (k *Keeper) schedule(ctx context.Context) {
	pause, wait := firstPause, time.Until(k.due(time.Now()))
	for rest(ctx, wait, nil) {
		if _, err := k.save(ctx, k.scheduledName(time.Now()), nil); err != nil {
			wait, pause = pause, min(2*pause, lastPause)
			continue
		}
		if err := k.forget(); err != nil {
			k.Logger.Warn("old snapshots are not deleted", "error", err)
		}
		pause, wait = firstPause, time.Until(k.due(time.Now()))
	}
}

// rest waits for d or woken; false: ctx has ended.
func rest(ctx context.Context, d time.Duration, woken <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-woken:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// due is when the next scheduled snapshot is. The last one of an earlier process
// counts.
func (k *Keeper) due(now time.Time) time.Time {
	list, err := List(k.Dir)
	if err != nil {
		k.Logger.Warn("snapshots cannot be listed", "error", err)
		return now.Add(min(firstPause, k.Interval))
	}
	list = k.scheduled(list)
	if len(list) == 0 {
		return now.Add(min(firstSnapshot, k.Interval))
	}
	last := list[len(list)-1].Created
	if last.After(now) { // the clock was set back
		last = now
	}
	return last.Add(k.Interval)
}

const timeLayout = "20060102-150405.000"

func (k *Keeper) scheduledName(now time.Time) string {
	return scheduledPrefix + k.Server + "-" + now.UTC().Format(timeLayout)
}

// scheduled gives this server's scheduled snapshots of a list, oldest first:
// their names tell their age even when files were copied.
func (k *Keeper) scheduled(list []Info) []Info {
	var own []Info
	for _, info := range list {
		text, ok := strings.CutPrefix(info.Name, scheduledPrefix+k.Server+"-")
		if taken, err := time.Parse(timeLayout, text); ok && err == nil {
			info.Created = taken
			own = append(own, info)
		}
	}
	sortByAge(own)
	return own
}

// Save takes a snapshot and brings it to S3. An UploadError says that it was
// saved here but not uploaded yet.
func (k *Keeper) Save(ctx context.Context, name string, progress Progress) (Info, error) {
	info, err := k.save(ctx, name, progress)
	if err != nil || k.Bucket == nil {
		return info, err
	}
	if err := k.upload(ctx, info, progress); err != nil {
		return info, &UploadError{err}
	}
	return info, nil
}

// UploadError says that a snapshot is not in S3 yet.
type UploadError struct{ Err error }

func (e *UploadError) Error() string { return e.Err.Error() }
func (e *UploadError) Unwrap() error { return e.Err }

func (k *Keeper) save(ctx context.Context, name string, progress Progress) (info Info, err error) {
	began := time.Now()
	defer func() {
		if ctx.Err() == nil {
			k.Report(Outcome{Where: OnDisk, Info: Info{Name: name, Size: info.Size, Path: info.Path}, Took: time.Since(began), Err: err})
		}
	}()
	header, err := k.Header(name)
	if err != nil {
		return Info{}, err
	}
	var wish func(path string) error
	if k.Bucket != nil {
		defer k.wakeUploads()
		wish = func(path string) error { return os.WriteFile(wishPath(path), nil, 0o600) }
	}
	return save(ctx, k.Dir, header, k.Store, progress, wish)
}

func (k *Keeper) wakeUploads() {
	select {
	case k.wished <- struct{}{}:
	default: // one is on its way
	}
}

// keepUploading uploads what is to be uploaded.
func (k *Keeper) keepUploading(ctx context.Context) {
	pause := firstPause
	for {
		waiting, err := wishes(k.Dir)
		for _, info := range waiting {
			if ctx.Err() != nil {
				return
			}
			if err = k.upload(ctx, info, nil); err != nil {
				break // the next ones would fail alike
			}
		}
		wait := lastPause
		if err != nil {
			wait = pause
			pause = min(2*pause, lastPause)
		} else {
			pause = firstPause
		}
		if !rest(ctx, wait, k.wished) {
			return
		}
	}
}

// upload brings a snapshot to S3, unless somebody else just did.
func (k *Keeper) upload(ctx context.Context, info Info, progress Progress) (err error) {
	k.uploading.Lock()
	defer k.uploading.Unlock()
	if _, err := os.Stat(wishPath(info.Path)); err != nil {
		return nil
	}
	began := time.Now()
	defer func() {
		if ctx.Err() == nil {
			k.Report(Outcome{Where: InS3, Info: info, Took: time.Since(began), Err: err})
		}
	}()
	if err := k.Bucket.Put(ctx, info, progress); err != nil {
		return err
	}
	if err := os.Remove(wishPath(info.Path)); err != nil {
		return err
	}
	if err := k.forgetUploaded(ctx); err != nil {
		k.Logger.Warn("old snapshots in S3 are not deleted", "error", err)
	}
	return nil
}

// forget deletes the oldest scheduled snapshots beyond those to retain.
func (k *Keeper) forget() error {
	list, err := List(k.Dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, info := range k.beyond(list) {
		errs = append(errs, Delete(k.Dir, info.Name))
	}
	return errors.Join(errs...)
}

func (k *Keeper) forgetUploaded(ctx context.Context) error {
	list, err := k.Bucket.List(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, info := range k.beyond(list) {
		errs = append(errs, k.Bucket.Delete(ctx, info.Name))
	}
	return errors.Join(errs...)
}

func (k *Keeper) beyond(list []Info) []Info {
	list = k.scheduled(list)
	return list[:max(0, len(list)-k.Retain)]
}
