package api

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/applyconfigurations"
	smdschema "sigs.k8s.io/structured-merge-diff/v6/schema"
)

// listFacts knows how lists and maps merge. The Go types do not tell; the
// schema that server-side apply works with does.
type listFacts struct{ schema *smdschema.Schema }

func newListFacts(scheme *runtime.Scheme) listFacts {
	any := &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}}
	value, err := applyconfigurations.NewTypeConverter(scheme).ObjectToTyped(any)
	if err != nil {
		return listFacts{&smdschema.Schema{}}
	}
	return listFacts{value.Schema()}
}

// fieldFacts are the merge rules of one field.
type fieldFacts struct {
	Default any
	list    *smdschema.List
	mapping *smdschema.Map
}

func (f listFacts) field(definition, name string) fieldFacts {
	def, ok := f.schema.FindNamedType(definition)
	if !ok || def.Map == nil {
		return fieldFacts{}
	}
	for i := range def.Map.Fields {
		if field := &def.Map.Fields[i]; field.Name == name {
			return fieldFacts{Default: field.Default, list: field.Type.Inlined.List, mapping: field.Type.Inlined.Map}
		}
	}
	return fieldFacts{}
}

// atomicStruct tells whether the objects of a definition are replaced as a whole.
func (f listFacts) atomicStruct(definition string) bool {
	def, ok := f.schema.FindNamedType(definition)
	return ok && def.Map != nil && def.Map.ElementRelationship == smdschema.Atomic && len(def.Map.Fields) > 0
}

func (f fieldFacts) apply(node *schemaNode) {
	switch {
	case f.list != nil && node.Type == "array":
		switch {
		case f.list.ElementRelationship == smdschema.Associative && len(f.list.Keys) > 0:
			node.ListType, node.ListMapKeys = "map", f.list.Keys
		case f.list.ElementRelationship == smdschema.Associative:
			node.ListType = "set"
		default:
			node.ListType = "atomic"
		}
	case f.mapping != nil && node.Type == "object" && f.mapping.ElementRelationship == smdschema.Atomic:
		node.MapType = "atomic"
	}
}

// optionalFields are always written by Go, and yet marked +optional in their
// source, which reflection cannot see.
var optionalFields = map[string]bool{
	"io.k8s.api.apps.v1.ControllerRevision.data":                                                             true,
	"io.k8s.api.apps.v1.StatefulSetOrdinals.start":                                                           true,
	"io.k8s.api.apps.v1.StatefulSetSpec.serviceName":                                                         true,
	"io.k8s.api.apps.v1.StatefulSetStatus.availableReplicas":                                                 true,
	"io.k8s.api.authentication.v1.TokenRequest.spec":                                                         true,
	"io.k8s.api.authentication.v1.TokenRequestSpec.audiences":                                                true,
	"io.k8s.api.authentication.v1.TokenRequestSpec.boundObjectRef":                                           true,
	"io.k8s.api.authentication.v1.TokenRequestSpec.expirationSeconds":                                        true,
	"io.k8s.api.authentication.v1.TokenRequestStatus.expirationTimestamp":                                    true,
	"io.k8s.api.authentication.v1.TokenRequestStatus.token":                                                  true,
	"io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerStatus.currentMetrics":                                 true,
	"io.k8s.api.batch.v1.PodFailurePolicyOnPodConditionsPattern.status":                                      true,
	"io.k8s.api.core.v1.AzureFilePersistentVolumeSource.secretNamespace":                                     true,
	"io.k8s.api.core.v1.ContainerImage.names":                                                                true,
	"io.k8s.api.core.v1.Event.reportingComponent":                                                            true,
	"io.k8s.api.core.v1.Event.reportingInstance":                                                             true,
	"io.k8s.api.core.v1.GRPCAction.service":                                                                  true,
	"io.k8s.api.core.v1.NodeRuntimeHandler.name":                                                             true,
	"io.k8s.api.core.v1.ProjectedVolumeSource.sources":                                                       true,
	"io.k8s.api.core.v1.TypedLocalObjectReference.apiGroup":                                                  true,
	"io.k8s.api.core.v1.TypedObjectReference.apiGroup":                                                       true,
	"io.k8s.api.discovery.v1.EndpointSlice.endpoints":                                                        true,
	"io.k8s.api.discovery.v1.EndpointSlice.ports":                                                            true,
	"io.k8s.api.events.v1.Event.metadata":                                                                    true,
	"io.k8s.api.flowcontrol.v1.FlowSchemaSpec.matchingPrecedence":                                            true,
	"io.k8s.api.flowcontrol.v1.LimitedPriorityLevelConfiguration.nominalConcurrencyShares":                   true,
	"io.k8s.api.flowcontrol.v1.QueuingConfiguration.handSize":                                                true,
	"io.k8s.api.flowcontrol.v1.QueuingConfiguration.queueLengthLimit":                                        true,
	"io.k8s.api.flowcontrol.v1.QueuingConfiguration.queues":                                                  true,
	"io.k8s.api.flowcontrol.v1.ResourcePolicyRule.namespaces":                                                true,
	"io.k8s.api.networking.v1.IngressClassParametersReference.scope":                                         true,
	"io.k8s.api.networking.v1.NetworkPolicySpec.podSelector":                                                 true,
	"io.k8s.api.policy.v1.PodDisruptionBudgetStatus.currentHealthy":                                          true,
	"io.k8s.api.policy.v1.PodDisruptionBudgetStatus.desiredHealthy":                                          true,
	"io.k8s.api.policy.v1.PodDisruptionBudgetStatus.disruptionsAllowed":                                      true,
	"io.k8s.api.policy.v1.PodDisruptionBudgetStatus.expectedPods":                                            true,
	"io.k8s.api.rbac.v1.ClusterRole.rules":                                                                   true,
	"io.k8s.api.rbac.v1.Role.rules":                                                                          true,
	"io.k8s.api.rbac.v1.RoleRef.apiGroup":                                                                    true,
	"io.k8s.api.resource.v1.AllocatedDeviceStatus.conditions":                                                true,
	"io.k8s.api.resource.v1.CapacityRequestPolicy.default":                                                   true,
	"io.k8s.api.resource.v1.DeviceClaim.requests":                                                            true,
	"io.k8s.api.resource.v1.ResourceClaimSpec.devices":                                                       true,
	"io.k8s.api.scheduling.v1.PriorityClass.value":                                                           true,
	"io.k8s.api.storage.v1.CSINodeDriver.topologyKeys":                                                       true,
	"io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus.acceptedNames":  true,
	"io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus.conditions":     true,
	"io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus.storedVersions": true,
}
