package pod

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/node/util/sysctl"
)

// safeSysctls are those that any pod may set: the kernel keeps them apart for
// each pod, and they touch no other. Upstream's list.
var safeSysctls = []string{
	"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
	"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
	"net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem",
	"net.ipv4.tcp_wmem", "net.ipv4.tcp_slow_start_after_idle", "net.ipv4.tcp_notsent_lowat",
}

// ValidateUnsafeSysctl checks a name, or a pattern that ends in *, of sysctls that
// an operator allows beyond the safe ones.
func ValidateUnsafeSysctl(pattern string) error {
	if namespace, name, _ := sysctl.GetNamespace(pattern); namespace == sysctl.UnknownNamespace {
		return fmt.Errorf("the sysctls %q are not known to be namespaced", name)
	}
	return nil
}

// forbiddenSysctl refuses a pod that sets a sysctl which is neither safe nor
// allowed, or one of a namespace that it shares with the machine.
func forbiddenSysctl(pod *corev1.Pod, allowed []string) *refusal {
	sc := pod.Spec.SecurityContext
	if sc == nil {
		return nil
	}
	for _, s := range sc.Sysctls {
		if err := checkSysctl(pod, sysctl.NormalizeName(s.Name), allowed); err != nil {
			return &refusal{"SysctlForbidden", fmt.Sprintf("forbidden sysctl: %v", err)}
		}
	}
	return nil
}

func checkSysctl(pod *corev1.Pod, name string, allowed []string) error {
	for _, list := range [][]string{safeSysctls, allowed} {
		for _, pattern := range list {
			namespace, text, prefix := sysctl.GetNamespace(pattern)
			if text != name && !(prefix && strings.HasPrefix(name, text)) {
				continue
			}
			shared := map[sysctl.Namespace]bool{
				sysctl.IPCNamespace: pod.Spec.HostIPC, sysctl.NetNamespace: pod.Spec.HostNetwork,
				sysctl.UserNamespace: pod.Spec.HostUsers == nil || *pod.Spec.HostUsers,
			}
			if shared[namespace] {
				return fmt.Errorf("%q not allowed with host %s enabled", name, namespace)
			}
			return nil
		}
	}
	return fmt.Errorf("%q not allowlisted", name)
}
