package pod

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"golang.org/x/sync/semaphore"
)

// imageRef is an image that is present.
type imageRef struct {
	id   string
	user imageUser
}

// imageUser is whom an image runs as: a number, a name, or neither for root.
type imageUser struct {
	uid  *int64
	name string
}

// images makes images present, each pull shared by all who want it.
type images struct {
	m      *Manager
	pulled *pulled
	slots  *semaphore.Weighted
	tasks  *sync.WaitGroup
	ctx    func() context.Context // ends with the manager, not with one pod

	mu      sync.Mutex
	pulls   map[string]*pull
	backoff map[string]*pullBackoff // by pod UID and image
}

// pull is a download under way. Its fields may be read once done is closed.
type pull struct {
	done   chan struct{}
	ref    string
	err    error
	took   time.Duration // without waiting for a slot
	cancel context.CancelFunc
	users  int // waiting for it; guarded by images.mu
}

type pullBackoff struct {
	until time.Time
	delay time.Duration
	cause string
}

func newImages(m *Manager) *images {
	return &images{
		m: m, pulled: &pulled{dir: filepath.Join(m.cfg.Dir, "image_manager"), log: m.log}, slots: semaphore.NewWeighted(m.cfg.Pulls),
		pulls: make(map[string]*pull), backoff: make(map[string]*pullBackoff),
	}
}

// ensure makes a container's image present according to its pull policy.
func (i *images) ensure(ctx context.Context, o launchOrder) (imageRef, *startError) {
	return i.present(ctx, o, o.unit.Image, o.unit.ImagePullPolicy)
}

// volume makes an image volume's image present.
func (i *images) volume(ctx context.Context, o launchOrder, source *corev1.ImageVolumeSource) (imageRef, *startError) {
	return i.present(ctx, o, source.Reference, source.PullPolicy)
}

