package robustness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/rest"

	"orch/test/cluster"
)

// configMap is what of an object and of a Status matters here.
type configMap struct {
	APIVersion string            `json:"apiVersion,omitempty"`
	Kind       string            `json:"kind,omitempty"`
	Metadata   metadata          `json:"metadata,omitzero"`
	Data       map[string]string `json:"data,omitempty"`
	Items      []configMap       `json:"items,omitempty"`
	Code       int               `json:"code,omitempty"`
	Reason     string            `json:"reason,omitempty"`
	Message    string            `json:"message,omitempty"`
}

type metadata struct {
	Name     string `json:"name,omitempty"`
	UID      string `json:"uid,omitempty"`
	Version  string `json:"resourceVersion,omitempty"`
	Continue string `json:"continue,omitempty"`
}

func (o *configMap) revision() int64 {
	n, _ := strconv.ParseInt(o.Metadata.Version, 10, 64) // 0 is none
	return n
}

const (
	mapsPath = "/api/v1/namespaces/default/configmaps"
	dataKey  = "value"
	// callTimeout is shorter than the servers' own patience, so that clients go
	// away while their writes are under way.
	callTimeout = 4 * time.Second
)

// access is a way to one server: connections of its own, through which nothing
// is ever sent twice.
type access struct {
	server *cluster.Node
	client *http.Client
	base   string
}

func newAccess(server *cluster.Node) (*access, error) {
	config, err := server.Config()
	if err != nil {
		return nil, err
	}
	config.NextProtos = []string{"http/1.1"}
	secure, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, err
	}
	return &access{
		server: server, base: strings.TrimSuffix(config.Host, "/"),
		client: &http.Client{Transport: &http.Transport{TLSClientConfig: secure, DialContext: config.Dial, TLSHandshakeTimeout: callTimeout, IdleConnTimeout: 10 * time.Second}},
	}, nil
}

func (a *access) close() { a.client.CloseIdleConnections() }

// send sends one request. Writes are marked so that net/http does not send them
// again on another connection.
func (a *access) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var reader io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		reader = struct{ io.Reader }{bytes.NewReader(data)} // without GetBody
	}
	request, err := http.NewRequestWithContext(ctx, method, a.base+path, reader)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	request.Header.Set("Accept", "application/json")
	return a.client.Do(request)
}

// do sends a request and reads its answer, whatever its status.
func (a *access) do(ctx context.Context, method, path string, body any) (*configMap, int, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := a.send(ctx, method, path, body)
	if err != nil {
		return nil, 0, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, 0, err
	}
	answer := new(configMap)
	if err := json.Unmarshal(data, answer); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", data, err)
	}
	return answer, response.StatusCode, nil
}

// client makes random calls through one server and records them.
type client struct {
	*access
	number int
	r      *recorder
	random *rand.Rand
	seen   map[string]configMap // what it read or wrote last, by key
	count  int
}

func newClient(number int, server *cluster.Node, r *recorder, seed uint64) (*client, error) {
	a, err := newAccess(server)
	if err != nil {
		return nil, err
	}
	return &client{access: a, number: number, r: r, random: rand.New(rand.NewPCG(seed, uint64(number))), seen: make(map[string]configMap)}, nil
}

// run makes calls until ctx ends; the last one is not cut short.
func (c *client) run(ctx context.Context, pause time.Duration) error {
	defer c.close()
	for {
		if c.random.IntN(12) == 0 {
			c.list(1 + c.random.IntN(2))
		} else {
			c.one(c.choose())
		}
		select {
		case <-time.After(time.Duration(c.random.Int64N(int64(2 * pause)))):
		case <-ctx.Done():
			return nil
		}
	}
}

// choose picks a call for a random key. Reads come first, for writes build on
// what was read.
func (c *client) choose() call {
	key := c.r.h.Keys[c.random.IntN(len(c.r.h.Keys))] // keys never change
	k := []kind{get, get, touch, create, create, update, update, update, put, patch, remove, destroy}[c.random.IntN(12)]
	if k == destroy && c.random.IntN(4) > 0 {
		k = create
	}
	_, known := c.seen[key]
	if !known && (k == update || k == remove) {
		k = get
	}
	one := call{Client: c.number, Server: c.server.Name, Kind: k, Key: key}
	switch k {
	case get:
		one.Stale = c.random.IntN(5) == 0
	case update, remove:
		seen := c.seen[key]
		one.Expect = seen.revision()
	}
	if one.writes() && !one.deletes() {
		c.count++
		one.Value = fmt.Sprintf("%d-%d", c.number, c.count)
	}
	return one
}

