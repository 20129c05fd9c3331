package kinds

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

// maxDataSize is how much a ConfigMap or a Secret may hold.
const maxDataSize = corev1.MaxSecretSize

func validateConfigMap(c *corev1.ConfigMap) field.ErrorList {
	var f faults
	data, binary, size := field.NewPath("data"), field.NewPath("binaryData"), 0
	for _, key := range sortedKeys(c.Data) {
		f.invalids(data.Key(key), key, validation.IsConfigMapKey(key))
		if _, ok := c.BinaryData[key]; ok {
			f.invalid(data.Key(key), key, "duplicate of key present in binaryData")
		}
		size += len(c.Data[key])
	}
	for _, key := range sortedKeys(c.BinaryData) {
		f.invalids(binary.Key(key), key, validation.IsConfigMapKey(key))
		size += len(c.BinaryData[key])
	}
	if size > maxDataSize {
		f.add(field.TooLong(field.NewPath(""), "", maxDataSize))
	}
	return f.list
}

const immutableMessage = "field is immutable when `immutable` is set"

func validateConfigMapUpdate(c, old *corev1.ConfigMap) field.ErrorList {
	var f faults
	if !derefOr(old.Immutable, false) {
		return nil
	}
	if !derefOr(c.Immutable, false) {
		f.forbidden(field.NewPath("immutable"), immutableMessage)
	}
	if !sameValue(c.Data, old.Data) {
		f.forbidden(field.NewPath("data"), immutableMessage)
	}
	if !sameValue(c.BinaryData, old.BinaryData) {
		f.forbidden(field.NewPath("binaryData"), immutableMessage)
	}
	return f.list
}

func validateSecret(s *corev1.Secret) field.ErrorList {
	var f faults
	data, size := field.NewPath("data"), 0
	for _, key := range sortedKeys(s.Data) {
		f.invalids(data.Key(key), key, validation.IsConfigMapKey(key))
		size += len(s.Data[key])
	}
	if size > maxDataSize {
		f.add(field.TooLong(data, "", maxDataSize))
	}
	switch s.Type {
	case corev1.SecretTypeServiceAccountToken:
		if s.Annotations[corev1.ServiceAccountNameKey] == "" {
			f.required(field.NewPath("metadata", "annotations").Key(corev1.ServiceAccountNameKey), "")
		}
	case corev1.SecretTypeDockercfg:
		f.secretJSON(data, s, corev1.DockerConfigKey)
	case corev1.SecretTypeDockerConfigJson:
		f.secretJSON(data, s, corev1.DockerConfigJsonKey)
	case corev1.SecretTypeBasicAuth:
		if len(f.missingKeys(s, corev1.BasicAuthUsernameKey, corev1.BasicAuthPasswordKey)) == 2 {
			f.required(data.Key(corev1.BasicAuthUsernameKey), "")
			f.required(data.Key(corev1.BasicAuthPasswordKey), "")
		}
	case corev1.SecretTypeSSHAuth:
		if len(s.Data[corev1.SSHAuthPrivateKey]) == 0 {
			f.required(data.Key(corev1.SSHAuthPrivateKey), "")
		}
	case corev1.SecretTypeTLS:
		for _, key := range f.missingKeys(s, corev1.TLSCertKey, corev1.TLSPrivateKeyKey) {
			f.required(data.Key(key), "")
		}
	}
	return f.list
}

func (f *faults) missingKeys(s *corev1.Secret, keys ...string) []string {
	var missing []string
	for _, key := range keys {
		if _, ok := s.Data[key]; !ok {
			missing = append(missing, key)
		}
	}
	return missing
}

func (f *faults) secretJSON(data *field.Path, s *corev1.Secret, key string) {
	text, ok := s.Data[key]
	if !ok {
		f.required(data.Key(key), "")
		return
	}
	if err := json.Unmarshal(text, &map[string]any{}); err != nil {
		f.invalid(data.Key(key), "<secret contents redacted>", err.Error())
	}
}

func validateSecretUpdate(s, old *corev1.Secret) field.ErrorList {
	var f faults
	immutable(&f, field.NewPath("type"), s.Type, old.Type)
	if !derefOr(old.Immutable, false) {
		return f.list
	}
	if !derefOr(s.Immutable, false) {
		f.forbidden(field.NewPath("immutable"), immutableMessage)
	}
	if !reflect.DeepEqual(s.Data, old.Data) {
		f.forbidden(field.NewPath("data"), immutableMessage)
	}
	return f.list
}

