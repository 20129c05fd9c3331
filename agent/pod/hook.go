package pod

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"orch/agent/probe"
)

// runHook runs a lifecycle hook until it ends or ctx does. The error is what
// kubelet shows in a container's status.
func (m *Manager) runHook(ctx context.Context, pod *corev1.Pod, u unit, id, podIP string, h *corev1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		code, output, err := m.Exec(ctx, id, h.Exec.Command, 0)
		if err == nil && code != 0 {
			err = fmt.Errorf("command '%s' exited with %d: %s", strings.Join(h.Exec.Command, " "), code, output)
		}
		if err != nil {
			return hookFailure(fmt.Sprintf("Exec lifecycle hook (%v)", h.Exec.Command), u, pod, err, append([]byte{}, output...))
		}
	case h.HTTPGet != nil:
		if err := m.httpHook(ctx, u, podIP, h.HTTPGet); err != nil {
			return hookFailure(fmt.Sprintf("HTTP lifecycle hook (%s)", h.HTTPGet.Path), u, pod, err, nil)
		}
	case h.Sleep != nil:
		t := time.NewTimer(time.Duration(h.Sleep.Seconds) * time.Second)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			err := errors.New("container terminated before sleep hook finished")
			return hookFailure(fmt.Sprintf("Sleep lifecycle hook (%d)", h.Sleep.Seconds), u, pod, err, nil)
		}
	default:
		return fmt.Errorf("Cannot run handler: invalid handler: %v", h)
	}
	return nil
}

// httpHook requests the hook's URL. Any answer is fine; an HTTPS request that
// meets a plain HTTP server is repeated in the clear, as kubelet does.
func (m *Manager) httpHook(ctx context.Context, u unit, podIP string, get *corev1.HTTPGetAction) error {
	req, err := probe.Request(ctx, get, u.Container, podIP, "lifecycle")
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
	}}
	resp, err := client.Do(req)
	if err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		req.URL.Scheme = "http"
		req.Header.Del("Authorization")
		resp, err = client.Do(req)
	}
	if err != nil {
		return err
	}
	_, _ = io.CopyN(io.Discard, resp.Body, 10<<10) // so that the server sees its answer read
	return resp.Body.Close()
}

// Exec runs a command in a container and waits for its end. timeout 0 means
// none; output is what the command wrote, at most 16 KiB of each stream.
func (m *Manager) Exec(ctx context.Context, container string, command []string, timeout time.Duration) (code int32, output []byte, err error) {
	resp, err := m.cfg.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{
		ContainerId: container, Cmd: command, Timeout: int64((timeout + time.Second - 1) / time.Second),
	})
	if err != nil {
		return 0, nil, err
	}
	return resp.GetExitCode(), append(resp.GetStdout(), resp.GetStderr()...), nil
}
