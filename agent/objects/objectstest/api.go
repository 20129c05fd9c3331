// Package objectstest is an API in memory for tests of what follows single
// objects: client-go's fake with field selectors that work.
package objectstest

import (
	"fmt"
	"sync"
	"sync/atomic"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// API is a fake client that also counts watches and mints tokens.
type API struct {
	*fake.Clientset
	Watches atomic.Int64
	// Token answers requests for tokens; nil: NotFound.
	Token func(n int, request *authenticationv1.TokenRequest) error

	tokens atomic.Int64
}

// New makes an API that holds objects.
func New(objects ...runtime.Object) *API {
	a := &API{Clientset: fake.NewClientset(objects...)}
	for _, resource := range []string{"secrets", "configmaps"} {
		a.PrependReactor("list", resource, a.list)
		a.PrependWatchReactor(resource, a.watch)
	}
	a.PrependReactor("create", "serviceaccounts", a.createToken)
	return a
}

func (a *API) list(action clienttesting.Action) (bool, runtime.Object, error) {
	list := action.(clienttesting.ListAction)
	name, _ := list.GetListRestrictions().Fields.RequiresExactMatch("metadata.name")
	object, err := a.Tracker().Get(action.GetResource(), action.GetNamespace(), name)
	switch o := object.(type) {
	case *corev1.Secret:
		return true, &corev1.SecretList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: []corev1.Secret{*o}}, nil
	case *corev1.ConfigMap:
		return true, &corev1.ConfigMapList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: []corev1.ConfigMap{*o}}, nil
	}
	if err != nil && action.GetResource().Resource == "secrets" {
		return true, &corev1.SecretList{}, nil
	}
	return true, &corev1.ConfigMapList{}, nil
}

func (a *API) watch(action clienttesting.Action) (bool, watch.Interface, error) {
	selector := action.(clienttesting.WatchAction).GetWatchRestrictions().Fields
	stream, err := a.Tracker().Watch(action.GetResource(), action.GetNamespace())
	if err != nil {
		return true, nil, err
	}
	a.Watches.Add(1)
	w := &filtered{source: stream, result: make(chan watch.Event), stop: make(chan struct{}), stopped: func() { a.Watches.Add(-1) }}
	w.running.Go(func() { w.pass(selector) })
	return true, w, nil
}

// filtered is a watch of the objects that a field selector matches.
type filtered struct {
	source  watch.Interface
	result  chan watch.Event
	stop    chan struct{}
	once    sync.Once
	stopped func()
	running sync.WaitGroup
}

func (w *filtered) ResultChan() <-chan watch.Event { return w.result }

func (w *filtered) Stop() {
	w.once.Do(func() {
		close(w.stop)
		w.source.Stop()
		w.stopped()
	})
	w.running.Wait()
}

func (w *filtered) pass(selector fields.Selector) {
	defer close(w.result)
	for event := range w.source.ResultChan() {
		o, err := meta.Accessor(event.Object)
		if err != nil || !selector.Matches(fields.Set{"metadata.name": o.GetName()}) {
			continue
		}
		select {
		case w.result <- event:
		case <-w.stop:
			return
		}
	}
}

func (a *API) createToken(action clienttesting.Action) (bool, runtime.Object, error) {
	create, ok := action.(clienttesting.CreateAction)
	if !ok || create.GetSubresource() != "token" || a.Token == nil {
		return false, nil, nil
	}
	request := create.GetObject().(*authenticationv1.TokenRequest).DeepCopy()
	n := int(a.tokens.Add(1))
	request.Status.Token = fmt.Sprintf("token-%d", n)
	return true, request, a.Token(n, request)
}
