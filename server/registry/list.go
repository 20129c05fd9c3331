package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metainternalvalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"orch/store"
)

// ListResult is one page. Items are shared.
type ListResult struct {
	Items           []Object
	ResourceVersion int64
	Continue        string
	Remaining       *int64
}

// Messages of 410 Expired.
const (
	listExpired = "The resourceVersion for the provided list is too old."
	pageExpired = "The provided continue parameter is too old " +
		"to display a consistent list result. You can start a new list without " +
		"the continue parameter, or use the continue token in this response to " +
		"retrieve the remainder of the results. Continuing with the provided " +
		"token results in an inconsistent list - objects that were created, " +
		"modified, or deleted between the time the first chunk was returned " +
		"and now may show up in the list."
)

// List reads one page of a resource.
func (r *Registry) List(ctx context.Context, res *Resource, sel Selection, opts *metav1.ListOptions) (*ListResult, error) {
	e := r.entryOf(res)
	if opts == nil {
		opts = &metav1.ListOptions{}
	}
	if err := validateListOptions(opts, false); err != nil {
		return nil, err
	}
	s, err := e.compile(sel)
	if err != nil {
		return nil, err
	}
	if e.Report != nil {
		return &ListResult{Items: slices.DeleteFunc(e.Report(ctx, r), func(obj Object) bool { return !s.matches(obj) })}, nil
	}
	p, err := r.page(ctx, s, opts)
	if err != nil {
		return nil, err
	}
	return r.scanPage(ctx, s, p)
}

func validateListOptions(opts *metav1.ListOptions, watch bool) error {
	if opts.ResourceVersionMatch == "" && opts.SendInitialEvents == nil {
		return nil
	}
	errs := metainternalvalidation.ValidateListOptions(&internalversion.ListOptions{Watch: watch,
		ResourceVersion: opts.ResourceVersion, ResourceVersionMatch: opts.ResourceVersionMatch,
		Continue: opts.Continue, SendInitialEvents: opts.SendInitialEvents}, true)
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "", errs)
}

// page is where to list from.
type page struct {
	prefix    string
	after     string // key before the first one
	at        int64  // revision; 0: now
	limit     int64  // 0: all
	continued bool
}

// page works out the page that opts ask for and brings memory up to it.
func (r *Registry) page(ctx context.Context, s *selector, opts *metav1.ListOptions) (page, error) {
	p := page{prefix: s.prefix(), limit: opts.Limit}
	version := opts.ResourceVersion
	if opts.Continue != "" {
		if version != "" && version != "0" {
			return p, apierrors.NewBadRequest("specifying resource version is not allowed when using continue")
		}
		var err error
		p.continued = true
		if p.after, p.at, err = decodeContinue(s.e.root(s.namespace), opts.Continue); err != nil {
			return p, err
		}
		if p.at > 0 { // the first page has been answered, so the revision exists
			return p, r.catchUp(ctx, fmt.Sprint(p.at), p.at)
		}
		p.at = 0
		return p, r.catchUp(ctx, "", 0)
	}
	floor, err := parseVersion(version)
	if err != nil {
		return p, err
	}
	exact := opts.ResourceVersionMatch == metav1.ResourceVersionMatchExact
	legacy := opts.ResourceVersionMatch == "" && opts.Limit > 0 && floor > 0
	if exact || legacy {
		p.at = floor
	}
	return p, r.catchUp(ctx, version, floor)
}

// scanPage reads a page from memory.
func (r *Registry) scanPage(ctx context.Context, s *selector, p page) (*ListResult, error) {
	out := &ListResult{}
	var failed error
	var last string
	more, seen := false, 0
	revision, err := r.store.Scan(p.prefix, p.after, p.at, func(entry *store.Entry) bool {
		if seen++; seen%1000 == 0 && ctx.Err() != nil { // nobody waits any more
			failed = context.Cause(ctx)
			return false
		}
		var obj Object
		if obj, failed = s.e.serve(entry.Object.(Object)); failed != nil {
			return false
		}
		if !s.matches(obj) {
			return true
		}
		if p.limit > 0 && int64(len(out.Items)) == p.limit {
			more = true
			return false
		}
		out.Items, last = append(out.Items, obj), entry.Key
		return true
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return nil, r.listFailure(s, p, err)
	}
	out.ResourceVersion = revision
	if p.at != 0 {
		out.ResourceVersion = p.at
	}
	if more {
		return out, r.setContinue(out, s, p, last)
	}
	return out, nil
}

// setContinue marks a page that is not the last.
func (r *Registry) setContinue(out *ListResult, s *selector, p page, last string) error {
	out.Continue = encodeContinue(s.e.root(s.namespace), last, out.ResourceVersion)
	if !s.everything() {
		return nil
	}
	rest, err := r.store.Count(p.prefix, last, out.ResourceVersion)
	if err != nil {
		return r.listFailure(s, p, err)
	}
	remaining := int64(rest)
	out.Remaining = &remaining
	return nil
}

func (r *Registry) listFailure(s *selector, p page, err error) error {
	switch {
	case errors.Is(err, store.ErrCompacted) && p.continued:
		expired := apierrors.NewResourceExpired(pageExpired)
		expired.ErrStatus.ListMeta.Continue = encodeContinue(s.e.root(s.namespace), p.after, -1)
		return expired
	case errors.Is(err, store.ErrCompacted):
		return apierrors.NewResourceExpired(listExpired)
	case errors.Is(err, store.ErrFutureRevision):
		return tooLarge(p.at, r.store.Revision())
	case errors.Is(err, store.ErrClosed), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return storeFailure(err)
	}
	return apierrors.NewInternalError(err)
}
