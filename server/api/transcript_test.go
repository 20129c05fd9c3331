package api

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"orch/server/auth"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata from what the server answers")

// TestTranscripts replays the requests in testdata/*.txt, in order, each file
// against a server of its own, and compares the answers. A transcript is a
// list of blocks: the request's lines begin with ">", the answer's do not.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			server := newTestServer(t, func(cfg *Config) {
				cfg.Authenticator, cfg.Authorizer = headerAuth{}, headerAuth{}
				cfg.Checks = []Check{{Name: "store"}, {Name: "leader", Ready: true, Probe: func(context.Context) error { return errors.New("none") }}}
			})
			got := replay(t, server, string(text))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(text) {
				t.Errorf("%s:\n%s", file, firstDifference(string(text), got))
			}
		})
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range w {
		if i >= len(g) || w[i] != g[i] {
			have := "<nothing>"
			if i < len(g) {
				have = g[i]
			}
			return fmt.Sprintf("line %d\nwant %s\ngot  %s", i+1, w[i], have)
		}
	}
	return "more lines than wanted: " + g[len(w)]
}

func replay(t *testing.T, server *testServer, text string) string {
	var out strings.Builder
	for _, block := range strings.Split(text, "\n\n") {
		var request []string
		for _, line := range strings.Split(strings.TrimSpace(block), "\n") {
			if strings.HasPrefix(line, "#") {
				out.WriteString(line + "\n")
			} else if rest, ok := strings.CutPrefix(line, ">"); ok {
				request = append(request, strings.TrimPrefix(rest, " "))
				out.WriteString(line + "\n")
			}
		}
		if len(request) > 0 {
			out.WriteString(exchange(t, server, request))
		}
		out.WriteString("\n")
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}

// exchange sends a request of the form "METHOD path", headers, "" and body.
func exchange(t *testing.T, server *testServer, lines []string) string {
	t.Helper()
	method, path, _ := strings.Cut(lines[0], " ")
	head, body := lines[1:], ""
	for i, line := range head {
		if line == "" {
			head, body = head[:i], strings.Join(head[i+1:], "\n")
			break
		}
	}
	if size, ok := strings.CutPrefix(body, "zeros "); ok {
		var n int
		fmt.Sscan(size, &n)
		body = strings.Repeat("0", n)
	}
	req, err := http.NewRequest(method, server.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("User-Agent", "transcript/1.0")
	if body != "" {
		req.Header.Set("Content-Type", contentJSON)
	}
	for _, line := range head {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Add(name, value)
		if name == "Content-Type" {
			req.Header.Set(name, value)
		}
	}
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return render(resp, data)
}

// What differs from run to run.
var volatile = []struct {
	pattern *regexp.Regexp
	masked  string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "<uid>"},
	{regexp.MustCompile(`(\btime"?: ?)"[^"]*"`), `$1"<now>"`},
	{regexp.MustCompile(`"serverAddress":"[^"]*"`), `"serverAddress":"<address>"`},
	{regexp.MustCompile(`"(continue|hash)":"[^"]*"`), `"$1":"<token>"`},
	{regexp.MustCompile(`,"managedFields":\[.*?\}\]`), ``},
}

func render(resp *http.Response, body []byte) string {
	var out strings.Builder
	fmt.Fprintln(&out, resp.StatusCode)
	for _, name := range []string{"Content-Type", "Warning", "Retry-After", "Location", "Content-Encoding"} {
		for _, value := range resp.Header.Values(name) {
			fmt.Fprintf(&out, "%s: %s\n", name, value)
		}
	}
	if !strings.Contains(resp.Header.Get("Content-Type"), "protobuf") {
		for _, v := range volatile {
			body = v.pattern.ReplaceAll(body, []byte(v.masked))
		}
		body = bytes.ReplaceAll(body, []byte("\n\n"), []byte("\n"))
	} else {
		body = fmt.Appendf(nil, "%q", body[:min(len(body), 36)])
	}
	if text := strings.TrimRight(string(body), "\n"); text != "" {
		out.WriteString(text + "\n")
	}
	return out.String()
}

// headerAuth believes the X-User header and lets a user do what its name says.
type headerAuth struct{}

func (headerAuth) Authenticate(r *http.Request) (*auth.User, error) {
	switch name := r.Header.Get("X-User"); name {
	case "nobody":
		return nil, nil
	case "liar":
		return nil, errors.New("bad token")
	case "":
		return &auth.User{Name: "admin", Groups: []string{"system:masters"}}, nil
	default:
		return &auth.User{Name: name}, nil
	}
}

func (headerAuth) Authorize(_ context.Context, a *auth.Attributes) (bool, string, error) {
	switch a.User.Name {
	case "admin":
		return true, "", nil
	case "reader":
		return a.Verb == "get" || a.Verb == "list", "", nil
	case "patcher":
		return a.Verb == "patch", "", nil
	case "jane":
		return a.Verb == "impersonate" && a.Resource == "users" && a.Name == "reader", `RBAC: role "x" not found`, nil
	}
	return !a.ResourceRequest && (a.Path == "/livez" || a.Path == "/version"), "", nil
}
