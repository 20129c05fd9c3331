package kinds

import (
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"orch/server/registry"
)

func flowSchemas() *registry.Resource {
	return entry[flowcontrolv1.FlowSchema, flowcontrolv1.FlowSchemaList](flowcontrolv1.SchemeGroupVersion, "flowschemas", traits[*flowcontrolv1.FlowSchema]{
		Cluster:             true,
		Spec:                within(func(s *flowcontrolv1.FlowSchema) *flowcontrolv1.FlowSchemaSpec { return &s.Spec }),
		Status:              within(func(s *flowcontrolv1.FlowSchema) *flowcontrolv1.FlowSchemaStatus { return &s.Status }),
		Default:             func(s *flowcontrolv1.FlowSchema) { setZero(&s.Spec.MatchingPrecedence, 1000) },
		Validate:            validateFlowSchema,
		UnconditionalUpdate: true,
		Columns: columns(
			nameColumn(),
			column("PriorityLevel", "string", doc(flowcontrolv1.PriorityLevelConfigurationReference{}, "name")),
			column("MatchingPrecedence", "string", doc(flowcontrolv1.FlowSchemaSpec{}, "matchingPrecedence")),
			column("DistinguisherMethod", "string", doc(flowcontrolv1.FlowSchemaSpec{}, "distinguisherMethod")),
			ageColumn(),
			column("MissingPL", "string", "references a broken or non-existent PriorityLevelConfiguration"),
		),
		Row: func(s *flowcontrolv1.FlowSchema, now time.Time) []any {
			method, dangling := "<none>", "?"
			if m := s.Spec.DistinguisherMethod; m != nil {
				method = string(m.Type)
			}
			for _, c := range s.Status.Conditions {
				if c.Type == flowcontrolv1.FlowSchemaConditionDangling {
					dangling = string(c.Status)
				}
			}
			return []any{s.Name, s.Spec.PriorityLevelConfiguration.Name, int64(s.Spec.MatchingPrecedence), method, age(s, now), dangling}
		},
	})
}

func priorityLevelConfigurations() *registry.Resource {
	return entry[flowcontrolv1.PriorityLevelConfiguration, flowcontrolv1.PriorityLevelConfigurationList](flowcontrolv1.SchemeGroupVersion, "prioritylevelconfigurations", traits[*flowcontrolv1.PriorityLevelConfiguration]{
		Cluster: true,
		Spec: within(func(p *flowcontrolv1.PriorityLevelConfiguration) *flowcontrolv1.PriorityLevelConfigurationSpec {
			return &p.Spec
		}),
		Status: within(func(p *flowcontrolv1.PriorityLevelConfiguration) *flowcontrolv1.PriorityLevelConfigurationStatus {
			return &p.Status
		}),
		Default:             defaultPriorityLevel,
		Validate:            validatePriorityLevel,
		UnconditionalUpdate: true,
		Columns: columns(
			nameColumn(),
			column("Type", "string", doc(flowcontrolv1.PriorityLevelConfigurationSpec{}, "type")),
			column("NominalConcurrencyShares", "string", doc(flowcontrolv1.LimitedPriorityLevelConfiguration{}, "nominalConcurrencyShares")),
			column("Queues", "string", doc(flowcontrolv1.QueuingConfiguration{}, "queues")),
			column("HandSize", "string", doc(flowcontrolv1.QueuingConfiguration{}, "handSize")),
			column("QueueLengthLimit", "string", doc(flowcontrolv1.QueuingConfiguration{}, "queueLengthLimit")),
			ageColumn(),
		),
		Row: priorityLevelRow,
	})
}

func defaultPriorityLevel(p *flowcontrolv1.PriorityLevelConfiguration) {
	if e := p.Spec.Exempt; e != nil {
		setDefault(&e.NominalConcurrencyShares, 0)
		setDefault(&e.LendablePercent, 0)
	}
	l := p.Spec.Limited
	if l == nil {
		return
	}
	setDefault(&l.NominalConcurrencyShares, 30)
	setDefault(&l.LendablePercent, 0)
	if q := l.LimitResponse.Queuing; q != nil {
		setZero(&q.HandSize, 8)
		setZero(&q.Queues, 64)
		setZero(&q.QueueLengthLimit, 50)
	}
}

func priorityLevelRow(p *flowcontrolv1.PriorityLevelConfiguration, now time.Time) []any {
	none := any("<none>")
	shares, queues, hand, length := none, none, none, none
	if l := p.Spec.Limited; l != nil {
		shares = derefOr(l.NominalConcurrencyShares, 0)
		if q := l.LimitResponse.Queuing; q != nil {
			queues, hand, length = q.Queues, q.HandSize, q.QueueLengthLimit
		}
	}
	return []any{p.Name, string(p.Spec.Type), shares, queues, hand, length, age(p, now)}
}
