package runtime

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// GarbageCollect removes images that no container uses, neither as its own nor
// as a volume, and that did not come from an archive which is still laid out,
// those first that were unused longest, until want bytes are freed; 0 removes nothing and only notes
// which images are in use now. It gives the bytes freed.
func (r *Runtime) GarbageCollect(ctx context.Context, now time.Time, want int64) (freed int64, err error) {
	store := r.ImageStore()
	images, err := store.List(ctx)
	if err != nil {
		return 0, err
	}
	containers, err := r.Runtime().ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return 0, fmt.Errorf("list containers: %w", err)
	}
	used := map[string]bool{}
	for _, c := range containers.Containers {
		used[c.ImageRef], used[c.ImageId], used[c.Image.GetImage()] = true, true, true
	}
	if want > 0 {
		if err := r.mountedImages(ctx, containers.Containers, used); err != nil {
			return 0, err
		}
		for name := range readLedger(r.layout.ledger).imported() {
			used[name] = true
		}
	}
	r.mu.Lock()
	r.lastUsed = noteUse(now, images, used, r.lastUsed)
	candidates := collectable(images, used, r.lastUsed)
	r.mu.Unlock()
	for _, image := range candidates {
		if freed >= want {
			break
		}
		if _, err := store.Remove(ctx, image.Id); err != nil {
			return freed, err
		}
		freed += int64(image.Size)
		r.log.Info("removed unused image to free disk space", "image", image.Id, "names", image.RepoTags, "bytes", image.Size)
	}
	return freed, nil
}

// mountedImages adds the images that are mounted as volumes.
func (r *Runtime) mountedImages(ctx context.Context, containers []*runtimeapi.Container, used map[string]bool) error {
	for _, c := range containers {
		got, err := r.Runtime().ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id})
		if status.Code(err) == codes.NotFound {
			continue
		}
		if err != nil {
			return fmt.Errorf("read container %s: %w", c.Id, err)
		}
		for _, m := range got.GetStatus().GetMounts() {
			if image := m.GetImage().GetImage(); image != "" {
				used[image] = true
			}
		}
	}
	return nil
}

// noteUse gives when each present image was last in use; one never seen before
// counts as used now, for it was just pulled.
func noteUse(now time.Time, images []*runtimeapi.Image, used map[string]bool, last map[string]time.Time) map[string]time.Time {
	next := make(map[string]time.Time, len(images))
	for _, image := range images {
		at, known := last[image.Id]
		if !known || inUse(image, used) {
			at = now
		}
		next[image.Id] = at
	}
	return next
}

// collectable gives the images that may be removed, longest unused first.
func collectable(images []*runtimeapi.Image, used map[string]bool, last map[string]time.Time) []*runtimeapi.Image {
	candidates := slices.DeleteFunc(slices.Clone(images), func(i *runtimeapi.Image) bool {
		return i.Pinned || inUse(i, used)
	})
	slices.SortStableFunc(candidates, func(a, b *runtimeapi.Image) int { return last[a.Id].Compare(last[b.Id]) })
	return candidates
}

func inUse(image *runtimeapi.Image, used map[string]bool) bool {
	known := func(name string) bool { return used[name] }
	return used[image.Id] || slices.ContainsFunc(image.RepoTags, known) || slices.ContainsFunc(image.RepoDigests, known)
}
