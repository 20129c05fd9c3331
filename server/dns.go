package server

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orch/server/registry"
)

// ensureDNSService makes the Service under which people and programs look for
// the cluster's DNS. The agents answer on its address themselves; with DNS
// disabled the address is left to whoever takes over.
func (a *assembly) ensureDNSService(ctx context.Context) error {
	if a.cfg.Disabled("dns") {
		return nil
	}
	services := registry.Of[*corev1.Service](a.registry)
	if _, err := services.Get(metav1.NamespaceSystem, "kube-dns"); err == nil {
		return nil
	}
	port := func(name string, protocol corev1.Protocol) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Protocol: protocol, Port: 53, TargetPort: intstr.FromInt32(53)}
	}
	_, err := services.Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceSystem, Name: "kube-dns",
			Labels: map[string]string{"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
		},
		Spec: corev1.ServiceSpec{
			ClusterIP: a.cfg.ClusterDNS.String(),
			Ports:     []corev1.ServicePort{port("dns", corev1.ProtocolUDP), port("dns-tcp", corev1.ProtocolTCP)},
		},
	})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make the DNS service: %w", err)
	}
	return nil
}
