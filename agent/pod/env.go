package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubectl/pkg/util/fieldpath"
	containerresource "k8s.io/kubectl/pkg/util/resource"

	"orch/agent/disk"
)

// apiObjects reads straight from the API: an environment is made rarely, and
// must not be stale.
type apiObjects struct{ client kubernetes.Interface }

func (a apiObjects) ConfigMap(ctx context.Context, ns, name string) (*corev1.ConfigMap, error) {
	return a.client.CoreV1().ConfigMaps(ns).Get(ctx, name, metav1.GetOptions{})
}

func (a apiObjects) Secret(ctx context.Context, ns, name string) (*corev1.Secret, error) {
	return a.client.CoreV1().Secrets(ns).Get(ctx, name, metav1.GetOptions{})
}

// environment makes one container's variables.
type environment struct {
	m        *Manager
	o        launchOrder
	services map[string]string
	values   map[string]string
	// Objects that were read already.
	maps    map[string]*corev1.ConfigMap
	secrets map[string]*corev1.Secret
}

// environ gives the container's variables by name: envFrom, then env over it,
// then what services add under names that are still free.
func (m *Manager) environ(ctx context.Context, o launchOrder) (map[string]string, error) {
	e := &environment{
		m: m, o: o, services: m.serviceEnv(o.pod), values: make(map[string]string),
		maps: make(map[string]*corev1.ConfigMap), secrets: make(map[string]*corev1.Secret),
	}
	for _, from := range o.unit.EnvFrom {
		if err := e.addFrom(ctx, from); err != nil {
			return nil, err
		}
	}
	for _, v := range o.unit.Env {
		value, ok, err := e.value(ctx, v)
		if err != nil {
			return nil, err
		}
		if ok {
			e.values[v.Name] = value
		}
	}
	all := maps.Clone(e.services)
	maps.Copy(all, e.values)
	return all, nil
}

func (e *environment) lookup(name string) (string, bool) {
	if v, ok := e.values[name]; ok {
		return v, true
	}
	v, ok := e.services[name]
	return v, ok
}

func (e *environment) addFrom(ctx context.Context, from corev1.EnvFromSource) error {
	switch {
	case from.ConfigMapRef != nil:
		cm, err := e.configMap(ctx, from.ConfigMapRef.Name, from.ConfigMapRef.Optional)
		if err != nil || cm == nil {
			return err
		}
		for k, v := range cm.Data {
			e.values[from.Prefix+k] = v
		}
	case from.SecretRef != nil:
		s, err := e.secret(ctx, from.SecretRef.Name, from.SecretRef.Optional)
		if err != nil || s == nil {
			return err
		}
		for k, v := range s.Data {
			e.values[from.Prefix+k] = string(v)
		}
	}
	return nil
}

// value resolves one variable; false leaves it unset.
func (e *environment) value(ctx context.Context, v corev1.EnvVar) (string, bool, error) {
	from := v.ValueFrom
	if v.Value != "" || from == nil {
		return expand(v.Value, e.lookup), true, nil
	}
	switch {
	case from.FieldRef != nil:
		value, err := e.field(from.FieldRef.FieldPath)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err := e.resource(from.ResourceFieldRef)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		return e.configMapKey(ctx, from.ConfigMapKeyRef)
	case from.SecretKeyRef != nil:
		return e.secretKey(ctx, from.SecretKeyRef)
	case from.FileKeyRef != nil:
		return e.fileKey(from.FileKeyRef)
	}
	return "", true, nil
}

func (e *environment) configMapKey(ctx context.Context, ref *corev1.ConfigMapKeySelector) (string, bool, error) {
	cm, err := e.configMap(ctx, ref.Name, ref.Optional)
	if err != nil || cm == nil {
		return "", false, err
	}
	value, ok := cm.Data[ref.Key]
	if !ok && !isTrue(ref.Optional) {
		return "", false, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, e.o.pod.Namespace, ref.Name)
	}
	return value, ok, nil
}

