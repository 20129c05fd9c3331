package kinds

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// workloadSelector asks for a selector that matches the template.
func (f *faults) workloadSelector(at *field.Path, s *metav1.LabelSelector, t *corev1.PodTemplateSpec, kind string) {
	if s == nil {
		f.required(at.Child("selector"), "")
	} else {
		f.selector(at.Child("selector"), s)
		if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
			f.invalid(at.Child("selector"), s, "empty selector is invalid for "+kind)
		}
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		f.invalid(at.Child("selector"), s, "invalid label selector")
	} else if !selector.Empty() && !selector.Matches(labels.Set(t.Labels)) {
		f.invalid(at.Child("template", "metadata", "labels"), t.Labels, "`selector` does not match template `labels`")
	}
}

func validateDeployment(d *appsv1.Deployment) field.ErrorList {
	var f faults
	s, at := &d.Spec, field.NewPath("spec")
	f.notNegative(at.Child("replicas"), int64(*s.Replicas))
	f.workloadSelector(at, s.Selector, &s.Template, "deployment")
	f.podTemplate(at.Child("template"), &s.Template)
	f.restartsForEver(at.Child("template", "spec"), &s.Template.Spec, "ReplicaSet")
	f.deploymentStrategy(at.Child("strategy"), &s.Strategy)
	f.notNegative(at.Child("minReadySeconds"), int64(s.MinReadySeconds))
	f.notNegative(at.Child("revisionHistoryLimit"), int64(derefOr(s.RevisionHistoryLimit, 0)))
	if p := s.ProgressDeadlineSeconds; p != nil {
		f.notNegative(at.Child("progressDeadlineSeconds"), int64(*p))
		if *p <= s.MinReadySeconds {
			f.invalid(at.Child("progressDeadlineSeconds"), p, "must be greater than minReadySeconds")
		}
	}
	return f.list
}

func (f *faults) deploymentStrategy(at *field.Path, s *appsv1.DeploymentStrategy) {
	switch s.Type {
	case appsv1.RecreateDeploymentStrategyType:
		if s.RollingUpdate != nil {
			f.forbidden(at.Child("rollingUpdate"), "may not be specified when strategy `type` is 'Recreate'")
		}
	case appsv1.RollingUpdateDeploymentStrategyType:
		path, r := at.Child("rollingUpdate"), s.RollingUpdate
		f.countOrPercent(path.Child("maxUnavailable"), *r.MaxUnavailable)
		f.countOrPercent(path.Child("maxSurge"), *r.MaxSurge)
		if isZero(*r.MaxUnavailable) && isZero(*r.MaxSurge) {
			f.invalid(path.Child("maxUnavailable"), *r.MaxUnavailable, "may not be 0 when `maxSurge` is 0")
		}
		f.atMostAll(path.Child("maxUnavailable"), *r.MaxUnavailable)
	default:
		f.add(field.NotSupported(at, s, []string{"Recreate", "RollingUpdate"}))
	}
}

func (f *faults) countOrPercent(at *field.Path, n intstr.IntOrString) {
	if n.Type == intstr.String {
		f.invalids(at, n, validation.IsValidPercent(n.StrVal))
		return
	}
	f.notNegative(at, int64(n.IntValue()))
}

func percent(n intstr.IntOrString) (int, bool) {
	if n.Type != intstr.String || len(validation.IsValidPercent(n.StrVal)) > 0 {
		return 0, false
	}
	value, err := strconv.Atoi(strings.TrimSuffix(n.StrVal, "%"))
	return value, err == nil
}

func isZero(n intstr.IntOrString) bool {
	if value, ok := percent(n); ok {
		return value == 0
	}
	return n.IntValue() == 0
}

func (f *faults) atMostAll(at *field.Path, n intstr.IntOrString) {
	if value, ok := percent(n); ok && value > 100 {
		f.invalid(at, n, "must not be greater than 100%")
	}
}

func validateDeploymentUpdate(d, old *appsv1.Deployment) field.ErrorList {
	var f faults
	immutable(&f, field.NewPath("spec", "selector"), d.Spec.Selector, old.Spec.Selector)
	return f.list
}

// replicaCounts are the numbers in a workload's status.
type replicaCounts struct {
	total, ready, available int32
	observed                int64
	others                  map[string]int32 // each at most total
	free                    map[string]int32 // not compared with total
	relative                string           // how the message names the ready ones
	collisions, old         *int32
}

