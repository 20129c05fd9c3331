package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
)

func parseLabels(t testing.TB, s string) labels.Selector {
	t.Helper()
	sel, err := labels.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return sel
}

func parseFields(t testing.TB, s string) fields.Selector {
	t.Helper()
	sel, err := fields.ParseSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return sel
}

func names(items []Object) []string {
	out := make([]string, 0, len(items))
	for _, o := range items {
		out = append(out, o.GetName())
	}
	return out
}

func TestListSelections(t *testing.T) {
	f := newFixture(t)
	for i, node := range []string{"n1", "n2", "n1"} {
		p := f.pod(fmt.Sprint("p", i), node)
		p.Labels["i"] = fmt.Sprint(i)
		create(f, p)
	}
	other := f.pod("p0", "n3")
	other.Namespace = "other"
	create(f, other)
	for name, c := range map[string]struct {
		sel  Selection
		want string
	}{
		"all":           {Selection{}, "p0 p1 p2 p0"},
		"namespace":     {Selection{Namespace: "default"}, "p0 p1 p2"},
		"labels":        {Selection{Labels: parseLabels(t, "i in (1,2)")}, "p1 p2"},
		"node":          {Selection{Fields: parseFields(t, "spec.nodeName=n1")}, "p0 p2"},
		"name":          {Selection{Namespace: "default", Fields: parseFields(t, "metadata.name=p1")}, "p1"},
		"name anywhere": {Selection{Fields: parseFields(t, "metadata.name=p0")}, "p0 p0"},
		"by namespace":  {Selection{Fields: parseFields(t, "metadata.namespace=other")}, "p0"},
		"not name":      {Selection{Namespace: "default", Fields: parseFields(t, "metadata.name!=p1,spec.nodeName=n1")}, "p0 p2"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := f.List(f.ctx, f.pods, c.sel, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(names(out.Items), " "); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	_, err := f.List(f.ctx, f.pods, Selection{Fields: parseFields(t, "spec.x=1")}, nil)
	wantStatus(t, err, 400, metav1.StatusReasonBadRequest, "field label not supported: spec.x")
	_, err = f.List(f.ctx, f.cms, Selection{Fields: parseFields(t, "data=1")}, nil)
	wantStatus(t, err, 400, metav1.StatusReasonBadRequest, `"data" is not a known field selector: only "metadata.name", "metadata.namespace"`)
}

func TestListPages(t *testing.T) {
	f := newFixture(t)
	for i := range 5 {
		create(f, f.configMap(fmt.Sprint("cm", i)))
	}
	sel := Selection{Namespace: "default"}
	first, err := f.List(f.ctx, f.cms, sel, &metav1.ListOptions{Limit: 2})
	if err != nil || len(first.Items) != 2 || first.Remaining == nil || *first.Remaining != 3 {
		t.Fatalf("%+v %v", first, err)
	}
	create(f, f.configMap("cm2b")) // must not show up in a consistent list
	if err := Of[*corev1.ConfigMap](f.Registry).Delete(f.ctx, "default", "cm4", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	second, err := f.List(f.ctx, f.cms, sel, &metav1.ListOptions{Limit: 2, Continue: first.Continue})
	if err != nil || second.ResourceVersion != first.ResourceVersion {
		t.Fatalf("%+v %v", second, err)
	}
	third, err := f.List(f.ctx, f.cms, sel, &metav1.ListOptions{Limit: 2, Continue: second.Continue})
	if err != nil || third.Continue != "" {
		t.Fatalf("%+v %v", third, err)
	}
	got := append(append(names(first.Items), names(second.Items)...), names(third.Items)...)
	if want := []string{"cm0", "cm1", "cm2", "cm3", "cm4"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	narrow, err := f.List(f.ctx, f.cms, Selection{Namespace: "default", Labels: parseLabels(t, "!x")}, &metav1.ListOptions{Limit: 1})
	if err != nil || narrow.Remaining != nil || narrow.Continue == "" {
		t.Errorf("a selected page tells what remains: %+v %v", narrow, err)
	}
}

func TestExpiredPage(t *testing.T) {
	f := newFixture(t)
	for i := range 4 {
		create(f, f.configMap(fmt.Sprint("cm", i)))
	}
	sel := Selection{Namespace: "default"}
	first, err := f.List(f.ctx, f.cms, sel, &metav1.ListOptions{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	create(f, f.configMap("cm9"))
	f.store.Compact(f.store.Revision())
	_, err = f.List(f.ctx, f.cms, sel, &metav1.ListOptions{Limit: 1, Continue: first.Continue})
	wantStatus(t, err, 410, metav1.StatusReasonExpired, "The provided continue parameter is too old")
	fresh := err.(apierrors.APIStatus).Status().ListMeta.Continue
	rest, err := f.List(f.ctx, f.cms, sel, &metav1.ListOptions{Continue: fresh})
	if err != nil || strings.Join(names(rest.Items), " ") != "cm1 cm2 cm3 cm9" {
		t.Errorf("the inconsistent rest: %v %v", rest, err)
	}
	_, err = f.List(f.ctx, f.cms, sel, &metav1.ListOptions{ResourceVersion: "1", ResourceVersionMatch: metav1.ResourceVersionMatchExact})
	wantStatus(t, err, 410, metav1.StatusReasonExpired, "The resourceVersion for the provided list is too old.")
}

func TestListVersions(t *testing.T) {
	f := newFixture(t)
	one := create(f, f.configMap("cm1"))
	create(f, f.configMap("cm2"))
	now := f.store.Revision()
	sel := Selection{Namespace: "default"}
	for name, c := range map[string]struct {
		opts metav1.ListOptions
		want string
	}{
		"newest":         {metav1.ListOptions{}, "cm1 cm2"},
		"any":            {metav1.ListOptions{ResourceVersion: "0"}, "cm1 cm2"},
		"exact":          {metav1.ListOptions{ResourceVersion: one.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchExact}, "cm1"},
		"not older than": {metav1.ListOptions{ResourceVersion: one.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan}, "cm1 cm2"},
		"legacy":         {metav1.ListOptions{ResourceVersion: one.ResourceVersion}, "cm1 cm2"},
		"legacy limit":   {metav1.ListOptions{ResourceVersion: one.ResourceVersion, Limit: 5}, "cm1"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := f.List(f.ctx, f.cms, sel, &c.opts)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(names(out.Items), " "); got != c.want {
				t.Errorf("got %q at %d, want %q", got, out.ResourceVersion, c.want)
			}
		})
	}
	for name, c := range map[string]struct {
		opts   metav1.ListOptions
		code   int32
		reason metav1.StatusReason
		part   string
	}{
		"future":         {metav1.ListOptions{ResourceVersion: fmt.Sprint(now + 100)}, 504, metav1.StatusReasonTimeout, "Too large resource version"},
		"future exact":   {metav1.ListOptions{ResourceVersion: fmt.Sprint(now + 100), ResourceVersionMatch: metav1.ResourceVersionMatchExact}, 504, metav1.StatusReasonTimeout, "Too large resource version"},
		"not a number":   {metav1.ListOptions{ResourceVersion: "x"}, 400, metav1.StatusReasonBadRequest, "invalid resource version"},
		"match alone":    {metav1.ListOptions{ResourceVersionMatch: metav1.ResourceVersionMatchExact}, 422, metav1.StatusReasonInvalid, "resourceVersionMatch is forbidden unless resourceVersion is provided"},
		"exact zero":     {metav1.ListOptions{ResourceVersion: "0", ResourceVersionMatch: metav1.ResourceVersionMatchExact}, 422, metav1.StatusReasonInvalid, `forbidden for resourceVersion "0"`},
		"unknown match":  {metav1.ListOptions{ResourceVersion: "1", ResourceVersionMatch: "Near"}, 422, metav1.StatusReasonInvalid, "supported values"},
		"bad token":      {metav1.ListOptions{Continue: "!"}, 400, metav1.StatusReasonBadRequest, "continue key is not valid"},
		"token upward":   {metav1.ListOptions{Continue: encodeContinue("", "../secrets/x", 1)}, 400, metav1.StatusReasonBadRequest, "continue key is not valid"},
		"token, version": {metav1.ListOptions{Continue: "x", ResourceVersion: "1"}, 400, metav1.StatusReasonBadRequest, "specifying resource version is not allowed when using continue"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.List(f.ctx, f.cms, sel, &c.opts)
			wantStatus(t, err, c.code, c.reason, c.part)
		})
	}
	_, err := f.Get(f.ctx, f.cms, "default", "cm1", &metav1.GetOptions{ResourceVersion: fmt.Sprint(now + 100)})
	wantStatus(t, err, 504, metav1.StatusReasonTimeout, "Too large resource version")
	if !apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) {
		t.Errorf("no cause in %+v", err)
	}
}

// take reads n events and writes them as "TYPE name".
func take(t *testing.T, w *Watch, n int) []string {
	t.Helper()
	var out []string
	for len(out) < n {
		events, err := w.Next(t.Context())
		if err != nil {
			t.Fatalf("after %v: %v", out, err)
		}
		for _, e := range events {
			switch {
			case e.InitialEnd:
				out = append(out, e.Type+" end")
			case e.Object == nil:
				out = append(out, e.Type)
			default:
				out = append(out, e.Type+" "+e.Object.GetName())
			}
		}
	}
	return out
}

func (f *fixture) watch(res *Resource, sel Selection, opts metav1.ListOptions) *Watch {
	f.t.Helper()
	w, err := f.Watch(f.ctx, res, sel, &opts)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(w.Stop)
	return w
}

func TestWatchSelection(t *testing.T) {
	f := newFixture(t)
	create(f, f.pod("old", "n1"))
	create(f, f.pod("off", "n2"))
	w := f.watch(f.pods, Selection{Namespace: "default", Labels: parseLabels(t, "app=web"), Fields: parseFields(t, "spec.nodeName=n1")}, metav1.ListOptions{})
	pods := Of[*corev1.Pod](f.Registry)
	mutate := func(name string, change func(*corev1.Pod)) *corev1.Pod {
		out, err := pods.Mutate(f.ctx, "default", name, func(p *corev1.Pod) error { change(p); return nil })
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	mutate("off", func(p *corev1.Pod) { p.Labels["x"] = "1" })
	mutate("off", func(p *corev1.Pod) { p.Spec.NodeName = "n1" })
	mutate("off", func(p *corev1.Pod) { p.Labels["x"] = "2" })
	left := mutate("off", func(p *corev1.Pod) { p.Labels["app"] = "db" })
	if err := pods.Delete(f.ctx, "default", "off", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
	if err := pods.Delete(f.ctx, "default", "old", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := pods.Delete(f.ctx, "default", "old", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
	want := []string{"ADDED old", "ADDED off", "MODIFIED off", "DELETED off", "MODIFIED old", "DELETED old"}
	if got := take(t, w, len(want)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	again := f.watch(f.pods, Selection{Labels: parseLabels(t, "app=web")}, metav1.ListOptions{ResourceVersion: fmt.Sprint(mustVersion(t, left) - 1)})
	events, err := again.Next(t.Context())
	if err != nil || events[0].Type != "DELETED" || events[0].Object.GetResourceVersion() != left.ResourceVersion || events[0].Object.GetLabels()["app"] != "web" {
		t.Errorf("leaving shows %+v %v", events, err)
	}
}

func mustVersion(t *testing.T, obj Object) int64 {
	t.Helper()
	v, err := parseVersion(obj.GetResourceVersion())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestWatchStarts(t *testing.T) {
	const one = "1" // the revision of cm1
	yes, no := true, false
	for name, c := range map[string]struct {
		opts metav1.ListOptions
		want []string // with cm3, which is made afterwards
	}{
		"unset":        {metav1.ListOptions{}, []string{"ADDED cm1", "ADDED cm2", "ADDED cm3"}},
		"zero":         {metav1.ListOptions{ResourceVersion: "0"}, []string{"ADDED cm1", "ADDED cm2", "ADDED cm3"}},
		"from one":     {metav1.ListOptions{ResourceVersion: one}, []string{"ADDED cm2", "ADDED cm3"}},
		"no initial":   {metav1.ListOptions{SendInitialEvents: &no, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan}, []string{"ADDED cm3"}},
		"initial":      {metav1.ListOptions{SendInitialEvents: &yes, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true}, []string{"ADDED cm1", "ADDED cm2", "BOOKMARK end", "ADDED cm3"}},
		"initial, rv":  {metav1.ListOptions{SendInitialEvents: &yes, ResourceVersion: one, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true}, []string{"ADDED cm1", "ADDED cm2", "BOOKMARK end", "ADDED cm3"}},
		"no bookmarks": {metav1.ListOptions{SendInitialEvents: &yes, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan}, []string{"ADDED cm1", "ADDED cm2", "ADDED cm3"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			create(f, f.configMap("cm1"))
			create(f, f.configMap("cm2"))
			w := f.watch(f.cms, Selection{Namespace: "default"}, c.opts)
			create(f, f.configMap("cm3"))
			if got := take(t, w, len(c.want)); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	f := newFixture(t)
	_, err := f.Watch(f.ctx, f.cms, Selection{}, &metav1.ListOptions{SendInitialEvents: &yes})
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
}

func TestIdleWatchGetsBookmarks(t *testing.T) {
	f := newFixture(t)
	w := f.watch(f.cms, Selection{Namespace: "default"}, metav1.ListOptions{AllowWatchBookmarks: true, ResourceVersion: fmt.Sprint(f.store.Revision())})
	create(f, f.pod("elsewhere", ""))
	next := make(chan []WatchEvent)
	go func() {
		events, err := w.Next(f.ctx)
		if err != nil {
			t.Error(err)
		}
		next <- events
	}()
	for !f.bookmarks.waiting() {
		select {
		case got := <-next:
			t.Fatalf("%+v before the clock moved", got)
		default:
		}
	}
	f.bookmarks.tick()
	if got := <-next; len(got) != 1 || got[0].Type != "BOOKMARK" || got[0].ResourceVersion != f.store.Revision() {
		t.Errorf("got %+v, want a bookmark at %d", got, f.store.Revision())
	}
}

func (c *bookmarkClock) waiting() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ticked != nil
}

func TestBookmarkClockTicksOncePerRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c bookmarkClock
		first, second := c.after(0), c.after(0)
		<-first
		<-second
		if c.round.Load() != 1 {
			t.Errorf("round %d", c.round.Load())
		}
		<-c.after(0) // over already
		if c.waiting() {
			t.Error("the clock runs though nobody waits")
		}
	})
}

func TestSlowWatchExpires(t *testing.T) {
	f := newFixture(t)
	w := f.watch(f.cms, Selection{}, metav1.ListOptions{})
	for i := range 3 {
		create(f, f.configMap(fmt.Sprint("cm", i)))
	}
	f.store.Compact(f.store.Revision())
	_, err := w.Next(t.Context())
	wantStatus(t, err, 410, metav1.StatusReasonExpired, "too old resource version")
}

func TestTypedWatch(t *testing.T) {
	f := newFixture(t)
	create(f, f.configMap("cm0", "v", "0"))
	ctx, cancel := context.WithCancelCause(f.ctx)
	defer cancel(nil)
	seen := make(chan string, 100)
	show := func(c *corev1.ConfigMap) string {
		if c == nil {
			return "-"
		}
		return c.Name + "=" + c.Data["v"]
	}
	over := errors.New("enough")
	ended := make(chan error, 1)
	cms := Of[*corev1.ConfigMap](f.Registry)
	go func() {
		ended <- cms.Watch(ctx, func(old, obj *corev1.ConfigMap, deleted bool) {
			seen <- fmt.Sprintf("%s>%s %v", show(old), show(obj), deleted)
		}, func() { seen <- "synced" })
	}()
	want := func(lines ...string) {
		t.Helper()
		for _, line := range lines {
			if got := <-seen; got != line {
				t.Fatalf("got %q, want %q", got, line)
			}
		}
	}
	want("->cm0=0 false", "synced")
	create(f, f.configMap("cm1", "v", "1"))
	if _, err := cms.Mutate(f.ctx, "default", "cm1", func(c *corev1.ConfigMap) error { c.Data["v"] = "2"; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := cms.Delete(f.ctx, "default", "cm0", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	want("->cm1=1 false", "cm1=1>cm1=2 false", "cm0=0>cm0=0 true")
	cancel(over)
	if err := <-ended; !errors.Is(err, over) {
		t.Errorf("ended with %v", err)
	}
}

func TestTypedWatchStartsOver(t *testing.T) {
	f := newFixture(t)
	cms := Of[*corev1.ConfigMap](f.Registry)
	gone := create(f, f.configMap("gone"))
	kept := create(f, f.configMap("kept"))
	seen := map[string]*corev1.ConfigMap{"configmaps/default/gone": gone, "configmaps/default/kept": kept}
	if err := cms.Delete(f.ctx, "default", "gone", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	create(f, f.configMap("new"))
	var got []string
	cms.catchUpSeen(seen, func(old, obj *corev1.ConfigMap, deleted bool) {
		got = append(got, fmt.Sprint(old != nil, obj.Name, deleted))
	})
	if want := []string{"falsegonetrue", "truekeptfalse", "falsenewfalse"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func FuzzContinue(f *testing.F) {
	f.Add(encodeContinue("pods/", "pods/default/a", 7))
	f.Fuzz(func(t *testing.T, token string) {
		after, revision, err := decodeContinue("pods/", token)
		if err == nil && (!strings.HasPrefix(after, "pods/") || revision == 0) {
			t.Errorf("%q gives %q %d", token, after, revision)
		}
	})
}

// TestConcurrentWritersAndWatchers checks that what a watch tells, in order,
// adds up to what a list shows.
func TestConcurrentWritersAndWatchers(t *testing.T) {
	f := newFixture(t)
	const writers, rounds = 8, 40
	w := f.watch(f.cms, Selection{Namespace: "default"}, metav1.ListOptions{AllowWatchBookmarks: true})
	cms := Of[*corev1.ConfigMap](f.Registry)
	failed := make(chan error, writers)
	for i := range writers {
		go func() {
			for n := range rounds {
				name := fmt.Sprint("cm", (i+n)%5)
				var err error
				switch n % 4 {
				case 0:
					_, err = f.Create(f.ctx, f.cms, "default", f.configMap(name, "n", fmt.Sprint(i, n)), nil)
				case 3:
					err = cms.Delete(f.ctx, "default", name, metav1.DeleteOptions{})
				default:
					_, err = cms.Mutate(f.ctx, "default", name, func(c *corev1.ConfigMap) error {
						c.Data = map[string]string{"n": fmt.Sprint(i, n)}
						return nil
					})
				}
				if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsAlreadyExists(err) {
					failed <- err
					return
				}
			}
			failed <- nil
		}()
	}
	for range writers {
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	}
	create(f, f.configMap("last"))
	seen := map[string]Object{}
	version := int64(0)
	for seen["last"] == nil {
		events, err := w.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if e.ResourceVersion <= version {
				t.Fatalf("revision %d after %d", e.ResourceVersion, version)
			}
			version = e.ResourceVersion
			_, known := seen[e.Object.GetName()]
			if known != (e.Type != "ADDED") {
				t.Fatalf("%s %s, known %v", e.Type, e.Object.GetName(), known)
			}
			if seen[e.Object.GetName()] = e.Object; e.Type == "DELETED" {
				delete(seen, e.Object.GetName())
			}
		}
	}
	list := cms.List("default", nil)
	if len(list) != len(seen) {
		t.Errorf("a list has %d objects, the watch %d", len(list), len(seen))
	}
	for _, cm := range list {
		if seen[cm.Name] != Object(cm) {
			t.Errorf("%s differs", cm.Name)
		}
	}
}
