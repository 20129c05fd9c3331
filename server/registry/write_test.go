package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// wantStatus checks code, reason and a part of the message.
func wantStatus(t *testing.T, err error, code int32, reason metav1.StatusReason, part string) {
	t.Helper()
	status, ok := err.(apierrors.APIStatus)
	if !ok {
		t.Fatalf("got %T %v, want a status %d %s", err, err, code, reason)
	}
	if s := status.Status(); s.Code != code || s.Reason != reason || !strings.Contains(s.Message, part) {
		t.Errorf("got %d %s %q, want %d %s with %q", s.Code, s.Reason, s.Message, code, reason, part)
	}
}

func TestCreateFillsMetadata(t *testing.T) {
	f := newFixture(t)
	in := f.pod("", "")
	in.GenerateName = "web-"
	in.UID, in.SelfLink = "forged", "/forged"
	in.DeletionTimestamp = &metav1.Time{Time: f.clock.now}
	in.Status.Phase = corev1.PodRunning
	got := create(f, in)
	if !strings.HasPrefix(got.Name, "web-") || len(got.Name) != len("web-")+5 {
		t.Errorf("generated name %q", got.Name)
	}
	if got.UID == "" || got.UID == "forged" || got.SelfLink != "" || got.DeletionTimestamp != nil {
		t.Errorf("system fields: %+v", got.ObjectMeta)
	}
	if got.CreationTimestamp.Unix() != f.clock.now.Unix() || got.CreationTimestamp.Nanosecond() != 0 {
		t.Errorf("created at %v, now %v", got.CreationTimestamp, f.clock.now)
	}
	if got.Generation != 1 || got.ResourceVersion == "" || got.Kind != "Pod" || got.APIVersion != "v1" {
		t.Errorf("generation %d, version %q, kind %s %s", got.Generation, got.ResourceVersion, got.APIVersion, got.Kind)
	}
	if got.Status.Phase != corev1.PodPending || got.Spec.RestartPolicy != corev1.RestartPolicyAlways {
		t.Errorf("status %s, restart policy %q", got.Status.Phase, got.Spec.RestartPolicy)
	}
	read, err := f.Get(f.ctx, f.pods, "default", got.Name, nil)
	if err != nil || read != Object(got) {
		t.Errorf("Get gives %p %v, want the shared %p", read, err, got)
	}
}

func TestCreateRefusals(t *testing.T) {
	f := newFixture(t)
	create(f, f.configMap("taken"))
	dying := f.configMap("dying")
	dying.Finalizers = []string{"example.com/hold"}
	create(f, dying)
	if _, _, err := f.Delete(f.ctx, f.cms, "default", "dying", nil); err != nil {
		t.Fatal(err)
	}
	with := func(change func(*corev1.ConfigMap)) *corev1.ConfigMap {
		cm := f.configMap("new")
		change(cm)
		return cm
	}
	for name, c := range map[string]struct {
		obj    *corev1.ConfigMap
		code   int32
		reason metav1.StatusReason
		part   string
	}{
		"exists":          {f.configMap("taken"), 409, metav1.StatusReasonAlreadyExists, `configmaps "taken" already exists`},
		"being deleted":   {f.configMap("dying"), 409, metav1.StatusReasonAlreadyExists, `object is being deleted: configmaps "dying" already exists`},
		"other namespace": {with(func(c *corev1.ConfigMap) { c.Namespace = "other" }), 400, metav1.StatusReasonBadRequest, "the namespace of the provided object does not match the namespace sent on the request"},
		"no name":         {with(func(c *corev1.ConfigMap) { c.Name = "" }), 422, metav1.StatusReasonInvalid, "name or generateName is required"},
		"bad name":        {with(func(c *corev1.ConfigMap) { c.Name = "No_Good" }), 422, metav1.StatusReasonInvalid, "RFC 1123 subdomain"},
		"version set":     {with(func(c *corev1.ConfigMap) { c.ResourceVersion = "5" }), 500, "", "resourceVersion should not be set on objects to be created"},
		"bad label":       {with(func(c *corev1.ConfigMap) { c.Labels = map[string]string{"a b": "c"} }), 422, metav1.StatusReasonInvalid, "metadata.labels"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.Create(f.ctx, f.cms, "default", c.obj, nil)
			wantStatus(t, err, c.code, c.reason, c.part)
		})
	}
}

