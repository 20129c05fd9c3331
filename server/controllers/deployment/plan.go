package deployment

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/children"
)

// Annotations that kubectl rollout and upstream's controller know.
const (
	revisionAnnotation    = "deployment.kubernetes.io/revision"
	historyAnnotation     = "deployment.kubernetes.io/revision-history"
	desiredAnnotation     = "deployment.kubernetes.io/desired-replicas"
	maxReplicasAnnotation = "deployment.kubernetes.io/max-replicas"
	hashLabel             = appsv1.DefaultDeploymentUniqueLabelKey
)

// maxHistory is the length to which the annotation of former revisions may grow.
const maxHistory = 2000

// Snapshot is what one look at a deployment sees.
type Snapshot struct {
	Deployment *appsv1.Deployment
	Sets       []*appsv1.ReplicaSet // those it owns
	OldPods    func(old []*appsv1.ReplicaSet) bool
}

// Scaling is a set that gets another number of replicas.
type Scaling struct {
	Set      *appsv1.ReplicaSet
	Replicas int32
}

// Plan is the next step of a rollout.
type Plan struct {
	Create   *appsv1.ReplicaSet
	Scale    []Scaling
	Annotate []*appsv1.ReplicaSet // changed copies
	Delete   []*appsv1.ReplicaSet
	Revision string // of the deployment; "": as it is
	Status   appsv1.DeploymentStatus
	Again    time.Duration
}

// Reconcile plans the next step: one change of the sets, whose event brings the
// next look.
func Reconcile(now time.Time, s Snapshot) Plan {
	d := s.Deployment
	current, old := split(d, s.Sets)
	var plan Plan
	if current != nil {
		plan.annotate(d, current, nextRevision(current, old))
	}
	resting := d.Spec.Paused || scalingOnly(d, s.Sets)
	switch {
	case len(plan.Annotate) > 0:
	case resting:
		plan.proportional(d, current, old)
	case d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType:
		plan.recreate(s, current, old)
	case current == nil:
		plan.create(d, old)
	default:
		plan.roll(d, current, old)
	}
	plan.Status = statusOf(d, s.Sets, now)
	plan.pause(now, d)
	if !resting {
		plan.progress(now, d, current)
	}
	if len(plan.Scale) == 0 && (d.Spec.Paused || complete(d, &d.Status) && d.Status.ObservedGeneration >= d.Generation) {
		plan.cleanup(d, old)
	}
	return plan
}

// split tells the set of the present template from the others, oldest first.
func split(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) (current *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) {
	sorted := slices.Clone(sets)
	slices.SortFunc(sorted, func(a, b *appsv1.ReplicaSet) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	for _, rs := range sorted {
		if current == nil && sameTemplate(&rs.Spec.Template, &d.Spec.Template) {
			current = rs
			continue
		}
		old = append(old, rs)
	}
	return current, old
}

// sameTemplate compares templates but for the hash label.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	x, y := *a, *b
	x.Labels, y.Labels = maps.Clone(a.Labels), maps.Clone(b.Labels)
	delete(x.Labels, hashLabel)
	delete(y.Labels, hashLabel)
	return equality.Semantic.DeepEqual(&x, &y)
}

func revisionOf(rs *appsv1.ReplicaSet) int64 {
	v, _ := strconv.ParseInt(rs.Annotations[revisionAnnotation], 10, 64)
	return v
}

// nextRevision is one above the newest of the old sets; the current set keeps
// its own when that is higher.
func nextRevision(current *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) string {
	newest := int64(0)
	for _, rs := range old {
		newest = max(newest, revisionOf(rs))
	}
	next := newest + 1
	if current != nil {
		next = max(next, revisionOf(current))
	}
	return strconv.FormatInt(next, 10)
}

