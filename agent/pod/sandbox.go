package pod

import (
	"fmt"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"orch/netproxy/dns"
)

// sandboxConfig turns a pod's spec into the config of its sandbox.
func (m *Manager) sandboxConfig(pod *corev1.Pod, attempt uint32) (*runtimeapi.PodSandboxConfig, error) {
	labels := make(map[string]string, len(pod.Labels)+3)
	for k, v := range pod.Labels {
		labels[k] = v
	}
	labels[labelPod], labels[labelNamespace], labels[labelUID] = pod.Name, pod.Namespace, string(pod.UID)
	dns, err := m.podDNS(pod)
	if err != nil {
		return nil, err
	}
	users, err := m.userNamespace(pod)
	if err != nil {
		return nil, err
	}
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{
			Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID), Attempt: attempt,
		},
		Labels: labels, Annotations: pod.Annotations,
		DnsConfig: dns, LogDirectory: m.podLogDir(pod),
		PortMappings: portMappings(pod),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: m.cgroups.parent(pod), Sysctls: sysctls(pod), SecurityContext: sandboxSecurity(pod, users),
			Overhead: linuxResources(pod.Spec.Overhead, pod.Spec.Overhead), Resources: podResources(pod),
		},
	}
	if !pod.Spec.HostNetwork {
		host, domain, err := m.hostname(pod)
		if err != nil {
			return nil, err
		}
		if pod.Spec.SetHostnameAsFQDN != nil && *pod.Spec.SetHostnameAsFQDN && domain != "" {
			host += "." + domain
			if len(host) > 64 {
				return nil, fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (64 characters is the max, %d characters requested)", host, len(host))
			}
		}
		config.Hostname = host
	}
	return config, nil
}

func portMappings(pod *corev1.Pod) []*runtimeapi.PortMapping {
	if pod.Spec.HostNetwork {
		return nil
	}
	var all []*runtimeapi.PortMapping
	for _, u := range units(pod) {
		for _, p := range u.Ports {
			if p.HostPort == 0 || u.class == ephemeral || u.class == initial {
				continue
			}
			all = append(all, &runtimeapi.PortMapping{
				Protocol:      runtimeapi.Protocol(runtimeapi.Protocol_value[string(p.Protocol)]),
				ContainerPort: p.ContainerPort, HostPort: p.HostPort, HostIp: p.HostIP,
			})
		}
	}
	return all
}

func sysctls(pod *corev1.Pod) map[string]string {
	set := make(map[string]string)
	if sc := pod.Spec.SecurityContext; sc != nil {
		for _, s := range sc.Sysctls {
			set[dotted(s.Name)] = s.Value
		}
	}
	return set
}

// dotted writes a sysctl's name with dots between its parts: where the first
// separator is a slash, slashes and dots trade places (sysctl(8)).
func dotted(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '.' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '/':
			return '.'
		case '.':
			return '/'
		}
		return r
	}, name)
}

// hostname gives a pod's host name and the domain under its subdomain.
func (m *Manager) hostname(pod *corev1.Pod) (host, domain string, err error) {
	if o := pod.Spec.HostnameOverride; o != nil {
		if bad := validation.IsDNS1123Subdomain(*o); len(bad) > 0 {
			return "", "", fmt.Errorf("pod HostnameOverride %q is not a valid DNS subdomain: %s", *o, strings.Join(bad, ";"))
		}
		return shortened(*o), "", nil
	}
	host = pod.Name
	if pod.Spec.Hostname != "" {
		if bad := validation.IsDNS1123Label(pod.Spec.Hostname); len(bad) > 0 {
			return "", "", fmt.Errorf("pod Hostname %q is not a valid DNS label: %s", pod.Spec.Hostname, strings.Join(bad, ";"))
		}
		host = pod.Spec.Hostname
	}
	if sub := pod.Spec.Subdomain; sub != "" {
		if bad := validation.IsDNS1123Label(sub); len(bad) > 0 {
			return "", "", fmt.Errorf("pod Subdomain %q is not a valid DNS label: %s", sub, strings.Join(bad, ";"))
		}
		domain = fmt.Sprintf("%s.%s.svc.%s", sub, pod.Namespace, m.cfg.ClusterDomain)
	}
	return shortened(host), domain, nil
}

// shortened cuts a host name to what the kernel takes.
func shortened(host string) string {
	if len(host) <= 63 {
		return host
	}
	return strings.TrimRight(host[:63], "-.")
}

