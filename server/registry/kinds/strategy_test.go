package kinds

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/auth"
	"orch/server/registry"
)

func web() map[string]string { return map[string]string{"app": "web"} }

func template(policy corev1.RestartPolicy) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: web()}, Spec: corev1.PodSpec{
		RestartPolicy: policy, Containers: []corev1.Container{{Name: "main", Image: "nginx:1"}},
	}}
}

func TestDeploymentCreate(t *testing.T) {
	f := newFixture(t)
	for _, test := range []struct {
		name   string
		change func(*appsv1.DeploymentSpec)
		want   string
	}{
		{"no selector", func(s *appsv1.DeploymentSpec) { s.Selector = nil }, "spec.selector: Required value"},
		{"empty selector", func(s *appsv1.DeploymentSpec) { s.Selector = &metav1.LabelSelector{} },
			"spec.selector: Invalid value: {}: empty selector is invalid for deployment"},
		{"other labels", func(s *appsv1.DeploymentSpec) { s.Template.Labels = map[string]string{"app": "db"} },
			"spec.template.metadata.labels: Invalid value: {\"app\":\"db\"}: `selector` does not match template `labels`"},
		{"restart policy", func(s *appsv1.DeploymentSpec) { s.Template.Spec.RestartPolicy = "Never" },
			`spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"`},
		{"negative", func(s *appsv1.DeploymentSpec) { s.Replicas = ptr(int32(-1)) },
			"spec.replicas: Invalid value: -1: must be greater than or equal to 0"},
		{"recreate with parameters", func(s *appsv1.DeploymentSpec) {
			s.Strategy = appsv1.DeploymentStrategy{Type: "Recreate", RollingUpdate: &appsv1.RollingUpdateDeployment{}}
		}, "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"},
		{"fine", func(*appsv1.DeploymentSpec) {}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := &appsv1.Deployment{
				ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
				Spec:       appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: web()}, Template: template("")},
			}
			test.change(&d.Spec)
			_, err := registry.Of[*appsv1.Deployment](f.Registry).Create(f.ctx, d)
			refused(t, err, test.want)
		})
	}
	_, err := registry.Of[*appsv1.Deployment](f.Registry).Mutate(f.ctx, "default", "web", func(d *appsv1.Deployment) error {
		d.Spec.Selector.MatchLabels = map[string]string{"tier": "web"}
		d.Spec.Template.Labels = map[string]string{"tier": "web"}
		return nil
	})
	refused(t, err, "spec.selector: Invalid value: {\"matchLabels\":{\"tier\":\"web\"}}: field is immutable")
}

// TestScale writes the replica count through the scale view.
func TestScale(t *testing.T) {
	f := newFixture(t)
	put(f, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec:       appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: web()}, Template: template("")},
	})
	res := f.Lookup("apps", "v1", "deployments")
	write := func(replicas int32) error {
		scale := &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"}, Spec: autoscalingv1.ScaleSpec{Replicas: replicas}}
		_, _, err := f.Update(f.ctx, res, "scale", "default", "web", scale, &metav1.UpdateOptions{})
		return err
	}
	if err := write(4); err != nil {
		t.Fatal(err)
	}
	d, err := registry.Of[*appsv1.Deployment](f.Registry).Get("default", "web")
	if err != nil || *d.Spec.Replicas != 4 || d.Generation != 2 {
		t.Fatalf("got %v, replicas %d, generation %d", err, *d.Spec.Replicas, d.Generation)
	}
	refused(t, write(-1), "spec.replicas: Invalid value: -1: must be greater than or equal to 0")
	stale := &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", ResourceVersion: "1"}}
	_, _, err = f.Update(f.ctx, res, "scale", "default", "web", stale, &metav1.UpdateOptions{})
	if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `deployments.apps "web"`) {
		t.Errorf("stale: %v", err)
	}
	project := res.Subresources[slices.IndexFunc(res.Subresources, func(s *registry.Subresource) bool { return s.Name == "scale" })].Project
	view, err := project.Get(d)
	if err != nil {
		t.Fatal(err)
	}
	if row := project.Row(view.(registry.Object), testTime); cells(row) != "web | 4 | 0 | 0s" {
		t.Errorf("row %s", cells(row))
	}
}