// create plans the replica set of the deployment's present template.
func (plan *Plan) create(d *appsv1.Deployment, old []*appsv1.ReplicaSet) {
	template := d.Spec.Template.DeepCopy()
	hash := children.TemplateHash(template, d.Status.CollisionCount)
	if template.Labels == nil {
		template.Labels = map[string]string{}
	}
	template.Labels[hashLabel] = hash
	selector := d.Spec.Selector.DeepCopy()
	if selector.MatchLabels == nil {
		selector.MatchLabels = map[string]string{}
	}
	selector.MatchLabels[hashLabel] = hash
	replicas := newReplicas(d, nil, old)
	rs := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: d.Namespace, Name: d.Name + "-" + hash, Labels: maps.Clone(template.Labels), Annotations: inherited(d),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, kind)},
		},
		Spec: appsv1.ReplicaSetSpec{Replicas: &replicas, MinReadySeconds: d.Spec.MinReadySeconds, Selector: selector, Template: *template},
	}
	plan.Revision = nextRevision(nil, old)
	rs.Annotations[revisionAnnotation] = plan.Revision
	setReplicasAnnotations(d, rs)
	plan.Create = rs
}

// inherited are the deployment's annotations that its sets carry too.
func inherited(d *appsv1.Deployment) map[string]string {
	out := map[string]string{}
	for k, v := range d.Annotations {
		switch k {
		case corev1.LastAppliedConfigAnnotation, revisionAnnotation, historyAnnotation, desiredAnnotation, maxReplicasAnnotation, appsv1.DeprecatedRollbackTo:
		default:
			out[k] = v
		}
	}
	return out
}

func setReplicasAnnotations(d *appsv1.Deployment, rs *appsv1.ReplicaSet) {
	if rs.Annotations == nil {
		rs.Annotations = map[string]string{}
	}
	rs.Annotations[desiredAnnotation] = strconv.Itoa(int(*d.Spec.Replicas))
	rs.Annotations[maxReplicasAnnotation] = strconv.Itoa(int(*d.Spec.Replicas + surge(d)))
}

// annotate brings the current set's annotations up to date. A set that comes
// back by a rollback gets a new revision and remembers its former ones.
func (plan *Plan) annotate(d *appsv1.Deployment, current *appsv1.ReplicaSet, revision string) {
	plan.Revision = revision
	changed := current.DeepCopy()
	if changed.Annotations == nil {
		changed.Annotations = map[string]string{}
	}
	maps.Copy(changed.Annotations, inherited(d))
	if was := current.Annotations[revisionAnnotation]; was != revision {
		if was != "" {
			changed.Annotations[historyAnnotation] = remember(current.Annotations[historyAnnotation], was)
		}
		changed.Annotations[revisionAnnotation] = revision
	}
	changed.Spec.MinReadySeconds = d.Spec.MinReadySeconds
	if !maps.Equal(changed.Annotations, current.Annotations) || changed.Spec.MinReadySeconds != current.Spec.MinReadySeconds {
		plan.Annotate = append(plan.Annotate, changed)
	}
}

// remember adds a revision to a list of former ones, of which the oldest are
// forgotten when it grows too long.
func remember(history, revision string) string {
	if history == "" {
		return revision
	}
	history += "," + revision
	for len(history) > maxHistory {
		_, history, _ = strings.Cut(history, ",")
	}
	return history
}

// cleanup deletes old sets beyond the history limit, oldest revision first.
func (plan *Plan) cleanup(d *appsv1.Deployment, old []*appsv1.ReplicaSet) {
	if d.Spec.RevisionHistoryLimit == nil {
		return
	}
	idle := slices.DeleteFunc(slices.Clone(old), func(rs *appsv1.ReplicaSet) bool { return rs.DeletionTimestamp != nil })
	slices.SortStableFunc(idle, func(a, b *appsv1.ReplicaSet) int { return cmp.Compare(revisionOf(a), revisionOf(b)) })
	for i := range len(idle) - int(*d.Spec.RevisionHistoryLimit) {
		rs := idle[i]
		if rs.Status.Replicas == 0 && *rs.Spec.Replicas == 0 && rs.Generation <= rs.Status.ObservedGeneration {
			plan.Delete = append(plan.Delete, rs)
		}
	}
}
