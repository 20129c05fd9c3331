package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/version"

	"orch/server/registry"
)

// openapi describes the API for kubectl explain, client-side checks and
// generators. The documents are large and seldom asked for: they are derived
// from the Go types on demand and kept, compressed, until the next garbage
// collection.
type openapi struct {
	registry *registry.Registry
	version  version.Info

	mu   sync.Mutex
	docs map[string]*cell // by path and media type
}

func newOpenAPI(r *registry.Registry, v version.Info) *openapi {
	return &openapi{registry: r, version: v, docs: make(map[string]*cell)}
}

func (o *openapi) definitions(openapi3 bool) *definitions {
	return &definitions{
		openapi3: openapi3, scheme: o.registry.Scheme(), lists: newListFacts(o.registry.Scheme()),
		nodes: make(map[string]*schemaNode),
	}
}

// The name by which clients ask for Swagger 2 in protobuf, and the one without
// the @, which is no valid media type, by which it is answered.
const (
	acceptProtobufV2  = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
	contentProtobufV2 = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
)

func (o *openapi) serve(s *Server, w http.ResponseWriter, r *http.Request, path string) {
	var err error
	switch {
	case path == "/openapi/v2":
		err = o.serveV2(w, r)
	case path == "/openapi/v3":
		err = o.serveIndex(w, r)
	default:
		err = o.serveV3(w, r, strings.TrimPrefix(path, "/openapi/v3/"))
	}
	if err != nil {
		s.fail(w, r, err)
	}
}

func (o *openapi) serveV2(w http.ResponseWriter, r *http.Request) error {
	content := contentJSON
	if header := r.Header.Get("Accept"); strings.Contains(header, acceptProtobufV2) || strings.Contains(header, contentProtobufV2) {
		content = contentProtobufV2
	}
	doc, err := o.compressed(content, func() ([]byte, error) {
		doc, err := o.documentV2()
		if err != nil {
			return nil, err
		}
		if content == contentProtobufV2 {
			return doc.protobuf()
		}
		return json.Marshal(doc)
	})
	if err != nil {
		return err
	}
	w.Header().Add("Vary", "Accept")
	return writeCompressed(w, r, content, o.hash("v2", content, o.registry.Resources()), doc)
}

// serveIndex lists the group versions, each with a hash of what its document
// is made from, so that a client fetches a document once per version of it.
func (o *openapi) serveIndex(w http.ResponseWriter, r *http.Request) error {
	type entry struct {
		URL string `json:"serverRelativeURL"`
	}
	paths := make(map[string]entry)
	d := discovery{o.registry}
	for _, g := range d.groups() {
		for _, v := range g.versions {
			path := groupVersionPath(g.name, v)
			paths[path] = entry{"/openapi/v3/" + path + "?hash=" + o.hash("v3", path, g.entries[v])}
		}
	}
	index, err := json.Marshal(map[string]any{"paths": paths})
	if err != nil {
		return err
	}
	writeTagged(w, r, contentJSON, index)
	return nil
}

func groupVersionPath(group, version string) string {
	if group == "" {
		return "api/" + version
	}
	return "apis/" + group + "/" + version
}

func (o *openapi) serveV3(w http.ResponseWriter, r *http.Request, path string) error {
	d := discovery{o.registry}
	parts := strings.Split(path, "/")
	var entries []*registry.Resource
	switch {
	case len(parts) == 2 && parts[0] == "api":
		if g := d.group(""); g != nil {
			entries = g.entries[parts[1]]
		}
	case len(parts) == 3 && parts[0] == "apis" && parts[1] != "":
		if g := d.group(parts[1]); g != nil {
			entries = g.entries[parts[2]]
		}
	}
	if entries == nil {
		notFound(w)
		return nil
	}
	if accept := r.Header.Get("Accept"); accept != "" && !strings.Contains(accept, "json") && !strings.Contains(accept, "*/*") {
		return notAcceptable(contentJSON)
	}
	hash := o.hash("v3", path, entries)
	if asked := r.URL.Query().Get("hash"); asked != "" {
		if asked != hash {
			http.Redirect(w, r, "/openapi/v3/"+path+"?hash="+hash, http.StatusMovedPermanently)
			return nil
		}
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", time.Now().AddDate(1, 0, 0).UTC().Format(http.TimeFormat))
	}
	doc, err := o.compressed(path, func() ([]byte, error) { return o.documentV3(entries) })
	if err != nil {
		return err
	}
	return writeCompressed(w, r, contentJSON, hash, doc)
}

// hash identifies a document by what it is derived from.
func (o *openapi) hash(form, name string, entries []*registry.Resource) string {
	h := sha256.New()
	fmt.Fprintln(h, form, name, o.version.GitVersion, o.version.GitCommit)
	for _, res := range entries {
		fmt.Fprintln(h, res.GVK(), res.Plural, verbsOf(res))
		for _, sub := range res.Subresources {
			fmt.Fprintln(h, sub.Name, sub.Kind, subresourceVerbs(sub))
		}
	}
	return strings.ToUpper(hex.EncodeToString(h.Sum(nil)))
}

// compressed gives the document under name, making it when it is not at hand.
func (o *openapi) compressed(name string, make func() ([]byte, error)) ([]byte, error) {
	o.mu.Lock()
	c := o.docs[name]
	if c == nil {
		c = new(cell)
		o.docs[name] = c
	}
	o.mu.Unlock()
	return c.get(func() ([]byte, error) {
		doc, err := make()
		if err != nil {
			return nil, apierrors.NewInternalError(fmt.Errorf("describe the API: %w", err))
		}
		var out bytes.Buffer
		zip := gzip.NewWriter(&out)
		zip.Write(doc)
		err = zip.Close()
		return out.Bytes(), err
	})
}

// writeCompressed sends a compressed document, unpacking it for the few who
// cannot.
func writeCompressed(w http.ResponseWriter, r *http.Request, content, hash string, doc []byte) error {
	h := w.Header()
	h.Set("Content-Type", content)
	h.Set("ETag", `"`+hash+`"`)
	h.Add("Vary", "Accept-Encoding")
	if r.Header.Get("If-None-Match") == `"`+hash+`"` {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		w.Write(doc)
		return nil
	}
	zip, err := gzip.NewReader(bytes.NewReader(doc))
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	io.Copy(w, zip)
	return nil
}
