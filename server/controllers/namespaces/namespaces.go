// Package namespaces empties namespaces that are being deleted and then lets
// them go.
package namespaces

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/loop"
	"orch/server/registry"
)

// Controller gives the namespace controller.
func Controller(r *registry.Registry, now func() time.Time) *loop.Controller {
	c := &controller{registry: r, namespaces: registry.Of[*corev1.Namespace](r), now: now}
	return &loop.Controller{
		Name:    "namespace",
		Workers: 10,
		Sources: []loop.Source{
			loop.Changes(r, func(_, ns *corev1.Namespace, deleted bool) []loop.Key {
				if deleted || ns.DeletionTimestamp == nil {
					return nil
				}
				return []loop.Key{{Name: ns.Name}}
			}),
			// Pods are what a namespace waits for longest.
			loop.Changes(r, func(_, p *corev1.Pod, deleted bool) []loop.Key {
				if !deleted {
					return nil
				}
				return []loop.Key{{Name: p.Namespace}}
			}),
		},
		Reconcile: c.reconcile,
	}
}

type controller struct {
	registry   *registry.Registry
	namespaces registry.Typed[*corev1.Namespace]
	now        func() time.Time
}

// contents is what is still in a namespace after a round of deletions.
type contents struct {
	left       map[string]int // by resource
	finalizers map[string]int // objects that wait for a finalizer, by finalizer
	failures   []error
}

func (c *controller) reconcile(ctx context.Context, key loop.Key) (time.Duration, error) {
	ns, err := c.namespaces.Get("", key.Name)
	if err != nil || ns.DeletionTimestamp == nil {
		return 0, nil
	}
	if !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		return 0, nil
	}
	found := c.empty(ctx, ns.Name)
	if err := c.record(ctx, ns, found); err != nil {
		return 0, err
	}
	if len(found.failures) > 0 {
		return 0, errors.Join(found.failures...)
	}
	if len(found.left) > 0 {
		// Deletions are under way: pods within their grace, whose end wakes us, and
		// others held by finalizers that their owners will remove soon or never.
		return min(max(c.now().Sub(ns.DeletionTimestamp.Time)/4, 100*time.Millisecond), 10*time.Second), nil
	}
	return 0, c.release(ctx, ns.Name)
}

// empty asks for the deletion of all objects in the namespace and sees what is left.
func (c *controller) empty(ctx context.Context, namespace string) *contents {
	found := &contents{left: map[string]int{}, finalizers: map[string]int{}}
	// Pods go first: they may need their secrets, accounts and policies until
	// the end (KEP-5080).
	if err := c.emptyResource(ctx, c.registry.Lookup("", "v1", "pods"), namespace, found); err != nil {
		found.failures = append(found.failures, fmt.Errorf("delete pods in namespace %s: %w", namespace, err))
	}
	if len(found.left) > 0 || len(found.failures) > 0 {
		return found
	}
	for _, res := range c.registry.Resources() {
		if !res.Namespaced || res.Stored != nil || res.Evaluate != nil || !deletable(res) {
			continue
		}
		if err := c.emptyResource(ctx, res, namespace, found); err != nil {
			found.failures = append(found.failures, fmt.Errorf("delete %s in namespace %s: %w", res.Plural, namespace, err))
		}
	}
	return found
}

func deletable(res *registry.Resource) bool {
	return res.Verbs == nil || slices.Contains(res.Verbs, "delete")
}

func (c *controller) emptyResource(ctx context.Context, res *registry.Resource, namespace string, found *contents) error {
	list, err := c.registry.List(ctx, res, registry.Selection{Namespace: namespace}, &metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return err
	}
	background := metav1.DeletePropagationBackground
	for _, obj := range list.Items {
		if obj.GetDeletionTimestamp() == nil {
			_, gone, err := c.registry.Delete(ctx, res, namespace, obj.GetName(), &metav1.DeleteOptions{PropagationPolicy: &background})
			switch {
			case apierrors.IsNotFound(err), err == nil && gone:
				continue
			case err != nil:
				return err
			}
		}
		found.left[res.Plural+"."+res.Group]++
		for _, f := range obj.GetFinalizers() {
			found.finalizers[f]++
		}
	}
	return nil
}

// release takes the finalizer away, with which the namespace is gone.
func (c *controller) release(ctx context.Context, name string) error {
	res := c.registry.Lookup("", "v1", "namespaces")
	_, err := c.registry.Mutate(ctx, res, "finalize", "", name, func(obj registry.Object) error {
		ns := obj.(*corev1.Namespace)
		ns.Spec.Finalizers = slices.DeleteFunc(ns.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
		return nil
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// record keeps the conditions that tell why a namespace is still there.
func (c *controller) record(ctx context.Context, ns *corev1.Namespace, found *contents) error {
	conditions := plan(found)
	_, err := c.namespaces.MutateStatus(ctx, "", ns.Name, func(now *corev1.Namespace) error {
		now.Status.Phase = corev1.NamespaceTerminating
		for _, condition := range conditions {
			setCondition(&now.Status, condition, c.now())
		}
		return nil
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func plan(found *contents) []corev1.NamespaceCondition {
	condition := func(kind corev1.NamespaceConditionType, problem bool, reason, message, okReason, okMessage string) corev1.NamespaceCondition {
		if problem {
			return corev1.NamespaceCondition{Type: kind, Status: corev1.ConditionTrue, Reason: reason, Message: message}
		}
		return corev1.NamespaceCondition{Type: kind, Status: corev1.ConditionFalse, Reason: okReason, Message: okMessage}
	}
	failures := ""
	if n := len(found.failures); n > 0 {
		messages := make([]string, 0, n)
		for _, err := range found.failures {
			messages = append(messages, err.Error())
		}
		slices.Sort(messages)
		failures = fmt.Sprintf("Failed to delete all resource types, %d remaining: %s", n, strings.Join(messages, ", "))
	}
	return []corev1.NamespaceCondition{
		condition(corev1.NamespaceDeletionDiscoveryFailure, false, "", "", "ResourcesDiscovered", "All resources successfully discovered"),
		condition(corev1.NamespaceDeletionGVParsingFailure, false, "", "", "ParsedGroupVersions", "All legacy kube types successfully parsed"),
		condition(corev1.NamespaceDeletionContentFailure, failures != "", "ContentDeletionFailed", failures,
			"ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
		condition(corev1.NamespaceContentRemaining, len(found.left) > 0, "SomeResourcesRemain",
			"Some resources are remaining: "+listing(found.left, "%s has %d resource instances"), "ContentRemoved", "All content successfully removed"),
		condition(corev1.NamespaceFinalizersRemaining, len(found.finalizers) > 0, "SomeFinalizersRemain",
			"Some content in the namespace has finalizers remaining: "+listing(found.finalizers, "%s in %d resource instances"),
			"ContentHasNoFinalizers", "All content-preserving finalizers finished"),
	}
}

func listing(counts map[string]int, format string) string {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		lines = append(lines, fmt.Sprintf(format, name, counts[name]))
	}
	return strings.Join(lines, ", ")
}

func setCondition(status *corev1.NamespaceStatus, c corev1.NamespaceCondition, now time.Time) {
	for i := range status.Conditions {
		old := &status.Conditions[i]
		if old.Type == c.Type {
			if old.Status != c.Status {
				old.LastTransitionTime = metav1.NewTime(now).Rfc3339Copy()
			}
			old.Status, old.Reason, old.Message = c.Status, c.Reason, c.Message
			return
		}
	}
	c.LastTransitionTime = metav1.NewTime(now).Rfc3339Copy()
	status.Conditions = append(status.Conditions, c)
}