func TestDryRunWritesNothing(t *testing.T) {
	f := newFixture(t)
	before := create(f, f.configMap("kept", "a", "1"))
	all := []string{metav1.DryRunAll}
	out, err := f.Create(f.ctx, f.cms, "default", f.configMap("ghost"), &metav1.CreateOptions{DryRun: all})
	if err != nil || out.GetUID() == "" || out.GetResourceVersion() != "" {
		t.Errorf("create gives %+v %v", out, err)
	}
	_, err = f.Create(f.ctx, f.cms, "default", f.configMap("kept"), &metav1.CreateOptions{DryRun: all})
	wantStatus(t, err, 409, metav1.StatusReasonAlreadyExists, "already exists")
	changed, _, err := f.Update(f.ctx, f.cms, "", "default", "kept", f.configMap("kept", "a", "2"), &metav1.UpdateOptions{DryRun: all})
	if err != nil || changed.(*corev1.ConfigMap).Data["a"] != "2" {
		t.Errorf("update gives %v %v", changed, err)
	}
	if _, gone, err := f.Delete(f.ctx, f.cms, "default", "kept", &metav1.DeleteOptions{DryRun: all}); err != nil || !gone {
		t.Errorf("delete gives gone=%v %v", gone, err)
	}
	if now, err := Of[*corev1.ConfigMap](f.Registry).Get("default", "kept"); err != nil || now != before {
		t.Errorf("a dry run changed %v to %v (%v)", before, now, err)
	}
	if got := len(Of[*corev1.ConfigMap](f.Registry).List("", nil)); got != 1 {
		t.Errorf("%d objects, want 1", got)
	}
}

func TestUpdateRules(t *testing.T) {
	f := newFixture(t)
	old := create(f, f.pod("web", ""))
	stale := old.DeepCopy()
	stale.Labels["x"] = "y"
	next := old.DeepCopy()
	next.Spec.NodeName = "n1"
	next.UID, next.CreationTimestamp, next.Generation = "", metav1.Time{}, 99
	next.Status.Phase = corev1.PodFailed
	out, created, err := f.Update(f.ctx, f.pods, "", "default", "web", next, nil)
	if err != nil || created {
		t.Fatal(err, created)
	}
	got := out.(*corev1.Pod)
	if got.UID != old.UID || !got.CreationTimestamp.Equal(&old.CreationTimestamp) || got.Generation != 2 || got.Status.Phase != corev1.PodPending {
		t.Errorf("got %+v %s", got.ObjectMeta, got.Status.Phase)
	}
	put := func(change func(*corev1.Pod)) error {
		p := got.DeepCopy()
		change(p)
		_, _, err := f.Update(f.ctx, f.pods, "", "default", "web", p, nil)
		return err
	}
	_, _, err = f.Update(f.ctx, f.pods, "", "default", "web", stale, nil)
	wantStatus(t, err, 409, metav1.StatusReasonConflict, `Operation cannot be fulfilled on pods "web": the object has been modified; please apply your changes to the latest version and try again`)
	wantStatus(t, put(func(p *corev1.Pod) { p.Name = "other" }), 400, metav1.StatusReasonBadRequest, "the name of the object (other) does not match the name on the URL (web)")
	wantStatus(t, put(func(p *corev1.Pod) { p.Namespace = "other" }), 400, metav1.StatusReasonBadRequest, "the namespace of the provided object does not match")
	wantStatus(t, put(func(p *corev1.Pod) { p.UID = "other" }), 409, metav1.StatusReasonConflict, "Precondition failed: UID in precondition: other, UID in object meta: "+string(got.UID))
	wantStatus(t, put(func(p *corev1.Pod) { p.Spec.Containers = nil }), 422, metav1.StatusReasonInvalid, "spec.containers: Required value")
	_, _, err = f.Update(f.ctx, f.pods, "", "default", "none", f.pod("none", ""), nil)
	wantStatus(t, err, 404, metav1.StatusReasonNotFound, `pods "none" not found`)
}

