package kinds

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"

	"orch/server/registry"
)

// TestMissingFields leaves out each field of each test object in turn and pins
// what validation says beyond what it says of the whole object, which has not
// been prepared. What it lets pass is not listed.
func TestMissingFields(t *testing.T) {
	var out bytes.Buffer
	for _, d := range documents(t, Table(testConfig())) {
		if d.res.Validate == nil {
			continue
		}
		var tree map[string]any
		if err := json.Unmarshal(d.body, &tree); err != nil {
			t.Fatal(err)
		}
		whole := faultsOf(t, d.res, tree)
		eachWithout(tree, "", func(path string) {
			for _, e := range faultsOf(t, d.res, tree) {
				if slices.Contains(whole, e) {
					continue
				}
				fmt.Fprintf(&out, "%s %s: without %s: %s\n", d.res.Kind, d.object(t).GetName(), path, e)
			}
		})
	}
	golden(t, "missing.txt", out.Bytes())
}

// eachWithout calls visit while one field of tree after the other is missing.
func eachWithout(tree map[string]any, path string, visit func(path string)) {
	for _, key := range slices.Sorted(maps.Keys(tree)) {
		value, at := tree[key], path+"."+key
		if path != "" || key != "apiVersion" && key != "kind" {
			delete(tree, key)
			visit(at)
			tree[key] = value
		}
		switch value := value.(type) {
		case map[string]any:
			eachWithout(value, at, visit)
		case []any:
			for i, item := range value {
				if item, ok := item.(map[string]any); ok {
					eachWithout(item, fmt.Sprintf("%s[%d]", at, i), visit)
				}
			}
		}
	}
}

func faultsOf(t *testing.T, res *registry.Resource, tree map[string]any) []string {
	body, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	obj := manifest{res, body}.object(t)
	if res.Default != nil {
		res.Default(obj)
	}
	var list []string
	for _, e := range res.Validate(obj) {
		list = append(list, e.Error())
	}
	return list
}
