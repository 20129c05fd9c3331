package kinds

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (f *faults) containers(at *field.Path, scope *podScope) {
	if len(scope.spec.Containers) == 0 {
		f.required(at, "")
		return
	}
	names, ports := sets.New[string](), sets.New[string]()
	for i := range scope.spec.Containers {
		c, path := &scope.spec.Containers[i], at.Index(i)
		f.container(path, c, scope)
		if names.Has(c.Name) {
			f.add(field.Duplicate(path.Child("name"), c.Name))
		}
		names.Insert(c.Name)
		f.longRunning(path, c, scope)
		f.restartRules(path, c)
	}
	for i := range scope.spec.Containers {
		f.uniqueHostPorts(at.Index(i).Child("ports"), scope.spec.Containers[i].Ports, ports)
	}
}

func (f *faults) initContainers(at *field.Path, scope *podScope) {
	names := sets.New[string]()
	for i := range scope.spec.Containers {
		names.Insert(scope.spec.Containers[i].Name)
	}
	for i := range scope.spec.InitContainers {
		c, path := &scope.spec.InitContainers[i], at.Index(i)
		f.container(path, c, scope)
		f.restartRules(path, c)
		if names.Has(c.Name) {
			f.add(field.Duplicate(path.Child("name"), c.Name))
		} else if c.Name != "" {
			names.Insert(c.Name)
		}
		f.uniqueHostPorts(at.Index(0).Child("ports"), c.Ports, sets.New[string]())
		if isSidecar(c) {
			f.longRunning(path, c, scope)
			continue
		}
		for _, set := range []struct {
			field string
			is    bool
		}{
			{"lifecycle", c.Lifecycle != nil}, {"livenessProbe", c.LivenessProbe != nil},
			{"readinessProbe", c.ReadinessProbe != nil}, {"startupProbe", c.StartupProbe != nil},
		} {
			if set.is {
				f.forbidden(path.Child(set.field), "may not be set for init containers without restartPolicy=Always")
			}
		}
		for j, p := range c.ResizePolicy {
			if p.RestartPolicy == corev1.RestartContainer {
				f.invalid(path.Child("resizePolicy").Index(j).Child("restartPolicy"), p.RestartPolicy, "must not be set to 'RestartContainer' for non-sidecar initContainers")
			}
		}
	}
}

func (f *faults) ephemeralContainers(at *field.Path, scope *podScope) {
	others, names := sets.New[string](), sets.New[string]()
	for _, list := range [][]corev1.Container{scope.spec.Containers, scope.spec.InitContainers} {
		for i := range list {
			others.Insert(list[i].Name)
		}
	}
	for i := range scope.spec.EphemeralContainers {
		e, path := &scope.spec.EphemeralContainers[i], at.Index(i)
		c := (*corev1.Container)(&e.EphemeralContainerCommon)
		f.container(path, c, scope)
		if strings.TrimSpace(c.Image) != c.Image {
			f.invalid(path.Child("image"), c.Image, "must not have leading or trailing whitespace")
		}
		if others.Has(e.Name) || names.Has(e.Name) {
			f.add(field.Duplicate(path.Child("name"), e.Name))
		}
		names.Insert(e.Name)
		if e.TargetContainerName != "" && !others.Has(e.TargetContainerName) {
			f.add(field.NotFound(path.Child("targetContainerName"), e.TargetContainerName))
		}
		f.notForEphemeral(path, c)
	}
}

// notForEphemeral refuses what would make a debugging container part of the workload.
func (f *faults) notForEphemeral(at *field.Path, c *corev1.Container) {
	for _, set := range []struct {
		field string
		is    bool
	}{
		{"ports", c.Ports != nil},
		{"resources", len(c.Resources.Limits)+len(c.Resources.Requests)+len(c.Resources.Claims) > 0},
		{"resizePolicy", c.ResizePolicy != nil}, {"restartPolicy", c.RestartPolicy != nil},
		{"restartPolicyRules", c.RestartPolicyRules != nil},
		{"livenessProbe", c.LivenessProbe != nil}, {"readinessProbe", c.ReadinessProbe != nil},
		{"startupProbe", c.StartupProbe != nil}, {"lifecycle", c.Lifecycle != nil},
	} {
		if set.is {
			f.forbidden(at.Child(set.field), "cannot be set for an Ephemeral Container")
		}
	}
	for i, m := range c.VolumeMounts {
		if m.SubPath != "" {
			f.forbidden(at.Child("volumeMounts").Index(i).Child("subPath"), "cannot be set for an Ephemeral Container")
		}
		if m.SubPathExpr != "" {
			f.forbidden(at.Child("volumeMounts").Index(i).Child("subPathExpr"), "cannot be set for an Ephemeral Container")
		}
	}
}