func validateNamespace(n *corev1.Namespace) field.ErrorList {
	var f faults
	for _, finalizer := range n.Spec.Finalizers {
		f.finalizer(field.NewPath("spec", "finalizers"), string(finalizer))
	}
	return f.list
}

func (f *faults) finalizer(at *field.Path, name string) {
	f.join(apivalidation.ValidateFinalizerName(name, at))
	if !strings.Contains(name, "/") && name != string(corev1.FinalizerKubernetes) && name != "orphan" && name != "foregroundDeletion" {
		f.invalid(at, name, "name is neither a standard finalizer name nor is it fully qualified")
	}
}

func validateNamespaceStatus(n, _ *corev1.Namespace) field.ErrorList {
	var f faults
	switch phase := n.Status.Phase; {
	case n.DeletionTimestamp == nil && phase != corev1.NamespaceActive:
		f.invalid(field.NewPath("status", "Phase"), phase, "may only be 'Active' if `deletionTimestamp` is empty")
	case n.DeletionTimestamp != nil && phase != corev1.NamespaceTerminating:
		f.invalid(field.NewPath("status", "Phase"), phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")
	}
	return f.list
}

func validateNamespaceFinalize(n, _ *corev1.Namespace) field.ErrorList {
	var f faults
	for i, finalizer := range n.Spec.Finalizers {
		f.finalizer(field.NewPath("spec", "finalizers").Index(i), string(finalizer))
	}
	return f.list
}

func validateNode(n *corev1.Node) field.ErrorList {
	var f faults
	f.taints(field.NewPath("metadata", "taints"), n.Spec.Taints)
	f.nodeResources(n)
	at := field.NewPath("spec", "podCIDRs")
	for i, cidr := range n.Spec.PodCIDRs {
		f.join(legacyCIDR(at.Index(i), cidr))
	}
	if len(n.Spec.PodCIDRs) > 1 {
		if dual, err := netutils.IsDualStackCIDRStrings(n.Spec.PodCIDRs); err != nil || !dual || len(n.Spec.PodCIDRs) > 2 {
			f.invalid(at, n.Spec.PodCIDRs, "may specify no more than one CIDR for each IP family")
		}
	}
	return f.list
}

func (f *faults) nodeResources(n *corev1.Node) {
	for _, name := range sortedKeys(n.Status.Capacity) {
		f.resourceQuantity(field.NewPath("status", "capacity", string(name)), name, n.Status.Capacity[name])
	}
	for _, name := range sortedKeys(n.Status.Allocatable) {
		f.resourceQuantity(field.NewPath("status", "allocatable", string(name)), name, n.Status.Allocatable[name])
	}
}

func (f *faults) taints(at *field.Path, taints []corev1.Taint) {
	type key struct {
		key    string
		effect corev1.TaintEffect
	}
	seen := make(map[key]bool)
	for i, t := range taints {
		path := at.Index(i)
		f.join(metavalidation.ValidateLabelName(t.Key, path.Child("key")))
		if msgs := validation.IsValidLabelValue(t.Value); len(msgs) > 0 {
			f.invalid(path.Child("value"), t.Value, strings.Join(msgs, ";"))
		}
		if t.Effect == "" {
			f.required(path.Child("effect"), "")
		} else {
			taintEffect(f, path.Child("effect"), t.Effect)
		}
		if seen[key{t.Key, t.Effect}] {
			twice := field.Duplicate(path, t)
			twice.Detail = "taints must be unique by key and effect pair"
			f.add(twice)
		}
		seen[key{t.Key, t.Effect}] = true
	}
}

func validateNodeUpdate(n, old *corev1.Node) field.ErrorList {
	var f faults
	f.nodeResources(n)
	seen := make(map[corev1.NodeAddress]bool)
	for i, a := range n.Status.Addresses {
		if seen[a] {
			f.add(field.Duplicate(field.NewPath("status", "addresses").Index(i), a))
		}
		seen[a] = true
	}
	if len(old.Spec.PodCIDRs) > 0 && !sameValue(n.Spec.PodCIDRs, old.Spec.PodCIDRs) {
		f.forbidden(field.NewPath("spec", "podCIDRs"), `node updates may not change podCIDR except from "" to valid`)
	}
	if old.Spec.ProviderID != "" && old.Spec.ProviderID != n.Spec.ProviderID {
		f.forbidden(field.NewPath("spec", "providerID"), `node updates may not change providerID except from "" to valid`)
	}
	f.taints(field.NewPath("metadata", "taints"), n.Spec.Taints)
	return f.list
}

func validateEndpoints(e *corev1.Endpoints) field.ErrorList {
	var f faults
	for i := range e.Subsets {
		ss, path := &e.Subsets[i], field.NewPath("subsets").Index(i)
		if len(ss.Addresses)+len(ss.NotReadyAddresses) == 0 {
			f.required(path, "must specify `addresses` or `notReadyAddresses`")
		}
		f.endpointAddresses(path.Child("addresses"), ss.Addresses)
		f.endpointAddresses(path.Child("notReadyAddresses"), ss.NotReadyAddresses)
		for j, p := range ss.Ports {
			at := path.Child("ports").Index(j)
			if p.Name == "" && len(ss.Ports) > 1 {
				f.required(at.Child("name"), "")
			} else if p.Name != "" {
				f.invalids(at.Child("name"), p.Name, validation.IsDNS1123Label(p.Name))
			}
			f.invalids(at.Child("port"), p.Port, validation.IsValidPortNum(int(p.Port)))
			protocol(&f, at.Child("protocol"), p.Protocol)
			if p.AppProtocol != nil {
				f.invalids(at.Child("appProtocol"), *p.AppProtocol, validation.IsQualifiedName(*p.AppProtocol))
			}
		}
	}
	return f.list
}

func (f *faults) endpointAddresses(at *field.Path, addresses []corev1.EndpointAddress) {
	for i, a := range addresses {
		path := at.Index(i)
		f.ip(path.Child("ip"), a.IP)
		if a.Hostname != "" {
			f.invalids(path.Child("hostname"), a.Hostname, validation.IsDNS1123Label(a.Hostname))
		}
		if a.NodeName != nil {
			f.invalids(path.Child("nodeName"), *a.NodeName, subdomainName(*a.NodeName))
		}
		f.endpointIP(path.Child("ip"), a.IP)
	}
}

func validateReplicationController(c *corev1.ReplicationController) field.ErrorList {
	var f faults
	at := field.NewPath("spec")
	f.notNegative(at.Child("minReadySeconds"), int64(c.Spec.MinReadySeconds))
	f.notNegative(at.Child("replicas"), int64(derefOr(c.Spec.Replicas, 0)))
	if len(c.Spec.Selector) == 0 {
		f.required(at.Child("selector"), "")
	}
	if c.Spec.Template == nil {
		f.required(at.Child("template"), "")
		return f.list
	}
	if len(c.Spec.Selector) > 0 && !labels.SelectorFromSet(c.Spec.Selector).Matches(labels.Set(c.Spec.Template.Labels)) {
		f.invalid(at.Child("template", "metadata", "labels"), c.Spec.Template.Labels, "`selector` does not match template `labels`")
	}
	f.podTemplate(at.Child("template"), c.Spec.Template)
	f.restartsForEver(at.Child("template", "spec"), &c.Spec.Template.Spec, "ReplicationController")
	return f.list
}

// restartsForEver holds for workloads whose pods never end of themselves.
func (f *faults) restartsForEver(at *field.Path, s *corev1.PodSpec, kind string) {
	supports(f, at.Child("restartPolicy"), s.RestartPolicy, corev1.RestartPolicyAlways)
	if s.ActiveDeadlineSeconds != nil {
		f.forbidden(at.Child("activeDeadlineSeconds"), fmt.Sprintf("activeDeadlineSeconds in %s is not Supported", kind))
	}
}

func validateReplicationControllerStatus(c, _ *corev1.ReplicationController) field.ErrorList {
	s := c.Status
	return replicaCounts{
		total: s.Replicas, ready: s.ReadyReplicas, available: s.AvailableReplicas, observed: s.ObservedGeneration,
		others:   map[string]int32{"fullyLabeledReplicas": s.FullyLabeledReplicas},
		relative: "readyReplicas",
	}.validate()
}
