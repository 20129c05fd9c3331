package registry

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"orch/store"
)

const (
	claimSegment = "claims"
	claimPrefix  = claimSegment + "/"
)

// ClaimedError says that another object holds a name that this write needs.
type ClaimedError struct {
	Claim  string
	Holder string // key of the object that holds it
}

func (e *ClaimedError) Error() string {
	return fmt.Sprintf("%s is already held by %s", e.Claim, e.Holder)
}

// Claimed tells whether any object holds claim, as far as this server knows.
func (r *Registry) Claimed(claim string) bool {
	entry, _ := r.store.Get(claimPrefix + claim)
	return entry != nil
}

// ClaimHolder is the key of the object that holds claim, "" when none does.
func (r *Registry) ClaimHolder(claim string) string {
	entry, _ := r.store.Get(claimPrefix + claim)
	if entry == nil {
		return ""
	}
	holder, _ := entry.Object.(string)
	return holder
}

func (e *entry) claims(obj Object) []string {
	if e.Claims == nil || obj == nil {
		return nil
	}
	return e.Claims(obj)
}

// claimOps takes what obj claims and old did not, and gives back the reverse.
// Either may be nil.
func (e *entry) claimOps(key string, obj, old Object) []store.Op {
	if e.Claims == nil {
		return nil
	}
	want, have := e.claims(obj), e.claims(old)
	var ops []store.Op
	for i, claim := range want {
		if !slices.Contains(have, claim) && !slices.Contains(want[:i], claim) {
			ops = append(ops, store.Op{Key: claimPrefix + claim, Value: []byte(key), Object: key, Expect: store.Absent})
		}
	}
	for _, claim := range have {
		if !slices.Contains(want, claim) {
			ops = append(ops, store.Op{Key: claimPrefix + claim, Expect: store.Any})
		}
	}
	return ops
}

// asClaimed recognizes the refusal of a claim.
func asClaimed(err error) *ClaimedError {
	var conflict *store.ConflictError
	if !errors.As(err, &conflict) {
		return nil
	}
	claim, ok := strings.CutPrefix(conflict.Key, claimPrefix)
	if !ok {
		return nil
	}
	taken := &ClaimedError{Claim: claim}
	if conflict.Current != nil {
		taken.Holder, _ = conflict.Current.Object.(string)
	}
	return taken
}

// claimRefused is what the user hears who asked for a claim that is taken.
func (e *entry) claimRefused(obj Object, taken *ClaimedError) error {
	if e.ClaimError != nil {
		if err := e.ClaimError(obj, taken.Claim); err != nil {
			return err
		}
	}
	return e.invalid(obj.GetName(), field.ErrorList{
		field.Invalid(field.NewPath("spec"), taken.Claim, "is already allocated"),
	})
}
