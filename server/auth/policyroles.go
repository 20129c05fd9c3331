package auth

import rbacv1 "k8s.io/api/rbac/v1"

// nodeNetworkRole is what the service proxy, the DNS server and the pod network
// inside every agent watch.
const nodeNetworkRole = "orch:node-network"

// userRoles are those that administrators give to people.
func userRoles() []*rbacv1.ClusterRole {
	const (
		scaled    = "deployments deployments/scale replicasets replicasets/scale"
		extension = "extensions"
	)
	return []*rbacv1.ClusterRole{
		clusterRole("cluster-admin", may("*", "*", "*"), mayVisit("*", "*")),
		aggregated("admin"),
		aggregateTo("admin", aggregated("edit")),
		aggregateTo("edit", aggregated("view")),
		aggregateTo("admin", clusterRole("system:aggregate-to-admin",
			may("create", authorization, "localsubjectaccessreviews"),
			may(readWrite, rbacGroup, "rolebindings roles"))),
		aggregateTo("edit", clusterRole("system:aggregate-to-edit",
			may(read, core, "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy"),
			may("impersonate", core, "serviceaccounts"),
			may(write, core, "pods pods/attach pods/exec pods/portforward pods/proxy"),
			may("create", core, "pods/eviction"),
			may(write, core, "configmaps persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets serviceaccounts services services/proxy"),
			may("create", core, "serviceaccounts/token"),
			may(write, events, "events"),
			may(write, apps, "daemonsets deployments/rollback statefulsets statefulsets/scale "+scaled),
			may(write, "autoscaling", "horizontalpodautoscalers"),
			may(write, "batch", "cronjobs jobs"),
			may(write, extension, "daemonsets deployments/rollback ingresses networkpolicies replicationcontrollers/scale "+scaled),
			may(write, "policy", "poddisruptionbudgets"),
			may(write, networking, "ingresses networkpolicies"),
			may(readWrite, coordination, "leases"),
			may(write, resourceGroup, "resourceclaims resourceclaimtemplates"))),
		aggregateTo("view", clusterRole("system:aggregate-to-view",
			may(read, core, "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers replicationcontrollers/scale serviceaccounts services services/status"),
			may(read, core, "bindings limitranges namespaces/status pods/log pods/status replicationcontrollers/status resourcequotas resourcequotas/status"),
			may(read, core, "namespaces"),
			may(read, events, "events"),
			may(read, discovery, "endpointslices"),
			may(read, apps, "controllerrevisions daemonsets daemonsets/status deployments/status replicasets/status statefulsets statefulsets/scale statefulsets/status "+scaled),
			may(read, "autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status"),
			may(read, "batch", "cronjobs cronjobs/status jobs jobs/status"),
			may(read, extension, "daemonsets daemonsets/status deployments/status ingresses ingresses/status networkpolicies replicasets/status replicationcontrollers/scale "+scaled),
			may(read, "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
			may(read, networking, "ingresses ingresses/status networkpolicies"),
			may(read, resourceGroup, "resourceclaims resourceclaims/status resourceclaimtemplates"))),
		clusterRole("system:auth-delegator",
			may("create", authentication, "tokenreviews"),
			may("create", authorization, "subjectaccessreviews")),
		clusterRole("system:basic-user",
			may("create", authorization, "selfsubjectaccessreviews selfsubjectrulesreviews"),
			may("create", authentication, "selfsubjectreviews")),
		clusterRole("system:discovery",
			mayVisit("get", "/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/")),
		clusterRole("system:public-info-viewer", mayVisit("get", "/healthz /livez /readyz /version /version/")),
		clusterRole("system:service-account-issuer-discovery",
			mayVisit("get", "/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/")),
		clusterRole("system:monitoring",
			mayVisit("get", "/flagz /healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/* /statusz"),
			may("get", core, "nodes/metrics")),
	}
}

// systemRoles are those of nodes, add-ons and foreign components.
func systemRoles() []*rbacv1.ClusterRole {
	approve := func(name, signer string) *rbacv1.ClusterRole {
		return clusterRole("system:certificates.k8s.io:"+name, may("approve", certificates, "signers", "kubernetes.io/"+signer))
	}
	return []*rbacv1.ClusterRole{
		clusterRole("system:certificates.k8s.io:certificatesigningrequests:nodeclient", may("create", certificates, "certificatesigningrequests/nodeclient")),
		clusterRole("system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", may("create", certificates, "certificatesigningrequests/selfnodeclient")),
		approve("kube-apiserver-client-approver", "kube-apiserver-client"),
		approve("kube-apiserver-client-kubelet-approver", "kube-apiserver-client-kubelet"),
		approve("kubelet-serving-approver", "kubelet-serving"),
		approve("legacy-unknown-approver", "legacy-unknown"),
		clusterRole("system:kube-aggregator", may(read, core, "endpoints services")),
		clusterRole("system:kube-controller-manager", controllerManagerRules()...),
		clusterRole("system:kube-dns", may("list watch", core, "endpoints services")),
		clusterRole("system:kube-scheduler", schedulerRules()...),
		clusterRole("system:kubelet-api-admin",
			may(read, core, "nodes"),
			may("proxy", core, "nodes"),
			may("*", core, "nodes/log nodes/metrics nodes/proxy nodes/stats"),
			may("*", core, "nodes/configz nodes/healthz nodes/pods")),
		clusterRole("system:node", nodeRules()...),
		clusterRole("system:node-bootstrapper", may("create get list watch", certificates, "certificatesigningrequests")),
		clusterRole("system:node-problem-detector",
			may("get", core, "nodes"),
			may("patch", core, "nodes/status"),
			may(record, events, "events")),
		clusterRole("system:node-proxier",
			may("list watch", core, "endpoints services"),
			may(read, core, "nodes"),
			may(record, events, "events"),
			may("list watch", networking, "servicecidrs"),
			may("list watch", discovery, "endpointslices")),
		clusterRole(nodeNetworkRole,
			may(read, core, "services endpoints nodes namespaces"),
			may(read, discovery, "endpointslices"),
			may(read, networking, "networkpolicies servicecidrs")),
		clusterRole("system:persistent-volume-provisioner",
			may("create delete get list watch", core, "persistentvolumes"),
			may("get list update watch", core, "persistentvolumeclaims"),
			may(read, storage, "storageclasses"),
			may("watch", core, "events"),
			may(record, events, "events")),
		clusterRole("system:volume-scheduler",
			may("get list patch update watch", core, "persistentvolumes"),
			may(read, storage, "storageclasses"),
			may("get list patch update watch", core, "persistentvolumeclaims")),
	}
}

func controllerManagerRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		may(record, events, "events"),
		may("create", coordination, "leases"),
		may("get update", coordination, "leases", "kube-controller-manager"),
		may("create", core, "secrets serviceaccounts"),
		may("delete", core, "secrets"),
		may("get", core, "configmaps namespaces secrets serviceaccounts"),
		may("update", core, "secrets serviceaccounts"),
		may("create", authentication, "tokenreviews"),
		may("create", authorization, "subjectaccessreviews"),
		may("list watch", "*", "*"),
		may("create", core, "serviceaccounts/token"),
	}
}

