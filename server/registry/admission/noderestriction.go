package admission

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"

	"orch/internal/pki"
	"orch/server/auth"
	"orch/server/registry"
)

// nodeRestriction keeps a node to its own Node, Lease and pods, and to what it
// can know about them.
type nodeRestriction struct {
	claims     auth.Claims
	authorizer auth.Authorizer
}

func (n nodeRestriction) Admit(ctx context.Context, a *registry.Attempt) error {
	node, ok := user(ctx).NodeName()
	if !ok || a.Operation == registry.OperationConnect {
		return nil
	}
	switch a.Resource.Group + "/" + a.Resource.Plural {
	case "/pods":
		return n.pod(ctx, node, a)
	case "/nodes":
		return n.node(ctx, node, a)
	case "/persistentvolumeclaims":
		return n.claim(node, a)
	case "/serviceaccounts":
		return n.token(ctx, node, a)
	case "coordination.k8s.io/leases":
		return n.lease(node, a)
	case "storage.k8s.io/csinodes":
		if attemptName(a) != node {
			return errors.New("can only access CSINode with the same name as the requesting node")
		}
	case "resource.k8s.io/resourceslices":
		return n.resourceSlice(node, a)
	case "certificates.k8s.io/certificatesigningrequests":
		return n.certificate(node, a)
	}
	return nil
}

func attemptName(a *registry.Attempt) string {
	if o, ok := a.Object.(metav1.Object); ok && a.Operation == registry.OperationCreate && a.Subresource == "" {
		return o.GetName()
	}
	return a.Name
}

func (n nodeRestriction) pod(ctx context.Context, node string, a *registry.Attempt) error {
	switch a.Subresource {
	case "":
		return n.wholePod(node, a)
	case "status":
		return n.podStatus(ctx, node, a)
	case "eviction":
		pod, err := registry.Of[*corev1.Pod](a.Registry).Get(a.Namespace, a.Name)
		if err != nil {
			return err
		}
		if pod.Spec.NodeName != node {
			return fmt.Errorf("node %s can only evict pods with spec.nodeName set to itself", node)
		}
		return nil
	}
	return fmt.Errorf("unexpected pod subresource %q, only 'status' and 'eviction' are allowed", a.Subresource)
}

func (n nodeRestriction) wholePod(node string, a *registry.Attempt) error {
	switch a.Operation {
	case registry.OperationCreate:
		return n.createPod(node, a)
	case registry.OperationDelete:
		pod, err := registry.Of[*corev1.Pod](a.Registry).Get(a.Namespace, a.Name)
		if err != nil {
			return err
		}
		if pod.Spec.NodeName != node {
			return fmt.Errorf("node %q can only delete pods with spec.nodeName set to itself", node)
		}
		return nil
	}
	return fmt.Errorf("unexpected operation %q, node %q can only create and delete mirror pods", a.Operation, node)
}

