package services

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
)

func service(name, clusterIP string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.ServiceSpec{ClusterIP: clusterIP}}
}

func slice(name, of string, addresses ...string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: of}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: addresses}}}
}

// state writes what the store knows of services a and b and some addresses.
func state(s *Store) string {
	var text string
	for _, name := range []string{"a", "b"} {
		service, slices := s.Get(types.NamespacedName{Namespace: "default", Name: name})
		text += fmt.Sprintf("%s:%t,%d ", name, service != nil, len(slices))
	}
	for _, addr := range []string{"10.43.0.1", "10.43.0.2", "10.42.0.2"} {
		text += fmt.Sprintf("%d", len(s.ByAddress(netip.MustParseAddr(addr))))
	}
	return fmt.Sprintf("%s %d %t", text, len(s.InNamespace("default")), s.HasNamespace("default"))
}

func TestFeeds(t *testing.T) {
	s := NewStore()
	var told []string
	s.OnChange(func(name types.NamespacedName) { told = append(told, name.Name) })
	services, slices := s.serviceFeed(), s.sliceFeed()
	for _, step := range []struct {
		do         func() error
		state, was string
	}{
		{func() error { return services.Add(service("a", "10.43.0.1")) }, "a:true,0 b:false,0 100 1 true", "[a]"},
		{func() error { return slices.Add(slice("a-1", "a", "10.42.0.2")) }, "a:true,1 b:false,0 101 1 true", "[a]"},
		{func() error { return slices.Add(slice("a-2", "a", "10.42.0.2")) }, "a:true,2 b:false,0 101 1 true", "[a]"},
		{func() error { return services.Update(service("a", "10.43.0.2")) }, "a:true,2 b:false,0 011 1 true", "[a]"},
		{func() error { return slices.Update(slice("a-2", "b", "10.42.0.2")) }, "a:true,1 b:false,1 012 1 true", "[a b]"},
		{func() error { return slices.Update(slice("a-2", "")) }, "a:true,1 b:false,0 011 1 true", "[b]"},
		{func() error { return services.Replace([]any{service("b", "10.43.0.1")}, "") }, "a:false,1 b:true,0 101 1 true", "[b a]"},
		{func() error { return slices.Replace(nil, "") }, "a:false,0 b:true,0 100 1 true", "[a]"},
		{func() error { return services.Delete(service("b", "")) }, "a:false,0 b:false,0 000 0 false", "[b]"},
	} {
		told = nil
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := state(s); got != step.state || fmt.Sprint(told) != step.was {
			t.Fatalf("got  %s %v\nwant %s %s", got, told, step.state, step.was)
		}
	}
	select {
	case <-s.Synced():
	default:
		t.Error("both resources were listed, but the store is not synced")
	}
}

func TestRun(t *testing.T) {
	client := fake.NewClientset(service("a", "10.43.0.1"), slice("a-1", "a", "10.42.0.2"))
	s := NewStore()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx, client, slog.New(slog.DiscardHandler)) }()
	wait, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	if err := s.WaitSynced(wait); err != nil {
		t.Fatal(err)
	}
	if got := state(s); got != "a:true,1 b:false,0 101 1 true" {
		t.Errorf("got %s", got)
	}
	cancel()
	<-done
}