func (e *environment) secretKey(ctx context.Context, ref *corev1.SecretKeySelector) (string, bool, error) {
	s, err := e.secret(ctx, ref.Name, ref.Optional)
	if err != nil || s == nil {
		return "", false, err
	}
	value, ok := s.Data[ref.Key]
	if !ok && !isTrue(ref.Optional) {
		return "", false, fmt.Errorf("couldn't find key %v in Secret %v/%v", ref.Key, e.o.pod.Namespace, ref.Name)
	}
	return string(value), ok, nil
}

// notFound words the absence of an object the way kubelet does.
func notFound(err error, kind, name string) error {
	if apierrors.IsNotFound(err) {
		return apierrors.NewNotFound(schema.GroupResource{Resource: kind}, name)
	}
	return err
}

func (e *environment) configMap(ctx context.Context, name string, optional *bool) (*corev1.ConfigMap, error) {
	if cm := e.maps[name]; cm != nil {
		return cm, nil
	}
	cm, err := e.m.cfg.Objects.ConfigMap(ctx, e.o.pod.Namespace, name)
	if apierrors.IsNotFound(err) && isTrue(optional) {
		return nil, nil
	}
	if err == nil {
		e.maps[name] = cm
	}
	return cm, notFound(err, "configmap", name)
}

func (e *environment) secret(ctx context.Context, name string, optional *bool) (*corev1.Secret, error) {
	if s := e.secrets[name]; s != nil {
		return s, nil
	}
	s, err := e.m.cfg.Objects.Secret(ctx, e.o.pod.Namespace, name)
	if apierrors.IsNotFound(err) && isTrue(optional) {
		return nil, nil
	}
	if err == nil {
		e.secrets[name] = s
	}
	return s, notFound(err, "secret", name)
}

func isTrue(b *bool) bool { return b != nil && *b }

// field resolves a downward API field of the pod.
func (e *environment) field(path string) (string, error) {
	switch path {
	case "spec.nodeName":
		return e.o.pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return e.o.pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return first(e.m.cfg.HostIPs()), nil
	case "status.hostIPs":
		return strings.Join(e.m.cfg.HostIPs(), ","), nil
	case "status.podIP":
		return first(e.o.ips), nil
	case "status.podIPs":
		return strings.Join(e.o.ips, ","), nil
	}
	return fieldpath.ExtractFieldPathAsString(e.o.pod, path)
}

func first(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return all[0]
}

// resource resolves a request or limit; a limit that is not set is the node's
// whole capacity for pods.
func (e *environment) resource(ref *corev1.ResourceFieldSelector) (string, error) {
	name := cmp.Or(ref.ContainerName, e.o.unit.Name)
	u, ok := findUnit(e.o.pod, name)
	if !ok {
		return "", fmt.Errorf("container %s not found", name)
	}
	c := u.Container.DeepCopy()
	if node := e.m.cfg.Node(); node != nil {
		if c.Resources.Limits == nil {
			c.Resources.Limits = corev1.ResourceList{}
		}
		for _, r := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
			if q, set := c.Resources.Limits[r]; !set || q.IsZero() {
				if a, ok := node.Status.Allocatable[r]; ok {
					c.Resources.Limits[r] = a
				}
			}
		}
	}
	return containerresource.ExtractContainerResourceValue(ref, c)
}

// fileKey reads a variable out of a file in a volume (KEP-3721).
func (e *environment) fileKey(ref *corev1.FileKeySelector) (string, bool, error) {
	mount, ok := e.o.mounts[ref.VolumeName]
	if !ok {
		return "", false, fmt.Errorf("cannot find the volume %q referenced by FileKeyRef", ref.VolumeName)
	}
	text, err := disk.ReadBeneath(mount.HostPath, filepath.Clean(ref.Path), mostEnvFile)
	value := ""
	if err == nil {
		value, err = envFileValue(string(text), ref.Key)
	}
	switch {
	case err != nil && os.IsNotExist(err) && isTrue(ref.Optional):
		return "", false, nil
	case err != nil:
		e.m.log.Debug("environment file", "pod", describe(e.o.pod), "err", err)
		return "", false, errors.New("couldn't parse env file")
	case value == "" && !isTrue(ref.Optional):
		return "", false, fmt.Errorf("environment variable key %q not found in file %q", ref.Key, filepath.Join(mount.HostPath, ref.Path))
	}
	return value, value != "", nil
}

