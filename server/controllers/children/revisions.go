package children

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"reflect"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/rand"

	"orch/server/registry"
)

// Revisions keeps the pod templates that a set has had, as ControllerRevisions
// that kubectl rollout can list and go back to.
type Revisions struct {
	registry.Typed[*appsv1.ControllerRevision]
}

// History is what a set has had: the revision of its present template and the
// others, oldest first.
type History struct {
	Current    *appsv1.ControllerRevision
	Old        []*appsv1.ControllerRevision
	Collisions int32 // of names; belongs into the set's status
}

// Template says how the present template of a set is kept.
type Template struct {
	Spec        *corev1.PodTemplateSpec
	Annotations map[string]string // the set's own
	HashLabel   string
	Collisions  *int32 // of the set's status
}

// Settle claims the revisions of owner, makes one of its present template when
// there is none, and makes that the newest: a rollback raises an old revision.
func (r Revisions) Settle(ctx context.Context, owner Owner, t Template) (History, error) {
	claimed, err := Apply(ctx, owner, r.Typed, ClaimAll(owner, r.List(owner.GetNamespace(), owner.Selector)))
	if err != nil {
		return History{}, err
	}
	patch, err := templatePatch(t.Spec)
	if err != nil {
		return History{}, fmt.Errorf("encode template: %w", err)
	}
	h := split(claimed, patch)
	if t.Collisions != nil {
		h.Collisions = *t.Collisions
	}
	next := int64(1)
	if len(h.Old) > 0 {
		next = h.Old[len(h.Old)-1].Revision + 1
	}
	switch {
	case h.Current == nil:
		h.Current, err = r.add(ctx, owner, t, patch, next, &h.Collisions)
	case h.Current.Revision < next:
		h.Current, err = r.Mutate(ctx, h.Current.Namespace, h.Current.Name, func(c *appsv1.ControllerRevision) error {
			c.Revision = next
			return nil
		})
	}
	return h, err
}

// split tells the newest revision with these contents from the others.
func split(all []*appsv1.ControllerRevision, patch []byte) (h History) {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b *appsv1.ControllerRevision) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	for i := len(all) - 1; i >= 0; i-- {
		if h.Current == nil && samePatch(all[i].Data.Raw, patch) {
			h.Current = all[i]
			continue
		}
		h.Old = append(h.Old, all[i])
	}
	slices.Reverse(h.Old)
	return h
}

// add stores a revision; one of the same name with other contents counts as a
// collision and is gone around.
func (r Revisions) add(ctx context.Context, owner Owner, t Template, patch []byte, number int64, collisions *int32) (*appsv1.ControllerRevision, error) {
	for {
		hash := contentHash(patch, collisions)
		labels := maps.Clone(t.Spec.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		labels[t.HashLabel] = hash
		name := owner.GetName()
		revision := &appsv1.ControllerRevision{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: owner.GetNamespace(), Name: name[:min(len(name), 223)] + "-" + hash,
				Labels: labels, Annotations: maps.Clone(t.Annotations),
				OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(owner.Object, owner.Kind)},
			},
			Data: runtime.RawExtension{Raw: patch}, Revision: number,
		}
		name = revision.Name
		created, err := r.Create(ctx, revision)
		if !apierrors.IsAlreadyExists(err) {
			return created, err
		}
		if existing, getErr := r.Get(owner.GetNamespace(), name); getErr == nil && metav1.IsControlledBy(existing, owner.Object) && samePatch(existing.Data.Raw, patch) {
			return existing, nil
		}
		*collisions++
	}
}

// Truncate deletes the oldest revisions beyond the limit; a negative one keeps
// them all. Live ones, which pods still carry, stay.
func (r Revisions) Truncate(ctx context.Context, old []*appsv1.ControllerRevision, limit *int32, live func(*appsv1.ControllerRevision) bool) error {
	if limit == nil || *limit < 0 {
		return nil
	}
	idle := slices.DeleteFunc(slices.Clone(old), live)
	for i := range len(idle) - int(*limit) {
		if err := r.Delete(ctx, idle[i].Namespace, idle[i].Name, metav1.DeleteOptions{}); IgnoreNotFound(err) != nil {
			return err
		}
	}
	return nil
}

// TemplateOf gives the template that a revision keeps.
func TemplateOf(revision *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var kept struct {
		Spec struct {
			Template corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(revision.Data.Raw, &kept); err != nil {
		return nil, fmt.Errorf("decode revision %s: %w", revision.Name, err)
	}
	return &kept.Spec.Template, nil
}

// templatePatch is the strategic merge patch that puts the template back.
func templatePatch(template *corev1.PodTemplateSpec) ([]byte, error) {
	encoded, err := json.Marshal(template)
	if err != nil {
		return nil, err
	}
	var fields map[string]any
	if err := json.Unmarshal(encoded, &fields); err != nil {
		return nil, err
	}
	fields["$patch"] = "replace"
	return json.Marshal(map[string]any{"spec": map[string]any{"template": fields}})
}

// samePatch compares contents, so that another order of fields is no change.
func samePatch(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// TemplateHash names a template. Sets of equal templates have equal names, so
// that a controller that crashed in between finds what it made.
func TemplateHash(template *corev1.PodTemplateSpec, collisions *int32) string {
	encoded, _ := json.Marshal(template) // API types always encode
	return contentHash(encoded, collisions)
}

func contentHash(content []byte, collisions *int32) string {
	h := fnv.New32a()
	h.Write(content)
	if collisions != nil {
		fmt.Fprint(h, *collisions)
	}
	return rand.SafeEncodeString(fmt.Sprint(h.Sum32()))
}