// createPod admits mirror pods only, owned by the node and without any
// reference to other objects.
func (nodeRestriction) createPod(node string, a *registry.Attempt) error {
	pod, ok := a.Object.(*corev1.Pod)
	switch {
	case !ok:
		return fmt.Errorf("unexpected type %T", a.Object)
	case !isMirror(pod):
		return fmt.Errorf("pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, node)
	case pod.Spec.NodeName != node:
		return fmt.Errorf("node %q can only create pods with spec.nodeName set to itself", node)
	case len(pod.OwnerReferences) > 1:
		return fmt.Errorf("node %q can only create pods with a single owner reference set to itself", node)
	case len(pod.OwnerReferences) == 0:
		return fmt.Errorf("node %q can only create pods with an owner reference set to itself", node)
	}
	owner := pod.OwnerReferences[0]
	switch {
	case owner.APIVersion != "v1" || owner.Kind != "Node" || owner.Name != node:
		return fmt.Errorf("node %q can only create pods with an owner reference set to itself", node)
	case !ptr.Deref(owner.Controller, false):
		return fmt.Errorf("node %q can only create pods with a controller owner reference set to itself", node)
	case ptr.Deref(owner.BlockOwnerDeletion, false):
		return fmt.Errorf("node %q must not set blockOwnerDeletion on an owner reference", node)
	}
	self, err := registry.Of[*corev1.Node](a.Registry).Get("", node)
	if err != nil {
		return err
	}
	if owner.UID != self.UID {
		return fmt.Errorf("node %s UID mismatch: expected %s got %s", node, owner.UID, self.UID)
	}
	if kind := auth.PodReference(pod); kind != "" {
		return fmt.Errorf("node %q can not create pods that reference %s", node, kind)
	}
	return nil
}

func (n nodeRestriction) podStatus(ctx context.Context, node string, a *registry.Attempt) error {
	old, wasPod := a.Old.(*corev1.Pod)
	pod, ok := a.Object.(*corev1.Pod)
	switch {
	case a.Operation != registry.OperationUpdate || !wasPod || !ok:
		return fmt.Errorf("unexpected operation %q", a.Operation)
	case old.Spec.NodeName != node:
		return fmt.Errorf("node %q can only update pod status for pods with spec.nodeName set to itself", node)
	case !labels.Equals(old.Labels, pod.Labels):
		return fmt.Errorf("node %q cannot update labels through pod status", node)
	case !equality.Semantic.DeepEqual(old.Status.ResourceClaimStatuses, pod.Status.ResourceClaimStatuses):
		return fmt.Errorf("node %q cannot update resource claim statues", node)
	case !equality.Semantic.DeepEqual(old.Status.ExtendedResourceClaimStatus, pod.Status.ExtendedResourceClaimStatus):
		return fmt.Errorf("node %q cannot update extended resource claim status", node)
	case !equality.Semantic.DeepEqual(old.Status.NodeAllocatableResourceClaimStatuses, pod.Status.NodeAllocatableResourceClaimStatuses):
		return fmt.Errorf("node %q cannot update node allocatable resource claim statuses", node)
	}
	return n.podAddresses(ctx, a, node, pod, old)
}

// withoutGrowth is the claim without what a node tells of its size.
func withoutGrowth(c *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
	c = c.DeepCopy()
	c.ResourceVersion, c.ManagedFields = "", nil
	c.Status.Capacity, c.Status.Conditions = nil, nil
	c.Status.AllocatedResourceStatuses, c.Status.AllocatedResources = nil, nil
	return c
}

func (nodeRestriction) claim(node string, a *registry.Attempt) error {
	old, wasClaim := a.Old.(*corev1.PersistentVolumeClaim)
	claim, ok := a.Object.(*corev1.PersistentVolumeClaim)
	if a.Subresource != "status" || a.Operation != registry.OperationUpdate || !wasClaim || !ok {
		return errors.New("may only update PVC status")
	}
	if !equality.Semantic.DeepEqual(withoutGrowth(old), withoutGrowth(claim)) {
		return fmt.Errorf("node %q is not allowed to update fields other than status.quantity and status.conditions", node)
	}
	return nil
}

// node keeps a node from steering workloads to itself, from reading what others
// may, and from taking addresses: which part of the pod network is its own the
// server says.
func (n nodeRestriction) node(ctx context.Context, node string, a *registry.Attempt) error {
	if name := attemptName(a); name != node {
		return fmt.Errorf("node %q is not allowed to modify node %q", node, name)
	}
	obj, ok := a.Object.(*corev1.Node)
	if !ok {
		return nil // a node may delete itself where RBAC lets it
	}
	old, _ := a.Old.(*corev1.Node)
	if old == nil {
		if err := newNode(node, obj); err != nil {
			return err
		}
	} else if err := changedNode(node, obj, old); err != nil {
		return err
	}
	return n.claims.NodeAddresses(ctx, obj, old)
}

func newNode(node string, n *corev1.Node) error {
	switch bad := forbiddenLabels(n.Labels, nil); {
	case n.Spec.ConfigSource != nil:
		return fmt.Errorf("node %q is not allowed to create pods with a non-nil configSource", node)
	case len(bad) > 0:
		return fmt.Errorf("node %q is not allowed to set the following labels: %s", node, strings.Join(bad, ", "))
	case len(n.OwnerReferences) > 0:
		return fmt.Errorf("node %q is not allowed to set ownerReferences", node)
	case n.Spec.PodCIDR != "" || len(n.Spec.PodCIDRs) > 0:
		return fmt.Errorf("node %q is not allowed to set spec.podCIDR: the server gives each node its own", node)
	}
	return nil
}

func changedNode(node string, n, old *corev1.Node) error {
	switch bad := forbiddenLabels(n.Labels, old.Labels); {
	case n.Spec.ConfigSource != nil && !equality.Semantic.DeepEqual(n.Spec.ConfigSource, old.Spec.ConfigSource):
		return fmt.Errorf("node %q is not allowed to update configSource to a new non-nil configSource", node)
	case !equality.Semantic.DeepEqual(n.Spec.Taints, old.Spec.Taints):
		return fmt.Errorf("node %q is not allowed to modify taints", node)
	case !equality.Semantic.DeepEqual(n.OwnerReferences, old.OwnerReferences):
		return fmt.Errorf("node %q is not allowed to modify ownerReferences", node)
	case len(bad) > 0:
		return fmt.Errorf("is not allowed to modify labels: %s", strings.Join(bad, ", "))
	case n.Spec.PodCIDR != old.Spec.PodCIDR || !slices.Equal(n.Spec.PodCIDRs, old.Spec.PodCIDRs):
		return fmt.Errorf("node %q is not allowed to modify spec.podCIDR: the server gives each node its own", node)
	}
	return nil
}

// forbiddenLabels are those changed labels by which a node could draw
// workloads to itself that are meant for others.
func forbiddenLabels(now, before map[string]string) []string {
	changed := make(map[string]bool)
	for key, value := range now {
		if old, ok := before[key]; !ok || old != value {
			changed[key] = true
		}
	}
	for key := range before {
		if _, ok := now[key]; !ok {
			changed[key] = true
		}
	}
	maps.DeleteFunc(changed, func(key string, _ bool) bool { return nodeMaySet(key) })
	return slices.Sorted(maps.Keys(changed))
}

func nodeMaySet(key string) bool {
	domain, _, ok := strings.Cut(key, "/")
	if !ok {
		return true
	}
	within := func(parent string) bool { return domain == parent || strings.HasSuffix(domain, "."+parent) }
	switch {
	case within("node-restriction.kubernetes.io"):
		return false
	case !within("kubernetes.io") && !within("k8s.io"):
		return true
	case within("kubelet.kubernetes.io"), within("node.kubernetes.io"):
		return true
	}
	switch key {
	case corev1.LabelHostname, corev1.LabelTopologyZone, corev1.LabelTopologyRegion, corev1.LabelFailureDomainBetaZone,
		corev1.LabelFailureDomainBetaRegion, corev1.LabelInstanceType, corev1.LabelOSStable, corev1.LabelArchStable,
		"beta.kubernetes.io/os", "beta.kubernetes.io/arch":
		return true
	}
	return false
}

// token: a node gets tokens for its pods only, bound to them.
func (n nodeRestriction) token(ctx context.Context, node string, a *registry.Attempt) error {
	request, ok := a.Object.(*authenticationv1.TokenRequest)
	if !ok || a.Subresource != "token" || a.Operation != registry.OperationCreate {
		return nil
	}
	ref := request.Spec.BoundObjectRef
	if ref == nil || ref.APIVersion != "v1" || ref.Kind != "Pod" || ref.Name == "" {
		return errors.New("node requested token not bound to a pod")
	}
	if ref.UID == "" {
		return errors.New("node requested token with a pod binding without a uid")
	}
	pod, err := registry.Of[*corev1.Pod](a.Registry).Get(a.Namespace, ref.Name)
	if err != nil {
		return err
	}
	switch {
	case pod.UID != ref.UID:
		return fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID)
	case pod.Spec.NodeName != node:
		return errors.New("node requested token bound to a pod scheduled on a different node")
	case len(request.Spec.Audiences) > 1:
		return errors.New("node may only request 0 or 1 audiences")
	}
	audience := ""
	if len(request.Spec.Audiences) == 1 {
		audience = request.Spec.Audiences[0]
	}
	if podWantsAudience(a.Registry, pod, audience) {
		return nil
	}
	return n.mayRequestAudience(ctx, a, audience)
}

