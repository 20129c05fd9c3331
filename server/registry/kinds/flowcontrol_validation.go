package kinds

import (
	"fmt"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateFlowSchema(s *flowcontrolv1.FlowSchema) field.ErrorList {
	var f faults
	at, spec := field.NewPath("spec"), &s.Spec
	const last = 10000
	if spec.MatchingPrecedence <= 0 {
		f.invalid(at.Child("matchingPrecedence"), spec.MatchingPrecedence, "must be a positive value")
	}
	if spec.MatchingPrecedence > last {
		f.invalid(at.Child("matchingPrecedence"), spec.MatchingPrecedence, fmt.Sprintf("must not be greater than %v", last))
	}
	f.present(at.Child("priorityLevelConfiguration", "name"), spec.PriorityLevelConfiguration.Name, subdomainName)
	if m := spec.DistinguisherMethod; m != nil {
		supports(&f, at.Child("distinguisherMethod", "type"), m.Type, flowcontrolv1.FlowDistinguisherMethodByUserType, flowcontrolv1.FlowDistinguisherMethodByNamespaceType)
	}
	for i, rule := range spec.Rules {
		path := at.Child("rules").Index(i)
		if len(rule.Subjects) == 0 {
			f.required(path.Child("subjects"), "subjects must contain at least one value")
		}
		if len(rule.ResourceRules) == 0 && len(rule.NonResourceRules) == 0 {
			f.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty")
		}
		for j, subject := range rule.Subjects {
			supports(&f, path.Child("subjects").Index(j).Child("kind"), subject.Kind,
				flowcontrolv1.SubjectKindGroup, flowcontrolv1.SubjectKindServiceAccount, flowcontrolv1.SubjectKindUser)
		}
	}
	return f.list
}

func validatePriorityLevel(p *flowcontrolv1.PriorityLevelConfiguration) field.ErrorList {
	var f faults
	at, s := field.NewPath("spec"), &p.Spec
	if (p.Name == flowcontrolv1.PriorityLevelConfigurationNameExempt) != (s.Type == flowcontrolv1.PriorityLevelEnablementExempt) {
		f.invalid(at.Child("type"), s.Type, "must be 'Exempt' if and only if `name` is 'exempt'")
	}
	switch s.Type {
	case flowcontrolv1.PriorityLevelEnablementExempt:
		if s.Limited != nil {
			f.forbidden(at.Child("limited"), "must be nil if the type is not Limited")
		}
	case flowcontrolv1.PriorityLevelEnablementLimited:
		if s.Exempt != nil {
			f.forbidden(at.Child("exempt"), "must be nil if the type is Limited")
		}
		if s.Limited == nil {
			f.required(at.Child("limited"), "must not be empty when type is Limited")
		} else {
			f.limitedLevel(at.Child("limited"), s.Limited)
		}
	default:
		oneOf(&f, at.Child("type"), s.Type, flowcontrolv1.PriorityLevelEnablementExempt, flowcontrolv1.PriorityLevelEnablementLimited)
	}
	return f.list
}

func (f *faults) limitedLevel(at *field.Path, l *flowcontrolv1.LimitedPriorityLevelConfiguration) {
	if n := *l.NominalConcurrencyShares; n < 0 {
		f.invalid(at.Child("nominalConcurrencyShares"), n, "must be a non-negative integer")
	}
	path, q := at.Child("limitResponse"), l.LimitResponse.Queuing
	switch l.LimitResponse.Type {
	case flowcontrolv1.LimitResponseTypeReject:
		if q != nil {
			f.forbidden(path.Child("queuing"), "must be nil if limited.limitResponse.type is not Limited")
		}
	case flowcontrolv1.LimitResponseTypeQueue:
		if q == nil {
			f.required(path.Child("queuing"), "must not be empty if limited.limitResponse.type is Limited")
			return
		}
		f.positive(path.Child("queuing", "queues"), int64(q.Queues))
		f.positive(path.Child("queuing", "handSize"), int64(q.HandSize))
		f.positive(path.Child("queuing", "queueLengthLimit"), int64(q.QueueLengthLimit))
		if q.HandSize > q.Queues {
			f.invalid(path.Child("queuing", "handSize"), q.HandSize, fmt.Sprintf("should not be greater than queues (%d)", q.Queues))
		}
	default:
		supports(f, path.Child("type"), l.LimitResponse.Type, flowcontrolv1.LimitResponseTypeQueue, flowcontrolv1.LimitResponseTypeReject)
	}
}
