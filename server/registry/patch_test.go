package registry

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

var updateGolden = flag.Bool("update", false, "rewrite testdata")

func TestPatchTypes(t *testing.T) {
	f := newFixture(t)
	for name, c := range map[string]struct {
		pt   types.PatchType
		body string
		want string // images and ports afterwards
	}{
		"json":      {types.JSONPatchType, `[{"op":"test","path":"/spec/nodeName","value":"n1"},{"op":"replace","path":"/spec/containers/0/image","value":"b"}]`, "main=b:80"},
		"merge":     {types.MergePatchType, `{"spec":{"containers":[{"name":"other","image":"c"}]}}`, "other=c"},
		"strategic": {types.StrategicMergePatchType, `{"spec":{"containers":[{"name":"main","image":"d"},{"name":"side","image":"e"}]}}`, "main=d:80 side=e"},
		"delete":    {types.StrategicMergePatchType, `{"spec":{"containers":[{"name":"main","image":"d","ports":[{"$patch":"replace"}]}]}}`, "main=d"},
	} {
		t.Run(name, func(t *testing.T) {
			create(f, f.pod(name, "n1"))
			out, created, err := f.Patch(f.ctx, f.pods, "", "default", name, c.pt, []byte(c.body), nil)
			if err != nil || created {
				t.Fatal(created, err)
			}
			var got []string
			for _, box := range out.(*corev1.Pod).Spec.Containers {
				s := box.Name + "=" + box.Image
				for _, p := range box.Ports {
					s += fmt.Sprintf(":%d", p.ContainerPort)
				}
				if box.ImagePullPolicy == "" {
					t.Errorf("%s was not defaulted", box.Name)
				}
				got = append(got, s)
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got %v, want %s", got, c.want)
			}
		})
	}
}

