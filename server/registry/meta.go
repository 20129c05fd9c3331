package registry

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// maxGeneratedBase leaves room for the five characters of a generated name.
const maxGeneratedBase = 63 - 5

// generateName gives base and five characters that cannot form words.
func generateName(base string) string {
	if len(base) > maxGeneratedBase {
		base = base[:maxGeneratedBase]
	}
	return base + utilrand.String(5)
}

// newUID gives a random UUID (RFC 9562, version 4).
func newUID() types.UID {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16]))
}

// wipeSystemFields removes what only the server may set.
func wipeSystemFields(obj Object) {
	obj.SetCreationTimestamp(metav1.Time{})
	obj.SetUID("")
	obj.SetDeletionTimestamp(nil)
	obj.SetDeletionGracePeriodSeconds(nil)
	obj.SetSelfLink("")
}

func (r *Registry) fillSystemFields(obj Object) {
	obj.SetCreationTimestamp(metav1.Unix(r.now().Unix(), 0))
	obj.SetUID(newUID())
}

// settleNamespace makes the object's namespace that of the request.
func (e *entry) settleNamespace(obj Object, ns string) error {
	if !e.Namespaced {
		ns = ""
	}
	switch have := obj.GetNamespace(); {
	case have == ns:
	case have == "", ns == "" && !e.Namespaced:
		obj.SetNamespace(ns)
	case ns == "":
		// the request named none: the object's own stands
	default:
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	return nil
}

// checkName holds a body against the name in its URL.
func checkName(obj metav1.Object, ns, name string) error {
	if obj.GetName() == "" {
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s based on URL) was undeterminable: %v", name, "name must be provided"))
	}
	if obj.GetName() != name {
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", obj.GetName(), name))
	}
	if ns != "" && obj.GetNamespace() != "" && obj.GetNamespace() != ns {
		return apierrors.NewBadRequest(fmt.Sprintf("the namespace of the object (%s) does not match the namespace on the request (%s)", obj.GetNamespace(), ns))
	}
	return nil
}

// dedupOwners drops repeated owner references and warns.
func dedupOwners(ctx context.Context, obj Object, admitted bool) {
	refs := obj.GetOwnerReferences()
	if len(refs) < 2 {
		return
	}
	known := make(map[ownerName][]int, len(refs))
	var kept []metav1.OwnerReference
	var repeated []string
	for _, ref := range refs {
		name := ownerName{ref.UID, ref.APIVersion, ref.Kind, ref.Name}
		if slices.ContainsFunc(known[name], func(i int) bool { return apiequality.Semantic.DeepEqual(kept[i], ref) }) {
			repeated = append(repeated, string(ref.UID))
			continue
		}
		known[name] = append(known[name], len(kept))
		kept = append(kept, ref)
	}
	if len(repeated) == 0 {
		return
	}
	when := ""
	if admitted {
		when = " after mutating admission happens"
	}
	AddWarning(ctx, fmt.Sprintf(".metadata.ownerReferences contains duplicate entries%s; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: %v", when, strings.Join(repeated, ", ")))
	obj.SetOwnerReferences(kept)
}

// ownerName is an owner reference without its options, of which there are nine
// at most.
type ownerName struct {
	uid                    types.UID
	apiVersion, kind, name string
}

var metadataPath = field.NewPath("metadata")

// validateMeta checks the metadata that all kinds share.
func (e *entry) validateMeta(obj Object) field.ErrorList {
	name := apivalidation.ValidateNameFunc(apivalidation.NameIsDNSSubdomain)
	if e.ValidateName != nil {
		name = e.ValidateName
	}
	return apivalidation.ValidateObjectMetaAccessor(obj, e.Namespaced, name, metadataPath)
}

// maxFaults is how many faults of one object are told.
const maxFaults = 1000

// invalid turns field errors into 422, nil when there are none.
func (e *entry) invalid(name string, errs field.ErrorList) error {
	if len(errs) == 0 {
		return nil
	}
	return Invalid(e.gvk.GroupKind(), name, errs)
}

// Invalid is 422 for an object with faults. The message joins those that are
// told, which takes the square of their number.
func Invalid(kind schema.GroupKind, name string, errs field.ErrorList) error {
	return apierrors.NewInvalid(kind, name, errs[:min(len(errs), maxFaults)])
}

func isDryRun(options []string) bool { return len(options) > 0 }