func (c replicaCounts) validate() field.ErrorList {
	var f faults
	at := field.NewPath("status")
	f.notNegative(at.Child("observedGeneration"), c.observed)
	f.notNegative(at.Child("replicas"), int64(c.total))
	atMost := map[string]int32{"readyReplicas": c.ready, "availableReplicas": c.available}
	for name, n := range c.others {
		atMost[name] = n
	}
	for _, name := range sortedKeys(atMost) {
		f.notNegative(at.Child(name), int64(atMost[name]))
		if atMost[name] > c.total {
			f.invalid(at.Child(name), atMost[name], "cannot be greater than status.replicas")
		}
	}
	for _, name := range sortedKeys(c.free) {
		f.notNegative(at.Child(name), int64(c.free[name]))
	}
	if c.available > c.ready {
		f.invalid(at.Child("availableReplicas"), c.available, "cannot be greater than "+c.relative)
	}
	f.collisions(at, c.collisions, c.old)
	return f.list
}

func (f *faults) collisions(at *field.Path, now, old *int32) {
	f.notNegative(at.Child("collisionCount"), int64(derefOr(now, 0)))
	if old != nil && (now == nil || *now < *old) {
		f.invalid(at.Child("collisionCount"), derefOr(now, 0), "cannot be decremented")
	}
}

func validateDeploymentStatus(d, old *appsv1.Deployment) field.ErrorList {
	s := d.Status
	return replicaCounts{
		total: s.Replicas, ready: s.ReadyReplicas, available: s.AvailableReplicas, observed: s.ObservedGeneration,
		others:   map[string]int32{"updatedReplicas": s.UpdatedReplicas},
		free:     map[string]int32{"unavailableReplicas": s.UnavailableReplicas, "terminatingReplicas": derefOr(s.TerminatingReplicas, 0)},
		relative: "readyReplicas", collisions: s.CollisionCount, old: old.Status.CollisionCount,
	}.validate()
}

func validateReplicaSet(r *appsv1.ReplicaSet) field.ErrorList {
	var f faults
	s, at := &r.Spec, field.NewPath("spec")
	f.notNegative(at.Child("replicas"), int64(*s.Replicas))
	f.notNegative(at.Child("minReadySeconds"), int64(s.MinReadySeconds))
	f.workloadSelector(at, s.Selector, &s.Template, "deployment")
	f.podTemplate(at.Child("template"), &s.Template)
	f.restartsForEver(at.Child("template", "spec"), &s.Template.Spec, "ReplicaSet")
	return f.list
}

func validateReplicaSetUpdate(r, old *appsv1.ReplicaSet) field.ErrorList {
	var f faults
	immutable(&f, field.NewPath("spec", "selector"), r.Spec.Selector, old.Spec.Selector)
	return f.list
}

func validateReplicaSetStatus(r, _ *appsv1.ReplicaSet) field.ErrorList {
	s := r.Status
	return replicaCounts{
		total: s.Replicas, ready: s.ReadyReplicas, available: s.AvailableReplicas, observed: s.ObservedGeneration,
		others:   map[string]int32{"fullyLabeledReplicas": s.FullyLabeledReplicas},
		free:     map[string]int32{"terminatingReplicas": derefOr(s.TerminatingReplicas, 0)},
		relative: "readyReplicas",
	}.validate()
}

func validateDaemonSet(d *appsv1.DaemonSet) field.ErrorList {
	var f faults
	s, at := &d.Spec, field.NewPath("spec")
	f.selector(at.Child("selector"), s.Selector)
	if selector, err := metav1.LabelSelectorAsSelector(s.Selector); err == nil && !selector.Matches(labels.Set(s.Template.Labels)) {
		f.invalid(at.Child("template", "metadata", "labels"), s.Template.Labels, "`selector` does not match template `labels`")
	}
	if s.Selector != nil && len(s.Selector.MatchLabels)+len(s.Selector.MatchExpressions) == 0 {
		f.invalid(at.Child("selector"), s.Selector, "empty selector is invalid for daemonset")
	}
	f.podTemplate(at.Child("template"), &s.Template)
	f.restartsForEver(at.Child("template", "spec"), &s.Template.Spec, "DaemonSet")
	f.notNegative(at.Child("minReadySeconds"), int64(s.MinReadySeconds))
	f.notNegative(at.Child("revisionHistoryLimit"), int64(derefOr(s.RevisionHistoryLimit, 0)))
	f.daemonStrategy(at.Child("updateStrategy"), &s.UpdateStrategy)
	return f.list
}

