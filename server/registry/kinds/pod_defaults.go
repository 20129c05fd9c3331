package kinds

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// defaultPod follows upstream's defaults of a whole pod; those of a template
// stop at defaultPodSpec.
func defaultPod(p *corev1.Pod) {
	if s := p.Spec.TerminationGracePeriodSeconds; s != nil && *s < 0 {
		p.Spec.TerminationGracePeriodSeconds = new(int64)
		*p.Spec.TerminationGracePeriodSeconds = 1
	}
	defaultPodSpec(&p.Spec)
	defaultPodStatus(&p.Status)
	for i := range p.Spec.Containers {
		requestLimits(&p.Spec.Containers[i].Resources)
	}
	for i := range p.Spec.InitContainers {
		requestLimits(&p.Spec.InitContainers[i].Resources)
	}
	setDefault(&p.Spec.EnableServiceLinks, corev1.DefaultEnableServiceLinks)
	if p.Spec.HostNetwork {
		hostPorts(p.Spec.Containers)
		hostPorts(p.Spec.InitContainers)
	}
}

// defaultPodStatus keeps a pod's address and its addresses in step. Where they
// differ the address counts: who knows no list writes it alone.
func defaultPodStatus(s *corev1.PodStatus) {
	switch {
	case s.PodIP == "" && len(s.PodIPs) > 0:
		s.PodIP = s.PodIPs[0].IP
	case s.PodIP != "" && (len(s.PodIPs) == 0 || s.PodIPs[0].IP != s.PodIP):
		s.PodIPs = []corev1.PodIP{{IP: s.PodIP}}
	}
}

// requestLimits makes a limit without request the request too.
func requestLimits(r *corev1.ResourceRequirements) {
	if r.Limits == nil {
		return
	}
	if r.Requests == nil {
		r.Requests = make(corev1.ResourceList, len(r.Limits))
	}
	for name, limit := range r.Limits {
		if _, ok := r.Requests[name]; !ok {
			r.Requests[name] = limit.DeepCopy()
		}
	}
}

// defaultPodResources completes pod-level resources (KEP-2837): huge-page limits
// and requests come from the containers, other requests from the pod's limits. It
// comes after admission, which may add containers.
func defaultPodResources(p *corev1.Pod) {
	r := p.Spec.Resources
	if r == nil || len(r.Limits) == 0 && len(r.Requests) == 0 {
		return
	}
	for name, limit := range resourcehelper.AggregateContainerLimits(p, resourcehelper.PodResourcesOptions{}) {
		_, requested := r.Requests[name]
		if _, ok := r.Limits[name]; !ok && !requested && isHugePage(name) {
			addQuantity(&r.Limits, name, limit)
		}
	}
	if len(r.Limits) == 0 {
		return
	}
	for name, request := range resourcehelper.AggregateContainerRequests(p, resourcehelper.PodResourcesOptions{}) {
		if _, ok := r.Requests[name]; !ok && resourcehelper.IsSupportedPodLevelResource(name) && !isHugePage(name) {
			addQuantity(&r.Requests, name, request)
		}
	}
	for name, limit := range r.Limits {
		if _, ok := r.Requests[name]; !ok && resourcehelper.IsSupportedPodLevelResource(name) {
			addQuantity(&r.Requests, name, limit)
		}
	}
}

func addQuantity(list *corev1.ResourceList, name corev1.ResourceName, q resource.Quantity) {
	if *list == nil {
		*list = corev1.ResourceList{}
	}
	(*list)[name] = q.DeepCopy()
}

func isHugePage(name corev1.ResourceName) bool {
	return strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
}

func hostPorts(containers []corev1.Container) {
	for i := range containers {
		for j := range containers[i].Ports {
			port := &containers[i].Ports[j]
			setZero(&port.HostPort, port.ContainerPort)
		}
	}
}

func defaultPodTemplate(t *corev1.PodTemplateSpec) { defaultPodSpec(&t.Spec) }

