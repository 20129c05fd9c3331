package kinds

import (
	corev1 "k8s.io/api/core/v1"
)

// qosClass is Guaranteed when every container (or the pod as a whole) has
// limits for CPU and memory equal to its requests, BestEffort when nothing is
// asked for, and Burstable otherwise.
func qosClass(p *corev1.Pod) corev1.PodQOSClass {
	var all []corev1.ResourceRequirements
	if r := p.Spec.Resources; r != nil && (len(r.Requests) > 0 || len(r.Limits) > 0) {
		all = append(all, *r)
	} else {
		for i := range p.Spec.Containers {
			all = append(all, p.Spec.Containers[i].Resources)
		}
		for i := range p.Spec.InitContainers {
			all = append(all, p.Spec.InitContainers[i].Resources)
		}
	}
	asked, guaranteed := false, true
	for _, r := range all {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := r.Requests[name], r.Limits[name]
			if request.Sign() > 0 || limit.Sign() > 0 {
				asked = true
			}
			if limit.Sign() <= 0 || request.Sign() > 0 && request.Cmp(limit) != 0 {
				guaranteed = false
			}
		}
	}
	switch {
	case !asked:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}
