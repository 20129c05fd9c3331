package registry

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// continueToken is the state of a paged list, in upstream's shape.
type continueToken struct {
	APIVersion string `json:"v"`
	Revision   int64  `json:"rv"`    // to list at; -1: the newest
	Start      string `json:"start"` // first key to give, without the resource's prefix
}

const continueVersion = "meta.k8s.io/v1"

var errContinueInvalid = errors.New("continue key is not valid")

// encodeContinue says to go on after key.
func encodeContinue(prefix, key string, revision int64) string {
	data, _ := json.Marshal(continueToken{continueVersion, revision, strings.TrimPrefix(key, prefix) + "\x00"})
	return base64.RawURLEncoding.EncodeToString(data)
}

// decodeContinue gives the key after which to go on, and the revision.
func decodeContinue(prefix, token string) (after string, revision int64, err error) {
	t, err := parseContinue(token)
	if err != nil {
		return "", 0, apierrors.NewBadRequest(fmt.Sprintf("invalid continue token: %v", err))
	}
	return prefix + strings.TrimSuffix(t.Start, "\x00"), t.Revision, nil
}

func parseContinue(token string) (t continueToken, err error) {
	data, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return t, fmt.Errorf("%w: %v", errContinueInvalid, err)
	}
	if err := json.Unmarshal(data, &t); err != nil {
		return t, fmt.Errorf("%w: %v", errContinueInvalid, err)
	}
	switch {
	case t.APIVersion != continueVersion:
		return t, fmt.Errorf("%w: server does not recognize this encoded version %v", errContinueInvalid, t.APIVersion)
	case t.Revision == 0:
		return t, fmt.Errorf("%w: incorrect encoded start resourceVersion (version meta.k8s.io/v1)", errContinueInvalid)
	case t.Start == "":
		return t, fmt.Errorf("%w: encoded start key empty (version meta.k8s.io/v1)", errContinueInvalid)
	}
	rooted := "/" + strings.TrimPrefix(t.Start, "/")
	if path.Clean(rooted) != rooted {
		return t, fmt.Errorf("%w: %v", errContinueInvalid, t.Start)
	}
	return t, nil
}
