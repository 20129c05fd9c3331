package kinds

import (
	"fmt"
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// volumes gives the sources of the well-formed volumes by name.
func (f *faults) volumes(at *field.Path, volumes []corev1.Volume, meta *metav1.ObjectMeta) map[string]*corev1.VolumeSource {
	sources := make(map[string]*corev1.VolumeSource, len(volumes))
	owned := ownedClaims(volumes, meta)
	for i := range volumes {
		v, path := &volumes[i], at.Index(i)
		var own faults
		own.volumeSource(path, v, meta)
		own.present(path.Child("name"), v.Name, validation.IsDNS1123Label)
		if _, ok := sources[v.Name]; ok {
			own.add(field.Duplicate(path.Child("name"), v.Name))
		}
		if len(own.list) == 0 {
			sources[v.Name] = &v.VolumeSource
		}
		f.join(own.list)
		if c := v.PersistentVolumeClaim; c != nil && owned[c.ClaimName] {
			f.invalid(path.Child("persistentVolumeClaim", "claimName"), c.ClaimName, "must not reference a PVC that gets created for an ephemeral volume")
		}
	}
	return sources
}

// ownedClaims are those that get created for the ephemeral volumes of a pod.
func ownedClaims(volumes []corev1.Volume, meta *metav1.ObjectMeta) map[string]bool {
	if meta == nil || meta.Name == "" {
		return nil
	}
	var owned map[string]bool
	for i := range volumes {
		if volumes[i].Ephemeral != nil {
			if owned == nil {
				owned = make(map[string]bool)
			}
			owned[meta.Name+"-"+volumes[i].Name] = true
		}
	}
	return owned
}

// volumeSource asks for exactly one source. Only the first is looked into.
func (f *faults) volumeSource(at *field.Path, v *corev1.Volume, meta *metav1.ObjectMeta) {
	s, count := &v.VolumeSource, 0
	for _, one := range []struct {
		is    bool
		name  string
		check func(*field.Path)
	}{
		{s.EmptyDir != nil, "emptyDir", func(p *field.Path) { f.emptyDir(p, s.EmptyDir) }},
		{s.HostPath != nil, "hostPath", func(p *field.Path) { f.hostPath(p, s.HostPath) }},
		{s.GitRepo != nil, "gitRepo", func(p *field.Path) { f.present(p.Child("repository"), s.GitRepo.Repository, nil) }},
		{s.GCEPersistentDisk != nil, "gcePersistentDisk", nil},
		{s.AWSElasticBlockStore != nil, "awsElasticBlockStore", nil},
		{s.Secret != nil, "secret", func(p *field.Path) {
			f.present(p.Child("secretName"), s.Secret.SecretName, nil)
			f.items(p, s.Secret.DefaultMode, s.Secret.Items)
		}},
		{s.NFS != nil, "nfs", func(p *field.Path) { f.nfs(p, s.NFS) }},
		{s.ISCSI != nil, "iscsi", nil}, {s.Glusterfs != nil, "glusterfs", nil}, {s.Flocker != nil, "flocker", nil},
		{s.PersistentVolumeClaim != nil, "persistentVolumeClaim", func(p *field.Path) {
			f.present(p.Child("claimName"), s.PersistentVolumeClaim.ClaimName, nil)
		}},
		{s.RBD != nil, "rbd", nil}, {s.Cinder != nil, "cinder", nil}, {s.CephFS != nil, "cephFS", nil}, {s.Quobyte != nil, "quobyte", nil},
		{s.DownwardAPI != nil, "downwardAPI", func(p *field.Path) { f.downwardVolume(p, s.DownwardAPI) }},
		{s.FC != nil, "fc", nil}, {s.FlexVolume != nil, "flexVolume", nil},
		{s.ConfigMap != nil, "configMap", func(p *field.Path) {
			f.present(p.Child("name"), s.ConfigMap.Name, nil)
			f.items(p, s.ConfigMap.DefaultMode, s.ConfigMap.Items)
		}},
		{s.AzureFile != nil, "azureFile", nil}, {s.VsphereVolume != nil, "vsphereVolume", nil},
		{s.PhotonPersistentDisk != nil, "photonPersistentDisk", nil}, {s.PortworxVolume != nil, "portworxVolume", nil},
		{s.AzureDisk != nil, "azureDisk", nil}, {s.StorageOS != nil, "storageos", nil},
		{s.Projected != nil, "projected", func(p *field.Path) { f.projected(p, s.Projected) }},
		{s.ScaleIO != nil, "scaleIO", nil},
		{s.CSI != nil, "csi", func(p *field.Path) { f.csiDriverName(p.Child("driver"), s.CSI.Driver) }},
		{s.Ephemeral != nil, "ephemeral", func(p *field.Path) { f.ephemeralVolume(p, at, v, meta) }},
		{s.Image != nil, "image", func(p *field.Path) { f.imageVolume(p, s.Image, meta) }},
	} {
		if !one.is {
			continue
		}
		if count++; count > 1 {
			f.forbidden(at.Child(one.name), "may not specify more than 1 volume type")
		} else if one.check != nil {
			one.check(at.Child(one.name))
		}
	}
	if count == 0 {
		f.required(at, "must specify a volume type")
	}
}

func (f *faults) emptyDir(at *field.Path, s *corev1.EmptyDirVolumeSource) {
	if s.SizeLimit != nil && s.SizeLimit.Cmp(resource.Quantity{}) < 0 {
		f.forbidden(at.Child("sizeLimit"), "SizeLimit field must be a valid resource quantity")
	}
}

func (f *faults) hostPath(at *field.Path, s *corev1.HostPathVolumeSource) {
	if s.Path == "" {
		f.required(at.Child("path"), "")
		return
	}
	f.noBacksteps(at.Child("path"), s.Path)
	if s.Type != nil {
		supports(f, at.Child("type"), *s.Type, corev1.HostPathUnset, corev1.HostPathBlockDev, corev1.HostPathCharDev, corev1.HostPathDirectory,
			corev1.HostPathDirectoryOrCreate, corev1.HostPathFile, corev1.HostPathFileOrCreate, corev1.HostPathSocket)
	}
}

func (f *faults) nfs(at *field.Path, s *corev1.NFSVolumeSource) {
	f.present(at.Child("server"), s.Server, nil)
	f.present(at.Child("path"), s.Path, nil)
	if !path.IsAbs(s.Path) {
		f.invalid(at.Child("path"), s.Path, "must be an absolute path")
	}
}

func (f *faults) csiDriverName(at *field.Path, name string) {
	if name == "" {
		f.required(at, "")
		return
	}
	if len(name) > 63 {
		f.add(field.TooLong(at, "", 63))
	}
	f.invalids(at, name, validation.IsDNS1123Subdomain(strings.ToLower(name)))
}

func (f *faults) imageVolume(at *field.Path, s *corev1.ImageVolumeSource, meta *metav1.ObjectMeta) {
	if meta != nil && s.Reference == "" {
		f.required(at.Child("reference"), "")
	}
	oneOf(f, at.Child("pullPolicy"), s.PullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
}

func (f *faults) ephemeralVolume(at, volume *field.Path, v *corev1.Volume, meta *metav1.ObjectMeta) {
	t := v.Ephemeral.VolumeClaimTemplate
	if t == nil {
		f.required(at.Child("volumeClaimTemplate"), "")
	} else {
		f.claimSpec(at.Child("volumeClaimTemplate", "spec"), &t.Spec)
	}
	if meta == nil || meta.Name == "" || v.Name == "" {
		return
	}
	claim := meta.Name + "-" + v.Name
	for _, m := range subdomainName(claim) {
		f.invalid(volume.Child("name"), v.Name, fmt.Sprintf("PVC name %q: %v", claim, m))
	}
}

func (f *faults) fileMode(at *field.Path, mode *int32) {
	if mode != nil && (*mode < 0 || *mode > 0o777) {
		f.invalid(at, *mode, "must be a number between 0 and 0777 (octal), both inclusive")
	}
}

func (f *faults) items(at *field.Path, mode *int32, items []corev1.KeyToPath) {
	f.fileMode(at.Child("defaultMode"), mode)
	for i, item := range items {
		f.item(at.Child("items").Index(i), item)
	}
}

func (f *faults) item(at *field.Path, item corev1.KeyToPath) {
	f.present(at.Child("key"), item.Key, nil)
	f.present(at.Child("path"), item.Path, nil)
	f.localPath(at.Child("path"), item.Path)
	f.fileMode(at.Child("mode"), item.Mode)
}

func (f *faults) downwardVolume(at *field.Path, s *corev1.DownwardAPIVolumeSource) {
	f.fileMode(at.Child("defaultMode"), s.DefaultMode)
	for i := range s.Items {
		f.downwardFile(at, &s.Items[i])
	}
}

func (f *faults) downwardFile(at *field.Path, file *corev1.DownwardAPIVolumeFile) {
	f.present(at.Child("path"), file.Path, nil)
	f.localPath(at.Child("path"), file.Path)
	switch {
	case file.FieldRef != nil:
		f.fieldRef(at.Child("fieldRef"), file.FieldRef, volumeFieldPaths())
		if file.ResourceFieldRef != nil {
			f.invalid(at, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously")
		}
	case file.ResourceFieldRef != nil:
		f.resourceFieldRef(at.Child("resourceFieldRef"), file.ResourceFieldRef, true)
	default:
		f.required(at, "one of fieldRef and resourceFieldRef is required")
	}
	f.fileMode(at.Child("mode"), file.Mode)
}

func (f *faults) projected(at *field.Path, s *corev1.ProjectedVolumeSource) {
	f.fileMode(at.Child("defaultMode"), s.DefaultMode)
	paths := sets.New[string]()
	for i := range s.Sources {
		f.projection(at, at.Child("sources").Index(i), &s.Sources[i], paths)
	}
}

func (f *faults) projection(volume, at *field.Path, s *corev1.VolumeProjection, paths sets.Set[string]) {
	count := 0
	claim := func(name, path string) {
		if path != "" && paths.Has(path) {
			f.invalid(volume, name, "conflicting duplicate paths")
		}
		paths.Insert(path)
	}
	items := func(at *field.Path, name string, items []corev1.KeyToPath) {
		count++
		f.present(at.Child("name"), name, nil)
		for i, item := range items {
			f.item(at.Child("items").Index(i), item)
			claim(name, item.Path)
		}
	}
	if s.Secret != nil {
		items(at.Child("secret"), s.Secret.Name, s.Secret.Items)
	}
	if s.ConfigMap != nil {
		items(at.Child("configMap"), s.ConfigMap.Name, s.ConfigMap.Items)
	}
	if s.DownwardAPI != nil {
		count++
		for i := range s.DownwardAPI.Items {
			f.downwardFile(at.Child("downwardAPI"), &s.DownwardAPI.Items[i])
			claim(s.DownwardAPI.Items[i].Path, s.DownwardAPI.Items[i].Path)
		}
	}
	if t := s.ServiceAccountToken; t != nil {
		count++
		f.tokenProjection(volume, at.Child("serviceAccountToken"), t)
	}
	if b := s.ClusterTrustBundle; b != nil {
		count++
		f.present(at.Child("clusterTrustBundle", "path"), b.Path, nil)
		f.localPath(at.Child("clusterTrustBundle", "path"), b.Path)
		claim(b.Path, b.Path)
	}
	if s.PodCertificate != nil {
		count++
	}
	if count > 1 {
		f.forbidden(at, "may not specify more than 1 volume type per source")
	}
}

func (f *faults) tokenProjection(volume, at *field.Path, t *corev1.ServiceAccountTokenProjection) {
	switch seconds := derefOr(t.ExpirationSeconds, 3600); {
	case seconds < 10*60:
		f.invalid(at.Child("expirationSeconds"), seconds, "may not specify a duration less than 10 minutes")
	case seconds > 1<<32:
		f.invalid(at.Child("expirationSeconds"), seconds, "may not specify a duration larger than 2^32 seconds")
	}
	f.present(volume.Child("path"), t.Path, nil)
	f.localPath(volume.Child("path"), t.Path)
}

func (f *faults) noBacksteps(at *field.Path, p string) {
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			f.invalid(at, p, "must not contain '..'")
			return
		}
	}
}

func (f *faults) descending(at *field.Path, p string) {
	if path.IsAbs(p) {
		f.invalid(at, p, "must be a relative path")
	}
	f.noBacksteps(at, p)
}

// localPath also keeps clear of the names that atomic updates of a volume use.
func (f *faults) localPath(at *field.Path, p string) {
	f.descending(at, p)
	if strings.HasPrefix(p, "..") && !strings.HasPrefix(p, "../") {
		f.invalid(at, p, "must not start with '..'")
	}
}

func (f *faults) volumeMounts(at *field.Path, c *corev1.Container, volumes map[string]*corev1.VolumeSource) {
	paths := sets.New[string]()
	for i := range c.VolumeMounts {
		m, path := &c.VolumeMounts[i], at.Index(i)
		f.present(path.Child("name"), m.Name, nil)
		if volumes[m.Name] == nil {
			f.add(field.NotFound(path.Child("name"), m.Name))
		}
		f.present(path.Child("mountPath"), m.MountPath, nil)
		if paths.Has(m.MountPath) {
			f.invalid(path.Child("mountPath"), m.MountPath, "must be unique")
		}
		paths.Insert(m.MountPath)
		for _, d := range c.VolumeDevices {
			if d.Name == m.Name {
				f.invalid(path.Child("name"), m.Name, "must not already exist in volumeDevices")
			}
			if d.DevicePath == m.MountPath {
				f.invalid(path.Child("mountPath"), m.MountPath, "must not already exist as a path in volumeDevices")
			}
		}
		f.mountDetails(at, path, m, c)
	}
}

func (f *faults) mountDetails(list, at *field.Path, m *corev1.VolumeMount, c *corev1.Container) {
	if m.SubPath != "" {
		f.descending(list.Child("subPath"), m.SubPath)
	}
	if m.SubPathExpr != "" {
		if m.SubPath != "" {
			f.invalid(at.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive")
		}
		f.descending(list.Child("subPathExpr"), m.SubPathExpr)
	}
	if p := m.MountPropagation; p != nil {
		supports(f, list.Child("mountPropagation"), *p, corev1.MountPropagationBidirectional, corev1.MountPropagationHostToContainer, corev1.MountPropagationNone)
		privileged := c.SecurityContext != nil && derefOr(c.SecurityContext.Privileged, false)
		if *p == corev1.MountPropagationBidirectional && !privileged {
			f.forbidden(list.Child("mountPropagation"), "Bidirectional mount propagation is available only to privileged containers")
		}
	}
	if r := m.RecursiveReadOnly; r != nil {
		supports(f, list.Child("recursiveReadOnly"), *r, corev1.RecursiveReadOnlyDisabled, corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible)
		if *r == corev1.RecursiveReadOnlyDisabled {
			return
		}
		if !m.ReadOnly {
			f.forbidden(list.Child("recursiveReadOnly"), "may only be specified when readOnly is true")
		}
		if p := m.MountPropagation; p != nil && *p != corev1.MountPropagationNone {
			f.forbidden(list.Child("recursiveReadOnly"), "may only be specified when mountPropagation is None or not specified")
		}
	}
}

func (f *faults) volumeDevices(at *field.Path, c *corev1.Container, volumes map[string]*corev1.VolumeSource) {
	names, paths := sets.New[string](), sets.New[string]()
	for i, d := range c.VolumeDevices {
		path := at.Index(i)
		f.present(path.Child("name"), d.Name, nil)
		if names.Has(d.Name) {
			f.invalid(path.Child("name"), d.Name, "must be unique")
		}
		if source := volumes[d.Name]; source == nil {
			f.add(field.NotFound(path.Child("name"), d.Name))
		} else if source.PersistentVolumeClaim == nil && source.Ephemeral == nil {
			f.invalid(path.Child("name"), d.Name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode")
		}
		f.present(path.Child("devicePath"), d.DevicePath, nil)
		if paths.Has(d.DevicePath) {
			f.invalid(path.Child("devicePath"), d.DevicePath, "must be unique")
		}
		f.noBacksteps(path.Child("devicePath"), d.DevicePath)
		names.Insert(d.Name)
		paths.Insert(d.DevicePath)
	}
}