// mayRequestAudience asks for the right that lets nodes have tokens for
// audiences beyond those of their pods' volumes.
func (n nodeRestriction) mayRequestAudience(ctx context.Context, a *registry.Attempt, audience string) error {
	who := user(ctx)
	allowed, _, err := n.authorizer.Authorize(ctx, &auth.Attributes{
		User: who, Verb: "request-serviceaccounts-token-audience", Version: "v1", Resource: audience,
		Namespace: a.Namespace, Name: a.Name, ResourceRequest: true,
	})
	switch {
	case allowed:
		return nil
	case err != nil:
		return fmt.Errorf("error authorizing %s to request tokens for audience %q: %w", who.Name, audience, err)
	}
	return fmt.Errorf("%s is not authorized to request tokens for audience %q", who.Name, audience)
}

// podWantsAudience tells whether a volume of the pod needs a token for the
// audience: a projected one, or one whose CSI driver asks for it.
func podWantsAudience(r *registry.Registry, pod *corev1.Pod, audience string) bool {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool {
			return s.ServiceAccountToken != nil && s.ServiceAccountToken.Audience == audience
		}) {
			return true
		}
		driver, err := registry.Of[*storagev1.CSIDriver](r).Get("", csiDriver(r, pod, v))
		if err == nil && slices.ContainsFunc(driver.Spec.TokenRequests, func(t storagev1.TokenRequest) bool { return t.Audience == audience }) {
			return true
		}
	}
	return false
}

