package upgrade

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"orch/test/cluster"
)

// writes are what servers have acknowledged while they are replaced.
type writes struct {
	stop    context.CancelFunc
	writing sync.WaitGroup

	mu           sync.Mutex        // guards what follows
	acknowledged map[string]string // resourceVersion by name
	refused      int
}

// write creates ConfigMaps through each of the servers until finish.
func write(t *testing.T, servers []*cluster.Node) *writes {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	w := &writes{stop: stop, acknowledged: map[string]string{}}
	for i, n := range servers {
		api := client(t, n)
		w.writing.Go(func() {
			ticker := time.NewTicker(20 * time.Millisecond)
			defer ticker.Stop()
			for j := 0; ctx.Err() == nil; j++ {
				w.one(ctx, api, fmt.Sprintf("write-%d-%d", i, j))
				select {
				case <-ctx.Done():
				case <-ticker.C:
				}
			}
		})
	}
	return w
}

func (w *writes) one(ctx context.Context, api kubernetes.Interface, name string) {
	made, err := api.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.acknowledged[name] = made.ResourceVersion
	} else if ctx.Err() == nil {
		w.refused++
	}
}

// finish ends the writing; what was acknowledged must be there, at every server.
func (w *writes) finish(t *testing.T, servers []*cluster.Node) {
	t.Helper()
	w.stop()
	w.writing.Wait()
	t.Logf("%d writes acknowledged, %d not", len(w.acknowledged), w.refused)
	if len(w.acknowledged) == 0 {
		t.Error("nothing was written")
	}
	for _, n := range servers {
		list, err := client(t, n).CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]string{}
		for _, item := range list.Items {
			found[item.Name] = item.ResourceVersion
		}
		for name, revision := range w.acknowledged {
			if found[name] != revision {
				t.Errorf("%s was acknowledged at revision %s; server %s has %q", name, revision, n.Name, found[name])
			}
		}
	}
}

func client(t *testing.T, n *cluster.Node) *kubernetes.Clientset {
	t.Helper()
	config, err := n.Config()
	if err != nil {
		t.Fatal(err)
	}
	config.Timeout = 20 * time.Second
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
