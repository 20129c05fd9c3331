package api

import (
	"cmp"
	"crypto/sha512"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"

	"github.com/munnerz/goautoneg"
	discoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apimachineryversion "k8s.io/apimachinery/pkg/version"

	"orch/server/registry"
)

// discovery tells clients which resources there are. The documents are made
// when they are asked for: that is seldom, and keeping them would cost more.
type discovery struct{ registry *registry.Registry }

func newDiscovery(r *registry.Registry) *discovery { return &discovery{r} }

// group is a group's versions, the preferred one first.
type group struct {
	name     string
	versions []string
	entries  map[string][]*registry.Resource
}

// groups are in the order of the resource table, the core group ("") included.
func (d *discovery) groups() []*group {
	var all []*group
	byName := make(map[string]*group)
	for _, res := range d.registry.Resources() {
		g := byName[res.Group]
		if g == nil {
			g = &group{name: res.Group, entries: make(map[string][]*registry.Resource)}
			byName[res.Group] = g
			all = append(all, g)
		}
		if g.entries[res.Version] == nil {
			g.versions = append(g.versions, res.Version)
		}
		g.entries[res.Version] = append(g.entries[res.Version], res)
	}
	for _, g := range all {
		slices.SortStableFunc(g.versions, func(a, b string) int { return apimachineryversion.CompareKubeAwareVersionStrings(b, a) })
		for _, entries := range g.entries {
			slices.SortFunc(entries, func(a, b *registry.Resource) int { return cmp.Compare(a.Plural, b.Plural) })
		}
	}
	return all
}

func (d *discovery) group(name string) *group {
	for _, g := range d.groups() {
		if g.name == name {
			return g
		}
	}
	return nil
}

// discover serves /api… and /apis….
func (s *Server) discover(w http.ResponseWriter, r *http.Request, path string) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	root := parts[0]
	if len(parts) == 1 {
		if as, ok := aggregatedWanted(r); ok {
			s.writeDiscovery(w, r, s.discovery.aggregated(root), as)
			return
		}
	}
	var doc runtime.Object
	kind := schema.GroupVersionKind{Version: "v1"}
	switch {
	case root == "api" && len(parts) == 1:
		doc, kind.Kind = s.discovery.coreVersions(r), "APIVersions"
	case root == "api" && len(parts) == 2:
		doc, kind.Kind = s.discovery.resources("", parts[1]), "APIResourceList"
	case root == "apis" && len(parts) == 1:
		doc, kind.Kind = s.discovery.groupList(), "APIGroupList"
	case root == "apis" && len(parts) == 2 && parts[1] != "":
		doc, kind.Kind = s.discovery.apiGroup(parts[1]), "APIGroup"
	case root == "apis" && len(parts) == 3 && parts[1] != "":
		doc, kind.Kind = s.discovery.resources(parts[1], parts[2]), "APIResourceList"
	}
	if isNil(doc) {
		s.notFound(w, r)
		return
	}
	s.writeDiscovery(w, r, doc, kind)
}

func isNil(doc runtime.Object) bool {
	switch doc := doc.(type) {
	case nil:
		return true
	case *metav1.APIGroup:
		return doc == nil
	case *metav1.APIResourceList:
		return doc == nil
	}
	return false
}

// writeDiscovery answers with an ETag, so that clients can keep what they have.
func (s *Server) writeDiscovery(w http.ResponseWriter, r *http.Request, doc runtime.Object, kind schema.GroupVersionKind) {
	offer := plainOnly
	aggregated := kind.Kind == "APIGroupDiscoveryList"
	if aggregated {
		offer = aggregatedOffer
	}
	a, err := negotiate(r, offer)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	buf := getBuffer()
	defer putBuffer(buf)
	if err := appendObject(buf, a, kind, doc); err != nil {
		s.fail(w, r, err)
		return
	}
	content := a.media.contentType()
	if aggregated {
		content += ";g=" + kind.Group + ";v=" + kind.Version + ";as=" + kind.Kind
	}
	w.Header().Add("Vary", "Accept")
	writeTagged(w, r, content, buf.Bytes())
}

// writeTagged answers 304 when the client has these bytes already.
func writeTagged(w http.ResponseWriter, r *http.Request, content string, doc []byte) {
	sum := sha512.Sum512(doc)
	tag := `"` + strings.ToUpper(hex.EncodeToString(sum[:])) + `"`
	w.Header().Set("ETag", tag)
	w.Header().Set("Cache-Control", "public")
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	body := newBody(w, r, http.StatusOK, content)
	body.Write(doc)
	body.Close()
}

// aggregatedWanted picks the first aggregated format that the client prefers
// over the plain one.
func aggregatedWanted(r *http.Request) (schema.GroupVersionKind, bool) {
	header := r.Header.Get("Accept")
	if !strings.Contains(header, "APIGroupDiscoveryList") {
		return schema.GroupVersionKind{}, false
	}
	for _, clause := range goautoneg.ParseAccept(header) {
		a, ok := acceptClause(&clause, aggregatedOffer)
		if ok {
			return a.as, a.as.Kind != ""
		}
	}
	return schema.GroupVersionKind{}, false
}

func (d *discovery) coreVersions(r *http.Request) *metav1.APIVersions {
	versions := &metav1.APIVersions{
		Versions:                   []string{},
		ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{{ClientCIDR: "0.0.0.0/0", ServerAddress: r.Host}},
	}
	if core := d.group(""); core != nil {
		versions.Versions = core.versions
	}
	return versions
}

