package registry

import (
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestExpiredWatch: the stream opens, and its first word is that it is over.
func TestExpiredWatch(t *testing.T) {
	f := newFixture(t)
	for i := range 3 {
		create(f, f.configMap(fmt.Sprint("cm", i)))
	}
	f.store.Compact(f.store.Revision())
	for name, opts := range map[string]*metav1.ListOptions{
		"plain":             {ResourceVersion: "1"},
		"bookmarks":         {ResourceVersion: "1", AllowWatchBookmarks: true},
		"no initial events": {ResourceVersion: "1", SendInitialEvents: new(bool), ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan},
	} {
		t.Run(name, func(t *testing.T) {
			w, err := f.Watch(f.ctx, f.cms, Selection{Namespace: "default"}, opts)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Stop()
			for range 2 { // it stays over
				_, err = w.Next(t.Context())
				wantStatus(t, err, 410, metav1.StatusReasonExpired, "too old resource version: 1 (")
			}
		})
	}
}