// podDNS gives the pod's resolver settings.
func (m *Manager) podDNS(pod *corev1.Pod) (*runtimeapi.DNSConfig, error) {
	host, err := m.hostResolver()
	if err != nil {
		return nil, fmt.Errorf("read resolver settings: %w", err)
	}
	config := resolverConfig(host, pod, m.cfg.ClusterDNS, m.cfg.ClusterDomain)
	if len(config.Searches) > 32 || len(strings.Join(config.Searches, " ")) > 2048 {
		config.Searches = fittingSearches(config.Searches)
		m.cfg.Events.Event(objectReference(pod, nil), corev1.EventTypeWarning, "DNSConfigForming",
			"Search Line limits were exceeded, some search paths have been omitted, the applied search line is: "+strings.Join(config.Searches, " "))
	}
	if len(config.Servers) > 3 {
		config.Servers = config.Servers[:3]
		m.cfg.Events.Event(objectReference(pod, nil), corev1.EventTypeWarning, "DNSConfigForming",
			"Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: "+strings.Join(config.Servers, " "))
	}
	return config, nil
}

// noResolver stands for a host that has no name servers for pods.
const noResolver = "# none"

// hostResolver is the text of the host's resolv.conf.
func (m *Manager) hostResolver() (string, error) {
	if m.cfg.ResolvConf == "" {
		return noResolver, nil
	}
	raw, err := os.ReadFile(dns.HostFile(m.cfg.ResolvConf))
	if os.IsNotExist(err) {
		return "", nil
	}
	return string(raw), err
}

func fittingSearches(all []string) []string {
	all = all[:min(len(all), 32)]
	for len(strings.Join(all, " ")) > 2048 {
		all = all[:len(all)-1]
	}
	return all
}

// resolverConfig merges the host's resolv.conf, the cluster's DNS and the
// pod's own wishes by its DNS policy.
func resolverConfig(host string, pod *corev1.Pod, servers []string, domain string) *runtimeapi.DNSConfig {
	config := parseResolvConf(host)
	cluster := pod.Spec.DNSPolicy == corev1.DNSClusterFirstWithHostNet ||
		pod.Spec.DNSPolicy == corev1.DNSClusterFirst && !pod.Spec.HostNetwork
	switch {
	case pod.Spec.DNSPolicy == corev1.DNSNone:
		config = &runtimeapi.DNSConfig{}
	case cluster && len(servers) > 0:
		config.Servers = slices.Clone(servers)
		config.Options = []string{"ndots:5"}
		if domain != "" {
			config.Searches = append([]string{pod.Namespace + ".svc." + domain, "svc." + domain, domain}, config.Searches...)
		}
	case host == noResolver: // as kubelet has it: who asks nobody asks a server of its own
		config.Servers, config.Searches = []string{"127.0.0.1"}, []string{"."}
	}
	if own := pod.Spec.DNSConfig; own != nil {
		config.Servers = append(config.Servers, own.Nameservers...)
		config.Searches = append(config.Searches, own.Searches...)
		for _, o := range own.Options {
			value := o.Name
			if o.Value != nil && *o.Value != "" {
				value += ":" + *o.Value
			}
			config.Options = setOption(config.Options, value)
		}
	}
	config.Servers, config.Searches = unique(config.Servers), unique(config.Searches)
	return config
}

// parseResolvConf reads resolv.conf(5): name servers and options add up, the
// last search line holds.
func parseResolvConf(text string) *runtimeapi.DNSConfig {
	config := &runtimeapi.DNSConfig{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		switch fields[0] {
		case "nameserver":
			config.Servers = append(config.Servers, fields[1])
		case "search":
			config.Searches = nil
			for _, s := range fields[1:] {
				if s != "." {
					config.Searches = append(config.Searches, strings.TrimSuffix(s, "."))
				}
			}
		case "options":
			for _, o := range fields[1:] {
				config.Options = setOption(config.Options, o)
			}
		}
	}
	return config
}

// setOption adds name[:value], in place of an option of that name.
func setOption(options []string, option string) []string {
	name, _, _ := strings.Cut(option, ":")
	for i, o := range options {
		if n, _, _ := strings.Cut(o, ":"); n == name {
			options[i] = option
			return options
		}
	}
	return append(options, option)
}

func unique(all []string) []string {
	var kept []string
	for _, s := range all {
		if !slices.Contains(kept, s) {
			kept = append(kept, s)
		}
	}
	return kept
}
