package pod

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sandboxSecurity gives the sandbox the pod's own settings; its pause process
// always runs under the default seccomp profile.
func sandboxSecurity(pod *corev1.Pod, users *runtimeapi.UserNamespace) *runtimeapi.LinuxSandboxSecurityContext {
	s := &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: namespaces(pod, users),
		Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
	}
	for _, u := range units(pod) {
		if sc := u.SecurityContext; u.class != ephemeral && sc != nil && sc.Privileged != nil && *sc.Privileged {
			s.Privileged = true
		}
	}
	sc := pod.Spec.SecurityContext
	if sc == nil {
		return s
	}
	s.RunAsUser, s.RunAsGroup = int64Value(sc.RunAsUser), int64Value(sc.RunAsGroup)
	s.SelinuxOptions = selinux(sc.SELinuxOptions)
	s.SupplementalGroups = groups(sc)
	s.SupplementalGroupsPolicy = groupsPolicy(sc)
	return s
}

func namespaces(pod *corev1.Pod, users *runtimeapi.UserNamespace) *runtimeapi.NamespaceOption {
	o := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER, UsernsOptions: users}
	if pod.Spec.HostNetwork {
		o.Network = runtimeapi.NamespaceMode_NODE
	}
	if pod.Spec.HostIPC {
		o.Ipc = runtimeapi.NamespaceMode_NODE
	}
	switch {
	case pod.Spec.HostPID:
		o.Pid = runtimeapi.NamespaceMode_NODE
	case pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace:
		o.Pid = runtimeapi.NamespaceMode_POD
	}
	return o
}

func groups(sc *corev1.PodSecurityContext) []int64 {
	var all []int64
	if sc.FSGroup != nil {
		all = append(all, *sc.FSGroup)
	}
	return append(all, sc.SupplementalGroups...)
}

func groupsPolicy(sc *corev1.PodSecurityContext) runtimeapi.SupplementalGroupsPolicy {
	if sc.SupplementalGroupsPolicy == nil {
		return runtimeapi.SupplementalGroupsPolicy_Merge
	}
	return runtimeapi.SupplementalGroupsPolicy(runtimeapi.SupplementalGroupsPolicy_value[string(*sc.SupplementalGroupsPolicy)])
}

func int64Value(v *int64) *runtimeapi.Int64Value {
	if v == nil {
		return nil
	}
	return &runtimeapi.Int64Value{Value: *v}
}

func selinux(o *corev1.SELinuxOptions) *runtimeapi.SELinuxOption {
	if o == nil {
		return nil
	}
	return &runtimeapi.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

// effective merges the pod's security context into the container's.
func effective(pod *corev1.Pod, c *corev1.Container) corev1.SecurityContext {
	var e corev1.SecurityContext
	if c.SecurityContext != nil {
		e = *c.SecurityContext
	}
	p := pod.Spec.SecurityContext
	if p == nil {
		return e
	}
	e.RunAsUser = cmp.Or(e.RunAsUser, p.RunAsUser)
	e.RunAsGroup = cmp.Or(e.RunAsGroup, p.RunAsGroup)
	e.RunAsNonRoot = cmp.Or(e.RunAsNonRoot, p.RunAsNonRoot)
	e.SELinuxOptions = cmp.Or(e.SELinuxOptions, p.SELinuxOptions)
	e.SeccompProfile = cmp.Or(e.SeccompProfile, p.SeccompProfile)
	return e
}

// containerSecurity gives the container's settings; user is what the image
// says.
func (m *Manager) containerSecurity(o launchOrder, user imageUser) (*runtimeapi.LinuxContainerSecurityContext, error) {
	e := effective(o.pod, o.unit.Container)
	if err := verifyNonRoot(o.pod, o.unit, e, user); err != nil {
		return nil, err
	}
	seccomp, err := m.seccomp(e.SeccompProfile)
	if err != nil {
		return nil, err
	}
	users, err := m.userNamespace(o.pod)
	if err != nil {
		return nil, err
	}
	s := &runtimeapi.LinuxContainerSecurityContext{
		Privileged:       e.Privileged != nil && *e.Privileged,
		ReadonlyRootfs:   e.ReadOnlyRootFilesystem != nil && *e.ReadOnlyRootFilesystem,
		NoNewPrivs:       e.AllowPrivilegeEscalation != nil && !*e.AllowPrivilegeEscalation,
		Capabilities:     capabilities(e.Capabilities),
		SelinuxOptions:   selinux(e.SELinuxOptions),
		RunAsUser:        int64Value(e.RunAsUser),
		RunAsGroup:       int64Value(e.RunAsGroup),
		NamespaceOptions: namespaces(o.pod, users),
		Seccomp:          seccomp,
		MaskedPaths:      maskedPaths,
		ReadonlyPaths:    readonlyPaths,
	}
	if s.RunAsUser == nil {
		s.RunAsUser, s.RunAsUsername = int64Value(user.uid), user.name
	}
	if e.ProcMount != nil && *e.ProcMount == corev1.UnmaskedProcMount {
		s.MaskedPaths, s.ReadonlyPaths = []string{}, []string{}
	}
	if sc := o.pod.Spec.SecurityContext; sc != nil {
		s.SupplementalGroups, s.SupplementalGroupsPolicy = groups(sc), groupsPolicy(sc)
	}
	if o.target != "" && s.NamespaceOptions.Pid == runtimeapi.NamespaceMode_CONTAINER {
		s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = runtimeapi.NamespaceMode_TARGET, o.target
	}
	return s, nil
}

// verifyNonRoot holds runAsNonRoot against the user the container would have.
func verifyNonRoot(pod *corev1.Pod, u unit, e corev1.SecurityContext, user imageUser) error {
	if e.RunAsNonRoot == nil || !*e.RunAsNonRoot {
		return nil
	}
	where := fmt.Sprintf("(pod: %q, container: %s)", describe(pod), u.Name)
	switch {
	case e.RunAsUser != nil && *e.RunAsUser == 0:
		return fmt.Errorf("container's runAsUser breaks non-root policy %s", where)
	case e.RunAsUser != nil:
		return nil
	case user.uid == nil && user.name != "":
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root %s", user.name, where)
	case user.uid != nil && *user.uid == 0:
		return fmt.Errorf("container has runAsNonRoot and image will run as root %s", where)
	}
	return nil
}

func capabilities(c *corev1.Capabilities) *runtimeapi.Capability {
	if c == nil {
		return nil
	}
	out := &runtimeapi.Capability{}
	for _, a := range c.Add {
		out.AddCapabilities = append(out.AddCapabilities, string(a))
	}
	for _, d := range c.Drop {
		out.DropCapabilities = append(out.DropCapabilities, string(d))
	}
	return out
}

func (m *Manager) seccomp(p *corev1.SeccompProfile) (*runtimeapi.SecurityProfile, error) {
	switch {
	case p == nil || p.Type == corev1.SeccompProfileTypeUnconfined:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	case p.Type == corev1.SeccompProfileTypeRuntimeDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case p.LocalhostProfile == nil || *p.LocalhostProfile == "":
		return nil, errors.New("localhostProfile must be set if seccompProfile type is Localhost.")
	}
	return &runtimeapi.SecurityProfile{
		ProfileType:  runtimeapi.SecurityProfile_Localhost,
		LocalhostRef: filepath.Join(m.cfg.SeccompDir, *p.LocalhostProfile),
	}, nil
}

// What the default procMount hides (the OCI defaults that all runtimes share).
var (
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)
