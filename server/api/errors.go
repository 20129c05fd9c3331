package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"orch/server/auth"
	"orch/store"
)

var statusKind = schema.GroupVersionKind{Version: "v1", Kind: "Status"}

// statusOf gives the Status that tells a client of err.
func statusOf(err error) *metav1.Status {
	var api apierrors.APIStatus
	switch {
	case errors.As(err, &api):
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		api = apierrors.NewTimeoutError("request did not complete within the allotted timeout", 0)
	case errors.Is(err, store.ErrCompacted):
		api = apierrors.NewResourceExpired("The resourceVersion for the provided watch is too old.")
	case errors.Is(err, store.ErrClosed):
		api = apierrors.NewServiceUnavailable("the server is shutting down")
	default:
		return &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: err.Error()}
	}
	status := api.Status()
	if status.Status == "" {
		status.Status = metav1.StatusFailure
	}
	if status.Code == 0 {
		status.Code = http.StatusInternalServerError
	}
	status.TypeMeta = metav1.TypeMeta{}
	return &status
}

// fail answers with the Status of err, in the client's media type when that is possible.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	// net/http cancels the context at any failed read, our own deadline's too:
	// then the client is still there.
	if r.Context().Err() == context.Canceled && !errors.Is(err, os.ErrDeadlineExceeded) {
		return // nobody listens
	}
	status := statusOf(err)
	if status.Details != nil && status.Details.RetryAfterSeconds > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(status.Details.RetryAfterSeconds)))
	}
	if status.Reason == "" && status.Code == http.StatusInternalServerError {
		s.log.Error("request failed", "method", r.Method, "path", cut(r.URL.Path, maxLogged), "error", cut(err.Error(), maxLogged))
	}
	abridge(status)
	a, nerr := negotiate(r, plainOnly)
	if nerr != nil {
		a = accept{pretty: true}
	}
	s.respond(w, r, a, int(status.Code), status, statusKind)
}

// Limits of what a failure tells. Messages quote what a client sent, which may be
// megabytes, and more than once.
const (
	maxMessage = 64 << 10 // bytes; of all causes together, four times as much
	maxCauses  = 1000
	maxLogged  = 4 << 10
)

// abridge cuts the texts of a Status.
func abridge(status *metav1.Status) {
	status.Message = cut(status.Message, maxMessage)
	if status.Details == nil {
		return
	}
	details := *status.Details // the error may be shared
	details.Name = cut(details.Name, maxLogged)
	left := 4 * maxMessage
	var causes []metav1.StatusCause
	for _, c := range details.Causes {
		if len(causes) == maxCauses || left <= 0 {
			break
		}
		c.Message, c.Field = cut(c.Message, left), cut(c.Field, maxLogged)
		left -= len(c.Message) + len(c.Field)
		causes = append(causes, c)
	}
	details.Causes = causes
	status.Details = &details
}

// cut shortens a text that is longer than most bytes, and says so.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return fmt.Sprintf("%s... (%d bytes)", strings.ToValidUTF8(text[:most], ""), len(text))
}

var sanitizer = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// forbidden words a refusal as upstream does.
func forbidden(a *auth.Attributes, reason string) error {
	what := fmt.Sprintf("User %q cannot %s path %q", a.User.Name, a.Verb, a.Path)
	if a.ResourceRequest {
		resource := a.Resource
		if a.Subresource != "" {
			resource += "/" + a.Subresource
		}
		where := "at the cluster scope"
		if a.Namespace != "" {
			where = fmt.Sprintf("in the namespace %q", a.Namespace)
		}
		what = fmt.Sprintf("User %q cannot %s resource %q in API group %q %s", a.User.Name, a.Verb, resource, a.Group, where)
	}
	what = sanitizer.Replace(what)
	if reason != "" {
		what += ": " + reason
	}
	return apierrors.NewForbidden(schema.GroupResource{Group: a.Group, Resource: a.Resource}, a.Name, errors.New(what))
}

// mediaError is a refused Accept (406) or Content-Type (415) header.
type mediaError struct {
	code    int32
	reason  metav1.StatusReason
	message string
}

func (e *mediaError) Error() string { return e.message }

func (e *mediaError) Status() metav1.Status {
	return metav1.Status{Status: metav1.StatusFailure, Code: e.code, Reason: e.reason, Message: e.message}
}

func notAcceptable(accepted ...string) error {
	return notAcceptableMessage("only the following media types are accepted: " + strings.Join(accepted, ", "))
}

func notAcceptableMessage(message string) error {
	return &mediaError{http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable, message}
}

func unsupportedMedia(accepted ...string) error {
	return &mediaError{http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType,
		"the body of the request was in an unknown format - accepted media types include: " + strings.Join(accepted, ", ")}
}
