package volumes

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// Annotations by which binder, scheduler and provisioners talk.
const (
	bindCompleted     = "pv.kubernetes.io/bind-completed"      // on claims: bound once, never to another volume
	boundByController = "pv.kubernetes.io/bound-by-controller" // on both: the binding is not the user's
	provisionedBy     = "pv.kubernetes.io/provisioned-by"
	selectedNode      = "volume.kubernetes.io/selected-node"
	provisioner       = "volume.kubernetes.io/storage-provisioner"
	betaProvisioner   = "volume.beta.kubernetes.io/storage-provisioner"
)

// Event is what is said about a claim or volume.
type Event struct{ Kind, Reason, Message string }

func normal(reason, format string, args ...any) *Event {
	return &Event{corev1.EventTypeNormal, reason, fmt.Sprintf(format, args...)}
}

func warning(reason, format string, args ...any) *Event {
	return &Event{corev1.EventTypeWarning, reason, fmt.Sprintf(format, args...)}
}

// View is what a claim's plan depends on.
type View struct {
	Volume  func(name string) *corev1.PersistentVolume // nil: none
	Volumes []*corev1.PersistentVolume
	Class   *storagev1.StorageClass // the claim's; nil: none
	Default string                  // name of the default class
	Node    *corev1.Node            // that the scheduler chose
	Waiting []string                // pods without a node that use the claim
}

// ClaimPlan is what to do with a claim: at most one of Bind, Phase, Class and
// Provisioner is set.
type ClaimPlan struct {
	Bind        *corev1.PersistentVolume
	Phase       corev1.PersistentVolumeClaimPhase
	Class       string // to give it
	Provisioner string // to ask for a volume
	Event       *Event
}

// PlanClaim follows kube-controller-manager's persistent volume controller.
func PlanClaim(claim *corev1.PersistentVolumeClaim, view View) ClaimPlan {
	_, completed := claim.Annotations[bindCompleted]
	switch {
	case completed:
		return planBound(claim, view)
	case claim.Spec.VolumeName != "":
		return planNamed(claim, view.Volume(claim.Spec.VolumeName))
	}
	late := view.Class != nil && view.Class.VolumeBindingMode != nil && *view.Class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
	_, selected := claim.Annotations[selectedNode]
	if v := Match(claim, view.Volumes, view.Node, late && view.Node == nil); v != nil {
		return ClaimPlan{Bind: v}
	}
	_, beta := claim.Annotations[corev1.BetaStorageClassAnnotation]
	switch {
	case claim.Spec.StorageClassName == nil && !beta && view.Default != "":
		return ClaimPlan{Class: view.Default}
	case late && !selected:
		return ClaimPlan{Phase: corev1.ClaimPending, Event: awaited(view.Waiting)}
	case classOf(claim) != "":
		return planProvision(claim, view.Class)
	}
	return ClaimPlan{Phase: corev1.ClaimPending,
		Event: normal("FailedBinding", "no persistent volumes available for this claim and no storage class is set")}
}

