package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crilogs "k8s.io/cri-client/pkg/logs"

	"orch/agent/disk"
	"orch/agent/pod"
)

// logs streams a container's log.
func (s *server) logs(w http.ResponseWriter, r *http.Request) {
	options, err := logOptions(r.URL.Query())
	if err != nil {
		s.fail(w, http.StatusBadRequest, "%v", err)
		return
	}
	namespace, name, container := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")
	snapshot := s.pod(namespace, name)
	if snapshot == nil {
		s.fail(w, http.StatusNotFound, "pod %q does not exist", name)
		return
	}
	if !hasContainer(snapshot.Pod, container) {
		s.fail(w, http.StatusNotFound, "container %q not found in pod %q", container, name)
		return
	}
	chosen, err := chooseAttempt(snapshot, container, options.Previous)
	if err != nil {
		s.fail(w, http.StatusBadRequest, "%v", err)
		return
	}
	log, err := disk.Open(chosen.LogPath)
	if err != nil {
		s.fail(w, http.StatusInternalServerError, "failed to open log file: %v", err)
		return
	}
	log.Close()
	w.Header().Set("Content-Type", "text/plain")
	out := &flusher{w: w, now: options.Follow}
	if f, ok := w.(http.Flusher); ok {
		out.flush = f.Flush
	}
	stdout, stderr := outputs(out, options.Stream)
	if options.Follow { // the answer begins before there is anything to read
		_, _ = out.Write(nil)
	}
	err = crilogs.ReadLogs(r.Context(), chosen.LogPath, chosen.ID, readOptions(options, time.Now()), statusReader{client: s.Runtime}, stdout, stderr)
	if err != nil && r.Context().Err() == nil {
		s.log.Debug("read log", "container", chosen.ID, "err", err)
		if !out.written {
			s.fail(w, http.StatusInternalServerError, "%v", err)
		}
	}
}

// outputs sends the streams that are asked for to out.
func outputs(out io.Writer, stream *string) (stdout, stderr io.Writer) {
	switch {
	case stream != nil && *stream == corev1.LogStreamStdout:
		return out, nil
	case stream != nil && *stream == corev1.LogStreamStderr:
		return nil, out
	}
	return out, out
}

func readOptions(o *corev1.PodLogOptions, now time.Time) *crilogs.LogOptions {
	out := &crilogs.LogOptions{TailLines: o.TailLines, LimitBytes: o.LimitBytes, Follow: o.Follow, Timestamp: o.Timestamps}
	switch {
	case o.SinceSeconds != nil:
		out.Since = now.Add(-time.Duration(*o.SinceSeconds) * time.Second)
	case o.SinceTime != nil:
		out.Since = o.SinceTime.Time
	}
	return out
}

// chooseAttempt finds the attempt whose log is asked for: the one that runs or
// ran last, or with previous the one before. The errors are the kubelet's.
func chooseAttempt(s *pod.Snapshot, container string, previous bool) (*pod.Container, error) {
	name := s.Pod.Name
	status := findStatus(s, container)
	if status == nil {
		return nil, fmt.Errorf("container %q in pod %q is not available", container, name)
	}
	id, state, last := "", status.State, status.LastTerminationState.Terminated
	switch {
	case previous && (last == nil || last.ContainerID == ""):
		return nil, fmt.Errorf("previous terminated container %q in pod %q not found", container, name)
	case previous:
		id = last.ContainerID
	case state.Running != nil:
		id = status.ContainerID
	case state.Terminated != nil && state.Terminated.ContainerID != "":
		id = state.Terminated.ContainerID
	case last != nil && last.ContainerID != "": // the next attempt has not started
		id = last.ContainerID
	case state.Waiting != nil:
		return nil, fmt.Errorf("container %q in pod %q is waiting to start: %s", container, name, waitingFor(state.Waiting.Reason))
	default:
		return nil, fmt.Errorf("container %q in pod %q is terminated", container, name)
	}
	_, id, _ = strings.Cut(id, "://")
	for i := range s.Containers {
		if s.Containers[i].ID == id {
			return &s.Containers[i], nil
		}
	}
	return nil, fmt.Errorf("unable to retrieve container logs for %s: the container has been removed", id)
}