func TestUpdateWithoutChangeIsNotWritten(t *testing.T) {
	f := newFixture(t)
	old := create(f, f.configMap("cm", "a", "1"))
	revision := f.store.Revision()
	out, _, err := f.Update(f.ctx, f.cms, "", "default", "cm", old.DeepCopy(), nil)
	if err != nil || out != any(old) {
		t.Errorf("PUT gives %p %v, want %p", out, err, old)
	}
	same, err := Of[*corev1.ConfigMap](f.Registry).Mutate(f.ctx, "default", "cm", func(*corev1.ConfigMap) error { return nil })
	if err != nil || same != old {
		t.Errorf("Mutate gives %p %v, want %p", same, err, old)
	}
	if _, _, err := f.Patch(f.ctx, f.cms, "", "default", "cm", types.MergePatchType, []byte(`{"data":{"a":"1"}}`), nil); err != nil {
		t.Error(err)
	}
	if got := f.store.Revision(); got != revision {
		t.Errorf("revision went from %d to %d", revision, got)
	}
}

func TestPutCreates(t *testing.T) {
	f := newFixture(t)
	_, created, err := f.Update(f.ctx, f.cms, "", "default", "new", f.configMap("new"), nil)
	if err != nil || !created {
		t.Errorf("created=%v %v", created, err)
	}
}

func TestStatusView(t *testing.T) {
	f := newFixture(t)
	create(f, f.pod("web", "n1"))
	pods := Of[*corev1.Pod](f.Registry)
	got, err := pods.MutateStatus(f.ctx, "default", "web", func(p *corev1.Pod) error {
		p.Status.Phase, p.Spec.NodeName = corev1.PodRunning, "elsewhere"
		return nil
	})
	if err != nil || got.Status.Phase != corev1.PodRunning || got.Spec.NodeName != "n1" || got.Generation != 1 {
		t.Errorf("got %+v %v", got, err)
	}
}

func TestScaleProjection(t *testing.T) {
	f := newFixture(t)
	d := create(f, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"}})
	scale := func(version string, n int32) (*autoscalingv1.Scale, error) {
		body := &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", ResourceVersion: version}, Spec: autoscalingv1.ScaleSpec{Replicas: n}}
		out, _, err := f.Update(f.ctx, f.deployments, "scale", "default", "web", body, nil)
		if err != nil {
			return nil, err
		}
		return out.(*autoscalingv1.Scale), nil
	}
	got, err := scale(d.ResourceVersion, 3)
	if err != nil || got.Spec.Replicas != 3 || got.Kind != "Scale" {
		t.Fatalf("%+v %v", got, err)
	}
	_, err = scale(d.ResourceVersion, 4)
	wantStatus(t, err, 409, metav1.StatusReasonConflict, "the object has been modified")
	if _, err = scale("", 5); err != nil {
		t.Error(err)
	}
	out, _, err := f.Patch(f.ctx, f.deployments, "scale", "default", "web", types.MergePatchType, []byte(`{"spec":{"replicas":7}}`), nil)
	if err != nil || out.(*autoscalingv1.Scale).Spec.Replicas != 7 {
		t.Errorf("%+v %v", out, err)
	}
	now, _ := Of[*appsv1.Deployment](f.Registry).Get("default", "web")
	if *now.Spec.Replicas != 7 || now.Generation != 4 {
		t.Errorf("replicas %d, generation %d", *now.Spec.Replicas, now.Generation)
	}
}

func TestDeleteRules(t *testing.T) {
	f := newFixture(t)
	old := create(f, f.configMap("cm"))
	other := types.UID("other")
	_, _, err := f.Delete(f.ctx, f.cms, "default", "cm", &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &other}})
	wantStatus(t, err, 409, metav1.StatusReasonConflict, "the UID in the precondition (other) does not match the UID in record ("+string(old.UID)+")")
	one := "99"
	_, _, err = f.Delete(f.ctx, f.cms, "default", "cm", &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &one}})
	wantStatus(t, err, 409, metav1.StatusReasonConflict, "the ResourceVersion in the precondition (99) does not match")
	bad := metav1.DeletionPropagation("Sideways")
	_, _, err = f.Delete(f.ctx, f.cms, "default", "cm", &metav1.DeleteOptions{PropagationPolicy: &bad})
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "propagationPolicy")
	if _, gone, err := f.Delete(f.ctx, f.cms, "default", "cm", nil); err != nil || !gone {
		t.Errorf("gone=%v %v", gone, err)
	}
	_, _, err = f.Delete(f.ctx, f.cms, "default", "cm", nil)
	wantStatus(t, err, 404, metav1.StatusReasonNotFound, `configmaps "cm" not found`)
}