func (f *faults) daemonStrategy(at *field.Path, s *appsv1.DaemonSetUpdateStrategy) {
	switch s.Type {
	case appsv1.OnDeleteDaemonSetStrategyType:
	case appsv1.RollingUpdateDaemonSetStrategyType:
		path, r := at.Child("rollingUpdate"), s.RollingUpdate
		f.countOrPercent(path.Child("maxUnavailable"), *r.MaxUnavailable)
		f.countOrPercent(path.Child("maxSurge"), *r.MaxSurge)
		f.atMostAll(path.Child("maxUnavailable"), *r.MaxUnavailable)
		f.atMostAll(path.Child("maxSurge"), *r.MaxSurge)
		switch down, up := !isZero(*r.MaxUnavailable), !isZero(*r.MaxSurge); {
		case down && up:
			f.invalid(path.Child("maxSurge"), *r.MaxSurge, "may not be set when maxUnavailable is non-zero")
		case !down && !up:
			f.required(path.Child("maxUnavailable"), "cannot be 0 when maxSurge is 0")
		}
	default:
		f.add(field.NotSupported(at, s, []string{"RollingUpdate", "OnDelete"}))
	}
}

func validateDaemonSetUpdate(d, old *appsv1.DaemonSet) field.ErrorList {
	var f faults
	immutable(&f, field.NewPath("spec", "selector"), d.Spec.Selector, old.Spec.Selector)
	return f.list
}

func validateDaemonSetStatus(d, old *appsv1.DaemonSet) field.ErrorList {
	var f faults
	s, at := d.Status, field.NewPath("status")
	for _, n := range []struct {
		name  string
		value int64
	}{
		{"currentNumberScheduled", int64(s.CurrentNumberScheduled)}, {"numberMisscheduled", int64(s.NumberMisscheduled)},
		{"desiredNumberScheduled", int64(s.DesiredNumberScheduled)}, {"numberReady", int64(s.NumberReady)},
		{"observedGeneration", s.ObservedGeneration}, {"updatedNumberScheduled", int64(s.UpdatedNumberScheduled)},
		{"numberAvailable", int64(s.NumberAvailable)}, {"numberUnavailable", int64(s.NumberUnavailable)},
	} {
		f.notNegative(at.Child(n.name), n.value)
	}
	f.collisions(at, s.CollisionCount, old.Status.CollisionCount)
	return f.list
}

func validateStatefulSet(s *appsv1.StatefulSet) field.ErrorList {
	var f faults
	f.statefulSet(field.NewPath("spec"), &s.Spec)
	return f.list
}

func (f *faults) statefulSet(at *field.Path, s *appsv1.StatefulSetSpec) {
	switch s.PodManagementPolicy {
	case appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement:
	default:
		f.invalid(at.Child("podManagementPolicy"), s.PodManagementPolicy, "must be 'OrderedReady' or 'Parallel'")
	}
	f.statefulStrategy(at.Child("updateStrategy"), &s.UpdateStrategy)
	retention := at.Child("persistentVolumeClaimRetentionPolicy")
	for name, policy := range map[string]appsv1.PersistentVolumeClaimRetentionPolicyType{
		"whenDeleted": s.PersistentVolumeClaimRetentionPolicy.WhenDeleted, "whenScaled": s.PersistentVolumeClaimRetentionPolicy.WhenScaled,
	} {
		supports(f, retention.Child(name), policy, appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType)
	}
	for i := range s.VolumeClaimTemplates {
		f.claimSpec(at.Child("volumeClaimTemplates").Index(i).Child("spec"), &s.VolumeClaimTemplates[i].Spec)
	}
	f.notNegative(at.Child("replicas"), int64(*s.Replicas))
	f.notNegative(at.Child("minReadySeconds"), int64(s.MinReadySeconds))
	if s.Ordinals != nil {
		f.notNegative(at.Child("ordinals.start"), int64(s.Ordinals.Start))
	}
	if s.ServiceName != "" {
		f.invalids(at.Child("serviceName"), s.ServiceName, validation.IsDNS1123Label(s.ServiceName))
	}
	f.workloadSelector(at, s.Selector, &s.Template, "statefulset")
	f.podTemplate(at.Child("template"), withClaimVolumes(s))
	f.restartsForEver(at.Child("template", "spec"), &s.Template.Spec, "StatefulSet")
}

