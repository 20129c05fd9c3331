package registry

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestIndex(t *testing.T) {
	f := newFixture(t)
	create(f, f.pod("a", "n1"))
	create(f, f.pod("b", ""))
	byNode := NewIndex(f.Registry, func(p *corev1.Pod) []string { return []string{p.Spec.NodeName} })
	ctx, cancel := context.WithCancel(f.ctx)
	changed := make(chan string, 20)
	ended := make(chan error, 1)
	go func() { ended <- byNode.Run(ctx, func(key string) { changed <- key }) }()
	<-byNode.Synced()
	show := func(node string) (out string) {
		for _, p := range byNode.Get(node) {
			out += p.Name
		}
		return out
	}
	if show("n1") != "a" || show("") != "b" || <-changed+<-changed != "n1" {
		t.Errorf("n1 %q, unbound %q", show("n1"), show(""))
	}
	pods := Of[*corev1.Pod](f.Registry)
	if _, err := pods.Mutate(f.ctx, "default", "b", func(p *corev1.Pod) error { p.Spec.NodeName = "n1"; return nil }); err != nil {
		t.Fatal(err)
	}
	if got := []string{<-changed, <-changed}; got[0] != "" || got[1] != "n1" || show("n1") != "ab" || byNode.Len("") != 0 {
		t.Errorf("changed %q, n1 %q", got, show("n1"))
	}
	if err := pods.Delete(f.ctx, "default", "a", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
	for show("n1") != "b" {
		<-changed
	}
	cancel()
	<-ended
}