// planBound checks a claim that was bound before: it may only lose its volume.
func planBound(claim *corev1.PersistentVolumeClaim, view View) ClaimPlan {
	lost := ClaimPlan{Phase: corev1.ClaimLost}
	if claim.Spec.VolumeName == "" {
		lost.Event = warning("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
		return once(claim, lost)
	}
	v := view.Volume(claim.Spec.VolumeName)
	switch {
	case v == nil:
		lost.Event = warning("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
	case v.Spec.ClaimRef == nil || v.Spec.ClaimRef.UID == claim.UID:
		return ClaimPlan{Bind: v}
	default:
		lost.Event = warning("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
	}
	return once(claim, lost)
}

// once leaves out what was done and said already.
func once(claim *corev1.PersistentVolumeClaim, plan ClaimPlan) ClaimPlan {
	if claim.Status.Phase == plan.Phase {
		return ClaimPlan{}
	}
	return plan
}

func planNamed(claim *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) ClaimPlan {
	plan := ClaimPlan{Phase: corev1.ClaimPending}
	switch {
	case v == nil:
	case v.Spec.ClaimRef == nil:
		if why := mismatch(v, claim); why != nil {
			plan.Event = warning("VolumeMismatch", "Cannot bind to requested volume %q: %s", v.Name, why)
			return plan
		}
		return ClaimPlan{Bind: v}
	case reservedFor(v, claim):
		return ClaimPlan{Bind: v}
	default:
		plan.Event = warning("FailedBinding", "volume %q already bound to a different claim.", v.Name)
	}
	return plan
}

func awaited(pods []string) *Event {
	switch len(pods) {
	case 0:
		return normal("WaitForFirstConsumer", "waiting for first consumer to be created before binding")
	case 1:
		return normal("WaitForPodScheduled", "waiting for pod %s to be scheduled", pods[0])
	}
	return normal("WaitForPodScheduled", "waiting for pods %s to be scheduled", strings.Join(pods, ","))
}

// planProvision asks a provisioner outside; there is none inside.
func planProvision(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) ClaimPlan {
	switch {
	case class == nil:
		return ClaimPlan{Event: warning("ProvisioningFailed", "storageclass.storage.k8s.io %q not found", classOf(claim))}
	case strings.HasPrefix(class.Provisioner, "kubernetes.io/"):
		return ClaimPlan{Event: warning("ProvisioningFailed", "no volume plugin matched name: %s", class.Provisioner)}
	}
	return ClaimPlan{Provisioner: class.Provisioner, Event: normal("ExternalProvisioning",
		"Waiting for a volume to be created either by the external provisioner '%s' or manually by the system administrator. "+
			"If volume creation is delayed, please verify that the provisioner is running and correctly registered.", class.Provisioner)}
}

// VolumePlan is what to do with a volume.
type VolumePlan struct {
	Phase   corev1.PersistentVolumePhase // "": as it is
	Message string
	Unbind  bool // its claim has got another volume
	Event   *Event
}

// PlanVolume gives the state of a volume. claim is the one it refers to by
// name; nil: there is none.
func PlanVolume(v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) VolumePlan {
	ref := v.Spec.ClaimRef
	if ref == nil || ref.UID == "" {
		return VolumePlan{Phase: corev1.VolumeAvailable}
	}
	switch {
	case claim == nil || claim.UID != ref.UID:
		return planReclaim(v)
	case claim.Spec.VolumeName == v.Name:
		return VolumePlan{Phase: corev1.VolumeBound}
	case claim.Spec.VolumeName != "":
		if v.Annotations[provisionedBy] != "" && v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
			return planReclaim(v)
		}
		return VolumePlan{Phase: corev1.VolumeAvailable, Unbind: true}
	case modeOf(claim.Spec.VolumeMode) != modeOf(v.Spec.VolumeMode):
		return VolumePlan{Event: warning("VolumeMismatch",
			"Cannot bind PersistentVolume to requested PersistentVolumeClaim %q due to incompatible volumeMode.", claim.Name)}
	}
	return VolumePlan{} // the claim's plan finishes the binding
}

// planReclaim releases a volume. Nothing inside deletes or recycles: a host's
// directories are the host's.
func planReclaim(v *corev1.PersistentVolume) VolumePlan {
	if v.Status.Phase == corev1.VolumeFailed {
		return VolumePlan{} // what went wrong stays to be seen
	}
	failed := func(reason, message string) VolumePlan {
		return VolumePlan{Phase: corev1.VolumeFailed, Message: message, Event: warning(reason, "%s", message)}
	}
	switch v.Spec.PersistentVolumeReclaimPolicy {
	case corev1.PersistentVolumeReclaimDelete:
		by := v.Annotations[provisionedBy]
		if v.Spec.CSI != nil || by != "" && !strings.HasPrefix(by, "kubernetes.io/") {
			break // theirs to delete
		}
		return failed("VolumeFailedDelete", fmt.Sprintf("error getting deleter volume plugin for volume %q: no deletable volume plugin matched", v.Name))
	case corev1.PersistentVolumeReclaimRecycle:
		return failed("VolumeFailedRecycle", "No recycler plugin found for the volume!")
	}
	return VolumePlan{Phase: corev1.VolumeReleased}
}