// withClaimVolumes is the template as the controller will complete it: with a
// volume for each claim, and without the names that each pod gets of its own.
func withClaimVolumes(s *appsv1.StatefulSetSpec) *corev1.PodTemplateSpec {
	t := s.Template
	t.Spec.Subdomain, t.Spec.Hostname = "", ""
	if len(s.VolumeClaimTemplates) == 0 {
		return &t
	}
	claims := make(map[string]bool, len(s.VolumeClaimTemplates))
	var volumes []corev1.Volume
	for i := range s.VolumeClaimTemplates {
		name := s.VolumeClaimTemplates[i].Name
		if claims[name] {
			continue
		}
		claims[name] = true
		volumes = append(volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
		}})
	}
	for _, v := range t.Spec.Volumes {
		if !claims[v.Name] {
			volumes = append(volumes, v)
		}
	}
	t.Spec.Volumes = volumes
	return &t
}

func (f *faults) statefulStrategy(at *field.Path, s *appsv1.StatefulSetUpdateStrategy) {
	path, r := at.Child("rollingUpdate"), s.RollingUpdate
	switch s.Type {
	case appsv1.OnDeleteStatefulSetStrategyType:
		if r != nil {
			f.invalid(path, r, "only allowed for updateStrategy 'RollingUpdate'")
		}
	case appsv1.RollingUpdateStatefulSetStrategyType:
		if r == nil {
			return
		}
		f.notNegative(path.Child("partition"), int64(derefOr(r.Partition, 0)))
		if n := r.MaxUnavailable; n != nil {
			f.countOrPercent(path.Child("maxUnavailable"), *n)
			if isZero(*n) {
				f.invalid(path.Child("maxUnavailable"), *n, "cannot be 0")
			}
			f.atMostAll(path.Child("maxUnavailable"), *n)
		}
	default:
		f.invalid(at, *s, "must be 'RollingUpdate' or 'OnDelete'")
	}
}

func validateStatefulSetUpdate(s, old *appsv1.StatefulSet) field.ErrorList {
	now, was := s.Spec, old.Spec
	now.Replicas, now.Template, now.UpdateStrategy = was.Replicas, was.Template, was.UpdateStrategy
	now.MinReadySeconds, now.Ordinals, now.RevisionHistoryLimit = was.MinReadySeconds, was.Ordinals, was.RevisionHistoryLimit
	now.PersistentVolumeClaimRetentionPolicy = was.PersistentVolumeClaimRetentionPolicy
	if sameValue(now, was) {
		return nil
	}
	return field.ErrorList{field.Forbidden(field.NewPath("spec"), "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden")}
}

func validateStatefulSetStatus(s, old *appsv1.StatefulSet) field.ErrorList {
	st := s.Status
	return replicaCounts{
		total: st.Replicas, ready: st.ReadyReplicas, available: st.AvailableReplicas, observed: st.ObservedGeneration,
		others:   map[string]int32{"currentReplicas": st.CurrentReplicas, "updatedReplicas": st.UpdatedReplicas},
		relative: "status.readyReplicas", collisions: st.CollisionCount, old: old.Status.CollisionCount,
	}.validate()
}

func validateControllerRevision(c *appsv1.ControllerRevision) field.ErrorList {
	var f faults
	f.notNegative(field.NewPath("revision"), c.Revision)
	var data any
	at := field.NewPath("data")
	if c.Data.Raw == nil {
		f.required(at, "data is mandatory")
	} else if err := json.Unmarshal(c.Data.Raw, &data); err != nil {
		f.invalid(at, "<value omitted>", fmt.Sprintf("error parsing data: %v", err))
	} else if data == nil {
		f.required(at, "data is mandatory")
	} else if _, ok := data.(map[string]any); !ok {
		f.required(at, "data must be a valid JSON object")
	}
	return f.list
}

func validateControllerRevisionUpdate(c, old *appsv1.ControllerRevision) field.ErrorList {
	var f faults
	immutable(&f, field.NewPath("data"), c.Data, old.Data)
	return f.list
}
