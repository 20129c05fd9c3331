package api

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"

	"orch/server/auth"
)

// byHeader takes "Authorization: name", as long as it is good.
type byHeader struct{ revoked atomic.Bool }

func (b *byHeader) Authenticate(r *http.Request) (*auth.User, error) {
	name := r.Header.Get("Authorization")
	if name == "" || name == "gone" && b.revoked.Load() {
		return nil, auth.ErrUnauthorized
	}
	return &auth.User{Name: name, Extra: map[string][]string{auth.ExtraPodUID: {"pod of " + name}}}, nil
}

// A stream ends in the moment in which its credentials are no longer good, and
// no other does.
func TestStreamsEndWithCredentials(t *testing.T) {
	check := &byHeader{}
	s := newTestServer(t, func(cfg *Config) { cfg.Authenticator = check })
	watch := func(name string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/api/v1/namespaces/default/configmaps?watch=true", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", name)
		resp, err := s.Client().Do(req)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp, err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	gone, stays := watch("gone"), watch("stays")
	all := s.api.lasting.of("", nil)
	if len(all) != 2 {
		t.Fatalf("%d requests last", len(all))
	}
	s.api.Recheck("gone", nil) // still good
	check.revoked.Store(true)
	s.api.Recheck("gone", func(u *auth.User) bool { return false }) // somebody else's pod
	if left := s.api.lasting.of("", nil); len(left) != 2 {
		t.Fatalf("%d are left of 2 whose credentials nobody looked at", len(left))
	}
	s.api.Recheck("", nil)
	for buffer, err := make([]byte, 1024), error(nil); err == nil; {
		_, err = gone.Body.Read(buffer)
	}
	if left := s.api.lasting.of("stays", nil); len(left) != 1 {
		t.Errorf("%d are left of the one whose credentials are good", len(left))
	}
	stays.Body.Close()
}

// Whoever may not act as somebody else may not do so beside the API either.
func TestVouch(t *testing.T) {
	s := newTestServer(t, func(cfg *Config) { cfg.Authenticator, cfg.Authorizer = &byHeader{}, named{"admin", "chief"} })
	ask := func(name, as string) error {
		r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "/v1-orch/members", nil)
		if err != nil {
			t.Fatal(err)
		}
		if name != "" {
			r.Header.Set("Authorization", name)
		}
		if as != "" {
			r.Header.Set("Impersonate-User", as)
		}
		_, done, err := s.api.Vouch(r)
		if err == nil {
			done()
		}
		return err
	}
	for _, test := range []struct {
		name, as string
		ok       bool
	}{{"admin", "", true}, {"admin", "chief", true}, {"admin", "nobody", false}, {"nobody", "admin", false}, {"nobody", "", false}, {"", "", false}} {
		if err := ask(test.name, test.as); (err == nil) != test.ok {
			t.Errorf("%q as %q: %v", test.name, test.as, err)
		}
	}
	if left := s.api.lasting.of("", nil); len(left) != 0 {
		t.Errorf("%d are left", len(left))
	}
}

// named may do everything.
type named []string

func (n named) Authorize(_ context.Context, a *auth.Attributes) (bool, string, error) {
	for _, name := range n {
		if a.User.Name == name {
			return true, "", nil
		}
	}
	return false, "", nil
}