func (i *images) present(ctx context.Context, o launchOrder, image string, policy corev1.PullPolicy) (imageRef, *startError) {
	say := func(kind, reason, text string) {
		i.m.cfg.Events.Event(objectReference(o.pod, &o.unit), kind, reason, text)
	}
	name, err := withDefaultTag(image)
	if err != nil {
		text := fmt.Sprintf("Failed to apply default image tag %q: %v", image, err)
		say(corev1.EventTypeWarning, "InspectFailed", text)
		return imageRef{}, imageFault("InvalidImageName", text, 0)
	}
	if policy != corev1.PullAlways {
		ref, err := i.inspect(ctx, name, o.handler)
		switch {
		case err != nil:
			text := fmt.Sprintf("Failed to inspect image %q: %v", image, message(err))
			say(corev1.EventTypeWarning, "InspectFailed", text)
			return imageRef{}, imageFault("ImageInspectError", text, 0)
		case ref.id != "" && i.mayUse(ctx, o, name, ref.id):
			say(corev1.EventTypeNormal, "Pulled",
				fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", image))
			return ref, nil
		case policy == corev1.PullNever:
			text := fmt.Sprintf("Container image %q is not present with pull policy of Never", image)
			say(corev1.EventTypeWarning, "ErrImageNeverPull", text)
			return imageRef{}, imageFault("ErrImageNeverPull", text, 0)
		}
	}
	return i.fetch(ctx, o, image, name, say)
}

// mayUse tells whether a pod may use an image that is here without asking its
// registry. Upstream does not tell a pod that may not that the image is here.
func (i *images) mayUse(ctx context.Context, o launchOrder, name, id string) bool {
	ok, err := i.pulled.allows(name, id, func() ([]credential, error) { return i.m.logins(ctx, o.pod, name) })
	if err != nil && ctx.Err() == nil {
		i.m.log.Warn("cannot tell whether a pod may use an image, it is pulled", "pod", describe(o.pod), "image", name, "err", err)
	}
	return ok
}

// fetch pulls, unless an earlier failure for this pod still holds it back.
func (i *images) fetch(ctx context.Context, o launchOrder, image, name string, say func(kind, reason, text string)) (imageRef, *startError) {
	key := string(o.pod.UID) + " " + name
	if b, left := i.heldBack(key); left > 0 {
		text := fmt.Sprintf("Back-off pulling image %q", image)
		say(corev1.EventTypeNormal, "BackOff", text)
		return imageRef{}, imageFault("ImagePullBackOff", text+": "+b, left)
	}
	say(corev1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", image))
	begin := i.m.now()
	p, err := i.shared(ctx, o, name)
	if err != nil {
		if ctx.Err() != nil {
			return imageRef{}, &startError{reason: "ErrImagePull", message: err.Error(), quiet: true}
		}
		text := message(err)
		say(corev1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %v", image, text))
		reason, text := pullFailure(image, text)
		i.hold(key, reason+": "+text)
		// The next look finds the back-off and shows it.
		return imageRef{}, imageFault(reason, text, time.Second)
	}
	i.unhold(key)
	ref, err := i.inspect(ctx, name, o.handler)
	if err != nil || ref.id == "" {
		ref.id = p.ref
	}
	size := i.size(ctx, name)
	say(corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Successfully pulled image %q in %v (%v including waiting). Image size: %v bytes.",
		image, p.took.Truncate(time.Millisecond), i.m.now().Sub(begin).Truncate(time.Millisecond), size))
	return ref, nil
}

// imageFault is a fault whose event names only the reason: what went wrong was
// told in an event of its own.
func imageFault(reason, message string, delay time.Duration) *startError {
	return &startError{reason: reason, message: message, event: reason, delay: delay}
}

// pullFailure sorts a failed pull as kubelet does.
func pullFailure(image, text string) (reason, message string) {
	if rest, ok := strings.CutPrefix(text, "RegistryUnavailable"); ok {
		return "RegistryUnavailable", fmt.Sprintf("image pull failed for %s because the registry is unavailable%s", image, rest)
	}
	if rest, ok := strings.CutPrefix(text, "SignatureValidationFailed"); ok {
		return "SignatureValidationFailed", fmt.Sprintf("image pull failed for %s because the signature validation failed%s", image, rest)
	}
	return "ErrImagePull", text
}

func (i *images) heldBack(key string) (cause string, left time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	b := i.backoff[key]
	if b == nil {
		return "", 0
	}
	return b.cause, b.until.Sub(i.m.now())
}

func (i *images) hold(key, cause string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	b := i.backoff[key]
	if b == nil {
		b = &pullBackoff{}
		i.backoff[key] = b
	}
	b.delay = min(max(backoffStart, 2*b.delay), backoffMax)
	b.until, b.cause = i.m.now().Add(b.delay), cause
}

func (i *images) unhold(key string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.backoff, key)
}

// forget drops what is remembered for a pod.
func (i *images) forget(uid podUID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for key := range i.backoff {
		if strings.HasPrefix(key, string(uid)+" ") {
			delete(i.backoff, key)
		}
	}
}

// inspect looks an image up; an empty id says that it is not present.
func (i *images) inspect(ctx context.Context, name, handler string) (imageRef, error) {
	resp, err := i.m.cfg.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{
		Image: &runtimeapi.ImageSpec{Image: name, RuntimeHandler: handler},
	})
	if err != nil || resp.GetImage() == nil {
		return imageRef{}, err
	}
	ref := imageRef{id: resp.GetImage().GetId()}
	switch {
	case resp.GetImage().GetUid() != nil:
		ref.user.uid = &resp.GetImage().GetUid().Value
	case resp.GetImage().GetUsername() != "":
		ref.user.name = resp.GetImage().GetUsername()
	default:
		ref.user.uid = new(int64)
	}
	return ref, nil
}

func (i *images) size(ctx context.Context, name string) uint64 {
	resp, err := i.m.cfg.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	if err != nil {
		return 0 // for an event's text only
	}
	return resp.GetImage().GetSize()
}

