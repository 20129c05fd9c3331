package pod

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestNoResolver is a host without name servers: it gives its pods none, as kubelet
// has it.
func TestNoResolver(t *testing.T) {
	for policy, want := range map[corev1.DNSPolicy]string{
		corev1.DNSDefault: "127.0.0.1|.", corev1.DNSClusterFirst: "10.43.0.10|ns.svc.c.local svc.c.local c.local",
	} {
		p := &corev1.Pod{Spec: corev1.PodSpec{DNSPolicy: policy}}
		p.Namespace = "ns"
		got := resolverConfig(noResolver, p, []string{"10.43.0.10"}, "c.local")
		if text := strings.Join(got.Servers, " ") + "|" + strings.Join(got.Searches, " "); text != want {
			t.Errorf("without a resolv.conf, %s: %s, want %s", policy, text, want)
		}
	}
}
