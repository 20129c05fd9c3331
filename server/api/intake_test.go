package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
)

var podKind = corev1.SchemeGroupVersion.WithKind("Pod")

// FuzzBody decodes bodies of each media type, with the checks before it.
func FuzzBody(f *testing.F) {
	const pod = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":"1e3","memory":"1Gi"}}}]}}`
	codec := newCodec(clientscheme.Scheme)
	for _, text := range []string{pod, strings.Replace(pod, "1e3", "1e99999", 1), strings.Replace(pod, "Pod", "ConfigMap", 1), `{"kind":"List"}`, "", "null", "[]",
		"a: &a [*a]", "apiVersion: v1\nkind: Pod\n<<: {a: b}", strings.Repeat("[", 2000), `{"a":1,"a":2}`} {
		f.Add([]byte(text), int8(mediaJSON), "Warn")
		f.Add([]byte(text), int8(mediaYAML), "Strict")
	}
	var typed corev1.Pod
	if err := json.Unmarshal([]byte(pod), &typed); err != nil {
		f.Fatal(err)
	}
	message, err := runtime.Encode(codec.protobuf, &typed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(message, int8(mediaProtobuf), "Ignore")
	f.Fuzz(func(t *testing.T, data []byte, kind int8, validation string) {
		if kind < 0 || media(kind) > mediaProtobuf {
			return
		}
		obj, err := codec.decode(data, media(kind), &corev1.Pod{}, podKind, validation, func(string) {})
		if err == nil && obj == nil {
			t.Error("neither object nor error")
		}
		if err != nil {
			abridge(statusOf(err))
		}
	})
}

// FuzzOptions reads queries into the options of each verb.
func FuzzOptions(f *testing.F) {
	for _, query := range []string{"labelSelector=a%20in%20(b,c),!d&fieldSelector=metadata.name%3Dx,spec.nodeName!%3Dy&limit=5", "dryRun=All&fieldManager=m&fieldValidation=Strict",
		"timeoutSeconds=-1&continue=%00&resourceVersion=x&resourceVersionMatch=Exact", "sendInitialEvents=maybe&watch=", "gracePeriodSeconds=9999999999999999999&propagationPolicy=x"} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		values, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		q := &request{verb: "list", query: values}
		if sel, opts, err := q.listOptions(); err == nil && (opts == nil || sel.Labels != nil && sel.Labels.String() == "" && !sel.Labels.Empty()) {
			t.Error("no options")
		}
		_, _ = q.getOptions()
		_, _ = q.createOptions()
		_, _ = q.updateOptions()
		_, _ = q.patchOptions("application/apply-patch+yaml")
		_ = q.parameters(&metav1.DeleteOptions{})
	})
}

// TestQuantitiesOfAnotherKind: a body is decoded as what it says to be before
// that is held against what was asked for.
func TestQuantitiesOfAnotherKind(t *testing.T) {
	codec := newCodec(clientscheme.Scheme)
	const pod = `{"apiVersion":"v1","kind":"Pod","spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":"1e9999999999"}}}]}}`
	for _, m := range []media{mediaJSON, mediaYAML} {
		_, err := codec.decode([]byte(pod), m, &corev1.ConfigMap{}, corev1.SchemeGroupVersion.WithKind("ConfigMap"), "", func(string) {})
		if !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), "spec.containers[0].resources.limits.cpu: quantity") {
			t.Errorf("%s: %v", m.contentType(), err)
		}
	}
}

// TestFailuresAreCut: what quotes megabytes of a client's is not sent back whole.
func TestFailuresAreCut(t *testing.T) {
	var causes []metav1.StatusCause
	for i := range 5000 {
		causes = append(causes, metav1.StatusCause{Message: strings.Repeat("ä", 1000), Field: fmt.Sprint(i)})
	}
	shared := &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: 422, Message: strings.Repeat("ä", 5<<20),
		Details: &metav1.StatusDetails{Name: strings.Repeat("n", 1<<20), Causes: causes}}}
	s := newTestServer(t)
	w := httptest.NewRecorder()
	s.api.fail(w, httptest.NewRequest(http.MethodGet, "/api/v1/pods", nil), shared)
	if w.Body.Len() > 1<<20 || !utf8.Valid(w.Body.Bytes()) || !strings.Contains(w.Body.String(), "(10485760 bytes)") {
		t.Errorf("%d bytes", w.Body.Len())
	}
	if len(shared.ErrStatus.Details.Causes) != len(causes) {
		t.Error("the error itself was cut")
	}
}

// TestWarningsAreCut: beyond 4,096 characters each text keeps 256, the first ones too.
func TestWarningsAreCut(t *testing.T) {
	w := httptest.NewRecorder()
	warn := warner(w)
	warn(strings.Repeat("a", 3000) + `"\`)
	warn("short")
	if got := len(w.Header().Get("Warning")); got < 3000 {
		t.Fatalf("cut to %d before there was need", got)
	}
	for i := range 1000 {
		warn(fmt.Sprint(i, strings.Repeat("ü", 1<<20)))
	}
	total := 0
	for _, header := range w.Header().Values("Warning") {
		text := unquoteWarning(header)
		if n := utf8.RuneCountInString(text); n > maxWarningText {
			t.Errorf("a warning of %d characters", n)
		}
		total += utf8.RuneCountInString(text)
	}
	if total > maxWarnings+maxWarningText {
		t.Errorf("%d characters", total)
	}
}

func TestImpersonationIsBounded(t *testing.T) {
	s := newTestServer(t)
	r := httptest.NewRequest(http.MethodGet, "/api/v1/namespaces/default/pods", nil)
	r.Header.Set("Impersonate-User", "jane")
	for i := range 2 * maxImpersonated {
		r.Header.Add("Impersonate-Group", fmt.Sprint("g", i))
	}
	w := httptest.NewRecorder()
	s.api.ServeHTTP(w, r)
	if w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

// TestBodyLimit sends more than 3 MiB, with and without a length.
func TestBodyLimit(t *testing.T) {
	s := newTestServer(t)
	for name, length := range map[string]int64{"told": maxBody + 1, "untold": -1} {
		r := httptest.NewRequest(http.MethodPost, "/api/v1/namespaces/default/pods", strings.NewReader(strings.Repeat(" ", maxBody+1)))
		r.ContentLength = length
		w := httptest.NewRecorder()
		s.api.ServeHTTP(w, r)
		if w.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: got %d %s", name, w.Code, w.Body)
		}
	}
}
