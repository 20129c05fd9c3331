package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"orch/agent/objects"
)

// fromAPI tells whether a volume's content comes from the API.
func fromAPI(v *corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}

// fromPod tells whether a volume shows fields of the pod itself.
func fromPod(v *corev1.Volume) bool {
	return v.DownwardAPI != nil || v.Projected != nil &&
		slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool { return s.DownwardAPI != nil })
}

// references gives the objects whose content a pod's volumes show.
func references(p *corev1.Pod) []objects.Ref {
	var refs []objects.Ref
	add := func(kind objects.Kind, name string) {
		if ref := (objects.Ref{Kind: kind, Namespace: p.Namespace, Name: name}); !slices.Contains(refs, ref) {
			refs = append(refs, ref)
		}
	}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.ConfigMap != nil {
			add(objects.ConfigMap, v.ConfigMap.Name)
		}
		if v.Secret != nil {
			add(objects.Secret, v.Secret.SecretName)
		}
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ConfigMap != nil {
				add(objects.ConfigMap, s.ConfigMap.Name)
			}
			if s.Secret != nil {
				add(objects.Secret, s.Secret.Name)
			}
		}
	}
	return refs
}

// contentDir is where a volume with content from the API lies: in memory when
// the content may be secret.
func (m *Manager) contentDir(p *corev1.Pod, v *corev1.Volume) string {
	if v.Secret != nil || v.Projected != nil {
		return filepath.Join(m.secretsDir(), string(p.UID), v.Name)
	}
	return filepath.Join(m.volumesDir(p.UID), v.Name)
}

// writeContent gathers a volume's files and writes them where they have
// changed. It gives the time at which that has to be done again, zero for never.
func (m *Manager) writeContent(ctx context.Context, p *corev1.Pod, v *corev1.Volume) (time.Time, error) {
	want, renew, err := m.gather(ctx, p, v)
	if err != nil {
		return renew, err
	}
	dir := m.contentDir(p, v)
	if err := makeContentDir(dir, fsGroup(p)); err != nil {
		return renew, err
	}
	if err := makeNested(dir, v.Name, p); err != nil {
		return renew, err
	}
	return renew, writeFiles(dir, want, fsGroup(p), m.cfg.Now())
}

// makeContentDir makes the directory of a volume. Nobody but us writes to it.
func makeContentDir(dir string, group *int64) error {
	// The pod's directory keeps other users of this machine out.
	if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o777); err != nil && !os.IsExist(err) {
		return err
	}
	mode := 0o777 | fs.ModeSticky
	if group != nil {
		mode |= fs.ModeSetgid
		if err := os.Chown(dir, -1, int(*group)); err != nil {
			return err
		}
	}
	return os.Chmod(dir, mode) // whatever the umask
}

// gather collects what a volume is to show.
func (m *Manager) gather(ctx context.Context, p *corev1.Pod, v *corev1.Volume) (files, time.Time, error) {
	out := files{}
	var err error
	switch {
	case v.ConfigMap != nil:
		s := v.ConfigMap
		err = m.configMap(ctx, out, p.Namespace, s.Name, s.Items, s.DefaultMode, isTrue(s.Optional))
	case v.Secret != nil:
		s := v.Secret
		err = m.secret(ctx, out, p.Namespace, s.SecretName, s.Items, s.DefaultMode, isTrue(s.Optional))
	case v.DownwardAPI != nil:
		err = m.downward(out, p, v.DownwardAPI.Items, v.DownwardAPI.DefaultMode)
	case v.Projected != nil:
		return m.projected(ctx, p, v.Projected)
	}
	return out, time.Time{}, err
}