func TestPropagationFinalizers(t *testing.T) {
	policy := func(p metav1.DeletionPropagation) *metav1.DeleteOptions {
		return &metav1.DeleteOptions{PropagationPolicy: &p}
	}
	yes, no := true, false
	for name, c := range map[string]struct {
		have []string
		opts *metav1.DeleteOptions
		want []string // nil: gone
	}{
		"default":                      {nil, nil, nil},
		"foreground":                   {nil, policy(metav1.DeletePropagationForeground), []string{metav1.FinalizerDeleteDependents}},
		"orphan":                       {nil, policy(metav1.DeletePropagationOrphan), []string{metav1.FinalizerOrphanDependents}},
		"orphanDependents":             {nil, &metav1.DeleteOptions{OrphanDependents: &yes}, []string{metav1.FinalizerOrphanDependents}},
		"background drops orphan":      {[]string{metav1.FinalizerOrphanDependents}, policy(metav1.DeletePropagationBackground), nil},
		"no orphanDependents":          {[]string{metav1.FinalizerOrphanDependents}, &metav1.DeleteOptions{OrphanDependents: &no}, nil},
		"kept foreground":              {[]string{metav1.FinalizerDeleteDependents}, nil, []string{metav1.FinalizerDeleteDependents}},
		"others stay":                  {[]string{"example.com/a"}, policy(metav1.DeletePropagationOrphan), []string{"example.com/a", metav1.FinalizerOrphanDependents}},
		"others hold a background one": {[]string{"example.com/a"}, nil, []string{"example.com/a"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			cm := f.configMap("cm")
			cm.Finalizers = c.have
			create(f, cm)
			out, gone, err := f.Delete(f.ctx, f.cms, "default", "cm", c.opts)
			if err != nil || gone != (c.want == nil) {
				t.Fatalf("gone=%v %v", gone, err)
			}
			if !gone && (!slices.Equal(out.GetFinalizers(), c.want) || out.GetDeletionTimestamp() == nil || *out.GetDeletionGracePeriodSeconds() != 0) {
				t.Errorf("got %+v", out)
			}
		})
	}
}