func waitingFor(reason string) string {
	switch reason {
	case "ErrImagePull":
		return "image can't be pulled"
	case "ImagePullBackOff":
		return "trying and failing to pull image"
	}
	return reason
}

func findStatus(s *pod.Snapshot, container string) *corev1.ContainerStatus {
	for _, all := range []*corev1.PodStatus{&s.Status, &s.Pod.Status} { // the latter while ours is not known
		for _, list := range [][]corev1.ContainerStatus{all.ContainerStatuses, all.InitContainerStatuses, all.EphemeralContainerStatuses} {
			for i := range list {
				if list[i].Name == container {
					return &list[i]
				}
			}
		}
	}
	return nil
}

// hasContainer tells whether the pod names a container of any kind.
func hasContainer(p *corev1.Pod, name string) bool {
	for _, list := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		if slices.ContainsFunc(list, func(c corev1.Container) bool { return c.Name == name }) {
			return true
		}
	}
	return slices.ContainsFunc(p.Spec.EphemeralContainers, func(c corev1.EphemeralContainer) bool { return c.Name == name })
}

// logOptions reads the query as the kubelet does.
func logOptions(q url.Values) (*corev1.PodLogOptions, error) {
	o := &corev1.PodLogOptions{}
	var err error
	number := func(key string) *int64 {
		text := q.Get(key)
		if text == "" || err != nil {
			return nil
		}
		n, parseErr := strconv.ParseInt(text, 10, 64)
		if parseErr != nil {
			err = fmt.Errorf("%s: %q is not a number", key, text)
			return nil
		}
		return &n
	}
	o.Follow, o.Previous, o.Timestamps = isTrue(q.Get("follow")), isTrue(q.Get("previous")), isTrue(q.Get("timestamps"))
	o.SinceSeconds, o.TailLines, o.LimitBytes = number("sinceSeconds"), number("tailLines"), number("limitBytes")
	if text := q.Get("sinceTime"); text != "" {
		t, parseErr := time.Parse(time.RFC3339Nano, text)
		if parseErr != nil {
			return nil, fmt.Errorf("sinceTime: %w", parseErr)
		}
		stamp := metav1.NewTime(t)
		o.SinceTime = &stamp
	}
	if stream := q.Get("stream"); stream != "" {
		o.Stream = &stream
	}
	if err == nil && (negative(o.TailLines) || negative(o.LimitBytes) || negative(o.SinceSeconds)) {
		err = errors.New("tailLines, limitBytes and sinceSeconds must not be negative")
	}
	return o, err
}

func negative(n *int64) bool { return n != nil && *n < 0 }

func isTrue(text string) bool {
	v, err := strconv.ParseBool(text)
	return err == nil && v
}

// flusher sends each write on at once when a log is followed.
type flusher struct {
	w       io.Writer
	flush   func()
	now     bool
	written bool
}

func (f *flusher) Write(p []byte) (int, error) {
	f.written = true
	n, err := f.w.Write(p)
	if f.now && f.flush != nil {
		f.flush()
	}
	return n, err
}

// logFiles are the files below a folder. What a container that reaches the
// folder may have put there leads nowhere: only regular files and directories
// are opened, and no link is followed out of it.
type logFiles string

func (dir logFiles) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	root, err := os.OpenRoot(string(dir))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if info, err := root.Stat(name); err == nil && info.IsDir() {
		return root.Open(name + "/") // with the slash nothing else is waited for
	}
	return disk.OpenBeneath(string(dir), name)
}

// statusReader is all that following a log asks of the runtime.
type statusReader struct {
	cri.RuntimeService
	client runtimeapi.RuntimeServiceClient
}

func (s statusReader) ContainerStatus(ctx context.Context, id string, verbose bool) (*runtimeapi.ContainerStatusResponse, error) {
	return s.client.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: verbose})
}
