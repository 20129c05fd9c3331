package kinds

import (
	"crypto/tls"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

// serviceWarnings tells of fields that have no effect beside others.
func serviceWarnings(s *corev1.Service) []string {
	w := serviceAddressWarnings(&s.Spec)
	headless := s.Spec.ClusterIP == corev1.ClusterIPNone
	external := s.Spec.Type == corev1.ServiceTypeExternalName
	if _, ok := s.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints]; ok {
		w.say("annotation %s is deprecated, please use %s instead", corev1.DeprecatedAnnotationTopologyAwareHints, corev1.AnnotationTopologyMode)
	}
	if headless && s.Spec.LoadBalancerIP != "" {
		w.say("spec.loadBalancerIP is ignored for headless services")
	}
	if headless && len(s.Spec.ExternalIPs) > 0 {
		w.say("spec.externalIPs is ignored for headless services")
	}
	if headless && s.Spec.SessionAffinity != corev1.ServiceAffinityNone {
		w.say("spec.SessionAffinity is ignored for headless services")
	}
	if len(s.Spec.ExternalIPs) > 0 && !headless && !external {
		w.say("spec.externalIPs is deprecated and may no longer be implemented in some clusters")
	}
	if external && len(s.Spec.ExternalIPs) > 0 {
		w.say("spec.externalIPs is ignored when spec.type is %q", s.Spec.Type)
	}
	if !external && s.Spec.ExternalName != "" {
		w.say("spec.externalName is ignored when spec.type is not %q", corev1.ServiceTypeExternalName)
	}
	if d := s.Spec.TrafficDistribution; d != nil && *d == corev1.ServiceTrafficDistributionPreferClose {
		w.say("spec.trafficDistribution: %q is deprecated; use %q", *d, corev1.ServiceTrafficDistributionPreferSameZone)
	}
	return w
}

// serviceAddressWarnings tells of addresses and ranges in forms that other
// programs may not read.
func serviceAddressWarnings(s *corev1.ServiceSpec) (w warnings) {
	at := field.NewPath("spec")
	for i, ip := range s.ClusterIPs {
		if ip != corev1.ClusterIPNone {
			w.ip(at.Child("clusterIPs").Index(i), ip)
		}
	}
	for i, ip := range s.ExternalIPs {
		w.ip(at.Child("externalIPs").Index(i), ip)
	}
	if s.LoadBalancerIP != "" {
		w.ip(at.Child("loadBalancerIP"), s.LoadBalancerIP)
	}
	for i, cidr := range s.LoadBalancerSourceRanges {
		w.cidr(at.Child("loadBalancerSourceRanges").Index(i), cidr)
	}
	return w
}

// ip leaves what is no address at all to validation.
func (w *warnings) ip(at *field.Path, ip string) {
	if netutils.ParseIPSloppy(ip) != nil {
		*w = append(*w, validation.GetWarningsForIP(at, ip)...)
	}
}

func (w *warnings) cidr(at *field.Path, cidr string) {
	if _, _, err := netutils.ParseCIDRSloppy(cidr); err == nil {
		*w = append(*w, validation.GetWarningsForCIDR(at, cidr)...)
	}
}

func networkPolicyWarnings(p *networkingv1.NetworkPolicy) []string {
	var w warnings
	for i := range p.Spec.Ingress {
		w.peers(field.NewPath("spec", "ingress").Index(i).Child("from"), p.Spec.Ingress[i].From)
	}
	for i := range p.Spec.Egress {
		w.peers(field.NewPath("spec", "egress").Index(i).Child("to"), p.Spec.Egress[i].To)
	}
	return w
}

func (w *warnings) peers(at *field.Path, peers []networkingv1.NetworkPolicyPeer) {
	for i, p := range peers {
		if p.IPBlock == nil {
			continue
		}
		block := at.Index(i).Child("ipBlock")
		w.cidr(block.Child("cidr"), p.IPBlock.CIDR)
		for j, except := range p.IPBlock.Except {
			w.cidr(block.Child("except").Index(j), except)
		}
	}
}

// volumeWarnings tells of volumes that nothing mounts any more.
func volumeWarnings(pv *corev1.PersistentVolume) []string {
	var w warnings
	if pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		w.say("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.")
	}
	for _, old := range []struct {
		there      bool
		name, fate string
	}{
		{pv.Spec.CephFS != nil, "cephfs", "v1.28, non-functional in v1.31+"},
		{pv.Spec.PhotonPersistentDisk != nil, "photonPersistentDisk", "v1.11, non-functional in v1.16+"},
		{pv.Spec.ScaleIO != nil, "scaleIO", "v1.16, non-functional in v1.22+"},
		{pv.Spec.StorageOS != nil, "storageOS", "v1.22, non-functional in v1.25+"},
		{pv.Spec.Glusterfs != nil, "glusterfs", "v1.25, non-functional in v1.26+"},
		{pv.Spec.RBD != nil, "rbd", "v1.28, non-functional in v1.31+"},
	} {
		if old.there {
			w.say("spec.%s: deprecated in %s", old.name, old.fate)
		}
	}
	return w
}

// secretWarnings tells of a key that does not fit its certificate.
func secretWarnings(s *corev1.Secret) []string {
	if s.Type != corev1.SecretTypeTLS {
		return nil
	}
	if _, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey]); err != nil {
		return []string{err.Error()}
	}
	return nil
}

const ingressClassAnnotation = "kubernetes.io/ingress.class"

func ingressWarnings(i *networkingv1.Ingress) []string {
	var w warnings
	if _, ok := i.Annotations[ingressClassAnnotation]; ok && i.Spec.IngressClassName == nil {
		w.say("annotation %q is deprecated, please use 'spec.ingressClassName' instead", ingressClassAnnotation)
	}
	return w
}

func csiDriverWarnings(d *storagev1.CSIDriver) []string {
	if len(d.Spec.TokenRequests) == 0 || d.Spec.ServiceAccountTokenInSecrets != nil {
		return nil
	}
	return []string{"spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes"}
}