func TestPatchRefusals(t *testing.T) {
	f := newFixture(t)
	create(f, f.pod("web", "n1"))
	yes := true
	apply := metav1.PatchOptions{FieldManager: "m"}
	strict := metav1.PatchOptions{FieldValidation: metav1.FieldValidationStrict}
	for name, c := range map[string]struct {
		pt     types.PatchType
		target string
		body   string
		opts   metav1.PatchOptions
		code   int32
		reason metav1.StatusReason
		part   string
	}{
		"absent":               {types.MergePatchType, "none", `{}`, metav1.PatchOptions{}, 404, metav1.StatusReasonNotFound, `pods "none" not found`},
		"not JSON":             {types.MergePatchType, "web", `{`, metav1.PatchOptions{}, 400, metav1.StatusReasonBadRequest, "error decoding patch: unexpected end of JSON input"},
		"absent, not JSON":     {types.MergePatchType, "none", `{`, metav1.PatchOptions{}, 404, metav1.StatusReasonNotFound, `pods "none" not found`},
		"other kind":           {types.MergePatchType, "web", `{"kind":"ConfigMap"}`, metav1.PatchOptions{}, 422, metav1.StatusReasonInvalid, "converting (v1.ConfigMap) to (core.Pod): unknown conversion"},
		"unknown kind":         {types.JSONPatchType, "web", `[{"op":"replace","path":"/apiVersion","value":"v2"}]`, metav1.PatchOptions{}, 422, metav1.StatusReasonInvalid, `no kind "Pod" is registered for version "v2"`},
		"not an object":        {types.StrategicMergePatchType, "web", `[]`, metav1.PatchOptions{}, 400, metav1.StatusReasonBadRequest, "cannot unmarshal"},
		"unknown type":         {"text/plain", "web", `{}`, metav1.PatchOptions{}, 415, metav1.StatusReasonUnsupportedMediaType, "accepted media types include: application/json-patch+json"},
		"too large":            {types.MergePatchType, "web", strings.Repeat(" ", maxPatchBytes+1), metav1.PatchOptions{}, 413, metav1.StatusReasonRequestEntityTooLarge, "limit is 3145728"},
		"too many operations":  {types.JSONPatchType, "web", "[" + strings.Repeat(`{"op":"add","path":"/metadata/labels/a","value":"b"},`, maxPatchOperations) + `{"op":"add","path":"/metadata/labels/a","value":"b"}]`, metav1.PatchOptions{}, 413, metav1.StatusReasonRequestEntityTooLarge, "The allowed maximum operations in a JSON patch is 10000, got 10001"},
		"test fails":           {types.JSONPatchType, "web", `[{"op":"test","path":"/spec/nodeName","value":"n2"}]`, metav1.PatchOptions{}, 422, metav1.StatusReasonInvalid, "the server rejected our request due to an error in our request"},
		"wrong type":           {types.MergePatchType, "web", `{"spec":{"containers":"x"}}`, metav1.PatchOptions{}, 422, metav1.StatusReasonInvalid, "cannot unmarshal"},
		"invalid result":       {types.MergePatchType, "web", `{"spec":{"containers":null}}`, metav1.PatchOptions{}, 422, metav1.StatusReasonInvalid, "spec.containers: Required value"},
		"stale version":        {types.MergePatchType, "web", `{"metadata":{"resourceVersion":"1000"}}`, metav1.PatchOptions{}, 409, metav1.StatusReasonConflict, "the object has been modified"},
		"renames":              {types.MergePatchType, "web", `{"metadata":{"name":"x"}}`, metav1.PatchOptions{}, 400, metav1.StatusReasonBadRequest, "the name of the object (x) does not match the name on the URL (web)"},
		"unknown field":        {types.MergePatchType, "web", `{"spec":{"colour":"red"}}`, strict, 422, metav1.StatusReasonInvalid, `strict decoding error: unknown field "spec.colour"`},
		"unknown, strategic":   {types.StrategicMergePatchType, "web", `{"spec":{"colour":"red"}}`, strict, 422, metav1.StatusReasonInvalid, `strict decoding error: unknown field "spec.colour"`},
		"repeated field":       {types.MergePatchType, "web", `{"metadata":{"labels":{"a":"1","a":"2"}}}`, strict, 422, metav1.StatusReasonInvalid, `duplicate field "metadata.labels.a"`},
		"force without apply":  {types.MergePatchType, "web", `{}`, metav1.PatchOptions{Force: &yes}, 422, metav1.StatusReasonInvalid, "force"},
		"apply, no manager":    {types.ApplyPatchType, "web", `{}`, metav1.PatchOptions{}, 422, metav1.StatusReasonInvalid, "is required for apply patch"},
		"apply, other version": {types.ApplyPatchType, "web", `{"apiVersion":"v2","kind":"Pod"}`, apply, 400, metav1.StatusReasonBadRequest, "invalid object type"},
		"apply, unknown field": {types.ApplyPatchType, "web", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"},"spec":{"colour":"red"}}`, apply, 500, "", ".spec.colour: field not declared in schema"},
		"apply, managedFields": {types.ApplyPatchType, "web", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","managedFields":[{"manager":"x"}]}}`, apply, 400, metav1.StatusReasonBadRequest, "metadata.managedFields must be nil"},
		"apply, no name":       {types.ApplyPatchType, "none", `{"apiVersion":"v1","kind":"Pod"}`, apply, 400, metav1.StatusReasonBadRequest, "name must be provided"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := f.Patch(f.ctx, f.pods, "", "default", c.target, c.pt, []byte(c.body), &c.opts)
			wantStatus(t, err, c.code, c.reason, c.part)
		})
	}
}

func TestPatchWarnings(t *testing.T) {
	f := newFixture(t)
	create(f, f.pod("web", "n1"))
	for name, c := range map[string]struct {
		validation, want string
	}{
		"default": {"", `unknown field "spec.colour"`},
		"warn":    {metav1.FieldValidationWarn, `unknown field "spec.colour"`},
		"ignore":  {metav1.FieldValidationIgnore, ""},
	} {
		for _, pt := range []types.PatchType{types.MergePatchType, types.StrategicMergePatchType} {
			t.Run(name+" "+string(pt), func(t *testing.T) {
				var got []string
				ctx := WithWarnings(f.ctx, func(text string) { got = append(got, text) })
				_, _, err := f.Patch(ctx, f.pods, "", "default", "web", pt, []byte(`{"spec":{"colour":"red"}}`), &metav1.PatchOptions{FieldValidation: c.validation})
				if err != nil || strings.Join(got, ";") != c.want {
					t.Errorf("warned %q, want %q (%v)", got, c.want, err)
				}
			})
		}
	}
}

func TestConcurrentPatchesAllCount(t *testing.T) {
	f := newFixture(t)
	create(f, f.configMap("cm"))
	const writers = 20
	results := make(chan error, writers)
	for i := range writers {
		go func() {
			_, _, err := f.Patch(f.ctx, f.cms, "", "default", "cm", types.MergePatchType, fmt.Appendf(nil, `{"data":{"k%d":"v"}}`, i), nil)
			results <- err
		}()
	}
	for range writers {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	got, _ := Of[*corev1.ConfigMap](f.Registry).Get("default", "cm")
	if len(got.Data) != writers {
		t.Errorf("%d keys, want %d", len(got.Data), writers)
	}
}

// transcript runs apply steps on one object and writes down what it becomes
// and who owns what.
type transcript struct {
	f   *fixture
	out strings.Builder
}

type step struct {
	title, manager string
	sub            string
	pt             types.PatchType // "" means apply
	force          bool
	body           string
}

func (tr *transcript) run(res *Resource, name string, s step) {
	if s.pt == "" {
		s.pt = types.ApplyPatchType
	}
	opts := &metav1.PatchOptions{FieldManager: s.manager}
	if s.force {
		opts.Force = &s.force
	}
	fmt.Fprintf(&tr.out, "## %s\n", s.title)
	obj, created, err := tr.f.Patch(tr.f.ctx, res, s.sub, "default", name, s.pt, []byte(s.body), opts)
	if err != nil {
		fmt.Fprintf(&tr.out, "error: %v\n", err)
		if status, ok := err.(apierrors.APIStatus); ok {
			st := status.Status()
			fmt.Fprintf(&tr.out, "code: %d %s\n", st.Code, st.Reason)
			for _, c := range st.Details.Causes {
				fmt.Fprintf(&tr.out, "cause: %s %s %s\n", c.Type, c.Field, c.Message)
			}
		}
		tr.out.WriteString("\n")
		return
	}
	fmt.Fprintf(&tr.out, "created: %v\n", created)
	shown := obj.(Object).DeepCopyObject().(Object)
	owners := shown.GetManagedFields()
	slices.SortFunc(owners, func(a, b metav1.ManagedFieldsEntry) int { return strings.Compare(a.Manager, b.Manager) })
	for _, m := range owners {
		fmt.Fprintf(&tr.out, "%s %s %s %s %s\n", m.Manager, m.Operation, m.APIVersion, m.Subresource, m.FieldsV1.GetRawString())
	}
	shown.SetManagedFields(nil)
	shown.SetUID("")
	shown.SetResourceVersion("")
	shown.SetCreationTimestamp(metav1.Time{})
	text, _ := json.Marshal(shown)
	fmt.Fprintf(&tr.out, "%s\n\n", text)
}

func (tr *transcript) check(t *testing.T, name string) {
	t.Helper()
	path := filepath.Join("testdata", "apply", name+".txt")
	if *updateGolden {
		if err := os.WriteFile(path, []byte(tr.out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := tr.out.String(); got != string(want) {
		t.Errorf("%s differs; got:\n%s", path, got)
	}
}

const webDeployment = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","labels":{"team":"a"}},"spec":%s}`

func TestApply(t *testing.T) {
	spec := func(replicas int, image string) string {
		return fmt.Sprintf(webDeployment, fmt.Sprintf(`{"replicas":%d,"selector":{"matchLabels":{"app":"web"}},"template":{"metadata":{"labels":{"app":"web"}},"spec":{"containers":[{"name":"main","image":%q}]}}}`, replicas, image))
	}
	for name, steps := range map[string][]step{
		"create and remove": {
			{title: "apply makes it", manager: "a", body: spec(2, "nginx")},
			{title: "the same again changes nothing", manager: "a", body: spec(2, "nginx")},
			{title: "a field left out is removed, then defaulted", manager: "a", body: strings.Replace(spec(2, "nginx"), `"replicas":2,`, "", 1)},
			{title: "labels left out are removed", manager: "a", body: strings.Replace(spec(2, "nginx"), `,"labels":{"team":"a"}}`, "}", 1)},
		},
		"conflict and force": {
			{title: "a makes it", manager: "a", body: spec(2, "nginx")},
			{title: "b shares equal fields", manager: "b", body: spec(2, "nginx")},
			{title: "b disagrees", manager: "b", body: spec(3, "apache")},
			{title: "b forces", manager: "b", force: true, body: spec(3, "apache")},
			{title: "a lets go of the replicas", manager: "a", force: true, body: strings.Replace(spec(2, "apache"), `"replicas":2,`, "", 1)},
		},
		"updates own too": {
			{title: "a makes it", manager: "a", body: spec(2, "nginx")},
			{title: "an update takes the replicas", manager: "hpa", pt: types.MergePatchType, body: `{"spec":{"replicas":5}}`},
			{title: "a conflicts with it", manager: "a", body: spec(2, "nginx")},
			{title: "scale takes them over", manager: "scaler", sub: "scale", pt: types.MergePatchType, body: `{"spec":{"replicas":6}}`},
			{title: "status has its own owner", manager: "controller", sub: "status", pt: types.MergePatchType, body: `{"status":{"replicas":6,"conditions":[{"type":"Available","status":"True"}]}}`},
			{title: "apply through scale conflicts", manager: "b", sub: "scale", body: `{"apiVersion":"autoscaling/v1","kind":"Scale","metadata":{"name":"web"},"spec":{"replicas":1}}`},
			{title: "and wins by force", manager: "b", sub: "scale", force: true, body: `{"apiVersion":"autoscaling/v1","kind":"Scale","metadata":{"name":"web"},"spec":{"replicas":1}}`},
		},
		"list items": {
			{title: "a makes it", manager: "a", body: spec(2, "nginx")},
			{title: "b adds a container", manager: "b", body: fmt.Sprintf(webDeployment, `{"template":{"spec":{"containers":[{"name":"side","image":"envoy","ports":[{"containerPort":80},{"containerPort":80,"protocol":"UDP"}]}]}}}`)},
			{title: "b removes it again", manager: "b", body: fmt.Sprintf(webDeployment, `{}`)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			tr := &transcript{f: newFixture(t)}
			for _, s := range steps {
				tr.run(tr.f.deployments, "web", s)
			}
			tr.check(t, strings.ReplaceAll(name, " ", "-"))
		})
	}
}

func TestApplyWithoutChangeIsNotWritten(t *testing.T) {
	f := newFixture(t)
	body := fmt.Appendf(nil, webDeployment, `{"replicas":2}`)
	opts := &metav1.PatchOptions{FieldManager: "a"}
	first, created, err := f.Patch(f.ctx, f.deployments, "", "default", "web", types.ApplyPatchType, body, opts)
	if err != nil || !created {
		t.Fatal(created, err)
	}
	again, created, err := f.Patch(f.ctx, f.deployments, "", "default", "web", types.ApplyPatchType, body, opts)
	if err != nil || created || again != first {
		t.Errorf("a second apply wrote %+v (%v)", again, err)
	}
}

func TestManagersOfWrites(t *testing.T) {
	f := newFixture(t)
	ctx := WithFieldManager(f.ctx, "kubectl/v1.37 (linux)")
	obj, err := f.Create(ctx, f.cms, "default", f.configMap("cm", "a", "1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	cms := Of[*corev1.ConfigMap](f.Registry)
	got, err := cms.Mutate(f.ctx, "default", "cm", func(c *corev1.ConfigMap) error { c.Data["b"] = "2"; return nil })
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"kubectl": `{"f:data":{".":{},"f:a":{}}}`, "orch": `{"f:data":{"f:b":{}}}`}
	for _, m := range got.ManagedFields {
		if m.FieldsV1.GetRawString() != want[m.Manager] || m.Operation != metav1.ManagedFieldsOperationUpdate || m.Time == nil {
			t.Errorf("%+v, want %s", m, want[m.Manager])
		}
	}
	if len(got.ManagedFields) != 2 {
		t.Errorf("%d managers", len(got.ManagedFields))
	}
	cleared := got.DeepCopy()
	cleared.ManagedFields = []metav1.ManagedFieldsEntry{{}}
	cleared.Data["c"] = "3"
	if cleared, err = cms.Update(f.ctx, cleared); err != nil || len(cleared.ManagedFields) != 0 {
		t.Errorf("reset gives %+v %v", cleared.ManagedFields, err)
	}
	if obj.GetManagedFields()[0].Manager != "kubectl" {
		t.Errorf("%+v", obj.GetManagedFields())
	}
}

func TestDeploymentGenerations(t *testing.T) {
	f := newFixture(t)
	create(f, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"}})
	patch := func(sub, body string) int64 {
		out, _, err := f.Patch(context.WithoutCancel(f.ctx), f.deployments, sub, "default", "web", types.StrategicMergePatchType, []byte(body), nil)
		if err != nil {
			t.Fatal(err)
		}
		return out.(*appsv1.Deployment).Generation
	}
	for _, c := range []struct {
		sub, body string
		want      int64
	}{{"", `{"metadata":{"labels":{"a":"b"}}}`, 1}, {"", `{"spec":{"paused":true}}`, 2}, {"status", `{"status":{"replicas":1}}`, 2}} {
		if got := patch(c.sub, c.body); got != c.want {
			t.Errorf("%s %s: generation %d, want %d", c.sub, c.body, got, c.want)
		}
	}
}
