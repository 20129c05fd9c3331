package kinds

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (f *faults) podFailurePolicy(at *field.Path, s *batchv1.JobSpec) {
	rules := s.PodFailurePolicy.Rules
	if len(rules) > 20 {
		f.add(field.TooMany(at, len(rules), 20))
	}
	actions := []batchv1.PodFailurePolicyAction{
		batchv1.PodFailurePolicyActionCount, batchv1.PodFailurePolicyActionFailIndex,
		batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyActionIgnore,
	}
	for i := range rules {
		rule, path := &rules[i], at.Index(i)
		switch {
		case rule.Action == "":
			f.required(path.Child("action"), fmt.Sprintf("valid values: %q", actions))
		case rule.Action == batchv1.PodFailurePolicyActionFailIndex && s.BackoffLimitPerIndex == nil:
			f.invalid(path.Child("action"), rule.Action, "requires the backoffLimitPerIndex to be set")
		default:
			supports(f, path.Child("action"), rule.Action, actions...)
		}
		if rule.OnExitCodes != nil {
			f.onExitCodes(path.Child("onExitCodes"), rule.OnExitCodes, &s.Template.Spec)
		}
		f.onPodConditions(path.Child("onPodConditions"), rule.OnPodConditions)
		switch {
		case rule.OnExitCodes != nil && len(rule.OnPodConditions) > 0:
			f.invalid(path, field.OmitValueType{}, "specifying both OnExitCodes and OnPodConditions is not supported")
		case rule.OnExitCodes == nil && len(rule.OnPodConditions) == 0:
			f.invalid(path, field.OmitValueType{}, "specifying one of OnExitCodes and OnPodConditions is required")
		}
	}
}

func (f *faults) onPodConditions(at *field.Path, patterns []batchv1.PodFailurePolicyOnPodConditionsPattern) {
	if len(patterns) > 20 {
		f.add(field.TooMany(at, len(patterns), 20))
	}
	for i, p := range patterns {
		f.invalids(at.Index(i).Child("type"), string(p.Type), validation.IsQualifiedName(string(p.Type)))
		supports(f, at.Index(i).Child("status"), p.Status, corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown)
	}
}

func (f *faults) onExitCodes(at *field.Path, r *batchv1.PodFailurePolicyOnExitCodesRequirement, s *corev1.PodSpec) {
	operators := []batchv1.PodFailurePolicyOnExitCodesOperator{batchv1.PodFailurePolicyOnExitCodesOpIn, batchv1.PodFailurePolicyOnExitCodesOpNotIn}
	if r.Operator == "" {
		f.required(at.Child("operator"), fmt.Sprintf("valid values: %q", operators))
	} else {
		supports(f, at.Child("operator"), r.Operator, operators...)
	}
	named := func(c corev1.Container) bool { return c.Name == *r.ContainerName }
	if r.ContainerName != nil && !slices.ContainsFunc(s.Containers, named) && !slices.ContainsFunc(s.InitContainers, named) {
		f.invalid(at.Child("containerName"), *r.ContainerName, "must be one of the container or initContainer names in the pod template")
	}
	values := at.Child("values")
	if len(r.Values) == 0 {
		f.invalid(values, r.Values, "at least one value is required")
	} else if len(r.Values) > 255 {
		f.add(field.TooMany(values, len(r.Values), 255))
	}
	seen := sets.New[int32]()
	for i, v := range r.Values {
		if r.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn && v == 0 {
			f.invalid(values.Index(i), v, "must not be 0 for the In operator")
		}
		if seen.Has(v) {
			f.add(field.Duplicate(values.Index(i), v))
		}
		seen.Insert(v)
	}
	if !slices.IsSorted(r.Values) {
		f.invalid(values, r.Values, "must be ordered")
	}
}

func (f *faults) successPolicy(at *field.Path, s *batchv1.JobSpec) {
	if !indexed(s) {
		f.invalid(at, *s.SuccessPolicy, "requires indexed completion mode")
		return
	}
	rules := at.Child("rules")
	if len(s.SuccessPolicy.Rules) == 0 {
		f.required(rules, "at least one rules must be specified when the successPolicy is specified")
	}
	if n := len(s.SuccessPolicy.Rules); n > 20 {
		f.add(field.TooMany(rules, n, 20))
	}
	completions := derefOr(s.Completions, 0)
	for i, rule := range s.SuccessPolicy.Rules {
		path := rules.Index(i)
		if rule.SucceededCount == nil && rule.SucceededIndexes == nil {
			f.required(path, "at least one of succeededCount or succeededIndexes must be specified")
		}
		total := int32(0)
		if indexes := rule.SucceededIndexes; indexes != nil {
			if len(*indexes) > 64*1024 {
				f.add(field.TooLong(path.Child("succeededIndexes"), "", 64*1024))
			}
			var err error
			if total, err = countIndexes(*indexes, completions); err != nil {
				f.invalid(path.Child("succeededIndexes"), *indexes, "error parsing succeededIndexes: "+err.Error())
			}
		}
		if count := rule.SucceededCount; count != nil {
			f.notNegative(path.Child("succeededCount"), int64(*count))
			if *count > completions {
				f.invalid(path.Child("succeededCount"), *count, fmt.Sprintf("must be less than or equal to %d (the number of specified completions)", completions))
			}
			if rule.SucceededIndexes != nil && *count > total {
				f.invalid(path.Child("succeededCount"), *count, fmt.Sprintf("must be less than or equal to %d (the number of indexes in the specified succeededIndexes field)", total))
			}
		}
	}
}

// countIndexes counts what a list like "0,3-5" names; it must rise and stay
// below completions.
func countIndexes(list string, completions int32) (int32, error) {
	if list == "" {
		return 0, nil
	}
	total, last, started := int32(0), int32(0), false
	for interval := range strings.SplitSeq(list, ",") {
		limits := strings.Split(interval, "-")
		if len(limits) > 2 {
			return 0, fmt.Errorf("the fragment %q violates the requirement that an index interval can have at most two parts separated by '-'", interval)
		}
		first, err := parseIndex(limits[0], completions)
		if err != nil {
			return 0, err
		}
		end := first
		if len(limits) == 2 {
			if end, err = parseIndex(limits[1], completions); err != nil {
				return 0, err
			}
			if first >= end {
				return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", first, end)
			}
		}
		if started && last >= first {
			return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", last, first)
		}
		total, last, started = total+end-first+1, end, true
	}
	return total, nil
}

func parseIndex(text string, completions int32) (int32, error) {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("cannot convert string to integer for index: %q", text)
	}
	if int64(n) >= int64(completions) {
		return 0, fmt.Errorf("too large index: %q", text)
	}
	return int32(n), nil
}
