package kinds

import (
	"fmt"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var sysctlName = regexp.MustCompile(`^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$`)

func (f *faults) podSecurity(at *field.Path, s *corev1.PodSpec) {
	sc, path := s.SecurityContext, at.Child("securityContext")
	if sc == nil {
		return
	}
	f.id(path.Child("fsGroup"), sc.FSGroup, validation.IsValidGroupID)
	f.id(path.Child("runAsUser"), sc.RunAsUser, validation.IsValidUserID)
	f.id(path.Child("runAsGroup"), sc.RunAsGroup, validation.IsValidGroupID)
	for i, gid := range sc.SupplementalGroups {
		f.invalids(path.Child("supplementalGroups").Index(i), gid, validation.IsValidGroupID(gid))
	}
	if derefOr(s.ShareProcessNamespace, false) && s.HostPID {
		f.invalid(path.Child("shareProcessNamespace"), *s.ShareProcessNamespace, "ShareProcessNamespace and HostPID cannot both be enabled")
	}
	f.sysctls(path.Child("sysctls"), s)
	if p := sc.FSGroupChangePolicy; p != nil {
		supports(f, path.Child("fsGroupChangePolicy"), *p, corev1.FSGroupChangeAlways, corev1.FSGroupChangeOnRootMismatch)
	}
	f.seccomp(path.Child("seccompProfile"), sc.SeccompProfile)
	f.appArmor(path.Child("appArmorProfile"), sc.AppArmorProfile)
	if p := sc.SupplementalGroupsPolicy; p != nil {
		supports(f, path.Child("supplementalGroupsPolicy"), *p, corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)
	}
	if p := sc.SELinuxChangePolicy; p != nil {
		supports(f, path.Child("seLinuxChangePolicy"), *p, corev1.SELinuxChangePolicyMountOption, corev1.SELinuxChangePolicyRecursive)
	}
}

func (f *faults) id(at *field.Path, id *int64, check func(int64) []string) {
	if id != nil {
		f.invalids(at, *id, check(*id))
	}
}

// sysctls of a namespace that the pod shares with the host cannot be set.
func (f *faults) sysctls(at *field.Path, s *corev1.PodSpec) {
	seen := make(map[string]bool)
	for i, sysctl := range s.SecurityContext.Sysctls {
		path, name := at.Index(i).Child("name"), sysctl.Name
		switch {
		case name == "":
			f.required(path, "")
		case len(name) > 253 || !sysctlName.MatchString(name):
			f.invalid(path, name, fmt.Sprintf("must have at most %d characters and match regex %s", 253, sysctlName))
		case seen[name]:
			f.add(field.Duplicate(path, name))
		}
		seen[name] = true
		dotted := strings.ReplaceAll(name, "/", ".")
		switch {
		case s.HostNetwork && strings.HasPrefix(dotted, "net."):
			f.invalid(path, name, "may not be specified when 'hostNetwork' is true")
		case s.HostIPC && (dotted == "kernel.sem" || strings.HasPrefix(dotted, "kernel.shm") || strings.HasPrefix(dotted, "kernel.msg") || strings.HasPrefix(dotted, "fs.mqueue.")):
			f.invalid(path, name, "may not be specified when 'hostIPC' is true")
		}
	}
}

func (f *faults) seccomp(at *field.Path, p *corev1.SeccompProfile) {
	if p == nil {
		return
	}
	if p.Type == "" {
		f.required(at.Child("type"), "type is required when seccompProfile is set")
	} else {
		supports(f, at.Child("type"), p.Type, corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)
	}
	switch local := p.Type == corev1.SeccompProfileTypeLocalhost; {
	case local && p.LocalhostProfile == nil:
		f.required(at.Child("localhostProfile"), "must be set when seccomp type is Localhost")
	case local:
		f.descending(at.Child("localhostProfile"), *p.LocalhostProfile)
	case p.LocalhostProfile != nil:
		f.invalid(at.Child("localhostProfile"), p, "can only be set when seccomp type is Localhost")
	}
}

func (f *faults) appArmor(at *field.Path, p *corev1.AppArmorProfile) {
	if p == nil {
		return
	}
	local := at.Child("localhostProfile")
	switch p.Type {
	case "":
		f.required(at.Child("type"), "type is required when appArmorProfile is set")
	case corev1.AppArmorProfileTypeLocalhost:
		switch profile := derefOr(p.LocalhostProfile, ""); {
		case p.LocalhostProfile == nil || profile == "":
			f.required(local, "must be set when AppArmor type is Localhost")
		case strings.TrimSpace(profile) != profile:
			f.invalid(local, profile, "must not be padded with whitespace")
		case len(profile) > 4095:
			f.add(field.TooLong(local, "", 4095))
		}
	case corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined:
		if p.LocalhostProfile != nil {
			f.invalid(local, p.LocalhostProfile, "can only be set when AppArmor type is Localhost")
		}
	default:
		supports(f, at.Child("type"), p.Type, corev1.AppArmorProfileTypeLocalhost, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined)
	}
}

func (f *faults) containerSecurity(at *field.Path, sc *corev1.SecurityContext, hostUsers bool) {
	if sc == nil {
		return
	}
	f.id(at.Child("runAsUser"), sc.RunAsUser, validation.IsValidUserID)
	f.id(at.Child("runAsGroup"), sc.RunAsGroup, validation.IsValidGroupID)
	if p := sc.ProcMount; p != nil {
		supports(f, at.Child("procMount"), *p, corev1.DefaultProcMount, corev1.UnmaskedProcMount)
		if hostUsers && *p == corev1.UnmaskedProcMount {
			f.invalid(at.Child("procMount"), p, "`hostUsers` must be false to use `Unmasked`")
		}
	}
	f.seccomp(at.Child("seccompProfile"), sc.SeccompProfile)
	f.appArmor(at.Child("appArmorProfile"), sc.AppArmorProfile)
	if derefOr(sc.AllowPrivilegeEscalation, true) {
		return
	}
	if derefOr(sc.Privileged, false) {
		f.invalid(at, sc, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true")
	}
	if sc.Capabilities == nil {
		return
	}
	for _, c := range sc.Capabilities.Add {
		if c == "CAP_SYS_ADMIN" {
			f.invalid(at, sc, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN")
		}
	}
}