// one makes the call and records what came of it.
func (c *client) one(made call) {
	method, path, body := c.request(&made)
	made.Called = c.r.now()
	answer, status, err := c.do(context.Background(), method, path, body)
	made.Returned = c.r.now()
	made.judge(answer, status, err)
	if made.Outcome == done && !made.deletes() {
		made.Found, made.Revision = answer.Data[dataKey], answer.revision()
		if made.writes() && made.Found != made.Value {
			made.Outcome, made.Failure = unknown, "the answer shows the value "+made.Found
		}
		c.seen[made.Key] = *answer
	} else if made.Outcome != unknown {
		delete(c.seen, made.Key) // read it again before building on it
	}
	c.r.call(made)
}

func (c *client) request(made *call) (method, path string, body any) {
	object := configMap{APIVersion: "v1", Kind: "ConfigMap", Metadata: metadata{Name: made.Key}, Data: map[string]string{dataKey: made.Value}}
	path = mapsPath + "/" + made.Key
	switch made.Kind {
	case create:
		return http.MethodPost, mapsPath, object
	case update:
		object.Metadata.Version = strconv.FormatInt(made.Expect, 10)
		return http.MethodPut, path, object
	case put:
		return http.MethodPut, path, object
	case touch:
		return http.MethodPatch, path, configMap{}
	case patch:
		return http.MethodPatch, path, configMap{Data: object.Data}
	case remove:
		seen := c.seen[made.Key].Metadata
		return http.MethodDelete, path, map[string]any{
			"apiVersion": "v1", "kind": "DeleteOptions",
			"preconditions": map[string]string{"uid": seen.UID, "resourceVersion": seen.Version},
		}
	case destroy:
		return http.MethodDelete, path, nil
	}
	if made.Stale {
		path += "?resourceVersion=0"
	}
	return http.MethodGet, path, nil
}

// judge tells from the answer what happened. Only what the API promises counts
// as certain: after any other error a write may have happened.
func (c *call) judge(answer *configMap, status int, err error) {
	switch {
	case err != nil:
		c.Outcome, c.Failure = unknown, err.Error()
	case status/100 == 2:
		c.Outcome = done
	case status == http.StatusNotFound && answer.Reason == "NotFound":
		c.Outcome = missing
	case status == http.StatusConflict && c.Kind == create && answer.Reason == "AlreadyExists":
		c.Outcome = exists
	case status == http.StatusConflict && c.Kind != create && answer.Reason == "Conflict":
		c.Outcome = conflict
	default:
		c.Outcome, c.Failure = unknown, fmt.Sprintf("%d %s: %s", status, answer.Reason, answer.Message)
	}
}

// errNoAnswer says that a list did not come to its end.
var errNoAnswer = errors.New("no answer")

// list reads all keys, in that many pages.
func (c *client) list(pages int) {
	if l, err := c.listing(context.Background(), c.r, pages); err == nil {
		l.Client = c.number
		c.r.listing(l)
	}
}

func (a *access) listing(ctx context.Context, r *recorder, pages int) (listing, error) {
	l := listing{Client: -1, Server: a.server.Name, Items: make(map[string]item), Called: r.now()}
	ours, next := keySet(r.h.Keys), ""
	for {
		query := url.Values{}
		if pages > 1 {
			query.Set("limit", strconv.Itoa(1+len(r.h.Keys)/pages))
		}
		if next != "" {
			query.Set("continue", next)
		}
		answer, status, err := a.do(ctx, http.MethodGet, mapsPath+"?"+query.Encode(), nil)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%w: %d %s", errNoAnswer, status, answer.Message)
		}
		if err != nil {
			return l, err
		}
		if l.Pages++; l.Pages == 1 {
			l.Revision, l.Returned = answer.revision(), r.now()
		} else if answer.revision() != l.Revision {
			l.Torn = answer.revision()
		}
		for _, o := range answer.Items {
			if ours[o.Metadata.Name] {
				l.Items[o.Metadata.Name] = item{o.Data[dataKey], o.revision()}
			}
		}
		if next = answer.Metadata.Continue; next == "" {
			return l, nil
		}
	}
}

var errNotFound = errors.New("not found")

// ask puts a question that is not about objects; into may be nil.
func (a *access) ask(ctx context.Context, method, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := a.send(ctx, method, path, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode == http.StatusNotFound {
		err = errNotFound
	}
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, bytes.TrimSpace(data))
	}
	if err != nil || into == nil {
		return err
	}
	return json.Unmarshal(data, into)
}
