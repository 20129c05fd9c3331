package pod

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestForbiddenSysctls(t *testing.T) {
	yes, no := true, false
	for name, c := range map[string]struct {
		change func(*corev1.PodSpec)
		sysctl string
		want   string // the message; "": allowed
	}{
		"safe":           {nil, "net.ipv4.tcp_syncookies", ""},
		"with slashes":   {nil, "net/ipv4/tcp_syncookies", ""},
		"unsafe":         {nil, "kernel.msgmax", `"kernel.msgmax" not allowlisted`},
		"allowed":        {nil, "net.core.somaxconn", ""},
		"allowed by *":   {nil, "net.ipv6.conf.all.forwarding", ""},
		"host network":   {func(s *corev1.PodSpec) { s.HostNetwork = true }, "net.ipv4.tcp_syncookies", `"net.ipv4.tcp_syncookies" not allowed with host Net enabled`},
		"host IPC":       {func(s *corev1.PodSpec) { s.HostIPC = true }, "kernel.shm_rmid_forced", `"kernel.shm_rmid_forced" not allowed with host IPC enabled`},
		"other IPC":      {func(s *corev1.PodSpec) { s.HostNetwork = true }, "kernel.shm_rmid_forced", ""},
		"machine's user": {func(s *corev1.PodSpec) { s.HostUsers = &yes }, "user.max_user_namespaces", `"user.max_user_namespaces" not allowed with host User enabled`},
		"own user":       {func(s *corev1.PodSpec) { s.HostUsers = &no }, "user.max_user_namespaces", ""},
	} {
		p := newPod("a")
		p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: c.sysctl, Value: "1"}}}
		if c.change != nil {
			c.change(&p.Spec)
		}
		r := forbiddenSysctl(p, []string{"net.core.somaxconn", "net.ipv6.*", "user.max_user_namespaces"})
		switch {
		case c.want == "" && r != nil:
			t.Errorf("%s: %s", name, r.message)
		case c.want != "" && (r == nil || r.reason != "SysctlForbidden" || !strings.HasSuffix(r.message, c.want)):
			t.Errorf("%s: %+v", name, r)
		}
	}
	if ValidateUnsafeSysctl("kernel.panic") == nil || ValidateUnsafeSysctl("net.*") != nil {
		t.Error("patterns are validated wrongly")
	}
}
