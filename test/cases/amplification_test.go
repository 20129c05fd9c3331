package cases

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"orch/test/cluster"
)

// endless is what it takes to reckon with the quantity of api-11.
const endless = "1e9999999999"

// TestApi11 asks for an endless amount of memory in every way that an object
// comes in, kubectl's included.
func TestApi11(t *testing.T) {
	t.Parallel()
	node := cluster.Start(t)
	h := newHostile(t, node)
	pod := func(amount string) string {
		return `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"q"},"spec":{"containers":[{"name":"c","image":"x","resources":{"requests":{"memory":` + amount + `}}}]}}`
	}
	const pods, dry = "/api/v1/namespaces/default/pods", "?dryRun=All"
	h.do("POST", pods, "application/json", pod(`"1Gi"`), http.StatusCreated, "")
	for _, amount := range []string{`"1e9999999999"`, `1e9999999999`, `"1e-9999999999"`, `"1e2147483648"`, `"1e999999999"`, `"\u0031e9999999999"`, `"1e9999999999","memory":"1"`, `"` + strings.Repeat("9", 1<<20) + `"`} {
		h.do("POST", pods+dry, "application/json", pod(amount), http.StatusBadRequest, "out of range")
		if !strings.Contains(amount, `","`) { // of what YAML says twice, the last counts alone
			h.do("POST", pods+dry, "application/yaml", pod(amount), http.StatusBadRequest, "out of range")
		}
		h.do("POST", "/api/v1/namespaces/default/configmaps", "application/json", pod(amount), http.StatusBadRequest, "out of range")
		h.do("PATCH", pods+"/q", "application/merge-patch+json", pod(amount), http.StatusBadRequest, "out of range")
		h.do("PATCH", pods+"/q", "application/strategic-merge-patch+json", pod(amount), http.StatusBadRequest, "out of range")
		h.do("PATCH", pods+"/new?fieldManager=m", "application/apply-patch+yaml", pod(amount), http.StatusBadRequest, "out of range")
	}
	h.do("PATCH", pods+"/q", "application/json-patch+json", `[{"op":"add","path":"/metadata/annotations","value":{"a":"`+endless+`"}},
		{"op":"copy","from":"/metadata/annotations/a","path":"/spec/containers/0/resources/requests/memory"}]`, http.StatusUnprocessableEntity, "out of range")
	h.do("POST", pods+dry, "application/json", strings.Replace(pod(`"1Gi"`), `"memory"`, `"hugepages-`+endless+`"`, 1), http.StatusUnprocessableEntity, "out of range")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, args := range [][]string{{"--dry-run=server"}, {"--dry-run=server", "--validate=false"}, {"--validate=strict"}} {
		out, err := node.KubectlInput(ctx, strings.NewReader(pod(`"`+endless+`"`)), append([]string{"create", "-f", "-"}, args...)...)
		if err == nil || !strings.Contains(out+err.Error(), "out of range") {
			t.Errorf("kubectl create %v: %s, %v", args, out, err)
		}
	}
}

