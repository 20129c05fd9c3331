package api

import (
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/munnerz/goautoneg"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// media is one of the encodings of objects.
type media int8

const (
	mediaJSON media = iota
	mediaYAML
	mediaProtobuf
)

const (
	contentJSON     = "application/json"
	contentYAML     = "application/yaml"
	contentProtobuf = "application/vnd.kubernetes.protobuf"
)

func (m media) contentType() string {
	return [...]string{contentJSON, contentYAML, contentProtobuf}[m]
}

// accept is the representation a client asked for.
type accept struct {
	media  media
	pretty bool
	// as is the kind to convert the answer to (Table, PartialObjectMetadata …);
	// empty for the resource's own.
	as schema.GroupVersionKind
}

// transforms says which conversions an endpoint offers.
type transforms int8

const (
	plainOnly       transforms = iota // none
	withTables                        // Table in JSON and YAML, PartialObjectMetadata(List) in all
	aggregatedOffer                   // APIGroupDiscoveryList
)

func (t transforms) allow(m media, as schema.GroupVersionKind) bool {
	if as.Empty() {
		return true
	}
	if t == aggregatedOffer {
		return as.Group == "apidiscovery.k8s.io" && (as.Version == "v2" || as.Version == "v2beta1") && as.Kind == "APIGroupDiscoveryList"
	}
	if t == plainOnly || as.Group != "meta.k8s.io" || as.Version != "v1" && as.Version != "v1beta1" {
		return false
	}
	switch as.Kind {
	case "Table":
		return m != mediaProtobuf
	case "PartialObjectMetadata", "PartialObjectMetadataList":
		return true
	}
	return false
}

// negotiate reads the Accept header.
func negotiate(r *http.Request, offer transforms) (accept, error) {
	header := r.Header.Get("Accept")
	pretty := prettyWanted(r)
	switch header { // what nearly every client sends
	case "", "*/*", contentJSON, "application/json, */*":
		return accept{media: mediaJSON, pretty: pretty}, nil
	case contentProtobuf, "application/vnd.kubernetes.protobuf,application/json":
		return accept{media: mediaProtobuf}, nil
	}
	for _, clause := range goautoneg.ParseAccept(header) {
		if a, ok := acceptClause(&clause, offer); ok {
			a.pretty = a.pretty || pretty
			return a, nil
		}
	}
	return accept{}, notAcceptable(contentJSON, contentYAML, contentProtobuf)
}

func acceptClause(c *goautoneg.Accept, offer transforms) (accept, bool) {
	var a accept
	switch {
	case c.Type == "*" && c.SubType == "*", c.Type == "application" && (c.SubType == "*" || c.SubType == "json"):
	case c.Type == "application" && c.SubType == "yaml":
		a.media = mediaYAML
	case c.Type == "application" && c.SubType == "vnd.kubernetes.protobuf":
		a.media = mediaProtobuf
	default:
		return a, false
	}
	for key, value := range c.Params {
		switch key {
		case "as":
			a.as.Kind = value
		case "g":
			a.as.Group = value
		case "v":
			a.as.Version = value
		case "pretty":
			a.pretty = value == "1"
		case "stream":
			if value != "" && (value != "watch" || a.media == mediaYAML) {
				return a, false
			}
		case "sv":
			if value != "" && value != "v1" {
				return a, false
			}
		}
	}
	return a, offer.allow(a.media, a.as)
}

// prettyWanted follows the query parameter, or the habit of indenting for
// people who use a browser or curl.
func prettyWanted(r *http.Request) bool {
	if strings.Contains(r.URL.RawQuery, "pretty") {
		if value := r.URL.Query().Get("pretty"); value != "" {
			pretty, _ := strconv.ParseBool(value)
			return pretty
		}
	}
	agent := r.Header.Get("User-Agent")
	return strings.HasPrefix(agent, "curl") || strings.HasPrefix(agent, "Wget") || strings.HasPrefix(agent, "Mozilla/5.0")
}

// bodyMedia reads the Content-Type of a request with an object in its body.
func bodyMedia(r *http.Request) (media, error) {
	header := r.Header.Get("Content-Type")
	switch header {
	case "", contentJSON:
		return mediaJSON, nil
	case contentProtobuf:
		return mediaProtobuf, nil
	}
	if parsed, _, err := mime.ParseMediaType(header); err == nil {
		switch parsed {
		case contentJSON:
			return mediaJSON, nil
		case contentYAML:
			return mediaYAML, nil
		case contentProtobuf:
			return mediaProtobuf, nil
		}
	}
	return 0, unsupportedMedia(contentJSON, contentYAML, contentProtobuf)
}
