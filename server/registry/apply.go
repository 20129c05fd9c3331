package registry

import (
	"context"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	kjson "sigs.k8s.io/json"
)

// apply merges an applied configuration into current and works out who owns
// what (KEP-555). The result carries its managedFields.
func (p *patcher) apply(ctx context.Context, current runtime.Object) (runtime.Object, error) {
	config := &unstructured.Unstructured{Object: map[string]any{}}
	repeated, err := kjson.UnmarshalStrict(p.config, &config.Object)
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding YAML: %v", err))
	}
	switch {
	case tooWide(config.Object, len(p.config)):
		return nil, errTooWide("the applied configuration")
	case tooWide(current, sizeOf(current)):
		return nil, errTooWide("the object")
	}
	m, err := p.r.fieldManager(p.e, p.sub)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	out, err := m.Apply(current, config, p.manager, p.force)
	if err != nil {
		return nil, plainFailure(err)
	}
	if !p.strict() || !p.yaml && len(repeated) == 0 {
		return out, nil
	}
	if err := utilyaml.UnmarshalStrict(p.body, &map[string]any{}); err != nil {
		if p.validation == metav1.FieldValidationStrict {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("error strict decoding patch: %v", err))
		}
		for _, line := range yamlProblems(err.Error()) {
			AddWarning(ctx, line)
		}
	}
	return out, nil
}

// yamlProblems splits what the YAML decoder says into one line per problem.
func yamlProblems(text string) []string {
	for _, prefix := range []string{"error converting YAML to JSON: yaml: unmarshal errors:\n", "yaml: unmarshal errors:\n"} {
		if rest, ok := strings.CutPrefix(text, prefix); ok {
			lines := strings.Split(rest, "\n")
			for i := range lines {
				lines[i] = strings.TrimSpace(lines[i])
			}
			return lines
		}
	}
	return []string{text}
}
