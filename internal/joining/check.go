package joining

import (
	"context"
	"errors"
	"net/http"
	"net/url"

	"orch/internal/version"
)

// Check tells whether a machine could join the server at address with the token,
// as user, without joining. With known, the machine has joined before, and its
// token may have ended: only the server's identity is looked at.
func Check(ctx context.Context, address, text, user string, known bool) error {
	server, err := url.Parse(address)
	if err != nil {
		return err
	}
	token, err := ParseToken(text)
	if err != nil {
		return err
	}
	if user == UserServer && token.User != "" && token.User != UserServer {
		return errors.New("the token is for agents: a server joins with the text of <data-dir>/server/token")
	}
	token.User = user
	if known && token.CAHash == "" {
		return nil
	}
	ca, err := fetchCA(ctx, server, token)
	if err != nil || known {
		return err
	}
	// Requests that lack what joining needs: the token is looked at first.
	path, body := PathAgent, any(Request{NodeName: "check", Version: version.Kubernetes})
	if user == UserServer {
		path, body = PathServer, "check"
	}
	transport := &http.Transport{TLSClientConfig: trust(ca)}
	defer transport.CloseIdleConnections()
	err = exchange(ctx, server.JoinPath(path), transport, token, body, &struct{}{})
	var refused *RefusedError
	if errors.As(err, &refused) && refused.Status == http.StatusBadRequest {
		return nil
	}
	return err
}
