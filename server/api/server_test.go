package api

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/version"

	"orch/server/registry"
	"orch/store"
)

// testTable is a small table with one resource of each shape.
func testTable() []*registry.Resource {
	return []*registry.Resource{
		{
			Version: "v1", Kind: "Pod", Plural: "pods", Singular: "pod", ShortNames: []string{"po"}, Categories: []string{"all"}, Namespaced: true,
			New: func() registry.Object { return &corev1.Pod{} }, NewList: func() runtime.Object { return &corev1.PodList{} },
			Strategy: registry.Strategy{
				Fields: func(obj registry.Object) fields.Set {
					return fields.Set{"spec.nodeName": obj.(*corev1.Pod).Spec.NodeName}
				},
				Validate: func(obj registry.Object) field.ErrorList {
					if len(obj.(*corev1.Pod).Spec.Containers) == 0 {
						return field.ErrorList{field.Required(field.NewPath("spec", "containers"), "")}
					}
					return nil
				},
				Warnings: func(obj registry.Object) []string {
					if obj.GetName() == "warned" {
						return []string{`a "quoted" warning`}
					}
					return nil
				},
				Columns: []metav1.TableColumnDefinition{{Name: "Name", Type: "string", Format: "name"}, {Name: "Node", Type: "string"}},
				Row: func(obj registry.Object, _ time.Time) []any {
					return []any{obj.GetName(), obj.(*corev1.Pod).Spec.NodeName}
				},
			},
			Subresources: []*registry.Subresource{
				{Name: "status", Update: &registry.View{}},
				{Name: "log", Connect: []string{"get"}},
				{Name: "exec", Kind: schema.GroupVersionKind{Version: "v1", Kind: "PodExecOptions"}, Connect: []string{"create", "get"}},
				{Name: "attach", Kind: schema.GroupVersionKind{Version: "v1", Kind: "PodAttachOptions"}, Connect: []string{"create", "get"}},
				{Name: "portforward", Kind: schema.GroupVersionKind{Version: "v1", Kind: "PodPortForwardOptions"}, Connect: []string{"create", "get"}},
				{Name: "proxy", Kind: schema.GroupVersionKind{Version: "v1", Kind: "PodProxyOptions"}, Connect: []string{"create", "delete", "get", "patch", "update"}},
				{
					Name: "eviction", Kind: schema.GroupVersionKind{Group: "policy", Version: "v1", Kind: "Eviction"},
					New: func() runtime.Object { return &policyv1.Eviction{} },
					Create: func(context.Context, *registry.Registry, string, string, runtime.Object, *metav1.CreateOptions) (runtime.Object, error) {
						return &metav1.Status{Status: metav1.StatusSuccess}, nil
					},
				},
			},
		},
		plain("", "v1", "ConfigMap", "configmaps", true, func() registry.Object { return &corev1.ConfigMap{} }, func() runtime.Object { return &corev1.ConfigMapList{} }),
		plain("", "v1", "Namespace", "namespaces", false, func() registry.Object { return &corev1.Namespace{} }, func() runtime.Object { return &corev1.NamespaceList{} }),
		plain("", "v1", "Node", "nodes", false, func() registry.Object { return &corev1.Node{} }, func() runtime.Object { return &corev1.NodeList{} },
			&registry.Subresource{Name: "proxy", Kind: schema.GroupVersionKind{Version: "v1", Kind: "NodeProxyOptions"}, Connect: []string{"create", "get"}}),
		plain("", "v1", "Service", "services", true, func() registry.Object { return &corev1.Service{} }, func() runtime.Object { return &corev1.ServiceList{} },
			&registry.Subresource{Name: "proxy", Kind: schema.GroupVersionKind{Version: "v1", Kind: "ServiceProxyOptions"}, Connect: []string{"create", "get"}}),
		plain("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", true, func() registry.Object { return &discoveryv1.EndpointSlice{} }, func() runtime.Object { return &discoveryv1.EndpointSliceList{} }),
		plain("apps", "v1", "Deployment", "deployments", true, func() registry.Object { return &appsv1.Deployment{} }, func() runtime.Object { return &appsv1.DeploymentList{} },
			&registry.Subresource{Name: "status", Update: &registry.View{}},
			&registry.Subresource{
				Name: "scale", Kind: autoscalingv1.SchemeGroupVersion.WithKind("Scale"), New: func() runtime.Object { return &autoscalingv1.Scale{} },
				Project: &registry.Projection{
					Get: getScale, Set: setScale,
					Columns: []metav1.TableColumnDefinition{{Name: "Desired", Type: "integer"}},
					Row:     func(obj registry.Object, _ time.Time) []any { return []any{obj.(*autoscalingv1.Scale).Spec.Replicas} },
				},
			}),
	}
}

