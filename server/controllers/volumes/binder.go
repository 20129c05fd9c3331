package volumes

import (
	"cmp"
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

type binder struct {
	claims  registry.Typed[*corev1.PersistentVolumeClaim]
	volumes registry.Typed[*corev1.PersistentVolume]
	classes registry.Typed[*storagev1.StorageClass]
	nodes   registry.Typed[*corev1.Node]
	pods    registry.Typed[*corev1.Pod]
	events  record.EventRecorder
	now     func() time.Time
}

// Binder gives the controller that binds claims to volumes. It has one worker,
// so that no two claims choose the same volume; a key without a namespace is a
// volume's.
func Binder(r *registry.Registry, events record.EventRecorder, now func() time.Time) *loop.Controller {
	b := &binder{registry.Of[*corev1.PersistentVolumeClaim](r), registry.Of[*corev1.PersistentVolume](r), registry.Of[*storagev1.StorageClass](r),
		registry.Of[*corev1.Node](r), registry.Of[*corev1.Pod](r), events, now}
	return &loop.Controller{
		Name: "persistentvolume-binder",
		Sources: []loop.Source{
			loop.Changes(r, b.claimChanged),
			loop.Changes(r, b.volumeChanged),
			loop.Changes(r, func(_, class *storagev1.StorageClass, _ bool) []loop.Key {
				return b.unbound(func(c *corev1.PersistentVolumeClaim) bool { return classOf(c) == "" || classOf(c) == class.Name })
			}),
		},
		Reconcile: b.reconcile,
	}
}

func (b *binder) claimChanged(old, claim *corev1.PersistentVolumeClaim, deleted bool) []loop.Key {
	keys := []loop.Key{loop.KeyOf(claim)}
	if !deleted && old != nil && old.Spec.VolumeName == claim.Spec.VolumeName {
		return keys
	}
	for _, v := range b.volumes.List("", nil) {
		if ref := v.Spec.ClaimRef; ref != nil && ref.Namespace == claim.Namespace && ref.Name == claim.Name {
			keys = append(keys, loop.KeyOf(v))
		}
	}
	return keys
}

func (b *binder) volumeChanged(_, v *corev1.PersistentVolume, deleted bool) []loop.Key {
	keys := []loop.Key{loop.KeyOf(v)}
	for _, c := range b.claims.List("", nil) {
		if c.Spec.VolumeName == v.Name || reservedFor(v, c) {
			keys = append(keys, loop.KeyOf(c))
		}
	}
	if deleted || v.Spec.ClaimRef != nil || v.Status.Phase != corev1.VolumeAvailable {
		return keys
	}
	return append(keys, b.unbound(func(c *corev1.PersistentVolumeClaim) bool { return classOf(c) == classOfVolume(v) })...)
}

// unbound gives the claims without a volume that satisfy which.
func (b *binder) unbound(which func(*corev1.PersistentVolumeClaim) bool) (keys []loop.Key) {
	for _, c := range b.claims.List("", nil) {
		if c.Spec.VolumeName == "" && which(c) {
			keys = append(keys, loop.KeyOf(c))
		}
	}
	return keys
}

func (b *binder) reconcile(ctx context.Context, key loop.Key) (time.Duration, error) {
	if key.Namespace == "" {
		return 0, children.IgnoreNotFound(b.reconcileVolume(ctx, key.Name))
	}
	claim, err := b.claims.Get(key.Namespace, key.Name)
	if err != nil {
		return 0, nil
	}
	return 0, children.IgnoreNotFound(b.applyClaim(ctx, claim, PlanClaim(claim, b.view(claim))))
}

func (b *binder) view(claim *corev1.PersistentVolumeClaim) View {
	view := View{Volumes: b.volumes.List("", nil), Volume: func(name string) *corev1.PersistentVolume {
		v, _ := b.volumes.Get("", name)
		return v
	}}
	view.Class, _ = b.classes.Get("", classOf(claim))
	view.Default = defaultClass(b.classes.List("", nil))
	if name, ok := claim.Annotations[selectedNode]; ok {
		view.Node, _ = b.nodes.Get("", name)
	}
	for _, p := range b.pods.List(claim.Namespace, nil) {
		if p.Spec.NodeName == "" && slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return claimOf(p, &v) == claim.Name }) {
			view.Waiting = append(view.Waiting, p.Name)
		}
	}
	return view
}