func TestLastFinalizerCompletesDeletion(t *testing.T) {
	f := newFixture(t)
	cm := f.configMap("cm")
	cm.Finalizers = []string{"example.com/a", "example.com/b"}
	create(f, cm)
	if _, gone, err := f.Delete(f.ctx, f.cms, "default", "cm", nil); gone || err != nil {
		t.Fatal(gone, err)
	}
	cms := Of[*corev1.ConfigMap](f.Registry)
	drop := func() {
		if _, err := cms.Mutate(f.ctx, "default", "cm", func(c *corev1.ConfigMap) error { c.Finalizers = c.Finalizers[1:]; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	drop()
	if _, err := cms.Get("default", "cm"); err != nil {
		t.Fatal(err)
	}
	_, err := cms.Mutate(f.ctx, "default", "cm", func(c *corev1.ConfigMap) error { c.Finalizers = append(c.Finalizers, "example.com/c"); return nil })
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "no new finalizers can be added if the object is being deleted")
	drop()
	_, err = cms.Get("default", "cm")
	wantStatus(t, err, 404, metav1.StatusReasonNotFound, "not found")
}

func TestGracefulDeletion(t *testing.T) {
	f := newFixture(t)
	create(f, f.pod("unbound", ""))
	if _, gone, err := f.Delete(f.ctx, f.pods, "default", "unbound", nil); err != nil || !gone {
		t.Errorf("an unbound pod: gone=%v %v", gone, err)
	}
	create(f, f.pod("web", "n1"))
	del := func(grace *int64) (*corev1.Pod, bool) {
		out, gone, err := f.Delete(f.ctx, f.pods, "default", "web", &metav1.DeleteOptions{GracePeriodSeconds: grace})
		if err != nil {
			t.Fatal(err)
		}
		return out.(*corev1.Pod), gone
	}
	seconds := func(n int64) *int64 { return &n }
	start := f.clock.Now()
	first, gone := del(nil)
	if gone || *first.DeletionGracePeriodSeconds != 30 || first.DeletionTimestamp.Unix() != start.Add(30*time.Second).Unix() || first.Generation != 2 {
		t.Errorf("first: gone=%v %+v", gone, first.ObjectMeta)
	}
	if again, _ := del(nil); again != first {
		t.Errorf("a second delete changed %+v", again.ObjectMeta)
	}
	if longer, _ := del(seconds(60)); longer != first {
		t.Errorf("a longer period changed %+v", longer.ObjectMeta)
	}
	shorter, gone := del(seconds(10))
	if gone || *shorter.DeletionGracePeriodSeconds != 10 || shorter.DeletionTimestamp.Unix() != start.Add(10*time.Second).Unix() {
		t.Errorf("shorter: %+v", shorter.ObjectMeta)
	}
	f.clock.Advance(20 * time.Second)
	if late, _ := del(seconds(5)); *late.DeletionGracePeriodSeconds != 1 || late.DeletionTimestamp.Unix() != f.clock.Now().Unix() {
		t.Errorf("late: %+v", late.ObjectMeta)
	}
	if _, gone := del(seconds(0)); !gone {
		t.Error("period 0 left the pod")
	}
}

func TestHeldObjects(t *testing.T) {
	f := newFixture(t)
	create(f, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "team"}})
	out, gone, err := f.Delete(f.ctx, f.namespaces, "", "team", nil)
	ns := out.(*corev1.Namespace)
	if err != nil || gone || ns.DeletionTimestamp == nil || ns.DeletionGracePeriodSeconds != nil || ns.Status.Phase != corev1.NamespaceTerminating {
		t.Fatalf("gone=%v %v %+v", gone, err, ns)
	}
	spaces := Of[*corev1.Namespace](f.Registry)
	if _, err := spaces.Mutate(f.ctx, "", "team", func(n *corev1.Namespace) error { n.Labels = map[string]string{"a": "b"}; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, gone, _ := f.Delete(f.ctx, f.namespaces, "", "team", nil); gone {
		t.Error("a second delete removed a held namespace")
	}
	released, _ := spaces.Get("", "team")
	released = released.DeepCopy()
	released.Spec.Finalizers = nil
	if _, _, err := f.Update(f.ctx, f.namespaces, "finalize", "", "team", released, nil); err != nil {
		t.Fatal(err)
	}
	_, err = spaces.Get("", "team")
	wantStatus(t, err, 404, metav1.StatusReasonNotFound, "not found")
}

func TestDeleteCollection(t *testing.T) {
	f := newFixture(t)
	for i := range 50 {
		cm := f.configMap(fmt.Sprint("cm-", i))
		cm.Labels = map[string]string{"even": fmt.Sprint(i%2 == 0)}
		create(f, cm)
	}
	out, err := f.DeleteCollection(f.ctx, f.cms, Selection{Namespace: "default", Labels: parseLabels(t, "even=true")}, nil, nil)
	if err != nil || len(out.Items) != 25 {
		t.Fatalf("%d items, %v", len(out.Items), err)
	}
	if left := Of[*corev1.ConfigMap](f.Registry).List("default", nil); len(left) != 25 {
		t.Errorf("%d left", len(left))
	}
}

func TestClaims(t *testing.T) {
	f := newFixture(t)
	service := func(name, ip string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: corev1.ServiceSpec{ClusterIP: ip}}
	}
	create(f, service("a", "10.0.0.2"))
	got := map[string]bool{}
	for _, name := range []string{"b", "c", "d"} {
		got[create(f, service(name, "")).Spec.ClusterIP] = true
	}
	if len(got) != 3 || got["10.0.0.2"] {
		t.Errorf("allocated %v", got)
	}
	if holder := f.ClaimHolder("clusterip/10.0.0.2"); holder != "services/default/a" {
		t.Errorf("held by %q", holder)
	}
	_, err := f.Create(f.ctx, f.services, "default", service("e", "10.0.0.2"), nil)
	wantStatus(t, err, 422, metav1.StatusReasonInvalid, "already allocated")
	services := Of[*corev1.Service](f.Registry)
	if _, err := services.Mutate(f.ctx, "default", "a", func(s *corev1.Service) error { s.Spec.ClusterIP = "10.0.0.9"; return nil }); err != nil {
		t.Fatal(err)
	}
	if f.Claimed("clusterip/10.0.0.2") || !f.Claimed("clusterip/10.0.0.9") {
		t.Error("an update did not move its claim")
	}
	if err := services.Delete(f.ctx, "default", "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if f.Claimed("clusterip/10.0.0.9") {
		t.Error("a deletion kept its claim")
	}
}

func TestClaimsAreSharedOut(t *testing.T) {
	f := newFixture(t)
	results := make(chan error, 8)
	for i := range 8 {
		go func() {
			_, err := f.Create(f.ctx, f.services, "default", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("s", i)}}, nil)
			results <- err
		}()
	}
	failed := 0
	for range 8 {
		if <-results != nil {
			failed++
		}
	}
	if failed != 4 {
		t.Errorf("%d of 8 creations failed, want 4: there are four addresses", failed)
	}
}

