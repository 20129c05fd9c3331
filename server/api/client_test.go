package api

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

func clientConfig(s *testServer, contentType string) *rest.Config {
	return &rest.Config{
		Host: s.URL, ContentConfig: rest.ContentConfig{ContentType: contentType},
		TLSClientConfig: rest.TLSClientConfig{Insecure: true}, QPS: -1,
	}
}

// TestTypedClient drives every verb through client-go in both encodings.
func TestTypedClient(t *testing.T) {
	for _, contentType := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
		t.Run(contentType, func(t *testing.T) {
			s := newTestServer(t)
			client, err := kubernetes.NewForConfig(clientConfig(s, contentType))
			if err != nil {
				t.Fatal(err)
			}
			driveTyped(t, t.Context(), client)
		})
	}
}

func driveTyped(t *testing.T, ctx context.Context, client kubernetes.Interface) {
	pods := client.CoreV1().Pods("default")
	watcher, err := pods.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Stop()
	expect := func(want watch.EventType) {
		t.Helper()
		if e := <-watcher.ResultChan(); e.Type != want {
			t.Errorf("event %s %v, want %s", e.Type, e.Object, want)
		}
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	made, err := pods.Create(ctx, pod, metav1.CreateOptions{})
	if err != nil || made.UID == "" {
		t.Fatalf("create: %v %v", made, err)
	}
	expect(watch.Added)
	if _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
	made.Labels = map[string]string{"a": "b"}
	if _, err := pods.Update(ctx, made, metav1.UpdateOptions{}); err != nil {
		t.Errorf("update: %v", err)
	}
	expect(watch.Modified)
	if _, err := pods.Update(ctx, made, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("stale update: %v", err)
	}
	patched, err := pods.Patch(ctx, "p", types.StrategicMergePatchType, []byte(`{"status":{"phase":"Running"}}`), metav1.PatchOptions{}, "status")
	if err != nil || patched.Status.Phase != corev1.PodRunning {
		t.Errorf("patch status: %v %v", patched, err)
	}
	expect(watch.Modified)
	list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: "a=b"})
	if err != nil || len(list.Items) != 1 || list.Items[0].Kind != "" || list.ResourceVersion == "" {
		t.Errorf("list: %v %v", list, err)
	}
	if err := pods.Delete(ctx, "p", metav1.DeleteOptions{}); err != nil {
		t.Errorf("delete: %v", err)
	}
	expect(watch.Deleted)
	if _, err := pods.Get(ctx, "p", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("get after delete: %v", err)
	}
	groups, resources, err := client.Discovery().ServerGroupsAndResources()
	if err != nil || len(groups) != 3 || len(resources) != 3 {
		t.Errorf("discovery: %d groups, %d versions, %v", len(groups), len(resources), err)
	}
	if doc, err := client.Discovery().OpenAPISchema(); err != nil || len(doc.Definitions.AdditionalProperties) < 50 {
		t.Errorf("OpenAPI v2: %v", err)
	}
	paths, err := client.Discovery().OpenAPIV3().Paths()
	if err != nil || paths["apis/apps/v1"] == nil {
		t.Fatalf("OpenAPI v3: %v %v", paths, err)
	}
	if doc, err := paths["apis/apps/v1"].Schema(runtime.ContentTypeJSON); err != nil || len(doc) < 1000 {
		t.Errorf("OpenAPI v3 of apps/v1: %v", err)
	}
}

func TestDynamicAndMetadataClients(t *testing.T) {
	s := newTestServer(t)
	cfg := clientConfig(s, "")
	gvr := corev1.SchemeGroupVersion.WithResource("configmaps")
	free, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	obj := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "a"}, "data": map[string]any{"k": "v"},
	}}
	applied, err := free.Resource(gvr).Namespace("default").Apply(t.Context(), "a", obj, metav1.ApplyOptions{FieldManager: "me"})
	if err != nil || applied.GetKind() != "ConfigMap" {
		t.Fatalf("apply: %v %v", applied, err)
	}
	list, err := free.Resource(gvr).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.GetKind() != "ConfigMapList" {
		t.Errorf("list: %v %v", list, err)
	}
	meta, err := metadata.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	partials, err := meta.Resource(gvr).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(partials.Items) != 1 || partials.Items[0].Name != "a" {
		t.Errorf("metadata list: %v %v", partials, err)
	}
	if one, err := meta.Resource(gvr).Namespace("default").Get(t.Context(), "a", metav1.GetOptions{}); err != nil || one.Name != "a" {
		t.Errorf("metadata get: %v %v", one, err)
	}
	if err := meta.Resource(gvr).Namespace("default").DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Errorf("deletecollection: %v", err)
	}
}

// TestInformer syncs by streaming the initial events, as client-go does.
func TestInformer(t *testing.T) {
	s := newTestServer(t)
	createConfigMap(t, s, "a", nil)
	client, err := kubernetes.NewForConfig(clientConfig(s, runtime.ContentTypeProtobuf))
	if err != nil {
		t.Fatal(err)
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	lister := factory.Core().V1().ConfigMaps().Lister()
	factory.Start(t.Context().Done())
	factory.WaitForCacheSync(t.Context().Done())
	if _, err := lister.ConfigMaps("default").Get("a"); err != nil {
		t.Error(err)
	}
}
