package api

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"orch/server/auth"
)

// maxImpersonated is how many questions to the authorizer the headers of one
// request may ask.
const maxImpersonated = 1000

const serviceAccountPrefix = "system:serviceaccount:"

// impersonate replaces the user by the one that the Impersonate- headers name,
// when the real user may act as every part of it.
func (s *Server) impersonate(r *http.Request, q *request) error {
	wanted := &auth.User{
		Name:   r.Header.Get(authenticationv1.ImpersonateUserHeader),
		UID:    r.Header.Get(authenticationv1.ImpersonateUIDHeader),
		Groups: slices.Clone(r.Header[authenticationv1.ImpersonateGroupHeader]),
		Extra:  impersonatedExtra(r.Header),
	}
	if wanted.Name == "" {
		if wanted.UID != "" || len(wanted.Groups) > 0 || len(wanted.Extra) > 0 {
			return apierrors.NewBadRequest("requested groups, UID or extra without impersonating a user")
		}
		return nil
	}
	checks := impersonationChecks(wanted)
	if len(checks) > maxImpersonated {
		return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("a request may impersonate a user with %d groups and extras together, this one has %d", maxImpersonated, len(checks)))
	}
	for _, a := range checks {
		a.User, a.Verb, a.ResourceRequest = q.user, "impersonate", true
		if err := s.authorize(r.Context(), a); err != nil {
			return err
		}
	}
	q.impersonator = q.user.Name
	q.user = completeIdentity(wanted)
	for name := range r.Header {
		if strings.HasPrefix(name, "Impersonate-") {
			r.Header.Del(name)
		}
	}
	return nil
}

// Impersonates tells whether r is to be made as somebody else.
func Impersonates(r *http.Request) bool {
	for name := range r.Header {
		if strings.HasPrefix(name, "Impersonate-") {
			return true
		}
	}
	return false
}

func impersonatedExtra(h http.Header) map[string][]string {
	var extra map[string][]string
	for name, values := range h {
		encoded, ok := strings.CutPrefix(name, authenticationv1.ImpersonateUserExtraHeaderPrefix)
		if !ok {
			continue
		}
		key := strings.ToLower(encoded)
		if plain, err := url.PathUnescape(key); err == nil {
			key = plain
		}
		if extra == nil {
			extra = make(map[string][]string)
		}
		extra[key] = append(extra[key], values...)
	}
	return extra
}

// impersonationChecks are the questions to the authorizer, one per part.
func impersonationChecks(u *auth.User) []*auth.Attributes {
	const group = authenticationv1.GroupName
	var checks []*auth.Attributes
	if ns, name, ok := serviceAccountOf(u.Name); ok {
		checks = append(checks, &auth.Attributes{Version: "v1", Resource: "serviceaccounts", Namespace: ns, Name: name})
	} else {
		checks = append(checks, &auth.Attributes{Version: "v1", Resource: "users", Name: u.Name})
	}
	for _, name := range u.Groups {
		checks = append(checks, &auth.Attributes{Version: "v1", Resource: "groups", Name: name})
	}
	for _, key := range slices.Sorted(maps.Keys(u.Extra)) {
		for _, value := range u.Extra[key] {
			checks = append(checks, &auth.Attributes{Group: group, Version: "v1", Resource: "userextras", Subresource: key, Name: value})
		}
	}
	if u.UID != "" {
		checks = append(checks, &auth.Attributes{Group: group, Version: "v1", Resource: "uids", Name: u.UID})
	}
	return checks
}

// completeIdentity adds the groups that a user always has.
func completeIdentity(u *auth.User) *auth.User {
	if ns, _, ok := serviceAccountOf(u.Name); ok && len(u.Groups) == 0 {
		u.Groups = []string{"system:serviceaccounts", "system:serviceaccounts:" + ns}
	}
	own := "system:authenticated"
	if u.Name == anonymous.Name {
		own = "system:unauthenticated"
	}
	if !slices.Contains(u.Groups, own) && !slices.Contains(u.Groups, "system:unauthenticated") {
		u.Groups = append(u.Groups, own)
	}
	return u
}

func serviceAccountOf(user string) (ns, name string, ok bool) {
	rest, ok := strings.CutPrefix(user, serviceAccountPrefix)
	if !ok {
		return "", "", false
	}
	ns, name, ok = strings.Cut(rest, ":")
	return ns, name, ok && ns != "" && name != "" && !strings.Contains(name, ":")
}
