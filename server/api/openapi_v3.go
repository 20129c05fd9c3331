package api

import (
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/registry"
)

// documentV3 describes one group version: its kinds and its paths.
func (o *openapi) documentV3(entries []*registry.Resource) ([]byte, error) {
	d := o.definitions(true)
	paths := make(map[string]any)
	for _, res := range entries {
		d.addResource(res)
		for _, item := range pathsOf(res) {
			paths[item.path] = d.pathV3(item)
		}
	}
	return json.Marshal(map[string]any{
		"openapi": "3.0.0",
		"info":    map[string]string{"title": "Kubernetes", "version": o.version.GitVersion},
		"paths":   paths,
		"components": map[string]any{
			"schemas": d.nodes,
			"securitySchemes": map[string]any{
				"BearerToken": map[string]string{"description": "Bearer Token authentication", "in": "header", "name": "authorization", "type": "apiKey"},
			},
		},
	})
}

// addResource makes the definitions of a resource's kinds.
func (d *definitions) addResource(res *registry.Resource) {
	d.refer(typeOf(res.New()))
	if res.NewList != nil {
		d.refer(typeOf(res.NewList()))
	}
	for _, sub := range res.Subresources {
		if sub.New != nil {
			d.refer(typeOf(sub.New()))
		}
	}
	d.refer(typeOf(&metav1.WatchEvent{}))
}

type parameterV3 struct {
	Description string      `json:"description,omitempty"`
	In          string      `json:"in"`
	Name        string      `json:"name"`
	Required    bool        `json:"required,omitempty"`
	Schema      *schemaNode `json:"schema"`
}

func (d *definitions) pathV3(item pathItem) map[string]any {
	path := make(map[string]any)
	parameters := []parameterV3{}
	for _, name := range item.parameters {
		parameters = append(parameters, parameterV3{pathParameters[name], "path", name, true, &schemaNode{Type: "string", Unique: true}})
	}
	parameters = append(parameters, parameterV3{"If 'true', then the output is pretty printed.", "query", "pretty", false, &schemaNode{Type: "string", Unique: true}})
	path["parameters"] = parameters
	for _, op := range item.operations {
		path[op.method] = d.operationV3(op)
	}
	return path
}

type contentV3 map[string]map[string]*schemaNode

func (d *definitions) operationV3(op operation) map[string]any {
	out := map[string]any{
		"operationId": op.id, "x-kubernetes-action": op.action, "x-kubernetes-group-version-kind": op.kind,
		"responses": map[string]any{
			op.code: map[string]any{"description": "OK", "content": d.responseV3(op)},
			"401":   map[string]any{"description": "Unauthorized"},
		},
	}
	var parameters []parameterV3
	for _, p := range queryParameters(op.options) {
		parameters = append(parameters, parameterV3{p.description, "query", p.name, false, &schemaNode{Type: p.kind, Unique: true}})
	}
	if len(parameters) > 0 {
		out["parameters"] = parameters
	}
	if op.body != nil {
		content := make(contentV3)
		for _, media := range op.accepts {
			content[media] = map[string]*schemaNode{"schema": d.refer(op.body)}
		}
		body := map[string]any{"content": content}
		if op.method != "delete" {
			body["required"] = true
		}
		out["requestBody"] = body
	}
	return out
}

func (d *definitions) responseV3(op operation) contentV3 {
	if op.response == nil {
		return contentV3{"*/*": {"schema": {Type: "string"}}}
	}
	content := make(contentV3)
	produced := []string{contentJSON, contentProtobuf, contentYAML}
	if op.action == "list" {
		produced = append(produced, contentJSON+";stream=watch", contentProtobuf+";stream=watch")
	}
	for _, media := range produced {
		content[media] = map[string]*schemaNode{"schema": d.refer(op.response)}
	}
	return content
}