func TestJobSelector(t *testing.T) {
	f := newFixture(t)
	j := put(f, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "once", Namespace: "default"}, Spec: batchv1.JobSpec{Template: template("Never")}})
	uid := string(j.UID)
	if got := j.Spec.Selector.MatchLabels; len(got) != 1 || got[batchv1.ControllerUidLabel] != uid {
		t.Errorf("selector %v", got)
	}
	for label, want := range map[string]string{
		"app": "web", batchv1.ControllerUidLabel: uid, batchv1.JobNameLabel: "once", "controller-uid": uid, "job-name": "once",
	} {
		if got := j.Spec.Template.Labels[label]; got != want {
			t.Errorf("label %s is %q, want %q", label, got, want)
		}
		if got := j.Labels[label]; got != want {
			t.Errorf("label %s of the job itself is %q, want %q", label, got, want)
		}
	}
	jobs := registry.Of[*batchv1.Job](f.Registry)
	_, err := jobs.Create(f.ctx, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "own", Namespace: "default"},
		Spec: batchv1.JobSpec{Selector: &metav1.LabelSelector{MatchLabels: web()}, Template: template("Never")}})
	refused(t, err, `spec.selector: Invalid value: {"matchLabels":{"app":"web","batch.kubernetes.io/controller-uid":`)
	_, err = jobs.Create(f.ctx, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "always", Namespace: "default"},
		Spec: batchv1.JobSpec{Template: template("Always")}})
	refused(t, err, `spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"`)
	_, err = jobs.Mutate(f.ctx, "default", "once", func(j *batchv1.Job) error {
		j.Spec.Template.Spec.Containers[0].Image = "nginx:2"
		return nil
	})
	refused(t, err, "spec.template: Invalid value: ")
}

func TestConfigAndSecret(t *testing.T) {
	f := newFixture(t)
	configMaps, secrets := registry.Of[*corev1.ConfigMap](f.Registry), registry.Of[*corev1.Secret](f.Registry)
	meta := metav1.ObjectMeta{Name: "a", Namespace: "default"}
	_, err := configMaps.Create(f.ctx, &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"a": strings.Repeat("x", 1<<20+1)}})
	refused(t, err, "[]: Too long: may not be more than 1048576 bytes")
	_, err = configMaps.Create(f.ctx, &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"a/b": ""}})
	refused(t, err, `data[a/b]: Invalid value: "a/b": a valid config key`)
	put(f, &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"a": "1"}, Immutable: ptr(true)})
	_, err = configMaps.Mutate(f.ctx, "default", "a", func(c *corev1.ConfigMap) error { c.Data["a"] = "2"; return nil })
	refused(t, err, "data: Forbidden: field is immutable when `immutable` is set")

	s := put(f, &corev1.Secret{ObjectMeta: meta, Data: map[string][]byte{"a": []byte("1")}, StringData: map[string]string{"a": "2", "b": "3"}})
	if string(s.Data["a"]) != "2" || string(s.Data["b"]) != "3" || s.StringData != nil || s.Type != corev1.SecretTypeOpaque {
		t.Errorf("secret %+v", s)
	}
	_, err = secrets.Mutate(f.ctx, "default", "a", func(s *corev1.Secret) error { s.Type = "other"; return nil })
	refused(t, err, `type: Invalid value: "other": field is immutable`)
	_, err = secrets.Create(f.ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "tls", Namespace: "default"}, Type: corev1.SecretTypeTLS})
	refused(t, err, "data[tls.crt]: Required value")
}

// TestNamespaceLife keeps a namespace, terminating, until it is finalized.
func TestNamespaceLife(t *testing.T) {
	f := newFixture(t)
	namespaces := registry.Of[*corev1.Namespace](f.Registry)
	n := put(f, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "team"}})
	if n.Labels[corev1.LabelMetadataName] != "team" || n.Status.Phase != corev1.NamespaceActive || len(n.Spec.Finalizers) != 1 {
		t.Errorf("namespace %+v", n)
	}
	if err := namespaces.Delete(f.ctx, "", "team", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	n, err := namespaces.Get("", "team")
	if err != nil || n.Status.Phase != corev1.NamespaceTerminating || n.DeletionTimestamp == nil {
		t.Fatalf("got %v, %+v", err, n)
	}
	if err := namespaces.Delete(f.ctx, "", "team", metav1.DeleteOptions{}); err != nil {
		t.Errorf("deleted twice: %v", err)
	}
	n = n.DeepCopy()
	n.Spec.Finalizers = nil
	if _, _, err := f.Update(f.ctx, namespaces.Resource(), "finalize", "", "team", n, &metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := namespaces.Get("", "team"); !apierrors.IsNotFound(err) {
		t.Errorf("the namespace is still there: %v", err)
	}
}

// TestStoredVersions reads through one version what was written through another.
func TestStoredVersions(t *testing.T) {
	f := newFixture(t)
	write := func(res *registry.Resource, obj registry.Object) {
		t.Helper()
		if _, err := f.Create(f.ctx, res, "default", obj, &metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	write(f.Lookup("autoscaling", "v1", "horizontalpodautoscalers"), &autoscalingv1.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec: autoscalingv1.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv1.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "web"},
			MaxReplicas:    3, TargetCPUUtilizationPercentage: ptr(int32(70)),
		},
	})
	h, err := registry.Of[*autoscalingv2.HorizontalPodAutoscaler](f.Registry).Get("default", "web")
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Spec.Metrics) != 1 || *h.Spec.Metrics[0].Resource.Target.AverageUtilization != 70 || *h.Spec.MinReplicas != 1 {
		t.Errorf("as v2: %+v", h.Spec)
	}
	write(f.Lookup("events.k8s.io", "v1", "events"), &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "e", Namespace: "default"}, EventTime: metav1.NewMicroTime(testTime),
		ReportingController: "example.com/c", ReportingInstance: "c-0", Action: "Look", Reason: "Seen", Type: "Normal", Note: "hello",
		Regarding: corev1.ObjectReference{Kind: "Pod", Name: "web", Namespace: "default"},
	})
	e, err := registry.Of[*corev1.Event](f.Registry).Get("default", "e")
	if err != nil || e.Message != "hello" || e.InvolvedObject.Name != "web" || e.ReportingController != "example.com/c" {
		t.Errorf("as core: %v %+v", err, e)
	}
}

