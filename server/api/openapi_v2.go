package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
)

// documentV2 describes all groups in one Swagger 2 document.
func (o *openapi) documentV2() (*documentV2, error) {
	d := o.definitions(false)
	doc := &documentV2{
		Swagger: "2.0", Info: map[string]string{"title": "Kubernetes", "version": o.version.GitVersion},
		Paths: make(map[string]map[string]any), Definitions: d.nodes,
	}
	for _, res := range o.registry.Resources() {
		d.addResource(res)
		for _, item := range pathsOf(res) {
			doc.Paths[item.path] = d.pathV2(item)
		}
	}
	return doc, nil
}

type documentV2 struct {
	Swagger     string                    `json:"swagger"`
	Info        map[string]string         `json:"info"`
	Paths       map[string]map[string]any `json:"paths"`
	Definitions map[string]*schemaNode    `json:"definitions"`
}

type parameterV2 struct {
	Description string      `json:"description,omitempty"`
	In          string      `json:"in"`
	Name        string      `json:"name"`
	Required    bool        `json:"required,omitempty"`
	Schema      *schemaNode `json:"schema,omitempty"`
	Type        string      `json:"type,omitempty"`
	Unique      bool        `json:"uniqueItems,omitempty"`
}

type operationV2 struct {
	ID         string         `json:"operationId"`
	Consumes   []string       `json:"consumes"`
	Produces   []string       `json:"produces"`
	Parameters []parameterV2  `json:"parameters,omitempty"`
	Responses  map[string]any `json:"responses"`
	Action     string         `json:"x-kubernetes-action"`
	Kind       gvkNode        `json:"x-kubernetes-group-version-kind"`
}

func (d *definitions) pathV2(item pathItem) map[string]any {
	path := make(map[string]any)
	parameters := []parameterV2{}
	for _, name := range item.parameters {
		parameters = append(parameters, parameterV2{Description: pathParameters[name], In: "path", Name: name, Required: true, Type: "string", Unique: true})
	}
	path["parameters"] = append(parameters, parameterV2{In: "query", Name: "pretty", Type: "string", Unique: true})
	for _, op := range item.operations {
		path[op.method] = d.operationV2(op)
	}
	return path
}

func (d *definitions) operationV2(op operation) operationV2 {
	out := operationV2{
		ID: op.id, Consumes: op.accepts, Produces: []string{contentJSON, contentYAML, contentProtobuf},
		Action: op.action, Kind: op.kind,
	}
	if op.body != nil {
		out.Parameters = append(out.Parameters, parameterV2{In: "body", Name: "body", Required: op.method != "delete", Schema: d.refer(op.body)})
	}
	for _, p := range queryParameters(op.options) {
		out.Parameters = append(out.Parameters, parameterV2{Description: p.description, In: "query", Name: p.name, Type: p.kind, Unique: true})
	}
	schema := &schemaNode{Type: "string"}
	if op.response != nil {
		schema = d.refer(op.response)
	}
	out.Responses = map[string]any{
		op.code: map[string]any{"description": "OK", "schema": schema},
		"401":   map[string]any{"description": "Unauthorized"},
	}
	return out
}

// protobuf gives the document in gnostic's form, which kubectl reads: the
// definitions, and of the paths what tells which parameters they take.
func (doc *documentV2) protobuf() ([]byte, error) {
	out := &openapi_v2.Document{
		Swagger:     doc.Swagger,
		Info:        &openapi_v2.Info{Title: doc.Info["title"], Version: doc.Info["version"]},
		Paths:       &openapi_v2.Paths{},
		Definitions: &openapi_v2.Definitions{},
	}
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		item := &openapi_v2.PathItem{}
		for method, slot := range map[string]**openapi_v2.Operation{
			"get": &item.Get, "post": &item.Post, "put": &item.Put, "patch": &item.Patch, "delete": &item.Delete,
		} {
			if op, ok := doc.Paths[path][method].(operationV2); ok {
				*slot = op.gnostic()
			}
		}
		out.Paths.Path = append(out.Paths.Path, &openapi_v2.NamedPathItem{Name: path, Value: item})
	}
	for _, name := range slices.Sorted(maps.Keys(doc.Definitions)) {
		out.Definitions.AdditionalProperties = append(out.Definitions.AdditionalProperties,
			&openapi_v2.NamedSchema{Name: name, Value: doc.Definitions[name].gnostic()})
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("encode OpenAPI v2: %w", err)
	}
	return data, nil
}