// shared joins the pull of name with the same credentials that is under way,
// or begins one. It goes on as long as anyone waits for it.
func (i *images) shared(ctx context.Context, o launchOrder, name string) (*pull, error) {
	logins, err := i.m.logins(ctx, o.pod, name)
	if err != nil {
		return nil, err
	}
	key := name + " " + o.handler
	for _, l := range logins {
		key += "\x00" + l.source.Hash
	}
	i.mu.Lock()
	p := i.pulls[key]
	if p == nil {
		p = &pull{done: make(chan struct{})}
		i.pulls[key] = p
		var work context.Context
		work, p.cancel = context.WithCancel(i.ctx())
		i.tasks.Go(func() {
			i.download(work, p, o, name, logins)
			i.mu.Lock()
			if i.pulls[key] == p {
				delete(i.pulls, key)
			}
			i.mu.Unlock()
			close(p.done)
		})
	}
	p.users++
	i.mu.Unlock()
	select {
	case <-p.done:
		return p, p.err
	case <-ctx.Done():
		i.leave(key, p)
		return nil, ctx.Err()
	}
}

func (i *images) leave(key string, p *pull) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if p.users--; p.users == 0 {
		p.cancel()
		if i.pulls[key] == p {
			delete(i.pulls, key)
		}
	}
}

// download tries one login after the other, the last error counts.
func (i *images) download(ctx context.Context, p *pull, o launchOrder, name string, logins []credential) {
	defer p.cancel()
	if p.err = i.slots.Acquire(ctx, 1); p.err != nil {
		return
	}
	defer i.slots.Release(1)
	begin := i.m.now()
	if len(logins) == 0 {
		logins = []credential{{}}
	}
	box, err := i.m.sandboxConfig(o.pod, 0)
	if err != nil {
		p.err = err
		return
	}
	if p.err = i.pulled.begin(name); p.err != nil {
		return
	}
	var errs []error
	for _, login := range logins {
		resp, err := i.m.cfg.Images.PullImage(ctx, &runtimeapi.PullImageRequest{
			Image: &runtimeapi.ImageSpec{Image: name, RuntimeHandler: o.handler, Annotations: o.pod.Annotations},
			Auth:  login.auth, SandboxConfig: box,
		})
		if err == nil {
			p.ref, p.took, p.err = resp.GetImageRef(), i.m.now().Sub(begin), nil
			i.record(ctx, name, o.handler, p.ref, login)
			return
		}
		errs = append(errs, err)
	}
	if err := i.pulled.fail(name); err != nil {
		i.m.log.Warn("record of a failed pull", "image", name, "err", err)
	}
	p.err = errs[len(errs)-1]
	if len(errs) > 1 {
		p.err = errors.Join(errs...)
	}
}

// record notes with what an image was pulled.
func (i *images) record(ctx context.Context, name, handler, id string, with credential) {
	if found, err := i.inspect(ctx, name, handler); err == nil && found.id != "" {
		id = found.id
	}
	var source *pullSecret
	if with.auth != nil {
		source = &with.source
	}
	if err := i.pulled.end(name, id, source); err != nil {
		i.m.log.Warn("cannot record with what an image was pulled; pods will pull it again", "image", name, "err", err)
	}
}

// withDefaultTag completes a reference that has neither tag nor digest, and
// otherwise leaves it as it is.
func withDefaultTag(image string) (string, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return "", fmt.Errorf("couldn't parse image name %q: %w", image, err)
	}
	if reference.IsNameOnly(named) {
		return image + ":latest", nil
	}
	return image, nil
}

// sameName tells whether two names of images mean the same.
func sameName(a, b string) bool {
	x, errX := reference.ParseDockerRef(a)
	y, errY := reference.ParseDockerRef(b)
	return errX == nil && errY == nil && x.String() == y.String()
}

// repository is an image's name without tag and digest, with its registry.
func repository(image string) string {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return image
	}
	return named.Name()
}
