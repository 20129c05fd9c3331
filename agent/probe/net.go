package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"

	corev1 "k8s.io/api/core/v1"
)

// dialer leaves closed connections no time in TIME_WAIT: probes make many.
var dialer = &net.Dialer{Control: func(_, _ string, conn syscall.RawConn) error {
	return conn.Control(func(fd uintptr) {
		_ = syscall.SetsockoptLinger(int(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1, Linger: 1})
	})
}}

// transport makes a fresh connection for every attempt and trusts anyone:
// whether the container answers is all that is asked.
var transport = &http.Transport{
	TLSClientConfig:    &tls.Config{InsecureSkipVerify: true},
	DisableKeepAlives:  true,
	DisableCompression: true,
	DialContext:        dialer.DialContext,
}

const mostBody = 10 << 10

func failureOf(err error) Outcome {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return Refused
	}
	return Failure
}

// Request makes the request of an HTTP probe or hook; purpose goes into its
// user agent.
func Request(ctx context.Context, a *corev1.HTTPGetAction, c *corev1.Container, podIP, purpose string) (*http.Request, error) {
	port, err := Port(a.Port, c)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(a.Path)
	if err != nil { // as it is, then
		u = &url.URL{Path: a.Path}
	}
	u.Scheme = "http"
	if a.Scheme != "" {
		u.Scheme = strings.ToLower(string(a.Scheme))
	}
	host := a.Host
	if host == "" {
		host = podIP
	}
	u.Host = net.JoinHostPort(host, strconv.Itoa(port))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, h := range a.HTTPHeaders {
		req.Header.Add(h.Name, h.Value)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", "kube-"+purpose+"/1.37")
	}
	if accept, ok := req.Header["Accept"]; !ok {
		req.Header.Set("Accept", "*/*")
	} else if accept[0] == "" {
		req.Header.Del("Accept")
	}
	req.Host = req.Header.Get("Host")
	return req, nil
}

func get(ctx context.Context, a *corev1.HTTPGetAction, t Target) Answer {
	req, err := Request(ctx, a, t.Container, t.PodIP, "probe")
	if err != nil {
		return Answer{Broken, err.Error(), false}
	}
	client := &http.Client{Transport: transport, CheckRedirect: sameHost}
	resp, err := client.Do(req)
	if err != nil {
		return Answer{failureOf(err), err.Error(), false}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, mostBody))
	switch {
	case err != nil:
		return Answer{Broken, err.Error(), false}
	case resp.StatusCode >= 200 && resp.StatusCode < 300:
		return Answer{Success, string(body), false}
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		return Answer{Success, fmt.Sprintf("Probe terminated redirects, Response body: %s", body), true}
	}
	return Answer{Failure, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode), false}
}

// sameHost follows redirects only within the host that was asked: a container
// must not make the node call others.
func sameHost(req *http.Request, via []*http.Request) error {
	if req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}