func (op operationV2) gnostic() *openapi_v2.Operation {
	out := &openapi_v2.Operation{OperationId: op.ID, Consumes: op.Consumes, Produces: op.Produces, Responses: &openapi_v2.Responses{}}
	for _, p := range op.Parameters {
		out.Parameters = append(out.Parameters, &openapi_v2.ParametersItem{
			Oneof: &openapi_v2.ParametersItem_Parameter{Parameter: p.gnostic()},
		})
	}
	out.VendorExtension = []*openapi_v2.NamedAny{
		extension("x-kubernetes-action", op.Action), extension("x-kubernetes-group-version-kind", op.Kind),
	}
	return out
}

func (p parameterV2) gnostic() *openapi_v2.Parameter {
	if p.In == "body" {
		return &openapi_v2.Parameter{Oneof: &openapi_v2.Parameter_BodyParameter{BodyParameter: &openapi_v2.BodyParameter{
			In: p.In, Name: p.Name, Required: p.Required, Schema: p.Schema.gnostic(),
		}}}
	}
	return &openapi_v2.Parameter{Oneof: &openapi_v2.Parameter_NonBodyParameter{NonBodyParameter: &openapi_v2.NonBodyParameter{
		Oneof: &openapi_v2.NonBodyParameter_QueryParameterSubSchema{QueryParameterSubSchema: &openapi_v2.QueryParameterSubSchema{
			In: p.In, Name: p.Name, Type: p.Type, Description: p.Description, UniqueItems: p.Unique,
		}},
	}}}
}

func (n *schemaNode) gnostic() *openapi_v2.Schema {
	out := &openapi_v2.Schema{XRef: n.Ref, Description: n.Description, Format: n.Format, Required: n.Required}
	if n.Type != "" {
		out.Type = &openapi_v2.TypeItem{Value: []string{n.Type}}
	}
	if n.Items != nil {
		out.Items = &openapi_v2.ItemsItem{Schema: []*openapi_v2.Schema{n.Items.gnostic()}}
	}
	if n.Additional != nil {
		out.AdditionalProperties = &openapi_v2.AdditionalPropertiesItem{
			Oneof: &openapi_v2.AdditionalPropertiesItem_Schema{Schema: n.Additional.gnostic()},
		}
	}
	if len(n.Properties) > 0 {
		out.Properties = &openapi_v2.Properties{}
		for _, name := range slices.Sorted(maps.Keys(n.Properties)) {
			out.Properties.AdditionalProperties = append(out.Properties.AdditionalProperties,
				&openapi_v2.NamedSchema{Name: name, Value: n.Properties[name].gnostic()})
		}
	}
	out.VendorExtension = n.extensions()
	return out
}

func (n *schemaNode) extensions() []*openapi_v2.NamedAny {
	var all []*openapi_v2.NamedAny
	add := func(name string, set bool, value any) {
		if set {
			all = append(all, extension(name, value))
		}
	}
	add("x-kubernetes-group-version-kind", len(n.Kinds) > 0, n.Kinds)
	add("x-kubernetes-list-map-keys", len(n.ListMapKeys) > 0, n.ListMapKeys)
	add("x-kubernetes-list-type", n.ListType != "", n.ListType)
	add("x-kubernetes-map-type", n.MapType != "", n.MapType)
	add("x-kubernetes-patch-merge-key", n.PatchMergeKey != "", n.PatchMergeKey)
	add("x-kubernetes-patch-strategy", n.PatchStrategy != "", n.PatchStrategy)
	return all
}

// extension holds its value as YAML, of which JSON is a part.
func extension(name string, value any) *openapi_v2.NamedAny {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // strings and gvkNodes always encode
	}
	return &openapi_v2.NamedAny{Name: name, Value: &openapi_v2.Any{Yaml: strings.TrimSpace(string(text)) + "\n"}}
}
