package runtime

import (
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCollectable(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	images := []*runtimeapi.Image{
		{Id: "new"}, {Id: "old"}, {Id: "older"},
		{Id: "running"}, {Id: "named", RepoTags: []string{"docker.io/library/nginx:1"}},
		{Id: "pinned", Pinned: true},
	}
	used := map[string]bool{"running": true, "docker.io/library/nginx:1": true}
	last := noteUse(now, images, used, map[string]time.Time{
		"old": now.Add(-time.Hour), "older": now.Add(-2 * time.Hour), "running": now.Add(-time.Hour), "gone": now,
	})
	if last["running"] != now || last["new"] != now {
		t.Errorf("images in use or just seen: %v", last)
	}
	if _, ok := last["gone"]; ok {
		t.Error("a removed image is still remembered")
	}
	var order []string
	for _, i := range collectable(images, used, last) {
		order = append(order, i.Id)
	}
	if got, want := len(order), 3; got != want || order[0] != "older" || order[1] != "old" || order[2] != "new" {
		t.Errorf("order %v", order)
	}
}
