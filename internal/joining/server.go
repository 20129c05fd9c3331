package joining

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"orch/internal/pki"
)

// ServerRequest is the body of a POST to PathServer, authenticated by the token
// of servers.
type ServerRequest struct {
	Name    string `json:"name"`
	Version string `json:"version"` // of the Kubernetes API that it serves
}

// FileCA is the CA's certificate among the files of a ServerAnswer.
const FileCA = "tls/ca.crt"

// ServerAnswer is all that servers share besides the store.
type ServerAnswer struct {
	Files    map[string][]byte `json:"files"` // by path under <data-dir>/server
	Settings Settings          `json:"settings"`
}

// JoinServer gets what a further server needs from one that is there. Nothing
// secret is asked for, or sent, before that server's CA has matched the token.
func JoinServer(ctx context.Context, address, text string, request ServerRequest) (*ServerAnswer, error) {
	server, err := url.Parse(address)
	if err != nil || server.Host == "" || server.Scheme != "https" {
		return nil, fmt.Errorf("--join %q: must be of the form https://host:port", address)
	}
	if text == "" {
		return nil, errors.New("joining needs a token: pass --token with the text of <data-dir>/server/token of a server")
	}
	token, err := ParseToken(text)
	if err != nil {
		return nil, fmt.Errorf("--token: %w", err)
	}
	if token.User != "" && token.User != UserServer {
		return nil, fmt.Errorf("--token: this one is for agents: a server joins with the text of <data-dir>/server/token")
	}
	token.User = UserServer
	ca, err := fetchCA(ctx, server, token)
	if err != nil {
		return nil, err
	}
	answer := &ServerAnswer{}
	transport := &http.Transport{TLSClientConfig: trust(ca)}
	if err := exchange(ctx, server.JoinPath(PathServer), transport, token, request, answer); err != nil {
		return nil, err
	}
	if given, err := pki.ParseCertificate(answer.Files[FileCA]); err != nil || !given.Equal(ca) {
		return nil, fmt.Errorf("%s gives the keys of another cluster than the one whose CA it shows", server)
	}
	return answer, nil
}