func schedulerRules() []rbacv1.PolicyRule {
	const readUpdate = "get list patch update watch"
	return []rbacv1.PolicyRule{
		may(record, events, "events"),
		may("create", coordination, "leases"),
		may("get list update watch", coordination, "leases", "kube-scheduler"),
		may(readWrite, coordination, "leasecandidates"),
		may(read, core, "nodes"),
		may("delete get list watch", core, "pods"),
		may("create", core, "bindings pods/binding"),
		may("patch update", core, "pods/status"),
		may(read, core, "replicationcontrollers services"),
		may(read, "apps extensions", "replicasets"),
		may(read, apps, "statefulsets"),
		may(read, "policy", "poddisruptionbudgets"),
		may(read, core, "persistentvolumeclaims persistentvolumes"),
		may("create", authentication, "tokenreviews"),
		may("create", authorization, "subjectaccessreviews"),
		may(read, storage, "csinodes"),
		may(read, storage, "volumeattachments"),
		may(read, core, "namespaces"),
		may(read, storage, "csidrivers"),
		may(read, storage, "csistoragecapacities"),
		may(read, resourceGroup, "deviceclasses"),
		may(readUpdate, resourceGroup, "resourceclaims"),
		may(readUpdate, resourceGroup, "resourceclaims/status"),
		may("update", core, "pods/finalizers"),
		may(read, resourceGroup, "resourceslices"),
		may("create delete", resourceGroup, "resourceclaims"),
		may("patch update", resourceGroup, "resourceclaims/binding"),
	}
}

// nodeRules are the bounds of the node authorizer, which narrows them to what
// belongs to the node.
func nodeRules() []rbacv1.PolicyRule {
	const own = "create delete get patch update"
	return []rbacv1.PolicyRule{
		may("create", authentication, "tokenreviews"),
		may("create", authorization, "localsubjectaccessreviews subjectaccessreviews"),
		may(read, core, "services"),
		may("create get list watch", core, "nodes"),
		may("patch update", core, "nodes/status"),
		may("patch update", core, "nodes"),
		may(record, events, "events"),
		may(read, core, "pods"),
		may("create delete", core, "pods"),
		may("patch update", core, "pods/status"),
		may("create", core, "pods/eviction"),
		may(read, core, "configmaps secrets"),
		may("get", core, "persistentvolumeclaims persistentvolumes"),
		may("get", core, "endpoints"),
		may("create get list watch", certificates, "certificatesigningrequests"),
		may(own, coordination, "leases"),
		may("get", storage, "volumeattachments"),
		may("create", core, "serviceaccounts/token"),
		may("get patch update", core, "persistentvolumeclaims/status"),
		may(read, storage, "csidrivers"),
		may(own, storage, "csinodes"),
		may(read, "node.k8s.io", "runtimeclasses"),
		may("get", resourceGroup, "resourceclaims"),
		may("deletecollection", resourceGroup, "resourceslices"),
		may("get", core, "serviceaccounts"),
	}
}
