package kinds

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (f *faults) affinity(at *field.Path, a *corev1.Affinity) {
	if a == nil {
		return
	}
	const required, preferred = "requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"
	if n := a.NodeAffinity; n != nil {
		path := at.Child("nodeAffinity")
		f.nodeSelector(path.Child(required), n.RequiredDuringSchedulingIgnoredDuringExecution)
		for i, term := range n.PreferredDuringSchedulingIgnoredDuringExecution {
			f.weight(path.Child(preferred).Index(i), term.Weight)
			f.nodeTerm(path.Child(preferred).Index(i).Child("preference"), term.Preference, false)
		}
	}
	if p := a.PodAffinity; p != nil {
		f.podTerms(at.Child("podAffinity", required), p.RequiredDuringSchedulingIgnoredDuringExecution)
		f.weightedTerms(at.Child("podAffinity", preferred), p.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if p := a.PodAntiAffinity; p != nil {
		f.podTerms(at.Child("podAntiAffinity", required), p.RequiredDuringSchedulingIgnoredDuringExecution)
		f.weightedTerms(at.Child("podAntiAffinity", preferred), p.PreferredDuringSchedulingIgnoredDuringExecution)
	}
}

func (f *faults) weight(at *field.Path, weight int32) {
	if weight <= 0 || weight > 100 {
		f.invalid(at.Child("weight"), weight, "must be in the range 1-100")
	}
}

func (f *faults) nodeSelector(at *field.Path, s *corev1.NodeSelector) {
	if s == nil {
		return
	}
	if len(s.NodeSelectorTerms) == 0 {
		f.required(at.Child("nodeSelectorTerms"), "must have at least one node selector term")
	}
	for i, term := range s.NodeSelectorTerms {
		f.nodeTerm(at.Child("nodeSelectorTerms").Index(i), term, true)
	}
}

// nodeTerm lets preferences ask for label values that no node can have.
func (f *faults) nodeTerm(at *field.Path, t corev1.NodeSelectorTerm, checkValues bool) {
	for i, r := range t.MatchExpressions {
		path := at.Child("matchExpressions").Index(i)
		switch r.Operator {
		case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
			if len(r.Values) == 0 {
				f.required(path.Child("values"), "must be specified when `operator` is 'In' or 'NotIn'")
			}
		case corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist:
			if len(r.Values) > 0 {
				f.forbidden(path.Child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
			}
		case corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt:
			if len(r.Values) != 1 {
				f.required(path.Child("values"), "must be specified single value when `operator` is 'Lt' or 'Gt'")
			}
		default:
			f.invalid(path.Child("operator"), r.Operator, "not a valid selector operator")
		}
		f.join(metavalidation.ValidateLabelName(r.Key, path.Child("key")))
		for j, v := range r.Values {
			if checkValues {
				f.invalids(path.Child("values").Index(j), v, validation.IsValidLabelValue(v))
			}
		}
	}
	for i, r := range t.MatchFields {
		f.nodeField(at.Child("matchFields").Index(i), r)
	}
}

func (f *faults) nodeField(at *field.Path, r corev1.NodeSelectorRequirement) {
	switch r.Operator {
	case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
		if len(r.Values) != 1 {
			f.required(at.Child("values"), "must be only one value when `operator` is 'In' or 'NotIn' for node field selector")
		}
	default:
		f.invalid(at.Child("operator"), r.Operator, "not a valid selector operator")
	}
	if r.Key != metav1.ObjectNameField {
		f.invalid(at.Child("key"), r.Key, "not a valid field selector key")
		return
	}
	for i, v := range r.Values {
		f.invalids(at.Child("values").Index(i), v, subdomainName(v))
	}
}

func (f *faults) podTerms(at *field.Path, terms []corev1.PodAffinityTerm) {
	for i := range terms {
		f.podTerm(at.Index(i), &terms[i])
	}
}

func (f *faults) weightedTerms(at *field.Path, terms []corev1.WeightedPodAffinityTerm) {
	for i := range terms {
		f.weight(at.Index(i), terms[i].Weight)
		f.podTerm(at.Index(i).Child("podAffinityTerm"), &terms[i].PodAffinityTerm)
	}
}

func (f *faults) podTerm(at *field.Path, t *corev1.PodAffinityTerm) {
	f.selector(at.Child("labelSelector"), t.LabelSelector)
	f.selector(at.Child("namespaceSelector"), t.NamespaceSelector)
	for _, ns := range t.Namespaces {
		f.invalids(at.Child("namespace"), ns, apivalidation.ValidateNamespaceName(ns, false))
	}
	f.matchLabelKeys(at, t.MatchLabelKeys, t.MismatchLabelKeys, t.LabelSelector)
	if t.TopologyKey == "" {
		f.required(at.Child("topologyKey"), "can not be empty")
	}
	f.join(metavalidation.ValidateLabelName(t.TopologyKey, at.Child("topologyKey")))
}

// matchLabelKeys: PrepareCreate has merged the keys into the selector by now, so
// a key that stands there twice was written there by the client too.
func (f *faults) matchLabelKeys(at *field.Path, match, mismatch []string, s *metav1.LabelSelector) {
	f.labelKeys(at.Child("matchLabelKeys"), match, s)
	f.labelKeys(at.Child("mismatchLabelKeys"), mismatch, s)
	index := make(map[string]int, len(match))
	for i, key := range match {
		index[key] = i
	}
	if s != nil {
		seen := sets.KeySet(s.MatchLabels)
		for _, e := range s.MatchExpressions {
			if i, ok := index[e.Key]; ok && seen.Has(e.Key) {
				f.invalid(at.Index(i), e.Key, "exists in both matchLabelKeys and labelSelector")
			}
			seen.Insert(e.Key)
		}
	}
	for _, key := range mismatch {
		if i, ok := index[key]; ok {
			f.invalid(at.Child("matchLabelKeys").Index(i), key, "exists in both matchLabelKeys and mismatchLabelKeys")
		}
	}
}

func (f *faults) labelKeys(at *field.Path, keys []string, s *metav1.LabelSelector) {
	if len(keys) == 0 {
		return
	}
	if s == nil {
		f.forbidden(at, "must not be specified when labelSelector is not set")
		return
	}
	for i, key := range keys {
		f.join(metavalidation.ValidateLabelName(key, at.Index(i)))
	}
}

// spreadKey tells constraints of one pod apart.
type spreadKey struct {
	topology string
	unmet    corev1.UnsatisfiableConstraintAction
}

func spreadKeyOf(c *corev1.TopologySpreadConstraint) spreadKey {
	return spreadKey{c.TopologyKey, c.WhenUnsatisfiable}
}

func (f *faults) spreadConstraints(at *field.Path, constraints []corev1.TopologySpreadConstraint) {
	last := make(map[spreadKey]int, len(constraints))
	for i := range constraints {
		last[spreadKeyOf(&constraints[i])] = i
	}
	for i := range constraints {
		c, path := &constraints[i], at.Index(i)
		f.positive(path.Child("maxSkew"), int64(c.MaxSkew))
		if c.TopologyKey == "" {
			f.required(path.Child("topologyKey"), "can not be empty")
		}
		supports(f, path.Child("whenUnsatisfiable"), c.WhenUnsatisfiable, corev1.DoNotSchedule, corev1.ScheduleAnyway)
		if last[spreadKeyOf(c)] > i {
			f.add(field.Duplicate(path.Child("{topologyKey, whenUnsatisfiable}"), fmt.Sprintf("{%v, %v}", c.TopologyKey, c.WhenUnsatisfiable)))
		}
		if c.MinDomains != nil {
			f.positive(path.Child("minDomains"), int64(*c.MinDomains))
			if c.WhenUnsatisfiable != corev1.DoNotSchedule {
				f.invalid(path.Child("minDomains"), c.MinDomains, fmt.Sprintf("can only use minDomains if whenUnsatisfiable=%s, not %s", corev1.DoNotSchedule, c.WhenUnsatisfiable))
			}
		}
		for name, policy := range map[string]*corev1.NodeInclusionPolicy{"nodeAffinityPolicy": c.NodeAffinityPolicy, "nodeTaintsPolicy": c.NodeTaintsPolicy} {
			if policy != nil {
				supports(f, path.Child(name), *policy, corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore)
			}
		}
		f.matchLabelKeys(path, c.MatchLabelKeys, nil, c.LabelSelector)
		f.selector(path.Child("labelSelector"), c.LabelSelector)
	}
}

func (f *faults) tolerations(at *field.Path, tolerations []corev1.Toleration) {
	for i, t := range tolerations {
		path := at.Index(i)
		if t.Key != "" {
			f.join(metavalidation.ValidateLabelName(t.Key, path.Child("key")))
		} else if t.Operator != corev1.TolerationOpExists {
			f.invalid(path.Child("operator"), t.Operator, `operator must be Exists when `+"`key`"+` is empty, which means "match all values and all keys"`)
		}
		if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
			f.invalid(path.Child("effect"), t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set")
		}
		f.tolerationValue(path, t)
		if t.Effect != "" {
			taintEffect(f, path.Child("effect"), t.Effect)
		}
	}
}

func (f *faults) tolerationValue(at *field.Path, t corev1.Toleration) {
	switch t.Operator {
	case corev1.TolerationOpEqual, "":
		if msgs := validation.IsValidLabelValue(t.Value); len(msgs) > 0 {
			f.invalid(at.Child("operator"), t.Value, strings.Join(msgs, ";"))
		}
	case corev1.TolerationOpExists:
		if t.Value != "" {
			f.invalid(at.Child("operator"), t.Value, "value must be empty when `operator` is 'Exists'")
		}
	case corev1.TolerationOpLt, corev1.TolerationOpGt: // alpha: not compared by our scheduler
		f.add(field.NotSupported(at.Child("operator"), t.Operator, []corev1.TolerationOperator{
			corev1.TolerationOpEqual, corev1.TolerationOpExists, corev1.TolerationOpLt, corev1.TolerationOpGt}))
	default:
		supports(f, at.Child("operator"), t.Operator, corev1.TolerationOpEqual, corev1.TolerationOpExists)
	}
}

func taintEffect(f *faults, at *field.Path, e corev1.TaintEffect) {
	supports(f, at, e, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)
}
