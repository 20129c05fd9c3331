package api

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// podLog streams a container's log from its node.
func (s *Server) podLog(w http.ResponseWriter, r *http.Request, q *request) error {
	opts, err := logOptions(q.query)
	if err != nil {
		return err
	}
	if errs := validateLogOptions(opts); len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Kind: "PodLogOptions"}, q.name, errs)
	}
	pod, err := s.pod(r.Context(), q, q.name)
	if err != nil {
		return err
	}
	container, err := containerOf(pod, opts.Container)
	if err != nil {
		return err
	}
	if pod.Spec.NodeName == "" {
		w.WriteHeader(http.StatusNoContent) // nothing was ever written
		return nil
	}
	if err := s.nodeExists(r.Context(), pod.Spec.NodeName); err != nil {
		return err
	}
	location := &url.URL{
		Scheme: "http", Host: pod.Spec.NodeName,
		Path:     "/containerLogs/" + pod.Namespace + "/" + pod.Name + "/" + container,
		RawQuery: logParams(opts).Encode(),
	}
	resp, err := s.fetch(r.Context(), pod.Spec.NodeName, location)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := agentError(resp, q); err != nil {
		return err
	}
	if wsstream.IsWebSocketRequest(r) {
		wsstream.NewReader(lateEOF{resp.Body}, true, wsstream.NewDefaultReaderProtocols()).Copy(w, r)
		return nil
	}
	w.Header().Set("Content-Type", "text/plain")
	copyLog(w, resp.Body, opts.Follow)
	return nil
}

// lateEOF gives the end of the stream in a Read of its own: wsstream drops what
// comes together with io.EOF.
type lateEOF struct{ io.Reader }

func (r lateEOF) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 {
		err = nil
	}
	return n, err
}

// copyLog passes bytes on, at once when somebody is watching.
func copyLog(w http.ResponseWriter, from io.Reader, follow bool) {
	w.WriteHeader(http.StatusOK)
	flusher := http.NewResponseController(w)
	flusher.Flush()
	buf := make([]byte, 32*1024)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return
			}
			if follow {
				flusher.Flush()
			}
		}
		if err != nil {
			return
		}
	}
}

// fetch gets location from the node's agent.
func (s *Server) fetch(ctx context.Context, node string, location *url.URL) (*http.Response, error) {
	transport, err := s.cfg.Nodes.Transport(node)
	if err != nil {
		return nil, apierrors.NewServiceUnavailable("error dialing backend: " + err.Error())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location.String(), nil)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, apierrors.NewServiceUnavailable("error dialing backend: " + err.Error())
	}
	return resp, nil
}

// agentError turns a refusal of the agent into an API error with its words.
func agentError(resp *http.Response, q *request) error {
	if resp.StatusCode >= 200 && resp.StatusCode <= 206 {
		return nil
	}
	text := firstLine(resp.Body)
	if resp.StatusCode == http.StatusBadRequest {
		return apierrors.NewBadRequest(text)
	}
	resource := schema.GroupResource{Resource: q.resource + "/" + q.subresource}
	return apierrors.NewGenericServerResponse(resp.StatusCode, "", resource, q.name, text, 0, true)
}

// firstLine reads the short message in the body of a refusal.
func firstLine(body io.Reader) string {
	text, _ := io.ReadAll(io.LimitReader(body, 50*1024))
	return strings.TrimSpace(string(text))
}

func logOptions(query url.Values) (*corev1.PodLogOptions, error) {
	opts := &corev1.PodLogOptions{
		Container: query.Get("container"),
		Follow:    boolParam(query, "follow"), Previous: boolParam(query, "previous"), Timestamps: boolParam(query, "timestamps"),
	}
	for name, into := range map[string]**int64{"sinceSeconds": &opts.SinceSeconds, "tailLines": &opts.TailLines, "limitBytes": &opts.LimitBytes} {
		text := query.Get(name)
		if text == "" {
			continue
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		*into = &n
	}
	if text := query.Get("sinceTime"); text != "" {
		since, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		opts.SinceTime = &metav1.Time{Time: since}
	}
	if stream := query.Get("stream"); stream != "" {
		opts.Stream = &stream
	}
	return opts, nil
}

func validateLogOptions(opts *corev1.PodLogOptions) field.ErrorList {
	var errs field.ErrorList
	if n := opts.TailLines; n != nil && *n < 0 {
		errs = append(errs, field.Invalid(field.NewPath("tailLines"), *n, "must be greater than or equal to 0"))
	}
	if n := opts.LimitBytes; n != nil && *n < 1 {
		errs = append(errs, field.Invalid(field.NewPath("limitBytes"), *n, "must be greater than 0"))
	}
	switch n := opts.SinceSeconds; {
	case n != nil && opts.SinceTime != nil:
		errs = append(errs, field.Forbidden(field.NewPath(""), "at most one of `sinceTime` or `sinceSeconds` may be specified"))
	case n != nil && *n < 1:
		errs = append(errs, field.Invalid(field.NewPath("sinceSeconds"), *n, "must be greater than 0"))
	}
	if stream := opts.Stream; stream != nil {
		known := []string{corev1.LogStreamAll, corev1.LogStreamStderr, corev1.LogStreamStdout}
		switch *stream {
		case corev1.LogStreamAll:
		case corev1.LogStreamStderr, corev1.LogStreamStdout:
			if opts.TailLines != nil {
				errs = append(errs, field.Forbidden(field.NewPath(""), "`tailLines` and specific `stream` are mutually exclusive for now"))
			}
		default:
			errs = append(errs, field.NotSupported(field.NewPath("stream"), *stream, known))
		}
	}
	return errs
}

func logParams(opts *corev1.PodLogOptions) url.Values {
	params := url.Values{}
	for name, on := range map[string]bool{"follow": opts.Follow, "previous": opts.Previous, "timestamps": opts.Timestamps} {
		if on {
			params.Set(name, "true")
		}
	}
	for name, n := range map[string]*int64{"sinceSeconds": opts.SinceSeconds, "tailLines": opts.TailLines, "limitBytes": opts.LimitBytes} {
		if n != nil {
			params.Set(name, strconv.FormatInt(*n, 10))
		}
	}
	if opts.SinceTime != nil {
		params.Set("sinceTime", opts.SinceTime.Format(time.RFC3339))
	}
	if opts.Stream != nil {
		params.Set("stream", *opts.Stream)
	}
	return params
}
