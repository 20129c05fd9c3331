package api

import (
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/server/registry"
)

// operation is one verb of a path, before it takes a version's form.
type operation struct {
	method   string // get, post …
	action   string // x-kubernetes-action
	id       string
	options  []any // whose fields are query parameters
	accepts  []string
	body     reflect.Type // nil: none
	response reflect.Type // nil: a string
	code     string
	kind     gvkNode
}

// pathItem is a path with its operations and the parameters in its braces.
type pathItem struct {
	path       string
	parameters []string
	operations []operation
}

// pathsOf lists the paths of a resource in the order of their length.
func pathsOf(res *registry.Resource) []pathItem {
	base := "/apis/" + res.Group + "/" + res.Version
	if res.Group == "" {
		base = "/api/" + res.Version
	}
	scoped, in := base, []string(nil)
	if res.Namespaced {
		scoped, in = base+"/namespaces/{namespace}", []string{"namespace"}
	}
	collection := pathItem{path: scoped + "/" + res.Plural, parameters: in}
	object := pathItem{path: collection.path + "/{name}", parameters: append([]string{"name"}, in...)}
	for _, verb := range verbsOf(res) {
		if op, onObject := resourceOperation(res, verb); op != nil && onObject {
			object.operations = append(object.operations, *op)
		} else if op != nil {
			collection.operations = append(collection.operations, *op)
		}
	}
	items := []pathItem{collection}
	if res.Namespaced && slices.Contains(verbsOf(res), "list") {
		op, _ := resourceOperation(res, "list")
		op.id += "ForAllNamespaces"
		items = append(items, pathItem{path: base + "/" + res.Plural, operations: []operation{*op}})
	}
	if len(object.operations) > 0 {
		items = append(items, object)
	}
	for _, sub := range sortedSubresources(res) {
		items = append(items, subresourcePath(res, sub, object))
	}
	return items
}

var patchAccepts = []string{
	string(types.ApplyYAMLPatchType), string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType),
}

// resourceOperation gives the operation of a verb, and whether it is on one object.
func resourceOperation(res *registry.Resource, verb string) (op *operation, onObject bool) {
	object := typeOf(res.New())
	op = &operation{kind: kindNode(res.GVK()), accepts: []string{"*/*"}, response: object, code: "200"}
	switch verb {
	case "get":
		op.method, op.action, onObject = "get", "get", true
	case "list":
		op.method, op.action = "get", "list"
		op.options = []any{metav1.ListOptions{}}
		if res.NewList != nil {
			op.response = typeOf(res.NewList())
		}
	case "create":
		op.method, op.action, op.body, op.code = "post", "post", object, "201"
		op.options = []any{metav1.CreateOptions{}}
	case "update":
		op.method, op.action, op.body, onObject = "put", "put", object, true
		op.options = []any{metav1.UpdateOptions{}}
	case "patch":
		op.method, op.action, op.body, onObject = "patch", "patch", typeOf(&metav1.Patch{}), true
		op.accepts, op.options = patchAccepts, []any{metav1.PatchOptions{}}
	case "delete":
		op.method, op.action, op.body, onObject = "delete", "delete", typeOf(&metav1.DeleteOptions{}), true
		op.response, op.options = typeOf(&metav1.Status{}), []any{metav1.DeleteOptions{}}
	case "deletecollection":
		op.method, op.action, op.body = "delete", "deletecollection", typeOf(&metav1.DeleteOptions{})
		op.response, op.options = typeOf(&metav1.Status{}), []any{metav1.ListOptions{}, metav1.DeleteOptions{}}
	default:
		return nil, false
	}
	op.id = operationID(verb, res)
	return op, onObject
}

// operationID names an operation as upstream does: readCoreV1NamespacedPod.
func operationID(verb string, res *registry.Resource) string {
	if renamed := map[string]string{"get": "read", "update": "replace", "deletecollection": "deleteCollection"}[verb]; renamed != "" {
		verb = renamed
	}
	group, _, _ := strings.Cut(res.Group, ".")
	if group == "" {
		group = "core"
	}
	scope := ""
	if res.Namespaced {
		scope = "Namespaced"
	}
	return verb + title(group) + title(res.Version) + scope + res.Kind
}

func title(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

func typeOf(obj any) reflect.Type { return dereference(reflect.TypeOf(obj)) }

func subresourcePath(res *registry.Resource, sub *registry.Subresource, object pathItem) pathItem {
	item := pathItem{path: object.path + "/" + sub.Name, parameters: object.parameters}
	kind := sub.Kind
	if kind.Empty() {
		kind = res.GVK()
	}
	for _, verb := range subresourceVerbs(sub) {
		op, _ := resourceOperation(res, verb)
		if op == nil {
			continue
		}
		op.id += title(sub.Name)
		op.kind = kindNode(kind)
		if len(sub.Connect) > 0 {
			op.action, op.body, op.response, op.options = "connect", nil, nil, nil
		} else if sub.New != nil {
			op.response = typeOf(sub.New())
			if op.body != nil && verb != "patch" {
				op.body = op.response
			}
		}
		item.operations = append(item.operations, *op)
	}
	return item
}

// queryParameter is a field of an options type.
type queryParameter struct{ name, kind, description string }

// queryParameters lists the fields of options; the descriptions are cut to
// their first sentence, because they are repeated at every path.
func queryParameters(options []any) []queryParameter {
	var params []queryParameter
	for _, of := range options {
		t, docs := reflect.TypeOf(of), docsOf(reflect.TypeOf(of))
		for i := range t.NumField() {
			name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
			kind := map[reflect.Kind]string{reflect.String: "string", reflect.Bool: "boolean", reflect.Int64: "integer", reflect.Slice: "string"}[dereference(t.Field(i).Type).Kind()]
			if name == "" || kind == "" || slices.ContainsFunc(params, func(p queryParameter) bool { return p.name == name }) {
				continue
			}
			sentence, _, _ := strings.Cut(docs[name], ". ")
			params = append(params, queryParameter{name, kind, sentence})
		}
	}
	slices.SortFunc(params, func(a, b queryParameter) int { return strings.Compare(a.name, b.name) })
	return params
}

var pathParameters = map[string]string{
	"name":      "name of the object",
	"namespace": "object name and auth scope, such as for teams and projects",
}
