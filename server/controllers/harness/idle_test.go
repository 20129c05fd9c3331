package harness_test

import (
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"orch/server/controllers/accounts"
	"orch/server/controllers/certificates"
	"orch/server/controllers/cronjob"
	"orch/server/controllers/daemonset"
	"orch/server/controllers/deployment"
	"orch/server/controllers/disruption"
	"orch/server/controllers/endpoints"
	"orch/server/controllers/garbage"
	"orch/server/controllers/harness"
	"orch/server/controllers/job"
	"orch/server/controllers/loop"
	"orch/server/controllers/namespaces"
	"orch/server/controllers/nodes"
	"orch/server/controllers/quota"
	"orch/server/controllers/replicaset"
	"orch/server/controllers/roles"
	"orch/server/controllers/statefulset"
	"orch/server/controllers/volumes"
	"orch/server/registry"
)

// controllers are all that keep something the way it is.
func controllers(h *harness.Harness) []*loop.Controller {
	r, pods, events, now := h.Registry, h.Pods, h.Events, time.Now
	return []*loop.Controller{
		replicaset.Controller(r, pods, events, now), replicaset.ReplicationControllers(r, pods, events, now), deployment.Controller(r, pods, events, now),
		daemonset.Controller(r, pods, events, now), statefulset.Controller(r, pods, events, now), job.Controller(r, pods, events, now), job.Orphans(r, pods),
		cronjob.Controller(r, events, now), endpoints.Slices(r), endpoints.Endpoints(r), endpoints.Mirroring(r, events), disruption.Controller(r, events, now),
		quota.Controller(r, now), volumes.Binder(r, events, now), volumes.ClaimProtection(r), volumes.VolumeProtection(r), volumes.Ephemeral(r, events),
		nodes.Lifecycle(r, pods, events, now), nodes.Eviction(r, pods, events, now), nodes.Orphans(r, pods, now), nodes.Keys(r, now),
		namespaces.Controller(r, now), accounts.ServiceAccount(r), accounts.RootCA(r, []byte("bundle")), roles.Aggregation(r),
		disruption.Stale(r, now), garbage.FinishedJobs(r, now), certificates.Cleaning(r, now),
	}
}

func workloads(h *harness.Harness) {
	meta := metav1.ObjectMeta{Namespace: harness.Namespace, Name: "w"}
	named := func(app string) (*metav1.LabelSelector, corev1.PodTemplateSpec) {
		return harness.Selector(app), harness.Template(app)
	}
	two, half := int32(2), intstr.FromString("50%")
	selector, template := named("deploy")
	harness.Create(h, &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Replicas: &two, Selector: selector, Template: template}})
	harness.Create(h, &policyv1.PodDisruptionBudget{ObjectMeta: meta, Spec: policyv1.PodDisruptionBudgetSpec{MaxUnavailable: &half, Selector: selector}})
	harness.Create(h, &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{Selector: selector.MatchLabels, Ports: []corev1.ServicePort{{Port: 80}}}})
	selector, template = named("daemon")
	harness.Create(h, &appsv1.DaemonSet{ObjectMeta: meta, Spec: appsv1.DaemonSetSpec{Selector: selector, Template: template}})
	selector, template = named("stateful")
	harness.Create(h, &appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Replicas: &two, ServiceName: "w", Selector: selector, Template: template,
		VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		}}}}})
	_, template = named("job")
	template.Spec.RestartPolicy = corev1.RestartPolicyNever
	harness.Create(h, &batchv1.Job{ObjectMeta: meta, Spec: batchv1.JobSpec{Parallelism: &two, Completions: &two, Template: template}})
	_, template = named("cron")
	template.Spec.RestartPolicy = corev1.RestartPolicyNever
	harness.Create(h, &batchv1.CronJob{ObjectMeta: meta, Spec: batchv1.CronJobSpec{Schedule: "0 0 1 1 *", JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: template}}}})
	harness.Create(h, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "sum"}, AggregationRule: &rbacv1.AggregationRule{
		ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"part": "sum"}}}}})
	harness.Create(h, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "part", Labels: map[string]string{"part": "sum"}},
		Rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"pods"}}}})
	harness.Create(h, &corev1.ResourceQuota{ObjectMeta: meta, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"pods": resource.MustParse("100")}}})
}

// revision is that of the newest write of any kind.
func revision(t *testing.T, h *harness.Harness) int64 {
	list, err := h.List(h.Context(), registry.Of[*corev1.Pod](h.Registry).Resource(), registry.Selection{}, &metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list.ResourceVersion
}

// TestASecondLookWritesNothing has all controllers look again at everything when
// all has settled.
func TestASecondLookWritesNothing(t *testing.T) {
	h := harness.New(t)
	h.AddNode("node")
	if _, err := registry.Of[*corev1.Node](h.Registry).MutateStatus(h.Context(), "", "node", func(n *corev1.Node) error {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now().Rfc3339Copy()}}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	all := controllers(h)
	h.Run(all...)
	h.Kubelet(nil)
	workloads(h)
	harness.Wait(h, "w", "the deployment", func(d *appsv1.Deployment) bool {
		return slices.ContainsFunc(d.Status.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Reason == "NewReplicaSetAvailable" })
	})
	harness.Wait(h, "w", "the daemon set", func(d *appsv1.DaemonSet) bool { return d.Status.NumberAvailable == 1 })
	harness.Wait(h, "w", "the stateful set", func(s *appsv1.StatefulSet) bool { return s.Status.AvailableReplicas == 2 })
	harness.Wait(h, "w", "the job", func(j *batchv1.Job) bool { return j.Status.Ready != nil && *j.Status.Ready == 2 })
	harness.Wait(h, "w", "the budget", func(b *policyv1.PodDisruptionBudget) bool { return b.Status.CurrentHealthy == 2 })
	harness.Wait(h, "w", "the quota", func(q *corev1.ResourceQuota) bool { return q.Status.Used.Pods().String() == "7" })
	harness.WaitAll(h, "the aggregated role", func(roles []*rbacv1.ClusterRole) bool {
		return slices.ContainsFunc(roles, func(r *rbacv1.ClusterRole) bool { return r.Name == "sum" && len(r.Rules) == 1 })
	})
	keys := []loop.Key{{Namespace: harness.Namespace, Name: "w"}, {Name: "sum"}, {Name: "node"}, {Name: harness.Namespace}}
	for _, p := range harness.List[*corev1.Pod](h) {
		keys = append(keys, loop.KeyOf(p))
	}
	for _, rs := range harness.List[*appsv1.ReplicaSet](h) {
		keys = append(keys, loop.KeyOf(rs))
	}
	look := func(told func(c *loop.Controller, key loop.Key)) {
		for _, c := range all {
			for _, key := range keys {
				if _, err := c.Reconcile(h.Context(), key); err != nil {
					t.Errorf("%s %s: %v", c.Name, key, err)
				}
				told(c, key)
			}
		}
	}
	look(func(*loop.Controller, loop.Key) {}) // whatever an event had not reached yet
	before := revision(t, h)
	look(func(c *loop.Controller, key loop.Key) {
		if after := revision(t, h); after != before {
			t.Errorf("%s %s: a second look wrote: revision %d, before %d\n%s", c.Name, key, after, before, h.Events)
			before = after
		}
	})
}
