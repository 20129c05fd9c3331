package rules

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/internal/podnet"
)

// NodesChanged tells of other nodes: what is theirs, no service gets, and the
// tunnel listens to nobody else.
func (e *Engine) NodesChanged(u podnet.Update) {
	changed := e.reserved.take(u)
	e.mu.Lock()
	for name, addr := range changed {
		e.nodes[name] = addr
	}
	e.nodesKnown = e.nodesKnown || u.Whole
	e.reservedChanged = e.reservedChanged || len(changed) > 0
	e.mu.Unlock()
	e.signal()
}

// renderNodes brings nodes into the rule set. Call with mu held.
func (e *Engine) renderNodes() {
	for name, addr := range e.nodes {
		e.filter.SetNode(name, addr)
	}
	clear(e.nodes)
	if e.nodesKnown && !e.closed {
		e.closed = true
		e.filter.NodesKnown()
	}
}

// reserve follows the servers' addresses, and makes the services that have
// addresses of their own be looked at again when what is reserved changed.
func (e *Engine) reserve(dirty map[types.NamespacedName]bool, changed bool) {
	if dirty[apiService] {
		_, endpointSlices := e.services.Get(apiService)
		changed = e.reserved.setServers(endpointSlices) || changed
	}
	if !changed {
		return
	}
	for name := range e.exposed {
		dirty[name] = true
	}
}

// expose notes whether a service wants addresses or ports that it may not have,
// and says so on the service when that is new.
func (e *Engine) expose(name types.NamespacedName, service *corev1.Service) {
	if service == nil || service.Spec.Type == corev1.ServiceTypeClusterIP && len(service.Spec.ExternalIPs) == 0 {
		delete(e.exposed, name)
		return
	}
	refused := strings.Join(e.reserved.refused(service), ", ")
	if refused != "" && refused != e.exposed[name] {
		e.log.Warn("a service wants what is not its own; nothing leads there", "service", name, "refused", refused)
		if e.reserved.speaks() {
			e.report(&corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: service.Namespace, Name: service.Name, UID: service.UID},
				corev1.EventTypeWarning, "AddressNotAllowed", "not served, as it belongs to the cluster itself: "+refused)
		}
	}
	e.exposed[name] = refused
}
