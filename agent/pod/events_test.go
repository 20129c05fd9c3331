package pod

import (
	"context"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		e := NewEvents(client, "node", nil)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- e.Run(ctx) }()
		p := newPod("a")
		u := unit{Container: &p.Spec.Containers[0]}
		for range 3 {
			e.Event(objectReference(p, &u), corev1.EventTypeWarning, "BackOff", "again")
		}
		for range 100 {
			e.Event(p, corev1.EventTypeNormal, "Chatter", "too much")
		}
		synctest.Wait()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		list, err := client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) != 2 {
			t.Fatalf("%v, %v", list.Items, err)
		}
		counts := map[string]int32{}
		for _, got := range list.Items {
			counts[got.Reason] = got.Count
			if got.Source.Component != "kubelet" || got.InvolvedObject.UID != p.UID {
				t.Errorf("event %+v", got)
			}
		}
		if counts["BackOff"] != 3 || counts["Chatter"] != eventBurst-3 {
			t.Errorf("counts %v", counts)
		}
	})
}
