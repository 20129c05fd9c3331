package api

import (
	"cmp"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// schemaNode is a JSON schema as OpenAPI 2 and 3 write it.
type schemaNode struct {
	Description string                 `json:"description,omitempty"`
	Ref         string                 `json:"$ref,omitempty"`
	AllOf       []*schemaNode          `json:"allOf,omitempty"`
	OneOf       []*schemaNode          `json:"oneOf,omitempty"`
	Type        string                 `json:"type,omitempty"`
	Format      string                 `json:"format,omitempty"`
	Default     any                    `json:"default,omitempty"`
	Unique      bool                   `json:"uniqueItems,omitempty"`
	Items       *schemaNode            `json:"items,omitempty"`
	Additional  *schemaNode            `json:"additionalProperties,omitempty"`
	Properties  map[string]*schemaNode `json:"properties,omitempty"`
	Required    []string               `json:"required,omitempty"`

	ListType      string    `json:"x-kubernetes-list-type,omitempty"`
	ListMapKeys   []string  `json:"x-kubernetes-list-map-keys,omitempty"`
	MapType       string    `json:"x-kubernetes-map-type,omitempty"`
	PatchMergeKey string    `json:"x-kubernetes-patch-merge-key,omitempty"`
	PatchStrategy string    `json:"x-kubernetes-patch-strategy,omitempty"`
	Kinds         []gvkNode `json:"x-kubernetes-group-version-kind,omitempty"`
}

type gvkNode struct {
	Group   string `json:"group"`
	Kind    string `json:"kind"`
	Version string `json:"version"`
}

// definitions collects the schemas of Go types and of what they refer to.
type definitions struct {
	openapi3 bool
	scheme   *runtime.Scheme
	lists    listFacts
	nodes    map[string]*schemaNode
}

// What the API types say of themselves for OpenAPI; all are optional.
type (
	modelNamer interface{ OpenAPIModelName() string }
	documented interface{ SwaggerDoc() map[string]string }
	schemaType interface {
		OpenAPISchemaType() []string
		OpenAPISchemaFormat() string
	}
	oneOfTyper interface{ OpenAPIV3OneOfTypes() []string }
)

// Types whose JSON is freer than their Go form tells.
var opaqueObjects = map[reflect.Type]bool{
	reflect.TypeFor[runtime.RawExtension](): true,
	reflect.TypeFor[metav1.FieldsV1]():      true,
	reflect.TypeFor[metav1.Patch]():         true,
}

// refer gives a reference to the definition of struct type t, making it first.
func (d *definitions) refer(t reflect.Type) *schemaNode {
	name := modelName(t)
	if d.nodes[name] == nil {
		node := &schemaNode{}
		d.nodes[name] = node
		d.define(node, name, t)
	}
	prefix := "#/definitions/"
	if d.openapi3 {
		prefix = "#/components/schemas/"
	}
	return &schemaNode{Ref: prefix + name}
}

func modelName(t reflect.Type) string {
	if namer, ok := reflect.Zero(t).Interface().(modelNamer); ok {
		return namer.OpenAPIModelName()
	}
	return strings.ReplaceAll("io."+strings.TrimPrefix(t.PkgPath(), "k8s."), "/", ".") + "." + t.Name()
}

func (d *definitions) define(node *schemaNode, name string, t reflect.Type) {
	zero := reflect.Zero(t).Interface()
	docs := docsOf(t)
	node.Description = docs[""]
	if typed, ok := zero.(schemaType); ok {
		if types := typed.OpenAPISchemaType(); len(types) > 0 {
			node.Type = types[0]
		}
		node.Format = typed.OpenAPISchemaFormat()
		if union, ok := zero.(oneOfTyper); ok && d.openapi3 {
			node.Type = ""
			for _, one := range union.OpenAPIV3OneOfTypes() {
				node.OneOf = append(node.OneOf, &schemaNode{Type: one})
			}
		}
		return
	}
	node.Type = "object"
	if opaqueObjects[t] {
		return
	}
	node.Properties = make(map[string]*schemaNode)
	d.addFields(node, name, t)
	slices.Sort(node.Required)
	if d.lists.atomicStruct(name) {
		node.MapType = "atomic"
	}
	if object, ok := reflect.New(t).Interface().(runtime.Object); ok {
		node.Kinds = d.kindsOf(object)
	}
}

func docsOf(t reflect.Type) map[string]string {
	if doc, ok := reflect.Zero(t).Interface().(documented); ok {
		return doc.SwaggerDoc()
	}
	return nil
}

func (d *definitions) kindsOf(object runtime.Object) []gvkNode {
	found, _, err := d.scheme.ObjectKinds(object)
	if err != nil {
		return nil
	}
	var kinds []gvkNode
	for _, gvk := range found {
		if gvk.Version != runtime.APIVersionInternal {
			kinds = append(kinds, kindNode(gvk))
		}
	}
	slices.SortFunc(kinds, func(a, b gvkNode) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Version, b.Version))
	})
	return kinds
}