// csiDriver is the name of the driver behind a volume, "" when there is none.
func csiDriver(r *registry.Registry, pod *corev1.Pod, v *corev1.Volume) string {
	claim := ""
	switch {
	case v.CSI != nil:
		return v.CSI.Driver
	case v.PersistentVolumeClaim != nil:
		claim = v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		claim = pod.Name + "-" + v.Name
	default:
		return ""
	}
	pvc, err := registry.Of[*corev1.PersistentVolumeClaim](r).Get(pod.Namespace, claim)
	if err != nil {
		return ""
	}
	pv, err := registry.Of[*corev1.PersistentVolume](r).Get("", pvc.Spec.VolumeName)
	if err != nil || pv.Spec.CSI == nil {
		return ""
	}
	return pv.Spec.CSI.Driver
}

func (nodeRestriction) resourceSlice(node string, a *registry.Attempt) error {
	obj, verb := a.Object, "create"
	if a.Operation == registry.OperationDelete {
		obj, verb = a.Old, "delete"
	}
	slice, ok := obj.(*resourcev1.ResourceSlice)
	if a.Operation == registry.OperationUpdate || ok && ptr.Deref(slice.Spec.NodeName, "") == node {
		return nil
	}
	return fmt.Errorf("can only %s ResourceSlice with the same NodeName as the requesting node", verb)
}

func (nodeRestriction) lease(node string, a *registry.Attempt) error {
	if a.Namespace != corev1.NamespaceNodeLease {
		return fmt.Errorf("can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
	}
	if attemptName(a) != node {
		return errors.New("can only access node lease with the same name as the requesting node")
	}
	return nil
}

func (nodeRestriction) certificate(node string, a *registry.Attempt) error {
	csr, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
	if !ok || a.Operation != registry.OperationCreate ||
		csr.Spec.SignerName != certificatesv1.KubeletServingSignerName && csr.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName {
		return nil
	}
	parsed, err := pki.ParseRequest(csr.Spec.Request)
	if err != nil {
		return fmt.Errorf("unable to parse csr: %w", err)
	}
	if parsed.Subject.CommonName != "system:node:"+node {
		return fmt.Errorf("can only create a node CSR with CN=system:node:%s", node)
	}
	return nil
}
