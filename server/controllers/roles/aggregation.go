// Package roles keeps the rules of cluster roles that are put together from
// others.
package roles

import (
	"context"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"orch/server/auth"
	"orch/server/controllers/children"
	"orch/server/controllers/loop"
	"orch/server/registry"
)

// fieldManager is upstream's, so that clients that know it leave the rules to it.
const fieldManager = "clusterrole-aggregation-controller"

// Aggregation gives the controller of aggregated cluster roles.
func Aggregation(r *registry.Registry) *loop.Controller {
	roles := registry.Of[*rbacv1.ClusterRole](r)
	return &loop.Controller{
		Name: "clusterrole-aggregation",
		// Any role may be a part of any other, or have been.
		Sources: []loop.Source{loop.Changes(r, func(old, changed *rbacv1.ClusterRole, deleted bool) []loop.Key {
			if old != nil && !deleted && equality.Semantic.DeepEqual(old.Rules, changed.Rules) &&
				equality.Semantic.DeepEqual(old.Labels, changed.Labels) && equality.Semantic.DeepEqual(old.AggregationRule, changed.AggregationRule) {
				return nil
			}
			var keys []loop.Key
			for _, role := range roles.List("", nil) {
				if role.AggregationRule != nil {
					keys = append(keys, loop.KeyOf(role))
				}
			}
			return keys
		})},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			role, err := roles.Get("", key.Name)
			if err != nil {
				return 0, nil
			}
			rules, aggregated := auth.AggregatedRules(role, roles.List("", nil))
			if !aggregated || equality.Semantic.DeepEqual(rules, role.Rules) {
				return 0, nil
			}
			_, err = roles.Mutate(registry.WithFieldManager(ctx, fieldManager), "", key.Name, func(role *rbacv1.ClusterRole) error {
				role.Rules = rules
				return nil
			})
			return 0, children.IgnoreNotFound(err)
		},
	}
}