func kindNode(gvk schema.GroupVersionKind) gvkNode {
	return gvkNode{Group: gvk.Group, Kind: gvk.Kind, Version: gvk.Version}
}

// addFields adds the fields of t, and those of what it embeds inline.
func (d *definitions) addFields(node *schemaNode, name string, t reflect.Type) {
	docs := docsOf(t)
	for i := range t.NumField() {
		field := t.Field(i)
		tag := field.Tag.Get("json")
		key, flags, _ := strings.Cut(tag, ",")
		if key == "-" || tag == "" && !field.Anonymous || !field.IsExported() {
			continue
		}
		if key == "" {
			if inner := dereference(field.Type); inner.Kind() == reflect.Struct {
				d.addFields(node, name, inner)
			}
			continue
		}
		optional := strings.Contains(flags, "omit")
		value := d.valueOf(field.Type)
		facts := d.lists.field(name, key)
		if d.openapi3 {
			value = withSiblings(value, docs[key], defaultOf(field.Type, optional, facts.Default))
		} else {
			value.Description = docs[key]
		}
		value.PatchMergeKey, value.PatchStrategy = field.Tag.Get("patchMergeKey"), field.Tag.Get("patchStrategy")
		facts.apply(value)
		node.Properties[key] = value
		if !optional && !optionalFields[name+"."+key] {
			node.Required = append(node.Required, key)
		}
	}
}

// withSiblings adds a description and a default; a reference may not have
// siblings in OpenAPI 3 and is wrapped.
func withSiblings(value *schemaNode, description string, byDefault any) *schemaNode {
	if value.Ref != "" && (description != "" || byDefault != nil) {
		value = &schemaNode{AllOf: []*schemaNode{value}}
	}
	value.Description, value.Default = description, byDefault
	return value
}

// defaultOf is what an absent field of type t reads as: the default its schema
// names, or the zero value of what is always there.
func defaultOf(t reflect.Type, optional bool, named any) any {
	if named != nil && reflect.TypeOf(named).Kind() != reflect.Map {
		return named
	}
	switch t.Kind() {
	case reflect.Struct:
		if _, special := reflect.Zero(t).Interface().(schemaType); special || opaqueObjects[t] && optional {
			return nil
		}
		return struct{}{}
	case reflect.String:
		if !optional {
			return ""
		}
	case reflect.Bool:
		if !optional {
			return false
		}
	case reflect.Int64, reflect.Int32, reflect.Int, reflect.Float64:
		if !optional {
			return 0
		}
	}
	return nil
}

func dereference(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// valueOf gives the schema of a field of type t.
func (d *definitions) valueOf(t reflect.Type) *schemaNode {
	t = dereference(t)
	switch t.Kind() {
	case reflect.Struct:
		return d.refer(t)
	case reflect.String:
		return &schemaNode{Type: "string"}
	case reflect.Bool:
		return &schemaNode{Type: "boolean"}
	case reflect.Int64, reflect.Int, reflect.Uint64, reflect.Uint:
		return &schemaNode{Type: "integer", Format: "int64"}
	case reflect.Int32, reflect.Uint32, reflect.Int16, reflect.Uint16, reflect.Int8:
		return &schemaNode{Type: "integer", Format: "int32"}
	case reflect.Uint8:
		return &schemaNode{Type: "integer", Format: "byte"}
	case reflect.Float64, reflect.Float32:
		return &schemaNode{Type: "number", Format: "double"}
	case reflect.Map:
		return &schemaNode{Type: "object", Additional: d.element(t.Elem())}
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return &schemaNode{Type: "string", Format: "byte"}
		}
		return &schemaNode{Type: "array", Items: d.element(t.Elem())}
	}
	return &schemaNode{}
}

// element is the schema of list items and map values, which are never absent.
func (d *definitions) element(t reflect.Type) *schemaNode {
	node := d.valueOf(t)
	if d.openapi3 {
		return withSiblings(node, "", defaultOf(t, false, nil))
	}
	return node
}