func getScale(obj registry.Object) (runtime.Object, error) {
	d := obj.(*appsv1.Deployment)
	scale := &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: d.Name, Namespace: d.Namespace, UID: d.UID, ResourceVersion: d.ResourceVersion}}
	if d.Spec.Replicas != nil {
		scale.Spec.Replicas = *d.Spec.Replicas
	}
	return scale, nil
}

func setScale(obj registry.Object, body runtime.Object) error {
	replicas := body.(*autoscalingv1.Scale).Spec.Replicas
	obj.(*appsv1.Deployment).Spec.Replicas = &replicas
	return nil
}

func plain(group, version, kind, plural string, namespaced bool, one func() registry.Object, list func() runtime.Object, subs ...*registry.Subresource) *registry.Resource {
	return &registry.Resource{
		Group: group, Version: version, Kind: kind, Plural: plural, Singular: plural[:len(plural)-1], Namespaced: namespaced,
		New: one, NewList: list, Subresources: subs, Strategy: registry.Strategy{UnconditionalUpdate: true},
	}
}

var testVersion = version.Info{Major: "1", Minor: "37", GitVersion: "v1.37.0+test"}

var testNow = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func newTestRegistry(t testing.TB, table []*registry.Resource) *registry.Registry {
	t.Helper()
	reg, _ := newTestStore(t, table)
	return reg
}

// newTestStore runs a store in a temporary folder with table on top.
func newTestStore(t testing.TB, table []*registry.Resource) (*registry.Registry, *store.Store) {
	t.Helper()
	reg, err := registry.New(registry.Config{Resources: table, Now: func() time.Time { return testNow }})
	if err != nil {
		t.Fatal(err)
	}
	kv := store.New(store.Config{Dir: t.TempDir(), Codec: reg.StoreCodec()})
	reg.UseStore(kv)
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- kv.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-stopped; err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	select {
	case <-kv.Ready():
	case err := <-stopped:
		t.Fatalf("store: %v", err)
	}
	return reg, kv
}

// testServer is an API over HTTPS with HTTP/2, and a client for it.
type testServer struct {
	*httptest.Server
	api *Server
	reg *registry.Registry
	kv  *store.Store
}

func newTestServer(t testing.TB, change ...func(*Config)) *testServer {
	t.Helper()
	reg, kv := newTestStore(t, testTable())
	cfg := Config{Registry: reg, Version: testVersion}
	for _, f := range change {
		f(&cfg)
	}
	s := &testServer{api: New(cfg), reg: cfg.Registry, kv: kv}
	s.Server = httptest.NewUnstartedServer(s.api)
	s.Server.EnableHTTP2 = true
	s.Server.TLS = &tls.Config{NextProtos: []string{"h2", "http/1.1"}}
	s.Server.StartTLS()
	t.Cleanup(func() {
		s.api.Close()
		s.Server.Close()
	})
	return s
}

func decodeJSON[T any](t testing.TB, data []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("decode %s: %v", data, err)
	}
	return v
}

var _ http.Handler = (*Server)(nil)