// mostEnvFile bounds an environment file, which containers write.
const mostEnvFile = 1 << 20

// envFileValue finds KEY='value' in an environment file, "" when it is not
// there. Values are in single quotes, and may go over several lines; the file is
// read up to the key.
func envFileValue(text, key string) (string, error) {
	for rest := text; rest != ""; {
		var line string
		line, rest, _ = strings.Cut(rest, "\n")
		line = strings.TrimLeft(strings.TrimSuffix(line, "\r"), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || name == "" || name != strings.TrimRight(name, " \t") {
			return "", fmt.Errorf("environment file: a line is not of the form NAME='value'")
		}
		if trimmed := strings.TrimLeft(value, " \t"); trimmed != value { // as a shell reads it: empty
			if name == key {
				return "", nil
			}
			continue
		}
		if !strings.HasPrefix(value, "'") {
			return "", fmt.Errorf("environment file: the value of %s is not in single quotes", name)
		}
		value, after, ok := strings.Cut(value[1:]+"\n"+rest, "'")
		if !ok {
			return "", fmt.Errorf("environment file: the quote of %s is not closed", name)
		}
		if name == key {
			return value, nil
		}
		after, rest, _ = strings.Cut(after, "\n")
		if after = strings.TrimLeft(strings.TrimSuffix(after, "\r"), " \t"); after != "" && after[0] != '#' {
			return "", fmt.Errorf("environment file: something follows the value of %s", name)
		}
	}
	return "", nil
}

// expand replaces $(NAME) by its value and $$ by a dollar sign. A reference to
// a name that is not known stays as it is.
func expand(text string, lookup func(string) (string, bool)) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '$' || i+1 == len(text) {
			b.WriteByte(text[i])
			continue
		}
		switch text[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(text[i+2:], ')')
			if end < 0 { // not closed: as it is
				b.WriteString("$(")
				i++
				continue
			}
			name := text[i+2 : i+2+end]
			if v, ok := lookup(name); ok {
				b.WriteString(v)
			} else {
				b.WriteString("$(" + name + ")")
			}
			i += 2 + end
		default:
			b.WriteByte('$')
			b.WriteByte(text[i+1])
			i++
		}
	}
	return b.String()
}

// serviceEnv gives the variables that announce services: the API server's to
// every pod, those of its own namespace to a pod that wants them.
func (m *Manager) serviceEnv(pod *corev1.Pod) map[string]string {
	env := make(map[string]string)
	for _, s := range m.cfg.Services(metav1.NamespaceDefault) {
		if s.Name == "kubernetes" {
			announce(env, s)
		}
	}
	if pod.Spec.EnableServiceLinks != nil && !*pod.Spec.EnableServiceLinks {
		return env
	}
	all := slices.Clone(m.cfg.Services(pod.Namespace))
	slices.SortFunc(all, func(a, b *corev1.Service) int { return cmp.Compare(a.Name, b.Name) })
	for _, s := range all {
		announce(env, s)
	}
	return env
}

func announce(env map[string]string, s *corev1.Service) {
	ip := s.Spec.ClusterIP
	if ip == "" || ip == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
		return
	}
	name := strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
	env[name+"_SERVICE_HOST"] = ip
	env[name+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
	for i, p := range s.Spec.Ports {
		port := strconv.Itoa(int(p.Port))
		if p.Name != "" {
			env[name+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(p.Name, "-", "_"))] = port
		}
		protocol := cmp.Or(string(p.Protocol), "TCP")
		url := strings.ToLower(protocol) + "://" + net.JoinHostPort(ip, port)
		if i == 0 {
			env[name+"_PORT"] = url
		}
		link := name + "_PORT_" + port + "_" + protocol
		env[link] = url
		env[link+"_PROTO"] = strings.ToLower(protocol)
		env[link+"_PORT"] = port
		env[link+"_ADDR"] = ip
	}
}