func TestConvertedResource(t *testing.T) {
	f := newFixture(t)
	out, err := f.Create(f.ctx, f.newEvents, "default", &eventsv1.Event{ObjectMeta: metav1.ObjectMeta{Name: "e"}, Reason: "Started", Note: "hello"}, nil)
	if err != nil || out.(*eventsv1.Event).Note != "hello" || out.GetResourceVersion() == "" || out.GetObjectKind().GroupVersionKind().Group != "events.k8s.io" {
		t.Fatalf("%+v %v", out, err)
	}
	core, err := f.Get(f.ctx, f.events, "default", "e", nil)
	if err != nil || core.(*corev1.Event).Message != "hello" || core.GetResourceVersion() != out.GetResourceVersion() {
		t.Errorf("%+v %v", core, err)
	}
	patched, _, err := f.Patch(f.ctx, f.newEvents, "", "default", "e", types.MergePatchType, []byte(`{"note":"bye"}`), nil)
	if err != nil || patched.(*eventsv1.Event).Note != "bye" {
		t.Errorf("%+v %v", patched, err)
	}
	list, err := f.List(f.ctx, f.newEvents, Selection{}, nil)
	if err != nil || len(list.Items) != 1 || list.Items[0].(*eventsv1.Event).Note != "bye" {
		t.Errorf("%+v %v", list, err)
	}
}

// refuser is an admission that refuses with a plain error, and labels the rest.
type refuser struct{ seen []string }

func (a *refuser) Admit(_ context.Context, at *Attempt) error {
	a.seen = append(a.seen, at.Operation+" "+at.Resource.Plural+"/"+at.Subresource+" "+at.Name)
	if at.Name == "evil" {
		return errors.New("not on my watch")
	}
	if cm, ok := at.Object.(*corev1.ConfigMap); ok {
		cm.Labels = map[string]string{"admitted": "true"}
	}
	return nil
}

func TestAdmission(t *testing.T) {
	a := &refuser{}
	f := newFixture(t, a)
	_, err := f.Create(f.ctx, f.cms, "default", f.configMap("evil"), nil)
	wantStatus(t, err, http.StatusForbidden, metav1.StatusReasonForbidden, `configmaps "evil" is forbidden: not on my watch`)
	if cm := create(f, f.configMap("good")); cm.Labels["admitted"] != "true" || ownsLabel(cm) {
		t.Errorf("%+v", cm.ObjectMeta)
	}
	if _, _, err := f.Delete(f.ctx, f.cms, "default", "good", nil); err != nil {
		t.Fatal(err)
	}
	want := []string{"CREATE configmaps/ evil", "CREATE configmaps/ good", "DELETE configmaps/ good"}
	if !slices.Equal(a.seen, want) {
		t.Errorf("admission saw %q, want %q", a.seen, want)
	}
}

func ownsLabel(obj Object) bool {
	for _, m := range obj.GetManagedFields() {
		if strings.Contains(m.FieldsV1.GetRawString(), "f:labels") {
			return true
		}
	}
	return false
}

func TestEncryptedValuesSurviveARestart(t *testing.T) {
	f := newFixture(t)
	key := "secrets/default/s"
	secret := &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "default"}, Data: map[string][]byte{"k": []byte("plain-text")}}
	value, err := f.codec.encode(f.entries[f.secrets], key, secret)
	if err != nil || strings.Contains(string(value), "plain-text") {
		t.Fatalf("kept as %q, %v", value, err)
	}
	got, err := f.codec.Decode(key, value, 7)
	if err != nil || string(got.(*corev1.Secret).Data["k"]) != "plain-text" || got.(*corev1.Secret).ResourceVersion != "7" {
		t.Errorf("%+v %v", got, err)
	}
}

func FuzzDecode(f *testing.F) {
	r, err := New(Config{Resources: []*Resource{configMaps(), pods(), secrets()}})
	if err != nil {
		f.Fatal(err)
	}
	value, _ := marshal(r.byName[resourceName{"", "v1", "pods"}], &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}})
	f.Add("pods/default/p", value)
	f.Add("claims/x", []byte("pods/default/p"))
	f.Add("pods/default/p", []byte{'p', 200})
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		obj, err := r.codec.Decode(key, value, 1)
		if err == nil && obj == nil {
			t.Error("neither object nor error")
		}
	})
}