func (d *discovery) groupList() *metav1.APIGroupList {
	list := &metav1.APIGroupList{Groups: []metav1.APIGroup{}}
	for _, g := range d.groups() {
		if g.name != "" {
			list.Groups = append(list.Groups, g.describe())
		}
	}
	return list
}

func (d *discovery) apiGroup(name string) *metav1.APIGroup {
	g := d.group(name)
	if g == nil {
		return nil
	}
	described := g.describe()
	return &described
}

func (g *group) describe() metav1.APIGroup {
	described := metav1.APIGroup{Name: g.name}
	for _, version := range g.versions {
		gv := schema.GroupVersion{Group: g.name, Version: version}
		described.Versions = append(described.Versions, metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: version})
	}
	described.PreferredVersion = described.Versions[0]
	return described
}

// resources is the plain list of one group version.
func (d *discovery) resources(name, version string) *metav1.APIResourceList {
	g := d.group(name)
	if g == nil || g.entries[version] == nil {
		return nil
	}
	list := &metav1.APIResourceList{GroupVersion: schema.GroupVersion{Group: name, Version: version}.String()}
	for _, res := range g.entries[version] {
		list.APIResources = append(list.APIResources, metav1.APIResource{
			Name: res.Plural, SingularName: res.Singular, Namespaced: res.Namespaced, Kind: res.Kind,
			Verbs: slices.Sorted(slices.Values(verbsOf(res))), ShortNames: res.ShortNames, Categories: res.Categories,
		})
		for _, sub := range sortedSubresources(res) {
			entry := metav1.APIResource{Name: res.Plural + "/" + sub.Name, Namespaced: res.Namespaced, Kind: res.Kind, Verbs: subresourceVerbs(sub)}
			if !sub.Kind.Empty() {
				entry.Kind = sub.Kind.Kind
				if sub.Kind.GroupVersion() != res.GVK().GroupVersion() {
					entry.Group, entry.Version = sub.Kind.Group, sub.Kind.Version
				}
			}
			list.APIResources = append(list.APIResources, entry)
		}
	}
	return list
}

func sortedSubresources(res *registry.Resource) []*registry.Subresource {
	return slices.SortedFunc(slices.Values(res.Subresources), func(a, b *registry.Subresource) int { return cmp.Compare(a.Name, b.Name) })
}

func subresourceVerbs(sub *registry.Subresource) []string {
	verbs := slices.Clone(sub.Connect)
	if sub.Create == nil && (sub.Update != nil || sub.Project != nil) {
		verbs = append(verbs, "get", "patch", "update")
	}
	if sub.Create != nil {
		verbs = append(verbs, "create")
	}
	slices.Sort(verbs)
	return slices.Compact(verbs)
}

// aggregated is everything under root ("api" or "apis") in one document.
func (d *discovery) aggregated(root string) *discoveryv2.APIGroupDiscoveryList {
	list := &discoveryv2.APIGroupDiscoveryList{Items: []discoveryv2.APIGroupDiscovery{}}
	for _, g := range d.groups() {
		if (g.name == "") != (root == "api") {
			continue
		}
		item := discoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: g.name}}
		for _, version := range g.versions {
			item.Versions = append(item.Versions, discoveryv2.APIVersionDiscovery{
				Version: version, Freshness: discoveryv2.DiscoveryFreshnessCurrent, Resources: aggregatedResources(g.entries[version]),
			})
		}
		list.Items = append(list.Items, item)
	}
	return list
}

func aggregatedResources(entries []*registry.Resource) []discoveryv2.APIResourceDiscovery {
	var out []discoveryv2.APIResourceDiscovery
	for _, res := range entries {
		scope := discoveryv2.ScopeCluster
		if res.Namespaced {
			scope = discoveryv2.ScopeNamespace
		}
		entry := discoveryv2.APIResourceDiscovery{
			Resource: res.Plural, SingularResource: res.Singular, Scope: scope,
			ResponseKind: responseKind(res.GVK()), Verbs: slices.Sorted(slices.Values(verbsOf(res))),
			ShortNames: res.ShortNames, Categories: res.Categories,
		}
		for _, sub := range sortedSubresources(res) {
			kind := sub.Kind
			if kind.Empty() {
				kind = res.GVK()
			}
			entry.Subresources = append(entry.Subresources, discoveryv2.APISubresourceDiscovery{
				Subresource: sub.Name, ResponseKind: responseKind(kind), Verbs: subresourceVerbs(sub),
			})
		}
		out = append(out, entry)
	}
	return out
}

func responseKind(gvk schema.GroupVersionKind) *metav1.GroupVersionKind {
	return &metav1.GroupVersionKind{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind}
}

// paths is the index at /.
func (s *Server) paths() []string {
	paths := []string{"/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"}
	for path := range s.cfg.Paths {
		paths = append(paths, path)
	}
	for _, g := range s.discovery.groups() {
		prefix := "/api"
		if g.name != "" {
			prefix = "/apis/" + g.name
			paths = append(paths, prefix)
		}
		for _, version := range g.versions {
			paths = append(paths, prefix+"/"+version)
		}
	}
	for _, check := range s.cfg.Checks {
		paths = append(paths, "/readyz/"+check.Name)
		if !check.Ready {
			paths = append(paths, "/livez/"+check.Name)
		}
	}
	slices.Sort(paths)
	return paths
}
