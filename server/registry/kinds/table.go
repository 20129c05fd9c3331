// Package kinds is the table of all served resources: for each one its names,
// defaults, validation, strategy, subresources and printed columns.
package kinds

import (
	"context"
	"net"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"

	"orch/server/auth"
	"orch/server/registry"
)

// Config is what some kinds need from the rest of the server. Function fields
// that are nil make the kinds that need them answer ServiceUnavailable.
type Config struct {
	ServiceCIDR   *net.IPNet // cluster IPs are taken from here
	NodePorts     [2]int     // first and last; zero: 30000–32767
	ClusterDomain string
	// Disabled tells of the parts that --disable leaves out; nil: none.
	Disabled func(part string) bool

	// Authorizer answers the access reviews.
	Authorizer Authorizer
	// Rules lists what a user may do in a namespace, for SelfSubjectRulesReview.
	Rules func(ctx context.Context, user *auth.User, namespace string) (authorizationv1.SubjectRulesReviewStatus, error)
	// ReviewToken tells who holds token and for which of audiences it is good;
	// no audiences means those of this server. A refusal is an error.
	ReviewToken func(ctx context.Context, token string, audiences []string) (user *auth.User, valid []string, err error)
	// IssueToken signs a service-account token and gives its expiry.
	IssueToken func(ctx context.Context, holder TokenHolder, spec authenticationv1.TokenRequestSpec) (token string, expires time.Time, err error)
	// ProtectVolumes gives volumes and claims the finalizers that keep those in
	// use; only the protection controllers take them off again.
	ProtectVolumes bool
	// Audiences of tokens that do not ask for any.
	Audiences []string
}

// Authorizer decides whether a request may be made.
type Authorizer interface {
	Authorize(ctx context.Context, a *auth.Attributes) (allowed bool, reason string, err error)
}

// TokenHolder is whom a token speaks for and what its life is bound to.
type TokenHolder = auth.TokenHolder

// Table lists all served resources in discovery order.
func Table(cfg Config) []*registry.Resource {
	if cfg.NodePorts == [2]int{} {
		cfg.NodePorts = [2]int{30000, 32767}
	}
	if cfg.ClusterDomain == "" {
		cfg.ClusterDomain = "cluster.local"
	}
	groups := [][]*registry.Resource{
		coreKinds(cfg), appsKinds(), batchKinds(), autoscalingKinds(), policyKinds(),
		networkingKinds(), discoveryKinds(), coordinationKinds(), eventsKinds(), rbacKinds(),
		storageKinds(), schedulingKinds(), nodeKinds(), certificatesKinds(), admissionKinds(),
		flowControlKinds(), definitionKinds(), deviceKinds(), authenticationKinds(cfg), authorizationKinds(cfg),
	}
	var table []*registry.Resource
	for _, g := range groups {
		table = append(table, g...)
	}
	return table
}

func coreKinds(cfg Config) []*registry.Resource {
	return []*registry.Resource{
		bindings(), componentStatuses(cfg), pods(), podTemplates(), services(cfg), endpoints(), nodes(), namespaces(),
		configMaps(), secrets(), serviceAccounts(cfg), events(), replicationControllers(),
		limitRanges(), resourceQuotas(), persistentVolumes(cfg), persistentVolumeClaims(cfg),
	}
}

func appsKinds() []*registry.Resource {
	return []*registry.Resource{deployments(), replicaSets(), daemonSets(), statefulSets(), controllerRevisions()}
}

func batchKinds() []*registry.Resource {
	return []*registry.Resource{jobs(), cronJobs()}
}

func autoscalingKinds() []*registry.Resource {
	return []*registry.Resource{horizontalPodAutoscalers(), horizontalPodAutoscalersV1()}
}

func policyKinds() []*registry.Resource {
	return []*registry.Resource{podDisruptionBudgets()}
}

func networkingKinds() []*registry.Resource {
	return []*registry.Resource{ingresses(), ingressClasses(), networkPolicies(), ipAddresses(), serviceCIDRs()}
}

func discoveryKinds() []*registry.Resource { return []*registry.Resource{endpointSlices()} }

func coordinationKinds() []*registry.Resource { return []*registry.Resource{leases()} }

func eventsKinds() []*registry.Resource { return []*registry.Resource{eventsV1()} }

func rbacKinds() []*registry.Resource {
	return []*registry.Resource{clusterRoles(), clusterRoleBindings(), roles(), roleBindings()}
}

func storageKinds() []*registry.Resource {
	return []*registry.Resource{
		storageClasses(), volumeAttachments(), csiDrivers(), csiNodes(),
		csiStorageCapacities(), volumeAttributesClasses(),
	}
}

func schedulingKinds() []*registry.Resource { return []*registry.Resource{priorityClasses()} }

func nodeKinds() []*registry.Resource { return []*registry.Resource{runtimeClasses()} }

func certificatesKinds() []*registry.Resource {
	return []*registry.Resource{certificateSigningRequests()}
}

func admissionKinds() []*registry.Resource {
	return []*registry.Resource{
		mutatingWebhookConfigurations(), validatingWebhookConfigurations(),
		validatingAdmissionPolicies(), validatingAdmissionPolicyBindings(),
		mutatingAdmissionPolicies(), mutatingAdmissionPolicyBindings(),
	}
}

func flowControlKinds() []*registry.Resource {
	return []*registry.Resource{flowSchemas(), priorityLevelConfigurations()}
}

func definitionKinds() []*registry.Resource { return []*registry.Resource{customResourceDefinitions()} }

func deviceKinds() []*registry.Resource {
	return []*registry.Resource{deviceClasses(), resourceClaims(), resourceClaimTemplates(), resourceSlices()}
}

func authenticationKinds(cfg Config) []*registry.Resource {
	return []*registry.Resource{tokenReviews(cfg), selfSubjectReviews()}
}

func authorizationKinds(cfg Config) []*registry.Resource {
	return []*registry.Resource{
		subjectAccessReviews(cfg), localSubjectAccessReviews(cfg),
		selfSubjectAccessReviews(cfg), selfSubjectRulesReviews(cfg),
	}
}