// defaultClass is the newest of the classes marked as default.
func defaultClass(classes []*storagev1.StorageClass) string {
	const mark, betaMark = "storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"
	classes = slices.DeleteFunc(slices.Clone(classes), func(c *storagev1.StorageClass) bool {
		return c.Annotations[mark] != "true" && c.Annotations[betaMark] != "true"
	})
	if len(classes) == 0 {
		return ""
	}
	return slices.MinFunc(classes, func(a, b *storagev1.StorageClass) int {
		return cmp.Or(b.CreationTimestamp.Compare(a.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	}).Name
}

func (b *binder) applyClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim, plan ClaimPlan) error {
	if plan.Bind != nil {
		return b.bind(ctx, plan.Bind, claim)
	}
	err := b.changeClaim(ctx, claim, func(now *corev1.PersistentVolumeClaim) {
		if plan.Class != "" {
			now.Spec.StorageClassName = &plan.Class
		}
		if plan.Provisioner != "" {
			metav1.SetMetaDataAnnotation(&now.ObjectMeta, provisioner, plan.Provisioner)
			metav1.SetMetaDataAnnotation(&now.ObjectMeta, betaProvisioner, plan.Provisioner)
		}
	})
	if err == nil && plan.Phase != "" {
		err = b.claimStatus(ctx, claim, plan.Phase, nil)
	}
	if err == nil && plan.Event != nil {
		b.events.Event(claim, plan.Event.Kind, plan.Event.Reason, plan.Event.Message)
	}
	return err
}

// bind writes the volume first: should the rest fail, the volume's reference
// leads the next look to the same binding.
func (b *binder) bind(ctx context.Context, v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	err := b.changeVolume(ctx, v, func(now *corev1.PersistentVolume) {
		if !reservedFor(now, claim) {
			metav1.SetMetaDataAnnotation(&now.ObjectMeta, boundByController, "yes")
		}
		if now.Spec.ClaimRef == nil || now.Spec.ClaimRef.UID != claim.UID {
			now.Spec.ClaimRef = &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace, Name: claim.Name,
				UID: claim.UID, ResourceVersion: claim.ResourceVersion}
		}
	})
	if err != nil {
		return err
	}
	if err := b.volumeStatus(ctx, v, corev1.VolumeBound, ""); err != nil {
		return err
	}
	err = b.changeClaim(ctx, claim, func(now *corev1.PersistentVolumeClaim) {
		if now.Spec.VolumeName != v.Name {
			now.Spec.VolumeName = v.Name
			metav1.SetMetaDataAnnotation(&now.ObjectMeta, boundByController, "yes")
		}
		metav1.SetMetaDataAnnotation(&now.ObjectMeta, bindCompleted, "yes")
	})
	if err != nil {
		return err
	}
	return b.claimStatus(ctx, claim, corev1.ClaimBound, v)
}

func (b *binder) claimStatus(ctx context.Context, claim *corev1.PersistentVolumeClaim, phase corev1.PersistentVolumeClaimPhase, v *corev1.PersistentVolume) error {
	_, err := b.claims.MutateStatus(ctx, claim.Namespace, claim.Name, func(now *corev1.PersistentVolumeClaim) error {
		s := &now.Status
		switch {
		case now.UID != claim.UID:
			return nil
		case v == nil:
			s.AccessModes, s.Capacity, s.CurrentVolumeAttributesClassName = nil, nil, nil
		default:
			if s.Phase != phase { // later its size is that of its file system
				s.Capacity, s.CurrentVolumeAttributesClassName = v.Spec.Capacity.DeepCopy(), v.Spec.VolumeAttributesClassName
			}
			if !equality.Semantic.DeepEqual(s.AccessModes, v.Spec.AccessModes) {
				s.AccessModes = slices.Clone(v.Spec.AccessModes)
			}
		}
		s.Phase = phase
		return nil
	})
	return err
}

func (b *binder) reconcileVolume(ctx context.Context, name string) error {
	v, err := b.volumes.Get("", name)
	if err != nil {
		return nil
	}
	var claim *corev1.PersistentVolumeClaim
	if ref := v.Spec.ClaimRef; ref != nil {
		claim, _ = b.claims.Get(ref.Namespace, ref.Name)
	}
	plan := PlanVolume(v, claim)
	if plan.Unbind {
		if err := b.changeVolume(ctx, v, unbind); err != nil {
			return err
		}
	}
	if plan.Phase != "" {
		if err := b.volumeStatus(ctx, v, plan.Phase, plan.Message); err != nil {
			return err
		}
	}
	if plan.Event != nil {
		b.events.Event(v, plan.Event.Kind, plan.Event.Reason, plan.Event.Message)
	}
	return nil
}

// unbind takes back a binding of ours; a reservation of the user's stays.
func unbind(v *corev1.PersistentVolume) {
	switch _, ours := v.Annotations[boundByController]; {
	case ours:
		v.Spec.ClaimRef = nil
		delete(v.Annotations, boundByController)
	case v.Spec.ClaimRef != nil:
		v.Spec.ClaimRef.UID = ""
	}
}

func (b *binder) volumeStatus(ctx context.Context, v *corev1.PersistentVolume, phase corev1.PersistentVolumePhase, message string) error {
	_, err := b.volumes.MutateStatus(ctx, "", v.Name, func(now *corev1.PersistentVolume) error {
		if now.UID == v.UID && now.Status.Phase != phase {
			at := metav1.NewTime(b.now()).Rfc3339Copy()
			now.Status.Phase, now.Status.Message, now.Status.LastPhaseTransitionTime = phase, message, &at
		}
		return nil
	})
	return err
}

func (b *binder) changeVolume(ctx context.Context, v *corev1.PersistentVolume, change func(*corev1.PersistentVolume)) error {
	_, err := b.volumes.Mutate(ctx, "", v.Name, func(now *corev1.PersistentVolume) error {
		if now.UID == v.UID {
			change(now)
		}
		return nil
	})
	return err
}

func (b *binder) changeClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim, change func(*corev1.PersistentVolumeClaim)) error {
	_, err := b.claims.Mutate(ctx, claim.Namespace, claim.Name, func(now *corev1.PersistentVolumeClaim) error {
		if now.UID == claim.UID {
			change(now)
		}
		return nil
	})
	return err
}