// container checks what all kinds of container have in common.
func (f *faults) container(at *field.Path, c *corev1.Container, scope *podScope) {
	f.present(at.Child("name"), c.Name, validation.IsDNS1123Label)
	f.present(at.Child("image"), c.Image, nil)
	oneOf(f, at.Child("terminationMessagePolicy"), c.TerminationMessagePolicy, corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)
	f.containerPorts(at.Child("ports"), c.Ports)
	f.env(at.Child("env"), c.Env, scope)
	f.envFrom(at.Child("envFrom"), c.EnvFrom)
	f.volumeMounts(at.Child("volumeMounts"), c, scope.volumes)
	f.volumeDevices(at.Child("volumeDevices"), c, scope.volumes)
	oneOf(f, at.Child("imagePullPolicy"), c.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	f.resources(at.Child("resources"), &c.Resources, containerResourceName)
	f.claimNames(at.Child("resources", "claims"), c.Resources.Claims, scope.claims)
	f.resizePolicy(at.Child("resizePolicy"), c.ResizePolicy, scope.restartPolicy)
	f.containerSecurity(at.Child("securityContext"), c.SecurityContext, scope.hostUsers)
}

func (f *faults) containerPorts(at *field.Path, ports []corev1.ContainerPort) {
	names := sets.New[string]()
	for i, p := range ports {
		path := at.Index(i)
		if p.Name != "" {
			if msgs := validation.IsValidPortName(p.Name); len(msgs) > 0 {
				f.invalids(path.Child("name"), p.Name, msgs)
			} else if names.Has(p.Name) {
				f.add(field.Duplicate(path.Child("name"), p.Name))
			}
			names.Insert(p.Name)
		}
		if p.ContainerPort == 0 {
			f.required(path.Child("containerPort"), "")
		} else {
			f.invalids(path.Child("containerPort"), p.ContainerPort, validation.IsValidPortNum(int(p.ContainerPort)))
		}
		if p.HostPort != 0 {
			f.invalids(path.Child("hostPort"), p.HostPort, validation.IsValidPortNum(int(p.HostPort)))
		}
		protocol(f, path.Child("protocol"), p.Protocol)
	}
}

func protocol(f *faults, at *field.Path, p corev1.Protocol) {
	oneOf(f, at, p, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
}

func (f *faults) uniqueHostPorts(at *field.Path, ports []corev1.ContainerPort, taken sets.Set[string]) {
	for i, p := range ports {
		if p.HostPort == 0 {
			continue
		}
		key := fmt.Sprintf("%s/%s/%d", p.Protocol, p.HostIP, p.HostPort)
		if taken.Has(key) {
			f.add(field.Duplicate(at.Index(i).Child("hostPort"), key))
		}
		taken.Insert(key)
	}
}

func (f *faults) resizePolicy(at *field.Path, policies []corev1.ContainerResizePolicy, restart corev1.RestartPolicy) {
	seen := sets.New[corev1.ResourceName]()
	for i, p := range policies {
		if seen.Has(p.ResourceName) {
			f.add(field.Duplicate(at.Index(i), p.ResourceName))
		}
		seen.Insert(p.ResourceName)
		oneOf(f, at, p.ResourceName, corev1.ResourceCPU, corev1.ResourceMemory)
		oneOf(f, at, p.RestartPolicy, corev1.NotRequired, corev1.RestartContainer)
		if restart == corev1.RestartPolicyNever && p.RestartPolicy != corev1.NotRequired {
			f.invalid(at, p.RestartPolicy, "must be 'NotRequired' when pod `restartPolicy` is 'Never'")
		}
	}
}

// restartRules checks a container's own restart policy (KEP-5307).
func (f *faults) restartRules(at *field.Path, c *corev1.Container) {
	if c.RestartPolicy == nil {
		if len(c.RestartPolicyRules) > 0 {
			f.required(at.Child("restartPolicy"), "must specify restartPolicy when restart rules are used")
		}
		if len(c.RestartPolicyRules) == 0 {
			return
		}
	} else {
		supports(f, at.Child("restartPolicy"), *c.RestartPolicy, corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyOnFailure)
	}
	if n := len(c.RestartPolicyRules); n > 20 {
		f.add(field.TooMany(at.Child("restartPolicyRules"), n, 20))
	}
	for i, rule := range c.RestartPolicyRules {
		path := at.Child("restartPolicyRules").Index(i)
		supports(f, path.Child("action"), rule.Action, corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleActionRestartAllContainers)
		if rule.ExitCodes == nil {
			f.required(path.Child("exitCodes"), "must be specified")
			continue
		}
		supports(f, path.Child("exitCodes", "operator"), rule.ExitCodes.Operator, corev1.ContainerRestartRuleOnExitCodesOpIn, corev1.ContainerRestartRuleOnExitCodesOpNotIn)
		if n := len(rule.ExitCodes.Values); n > 255 {
			f.add(field.TooMany(path.Child("exitCodes", "values"), n, 255))
		}
	}
}

// longRunning checks the hooks and probes of containers that stay.
func (f *faults) longRunning(at *field.Path, c *corev1.Container, scope *podScope) {
	grace := scope.spec.TerminationGracePeriodSeconds
	if l := c.Lifecycle; l != nil {
		path := at.Child("lifecycle")
		f.hook(path.Child("postStart"), l.PostStart, grace)
		f.hook(path.Child("preStop"), l.PreStop, grace)
		f.stopSignal(path.Child("stopSignal"), l.StopSignal, scope.spec.OS)
	}
	if p := c.LivenessProbe; p != nil {
		f.probe(at.Child("livenessProbe"), p, grace)
		f.oneSuccess(at.Child("livenessProbe"), p)
	}
	if p := c.ReadinessProbe; p != nil {
		f.probe(at.Child("readinessProbe"), p, grace)
		if p.TerminationGracePeriodSeconds != nil {
			f.invalid(at.Child("readinessProbe", "terminationGracePeriodSeconds"), p.TerminationGracePeriodSeconds, "must not be set for readinessProbes")
		}
	}
	if p := c.StartupProbe; p != nil {
		f.probe(at.Child("startupProbe"), p, grace)
		f.oneSuccess(at.Child("startupProbe"), p)
	}
}

// stopSignal: a pod that names no operating system runs where its node does, and
// nodes are Linux.
func (f *faults) stopSignal(at *field.Path, signal *corev1.Signal, os *corev1.PodOS) {
	switch {
	case signal == nil:
	case os != nil && os.Name == corev1.Windows:
		supports(f, at, *signal, corev1.SIGKILL, corev1.SIGTERM)
	default:
		supports(f, at, *signal, linuxSignals...)
	}
}

var linuxSignals = []corev1.Signal{
	corev1.SIGABRT, corev1.SIGALRM, corev1.SIGBUS, corev1.SIGCHLD, corev1.SIGCLD, corev1.SIGCONT, corev1.SIGFPE, corev1.SIGHUP,
	corev1.SIGILL, corev1.SIGINT, corev1.SIGIO, corev1.SIGIOT, corev1.SIGKILL, corev1.SIGPIPE, corev1.SIGPOLL, corev1.SIGPROF,
	corev1.SIGPWR, corev1.SIGQUIT, corev1.SIGSEGV, corev1.SIGSTKFLT, corev1.SIGSTOP, corev1.SIGSYS, corev1.SIGTERM, corev1.SIGTRAP,
	corev1.SIGTSTP, corev1.SIGTTIN, corev1.SIGTTOU, corev1.SIGURG, corev1.SIGUSR1, corev1.SIGUSR2, corev1.SIGVTALRM, corev1.SIGWINCH,
	corev1.SIGXCPU, corev1.SIGXFSZ, corev1.SIGRTMIN, corev1.SIGRTMINPLUS1, corev1.SIGRTMINPLUS2, corev1.SIGRTMINPLUS3,
	corev1.SIGRTMINPLUS4, corev1.SIGRTMINPLUS5, corev1.SIGRTMINPLUS6, corev1.SIGRTMINPLUS7, corev1.SIGRTMINPLUS8,
	corev1.SIGRTMINPLUS9, corev1.SIGRTMINPLUS10, corev1.SIGRTMINPLUS11, corev1.SIGRTMINPLUS12, corev1.SIGRTMINPLUS13,
	corev1.SIGRTMINPLUS14, corev1.SIGRTMINPLUS15, corev1.SIGRTMAXMINUS14, corev1.SIGRTMAXMINUS13, corev1.SIGRTMAXMINUS12,
	corev1.SIGRTMAXMINUS11, corev1.SIGRTMAXMINUS10, corev1.SIGRTMAXMINUS9, corev1.SIGRTMAXMINUS8, corev1.SIGRTMAXMINUS7,
	corev1.SIGRTMAXMINUS6, corev1.SIGRTMAXMINUS5, corev1.SIGRTMAXMINUS4, corev1.SIGRTMAXMINUS3, corev1.SIGRTMAXMINUS2,
	corev1.SIGRTMAXMINUS1, corev1.SIGRTMAX,
}

func (f *faults) oneSuccess(at *field.Path, p *corev1.Probe) {
	if p.SuccessThreshold != 1 {
		f.invalid(at.Child("successThreshold"), p.SuccessThreshold, "must be 1")
	}
}

func (f *faults) probe(at *field.Path, p *corev1.Probe, grace *int64) {
	f.handler(at, corev1.LifecycleHandler{Exec: p.Exec, HTTPGet: p.HTTPGet, TCPSocket: p.TCPSocket}, p.GRPC, grace)
	f.notNegative(at.Child("initialDelaySeconds"), int64(p.InitialDelaySeconds))
	f.notNegative(at.Child("timeoutSeconds"), int64(p.TimeoutSeconds))
	f.notNegative(at.Child("periodSeconds"), int64(p.PeriodSeconds))
	f.notNegative(at.Child("successThreshold"), int64(p.SuccessThreshold))
	f.notNegative(at.Child("failureThreshold"), int64(p.FailureThreshold))
	if s := p.TerminationGracePeriodSeconds; s != nil && *s <= 0 {
		f.invalid(at.Child("terminationGracePeriodSeconds"), *s, "must be greater than 0")
	}
}

func (f *faults) hook(at *field.Path, h *corev1.LifecycleHandler, grace *int64) {
	if h != nil {
		f.handler(at, *h, nil, grace)
	}
}

// handler asks for exactly one action.
func (f *faults) handler(at *field.Path, h corev1.LifecycleHandler, grpc *corev1.GRPCAction, grace *int64) {
	count := 0
	first := func(name string) (*field.Path, bool) {
		if count++; count > 1 {
			f.forbidden(at.Child(name), "may not specify more than 1 handler type")
			return nil, false
		}
		return at.Child(name), true
	}
	if h.Exec != nil {
		if path, ok := first("exec"); ok && len(h.Exec.Command) == 0 {
			f.required(path.Child("command"), "")
		}
	}
	if h.HTTPGet != nil {
		if path, ok := first("httpGet"); ok {
			f.httpGet(path, h.HTTPGet)
		}
	}
	if h.TCPSocket != nil {
		if path, ok := first("tcpSocket"); ok {
			f.portNumberOrName(path.Child("port"), h.TCPSocket.Port)
		}
	}
	if grpc != nil {
		if path, ok := first("grpc"); ok {
			f.portNumberOrName(path.Child("port"), intstr.FromInt32(grpc.Port))
		}
	}
	if h.Sleep != nil {
		if path, ok := first("sleep"); ok && grace != nil && (h.Sleep.Seconds < 0 || h.Sleep.Seconds > *grace) {
			f.invalid(path, h.Sleep.Seconds, fmt.Sprintf("must be non-negative and less than terminationGracePeriodSeconds (%d)", *grace))
		}
	}
	if count == 0 {
		f.required(at, "must specify a handler type")
	}
}

func (f *faults) httpGet(at *field.Path, a *corev1.HTTPGetAction) {
	f.present(at.Child("path"), a.Path, nil)
	f.portNumberOrName(at.Child("port"), a.Port)
	supports(f, at.Child("scheme"), a.Scheme, corev1.URISchemeHTTP, corev1.URISchemeHTTPS)
	for _, h := range a.HTTPHeaders {
		f.invalids(at.Child("httpHeaders"), h.Name, validation.IsHTTPHeaderName(h.Name))
	}
}