// TestLittleInMuchOut sends what once took gigabytes or minutes. The server
// answers each, and has room in a machine of 1 GiB.
func TestLittleInMuchOut(t *testing.T) {
	t.Parallel()
	node := cluster.Start(t)
	h := newHostile(t, node)
	const maps = "/api/v1/namespaces/default/configmaps"
	h.do("POST", maps, "application/json", `{"metadata":{"name":"a"},"data":{"x":"`+strings.Repeat("x", 1000)+`"}}`, http.StatusCreated, "")

	copies := []string{`{"op":"add","path":"/data","value":{"a":"` + strings.Repeat("x", 500) + `"}}`}
	for i := range 40 {
		copies = append(copies, fmt.Sprintf(`{"op":"add","path":"/x%d","value":{}},{"op":"copy","from":"/data","path":"/x%d/a"},{"op":"copy","from":"/data","path":"/x%d/b"},{"op":"move","from":"/x%d","path":"/data"}`, i, i, i, i))
	}
	h.do("PATCH", maps+"/a?dryRun=All", "application/json-patch+json", "["+strings.Join(copies, ",")+"]", http.StatusUnprocessableEntity, "")

	aliases := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\nscalar: &s " + strings.Repeat("x", 100_000) + "\ndata:\n"
	for i := range 3000 {
		aliases += fmt.Sprintf("  k%d: *s\n", i)
	}
	h.do("POST", maps, "application/yaml", aliases, http.StatusBadRequest, "aliases written out")
	h.do("PATCH", maps+"/b?fieldManager=m", "application/apply-patch+yaml", aliases, http.StatusBadRequest, "aliases written out")

	deep := strings.Repeat(`{"a":`, 9900) + "1" + strings.Repeat("}", 9900)
	for _, kind := range []string{"merge-patch+json", "strategic-merge-patch+json", "apply-patch+yaml"} {
		h.do("PATCH", maps+"/a?fieldManager=m", "application/"+kind, deep, http.StatusBadRequest, "exceeded max depth")
	}
	for _, kind := range []string{"json", "yaml"} {
		h.do("POST", maps, "application/"+kind, deep, http.StatusBadRequest, "exceeded max depth")
	}

	wide := `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"w"},"data":{"k":""` + numbered(150_000, `,"k%d":""`) + `}}`
	h.do("PATCH", maps+"/w?fieldManager=m", "application/apply-patch+yaml", wide, http.StatusRequestEntityTooLarge, "too many fields")

	h.do("GET", maps+"?labelSelector="+strings.TrimPrefix(numbered(1_500, ",a%d!=b"), ","), "", "", http.StatusRequestEntityTooLarge, "a selector may have")
	h.do("DELETE", maps+"?labelSelector=a+in+("+strings.TrimPrefix(numbered(10_500, ",b%d"), ",")+")", "", "", http.StatusRequestEntityTooLarge, "a selector may have")

	owners := `{"metadata":{"name":"o","ownerReferences":[` + strings.TrimPrefix(numbered(15_000, `,{"apiVersion":"v1","kind":"Pod","name":"p","uid":"u%d"}`), ",") + `]}}`
	h.do("POST", maps+"?dryRun=All", "application/json", owners, http.StatusCreated, "")

	half := strings.Repeat("y", 800_000)
	const roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles"
	rule := `{"verbs":["get"],"apiGroups":[""],"resources":["pods"],"resourceNames":["` + half + `"]}`
	h.do("POST", roles, "application/json", `{"metadata":{"name":"r"},"rules":[`+rule+`]}`, http.StatusCreated, "")
	h.do("PATCH", roles+"/r", "application/json-patch+json", `[{"op":"copy","from":"/rules/0","path":"/rules/-"}]`, http.StatusRequestEntityTooLarge, "a stored object may have 1572864 bytes")
	h.do("PATCH", maps+"/a", "application/merge-patch+json", `{"data":{"three":7}, "`+half+`":[]}`, http.StatusBadRequest, "longer than")

	h.do("GET", maps+"/a", "", "", http.StatusOK, "")
	if peak := peakMemory(t, node.PID()); peak > 1<<30 {
		t.Errorf("the server took %d MB", peak>>20)
	}
}

// numbered repeats a format with 0, 1, 2 …
func numbered(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

var peakLine = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// peakMemory is the most that a process has held, in bytes.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	found := peakLine.FindSubmatch(status)
	if found == nil {
		t.Fatalf("no VmHWM in %s", status)
	}
	kilobytes, err := strconv.ParseInt(string(found[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kilobytes << 10
}

// hostile sends requests as they are, without a client library that mends them.
type hostile struct {
	t      *testing.T
	base   string
	client *http.Client
}

func newHostile(t *testing.T, node *cluster.Node) *hostile {
	t.Helper()
	config, err := node.Config()
	if err != nil {
		t.Fatal(err)
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	client.Timeout = 50 * time.Second // below the server's own limit, which answers 504
	return &hostile{t: t, base: config.Host, client: client}
}

// do sends a request and expects a code and a small answer that matches want.
func (h *hostile) do(method, path, contentType, body string, code int, want string) {
	h.t.Helper()
	request, err := http.NewRequestWithContext(h.t.Context(), method, h.base+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	if body != "" {
		request.Header.Set("Content-Type", contentType)
	}
	shown := fmt.Sprintf("%s %.80s with %d bytes of %s (%.60s)", method, path, len(body), contentType, body)
	response, err := h.client.Do(request)
	if err != nil {
		h.t.Errorf("%s: %v", shown, err)
		return
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		h.t.Errorf("%s: %v", shown, err)
		return
	}
	if response.StatusCode != code || !regexp.MustCompile(want).Match(answer) {
		h.t.Errorf("%s: got %d %.300s, want %d %s", shown, response.StatusCode, answer, code, want)
	}
	if code >= 400 && len(answer) > 1<<20 || bytes.Count(answer, []byte("x")) > 1<<20 {
		h.t.Errorf("%s: the answer has %d bytes", shown, len(answer))
	}
}