type authorizerFunc func(*auth.Attributes) (bool, string, error)

func (f authorizerFunc) Authorize(_ context.Context, a *auth.Attributes) (bool, string, error) {
	return f(a)
}

func TestReviews(t *testing.T) {
	var asked *auth.Attributes
	cfg := testConfig()
	cfg.Authorizer = authorizerFunc(func(a *auth.Attributes) (bool, string, error) {
		asked = a
		return a.Verb == "get", "because", nil
	})
	cfg.ReviewToken = func(_ context.Context, token string, audiences []string) (*auth.User, []string, error) {
		if token != "good" {
			return nil, nil, errors.New("bad token")
		}
		return &auth.User{Name: "jane", Groups: []string{"dev"}}, audiences, nil
	}
	ctx := auth.WithUser(t.Context(), &auth.User{Name: "joe"})
	review := func(res *registry.Resource, ns string, obj registry.Object) (registry.Object, error) {
		return res.Evaluate(ctx, nil, ns, obj, false)
	}

	out, err := review(selfSubjectAccessReviews(cfg), "", &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "get", Resource: "pods", Namespace: "a"}}})
	if err != nil || !out.(*authorizationv1.SelfSubjectAccessReview).Status.Allowed || asked.User.Name != "joe" || asked.Resource != "pods" || asked.Namespace != "a" {
		t.Errorf("self: %v %+v %+v", err, out, asked)
	}
	out, err = review(subjectAccessReviews(cfg), "", &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{User: "jane", NonResourceAttributes: &authorizationv1.NonResourceAttributes{Verb: "post", Path: "/x"}}})
	if s := out.(*authorizationv1.SubjectAccessReview).Status; err != nil || s.Allowed || s.Reason != "because" || asked.User.Name != "jane" || asked.Path != "/x" || asked.ResourceRequest {
		t.Errorf("subject: %v %+v %+v", err, s, asked)
	}
	_, err = review(subjectAccessReviews(cfg), "", &authorizationv1.SubjectAccessReview{})
	refused(t, err, "spec.resourceAttributes: Invalid value")
	_, err = review(localSubjectAccessReviews(cfg), "b", &authorizationv1.LocalSubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{User: "jane", ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "get", Namespace: "a"}}})
	refused(t, err, "spec.resourceAttributes.namespace: Invalid value")
	_, err = review(selfSubjectAccessReviews(cfg), "", &authorizationv1.SelfSubjectAccessReview{
		ObjectMeta: metav1.ObjectMeta{Name: "x"},
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: "list", Resource: "pods", FieldSelector: &authorizationv1.FieldSelectorAttributes{},
			LabelSelector: &authorizationv1.LabelSelectorAttributes{RawSelector: "a=b", Requirements: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Exists", Values: []string{"b"}}}},
		}}})
	refused(t, err, "metadata: Invalid value")
	refused(t, err, "spec.resourceAttributes.fieldSelector.requirements: Required value: when spec.resourceAttributes.fieldSelector is specified, requirements or rawSelector is required")
	refused(t, err, `spec.resourceAttributes.labelSelector.rawSelector: Invalid value: "a=b": may not specified at the same time as requirements`)
	refused(t, err, "spec.resourceAttributes.labelSelector.requirements[0].values: Forbidden")

	for token, want := range map[string]authenticationv1.TokenReviewStatus{
		"good": {Authenticated: true, User: authenticationv1.UserInfo{Username: "jane"}},
		"bad":  {Error: "bad token"},
	} {
		out, err := review(tokenReviews(cfg), "", &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}})
		s := out.(*authenticationv1.TokenReview).Status
		if err != nil || s.Authenticated != want.Authenticated || s.User.Username != want.User.Username || s.Error != want.Error {
			t.Errorf("token %s: %v %+v", token, err, s)
		}
	}
	out, err = review(selfSubjectReviews(), "", &authenticationv1.SelfSubjectReview{})
	if err != nil || out.(*authenticationv1.SelfSubjectReview).Status.UserInfo.Username != "joe" {
		t.Errorf("self subject: %v %+v", err, out)
	}
	if _, err := review(tokenReviews(testConfig()), "", &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: "a"}}); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("without a reviewer: %v", err)
	}
}
