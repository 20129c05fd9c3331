package api

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
)

// TestSchemas checks what reflection alone does not tell, and each special type.
func TestSchemas(t *testing.T) {
	o := newOpenAPI(newTestRegistry(t, testTable()), testVersion)
	g := (&discovery{o.registry}).group("")
	doc, err := o.documentV3(g.entries["v1"])
	if err != nil {
		t.Fatal(err)
	}
	type document struct {
		Components struct{ Schemas map[string]json.RawMessage }
		Paths      map[string]map[string]json.RawMessage
	}
	parsed := decodeJSON[document](t, doc)
	for _, c := range []struct{ schema, path, want string }{
		{"io.k8s.api.core.v1.PodSpec", "required", `["containers"]`},
		{"io.k8s.api.core.v1.PodSpec", "properties containers x-kubernetes-list-map-keys", `["name"]`},
		{"io.k8s.api.core.v1.PodSpec", "properties containers x-kubernetes-list-type", `"map"`},
		{"io.k8s.api.core.v1.PodSpec", "properties containers x-kubernetes-patch-merge-key", `"name"`},
		{"io.k8s.api.core.v1.PodSpec", "properties volumes x-kubernetes-patch-strategy", `"merge,retainKeys"`},
		{"io.k8s.api.core.v1.PodSpec", "properties tolerations x-kubernetes-list-type", `"atomic"`},
		{"io.k8s.api.core.v1.Container", "properties ports x-kubernetes-list-map-keys", `["containerPort","protocol"]`},
		{"io.k8s.api.core.v1.Container", "properties args items type", `"string"`},
		{"io.k8s.api.core.v1.ContainerPort", "properties protocol default", `"TCP"`},
		{"io.k8s.api.core.v1.ContainerPort", "properties containerPort format", `"int32"`},
		{"io.k8s.api.core.v1.ConfigMap", "properties binaryData additionalProperties format", `"byte"`},
		{"io.k8s.api.core.v1.ConfigMap", "x-kubernetes-group-version-kind", `[{"group":"","kind":"ConfigMap","version":"v1"}]`},
		{"io.k8s.api.core.v1.LocalObjectReference", "x-kubernetes-map-type", `"atomic"`},
		{"io.k8s.apimachinery.pkg.api.resource.Quantity", "oneOf", `[{"type":"string"},{"type":"number"}]`},
		{"io.k8s.apimachinery.pkg.util.intstr.IntOrString", "format", `"int-or-string"`},
		{"io.k8s.apimachinery.pkg.apis.meta.v1.Time", "format", `"date-time"`},
		{"io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", "type", `"object"`},
	} {
		if got := dig(t, parsed.Components.Schemas[c.schema], strings.Fields(c.path)); got != c.want {
			t.Errorf("%s %s: %s, want %s", c.schema, c.path, got, c.want)
		}
	}
	patch := string(parsed.Paths["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"])
	if !strings.Contains(patch, `"name":"fieldValidation"`) || !strings.Contains(patch, `"operationId":"patchCoreV1NamespacedPod"`) {
		t.Errorf("kubectl looks for fieldValidation at %s", patch)
	}
}

func dig(t *testing.T, node json.RawMessage, path []string) string {
	t.Helper()
	for _, key := range path {
		if node == nil {
			return "<none>"
		}
		node = decodeJSON[map[string]json.RawMessage](t, node)[key]
	}
	return string(node)
}

func TestOpenAPIIsCached(t *testing.T) {
	s := New(Config{Registry: newTestRegistry(t, testTable()), Version: testVersion})
	index := decodeJSON[struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}](t, recorded(s, httptest.NewRequest("GET", "/openapi/v3", nil)).Body.Bytes())
	url := index.Paths["apis/apps/v1"].ServerRelativeURL
	if !strings.HasPrefix(url, "/openapi/v3/apis/apps/v1?hash=") {
		t.Fatalf("index: %v", index)
	}
	first := recorded(s, httptest.NewRequest("GET", url, nil))
	if first.Code != 200 || first.Header().Get("Cache-Control") != "public, immutable" {
		t.Fatalf("%d %v", first.Code, first.Header())
	}
	again := httptest.NewRequest("GET", url, nil)
	again.Header.Set("If-None-Match", first.Header().Get("ETag"))
	if w := recorded(s, again); w.Code != 304 || w.Body.Len() != 0 {
		t.Errorf("with the ETag: %d", w.Code)
	}
	if w := recorded(s, httptest.NewRequest("GET", "/openapi/v3/apis/apps/v1?hash=old", nil)); w.Code != 301 || w.Header().Get("Location") != url {
		t.Errorf("an old hash: %d %v", w.Code, w.Header())
	}
	if w := recorded(s, httptest.NewRequest("GET", "/openapi/v3/apis/none/v1", nil)); w.Code != 404 {
		t.Errorf("an unknown group: %d", w.Code)
	}
}

func TestOpenAPIV2Protobuf(t *testing.T) {
	s := New(Config{Registry: newTestRegistry(t, testTable()), Version: testVersion})
	r := httptest.NewRequest("GET", "/openapi/v2", nil)
	r.Header.Set("Accept", acceptProtobufV2)
	w := recorded(s, r)
	var doc openapi_v2.Document
	if err := proto.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Header().Get("Content-Type") != contentProtobufV2 {
		t.Fatalf("%v %v", err, w.Header())
	}
	for _, named := range doc.Definitions.AdditionalProperties {
		if named.Name == "io.k8s.api.core.v1.Pod" && len(named.Value.Properties.AdditionalProperties) == 5 {
			return
		}
	}
	t.Error("no definition of Pod with its five fields")
}
