package runtime

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// rewriter stands between containerd, which cannot ask a mirror for an image by
// another name, and one endpoint of a mirror with rewrite rules. It listens on
// loopback, below a path that only containerd is told.
type rewriter struct {
	listener net.Listener
	server   *http.Server
	URL      string // for containerd
}

// rewriters starts to listen for every endpoint of a mirror with rewrite rules,
// and has hosts and credentials name them.
func (r *registries) rewriters(log *slog.Logger) (all []*rewriter, err error) {
	defer func() {
		if err != nil {
			for _, w := range all {
				w.listener.Close()
			}
		}
	}()
	r.local = map[mirrorEndpoint]*rewriter{}
	for name, m := range r.Mirrors {
		if len(m.Rewrite) == 0 {
			continue
		}
		for _, endpoint := range m.Endpoint {
			w, err := r.newRewriter(endpoint, m.Rewrite, log)
			if err != nil {
				return all, fmt.Errorf("mirror %q: endpoint %s: %w", name, endpoint, err)
			}
			all = append(all, w)
			r.local[mirrorEndpoint{name, endpoint}] = w
		}
	}
	return all, nil
}

// mirrorEndpoint is an endpoint of the mirror for a registry.
type mirrorEndpoint struct{ name, endpoint string }

func (r *registries) newRewriter(endpoint string, rules map[string]string, log *slog.Logger) (*rewriter, error) {
	target, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	if p := strings.TrimSuffix(target.Path, "/"); p == "" {
		target.Path = "/v2"
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if transport.TLSClientConfig, err = r.settings(target.Host).tlsConfig(); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	prefix := "/" + rand.Text()
	proxy := &httputil.ReverseProxy{
		Transport: transport,
		ErrorLog:  slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = target.Scheme, target.Host, target.Host
			p.Out.URL.Path = path.Join(target.Path, rewritePath(strings.TrimPrefix(p.In.URL.Path, prefix+"/"), rules))
			p.Out.URL.RawPath = ""
		},
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, prefix+"/") {
			http.NotFound(w, r)
			return
		}
		proxy.ServeHTTP(w, r)
	})
	return &rewriter{
		listener: listener, URL: "http://" + listener.Addr().String() + prefix,
		server: &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, ErrorLog: proxy.ErrorLog},
	}, nil
}

// run serves until ctx ends.
func (w *rewriter) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { w.server.Close() })
	defer stop()
	if err := w.server.Serve(w.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve registry rewrites: %w", err)
	}
	return nil
}

// requestOf takes the path of a registry request apart: the repository, whose
// name may have these words in it, and what is asked of it.
var requestOf = regexp.MustCompile(`^(.+)(/(?:manifests|blobs|tags|referrers)/[^/]+(?:/[^/]*)?)$`)

// rewritePath applies the first rule, by name, that changes the repository.
func rewritePath(request string, rules map[string]string) string {
	parts := requestOf.FindStringSubmatch(request)
	if parts == nil {
		return request
	}
	for _, pattern := range slices.Sorted(maps.Keys(rules)) {
		rule, err := regexp.Compile(pattern)
		if err != nil {
			continue // validated
		}
		if changed := rule.ReplaceAllString(parts[1], rules[pattern]); changed != parts[1] {
			return changed + parts[2]
		}
	}
	return request
}

// tlsConfig reads the files that the settings name.
func (e hostEntry) tlsConfig() (*tls.Config, error) {
	config := &tls.Config{InsecureSkipVerify: e.SkipVerify != nil && *e.SkipVerify} //nolint:gosec // as registries.yaml says
	if e.CA != "" {
		pem, err := os.ReadFile(e.CA)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		if config.RootCAs, err = x509.SystemCertPool(); err != nil {
			return nil, err
		}
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file %s: holds no certificate", e.CA)
		}
	}
	for _, pair := range e.Client {
		cert, err := tls.LoadX509KeyPair(pair[0], pair[1])
		if err != nil {
			return nil, fmt.Errorf("cert_file and key_file: %w", err)
		}
		config.Certificates = append(config.Certificates, cert)
	}
	return config, nil
}
