package kinds

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (f *faults) env(at *field.Path, vars []corev1.EnvVar, scope *podScope) {
	for i := range vars {
		v, path := &vars[i], at.Index(i)
		f.present(path.Child("name"), v.Name, validation.IsRelaxedEnvVarName)
		if v.ValueFrom != nil {
			f.envSource(path.Child("valueFrom"), v, scope)
		}
	}
}

func (f *faults) envSource(at *field.Path, v *corev1.EnvVar, scope *podScope) {
	s, count := v.ValueFrom, 0
	if s.FieldRef != nil {
		count++
		f.fieldRef(at.Child("fieldRef"), s.FieldRef, envFieldPaths())
	}
	if s.ResourceFieldRef != nil {
		count++
		f.resourceFieldRef(at.Child("resourceFieldRef"), s.ResourceFieldRef, false)
	}
	if s.ConfigMapKeyRef != nil {
		count++
		f.keyRef(at.Child("configMapKeyRef"), s.ConfigMapKeyRef.Name, s.ConfigMapKeyRef.Key)
	}
	if s.SecretKeyRef != nil {
		count++
		f.keyRef(at.Child("secretKeyRef"), s.SecretKeyRef.Name, s.SecretKeyRef.Key)
	}
	if s.FileKeyRef != nil {
		count++
		f.fileKeyRef(at.Child("fileKeyRef"), s.FileKeyRef, scope)
	}
	switch {
	case count == 0:
		f.invalid(at, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`")
	case v.Value != "":
		f.invalid(at, "", "may not be specified when `value` is not empty")
	case count > 1:
		f.invalid(at, "", "may not have more than one field specified at a time")
	}
}

func (f *faults) fileKeyRef(at *field.Path, s *corev1.FileKeySelector, scope *podScope) {
	f.present(at.Child("key"), s.Key, validation.IsRelaxedEnvVarName)
	f.present(at.Child("volumeName"), s.VolumeName, validation.IsDNS1123Label)
	f.present(at.Child("path"), s.Path, nil)
	f.noBacksteps(at.Child("path"), s.Path)
	if source, ok := scope.volumes[s.VolumeName]; !ok {
		f.add(field.NotFound(at.Child("volumeName"), s.VolumeName))
	} else if source.EmptyDir == nil {
		f.invalid(at.Child("volumeName"), s.VolumeName, "referenced volume must be of type emptyDir")
	}
}

func (f *faults) keyRef(at *field.Path, name, key string) {
	f.invalids(at.Child("name"), name, subdomainName(name))
	f.present(at.Child("key"), key, validation.IsConfigMapKey)
}

func (f *faults) envFrom(at *field.Path, sources []corev1.EnvFromSource) {
	for i, s := range sources {
		path := at.Index(i)
		if s.Prefix != "" {
			f.invalids(path.Child("prefix"), s.Prefix, validation.IsRelaxedEnvVarName(s.Prefix))
		}
		switch {
		case s.ConfigMapRef != nil && s.SecretRef != nil:
			f.invalid(at, "", "may not have more than one field specified at a time")
		case s.ConfigMapRef == nil && s.SecretRef == nil:
			f.invalid(at, "", "must specify one of: `configMapRef` or `secretRef`")
		case s.ConfigMapRef != nil:
			f.present(path.Child("configMapRef", "name"), s.ConfigMapRef.Name, subdomainName)
		default:
			f.present(path.Child("secretRef", "name"), s.SecretRef.Name, subdomainName)
		}
	}
}

func envFieldPaths() []string {
	return []string{"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
		"status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"}
}

func volumeFieldPaths() []string {
	return []string{"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"}
}

// downwardFields are the paths that a downward reference can have at all.
func downwardFields() []string {
	return append(envFieldPaths(), "metadata.annotations", "metadata.labels", "spec.restartPolicy", "spec.schedulerName", "status.phase")
}

func (f *faults) fieldRef(at *field.Path, s *corev1.ObjectFieldSelector, allowed []string) {
	switch {
	case s.APIVersion == "":
		f.required(at.Child("apiVersion"), "")
		return
	case s.FieldPath == "":
		f.required(at.Child("fieldPath"), "")
		return
	case s.APIVersion != "v1":
		f.invalid(at.Child("fieldPath"), s.FieldPath, "error converting fieldPath: unsupported pod version: "+s.APIVersion)
		return
	}
	path, key, subscripted := cutSubscript(s.FieldPath)
	if !slices.Contains(downwardFields(), path) && path != "spec.host" {
		f.invalid(at.Child("fieldPath"), s.FieldPath, "error converting fieldPath: field label not supported: "+s.FieldPath)
		return
	}
	switch {
	case path == "spec.host":
	case subscripted && path == "metadata.annotations":
		f.invalids(at, strings.ToLower(key), validation.IsQualifiedName(strings.ToLower(key)))
	case subscripted && path == "metadata.labels":
		f.invalids(at, key, validation.IsQualifiedName(key))
	case subscripted:
		f.invalid(at.Child("fieldPath"), s.FieldPath, "error converting fieldPath: field label does not support subscript: "+s.FieldPath)
	case !slices.Contains(allowed, path):
		f.add(field.NotSupported(at.Child("fieldPath"), path, sets.List(sets.New(allowed...))))
	}
}

// cutSubscript splits metadata.labels['key'].
func cutSubscript(fieldPath string) (path, key string, ok bool) {
	path, rest, ok := strings.Cut(fieldPath, "['")
	if !ok || !strings.HasSuffix(rest, "']") || path == "" {
		return fieldPath, "", false
	}
	return path, strings.TrimSuffix(rest, "']"), true
}

func (f *faults) resourceFieldRef(at *field.Path, s *corev1.ResourceFieldSelector, inVolume bool) {
	allowed := []string{"limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"}
	switch {
	case inVolume && s.ContainerName == "":
		f.required(at.Child("containerName"), "")
	case s.Resource == "":
		f.required(at.Child("resource"), "")
	case !slices.Contains(allowed, s.Resource) && !strings.HasPrefix(s.Resource, "requests.hugepages-") && !strings.HasPrefix(s.Resource, "limits.hugepages-"):
		f.add(field.NotSupported(at.Child("resource"), s.Resource, allowed))
	}
	if s.Divisor.IsZero() {
		return
	}
	_, name, _ := strings.Cut(s.Resource, ".")
	divisor := s.Divisor.String()
	if name == "cpu" {
		if divisor != "1m" && divisor != "1" {
			f.invalid(at.Child("divisor"), s.Resource, "only divisor's values 1m and 1 are supported with the cpu resource")
		}
		return
	}
	kinds := map[string]string{"memory": "memory", "ephemeral-storage": "local ephemeral storage"}
	kind := kinds[name]
	if strings.HasPrefix(name, "hugepages-") {
		kind = "hugepages"
	}
	divisors := "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei"
	if kind != "" && !slices.Contains(strings.Split(divisors, ", "), divisor) {
		f.invalid(at.Child("divisor"), s.Resource, fmt.Sprintf("only divisor's values %s are supported with the %s resource", divisors, kind))
	}
}