func defaultPodSpec(s *corev1.PodSpec) {
	setZero(&s.DNSPolicy, corev1.DNSClusterFirst)
	setZero(&s.RestartPolicy, corev1.RestartPolicyAlways)
	setZero(&s.SchedulerName, corev1.DefaultSchedulerName)
	setDefault(&s.TerminationGracePeriodSeconds, int64(corev1.DefaultTerminationGracePeriodSeconds))
	if s.SecurityContext == nil {
		s.SecurityContext = &corev1.PodSecurityContext{}
	}
	// The API keeps the deprecated name of the account beside the new one.
	if s.ServiceAccountName == "" {
		s.ServiceAccountName = s.DeprecatedServiceAccount
	}
	s.DeprecatedServiceAccount = s.ServiceAccountName
	for i := range s.Volumes {
		defaultVolume(&s.Volumes[i])
	}
	for i := range s.InitContainers {
		defaultContainer(&s.InitContainers[i])
	}
	for i := range s.Containers {
		defaultContainer(&s.Containers[i])
	}
	for i := range s.EphemeralContainers {
		defaultContainer((*corev1.Container)(&s.EphemeralContainers[i].EphemeralContainerCommon))
	}
	roundToMilli(s.Overhead)
	if s.Resources != nil {
		roundToMilli(s.Resources.Limits)
		roundToMilli(s.Resources.Requests)
	}
}

func defaultContainer(c *corev1.Container) {
	setZero(&c.ImagePullPolicy, pullPolicy(c.Image))
	setZero(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	setZero(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	for i := range c.Ports {
		setZero(&c.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	for i := range c.Env {
		defaultEnvSource(c.Env[i].ValueFrom)
	}
	roundToMilli(c.Resources.Limits)
	roundToMilli(c.Resources.Requests)
	defaultProbe(c.LivenessProbe)
	defaultProbe(c.ReadinessProbe)
	defaultProbe(c.StartupProbe)
	if c.Lifecycle != nil {
		defaultHook(c.Lifecycle.PostStart)
		defaultHook(c.Lifecycle.PreStop)
	}
}

func defaultEnvSource(s *corev1.EnvVarSource) {
	if s == nil {
		return
	}
	if s.FieldRef != nil {
		setZero(&s.FieldRef.APIVersion, "v1")
	}
	if s.FileKeyRef != nil {
		setDefault(&s.FileKeyRef.Optional, false)
	}
}

// pullPolicy is Always for an image whose tag is latest or left out.
func pullPolicy(image string) corev1.PullPolicy {
	name := image[strings.LastIndexByte(image, '/')+1:]
	name, _, pinned := strings.Cut(name, "@")
	_, tag, tagged := strings.Cut(name, ":")
	if name != "" && (tag == "latest" || !tagged && !pinned) {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

// roundToMilli rounds up what is finer than a thousandth, which the API has
// never kept.
func roundToMilli(list corev1.ResourceList) {
	for name, q := range list {
		if q.RoundUp(resource.Milli) {
			continue // it was exact, and the map holds it already
		}
		list[name] = q
	}
}

func defaultProbe(p *corev1.Probe) {
	if p == nil {
		return
	}
	setZero(&p.TimeoutSeconds, 1)
	setZero(&p.PeriodSeconds, 10)
	setZero(&p.SuccessThreshold, 1)
	setZero(&p.FailureThreshold, 3)
	defaultHTTPGet(p.HTTPGet)
	if p.GRPC != nil {
		setDefault(&p.GRPC.Service, "")
	}
}

func defaultHook(h *corev1.LifecycleHandler) {
	if h != nil {
		defaultHTTPGet(h.HTTPGet)
	}
}

func defaultHTTPGet(a *corev1.HTTPGetAction) {
	if a != nil {
		setZero(&a.Path, "/")
		setZero(&a.Scheme, corev1.URISchemeHTTP)
	}
}