// projected collects several sources. All are tried, so that an error names
// everything that is missing; of two files of one name the later source's wins.
func (m *Manager) projected(ctx context.Context, p *corev1.Pod, source *corev1.ProjectedVolumeSource) (files, time.Time, error) {
	out := files{}
	var renew time.Time
	var errs []error
	for i := range source.Sources {
		switch s := &source.Sources[i]; {
		case s.ConfigMap != nil:
			errs = append(errs, m.configMap(ctx, out, p.Namespace, s.ConfigMap.Name, s.ConfigMap.Items, source.DefaultMode, isTrue(s.ConfigMap.Optional)))
		case s.Secret != nil:
			errs = append(errs, m.secret(ctx, out, p.Namespace, s.Secret.Name, s.Secret.Items, source.DefaultMode, isTrue(s.Secret.Optional)))
		case s.DownwardAPI != nil:
			errs = append(errs, m.downward(out, p, s.DownwardAPI.Items, source.DefaultMode))
		case s.ServiceAccountToken != nil:
			due, err := m.token(ctx, out, p, s.ServiceAccountToken, source.DefaultMode)
			renew, errs = sooner(renew, due), append(errs, err)
		case s.ClusterTrustBundle != nil:
			errs = append(errs, errors.New("ClusterTrustBundle projection is not supported on this node"))
		case s.PodCertificate != nil:
			errs = append(errs, errors.New("PodCertificate projection is not supported on this node"))
		default:
			errs = append(errs, errors.New("this kind of projected source is not supported on this node"))
		}
	}
	return out, renew, errors.Join(errs...)
}

func (m *Manager) configMap(ctx context.Context, out files, namespace, name string, items []corev1.KeyToPath, mode *int32, optional bool) error {
	object, err := m.Objects.ConfigMap(ctx, namespace, name)
	if apierrors.IsNotFound(err) {
		if optional {
			return nil
		}
		return fmt.Errorf("configmap %q not found", name)
	}
	if err != nil {
		return err
	}
	data := make(map[string][]byte, len(object.Data)+len(object.BinaryData))
	for k, v := range object.Data {
		data[k] = []byte(v)
	}
	maps.Copy(data, object.BinaryData)
	return pick(out, data, items, mode, optional, "configmap references non-existent config key: %s")
}

func (m *Manager) secret(ctx context.Context, out files, namespace, name string, items []corev1.KeyToPath, mode *int32, optional bool) error {
	object, err := m.Objects.Secret(ctx, namespace, name)
	if apierrors.IsNotFound(err) {
		if optional {
			return nil
		}
		return fmt.Errorf("secret %q not found", name)
	}
	if err != nil {
		return err
	}
	return pick(out, object.Data, items, mode, optional, "references non-existent secret key: %s")
}

// pick takes the keys that items name, or all.
func pick(out files, data map[string][]byte, items []corev1.KeyToPath, mode *int32, optional bool, missing string) error {
	if len(items) == 0 {
		for key, value := range data {
			out[key] = file{data: value, mode: modeOf(nil, mode)}
		}
		return nil
	}
	for i := range items {
		value, ok := data[items[i].Key]
		if !ok && !optional {
			return fmt.Errorf(missing, items[i].Key)
		}
		if ok {
			out[items[i].Path] = file{data: value, mode: modeOf(items[i].Mode, mode)}
		}
	}
	return nil
}

// token writes a service account token. It is for the pod's own users alone
// where these are known. It gives the time at which the token is to be renewed.
func (m *Manager) token(ctx context.Context, out files, p *corev1.Pod, source *corev1.ServiceAccountTokenProjection, mode *int32) (time.Time, error) {
	t, err := m.tokens.get(ctx, p, source)
	if err != nil {
		return time.Time{}, err
	}
	f := file{data: []byte(t.value), mode: modeOf(nil, mode), user: onlyUser(p)}
	if f.user != nil || fsGroup(p) != nil {
		f.mode = 0o600
	}
	out[source.Path] = f
	return t.renew, nil
}

// onlyUser is the user that all containers run as, nil when they differ or
// one names none.
func onlyUser(p *corev1.Pod) *int64 {
	var general, common *int64
	if p.Spec.SecurityContext != nil {
		general = p.Spec.SecurityContext.RunAsUser
	}
	agree := func(sc *corev1.SecurityContext) bool {
		user := general
		if sc != nil && sc.RunAsUser != nil {
			user = sc.RunAsUser
		}
		if user == nil || common != nil && *common != *user {
			return false
		}
		common = user
		return true
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if !agree(list[i].SecurityContext) {
				return nil
			}
		}
	}
	for i := range p.Spec.EphemeralContainers {
		if !agree(p.Spec.EphemeralContainers[i].SecurityContext) {
			return nil
		}
	}
	return common
}

// modeOf is the file's own mode, else the volume's, else the API's default.
func modeOf(own, volume *int32) int32 {
	switch {
	case own != nil:
		return *own
	case volume != nil:
		return *volume
	}
	return corev1.ConfigMapVolumeSourceDefaultMode
}

func isTrue(b *bool) bool { return b != nil && *b }

// sooner is the earlier of two times, where zero means never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
