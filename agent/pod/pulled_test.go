package pod

import (
	"context"
	"log/slog"
	"os"
	"testing"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func secretLogin(name, password string) credential {
	c := credential{auth: &runtimeapi.AuthConfig{Username: "u", Password: password}, source: pullSecret{UID: "uid", Namespace: "ns", Name: name}}
	c.source.Hash = loginHash(c.auth)
	return c
}

// TestPulledImagesNeedCredentials goes through who may use an image that is
// here: those with a credential it was pulled with, over restarts, too.
func TestPulledImagesNeedCredentials(t *testing.T) {
	p := &pulled{dir: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	const image, id = "r.example/team/app:1", "sha256:0123456789012345678901234567890123456789012345678901234567890123"
	may := func(name string, own ...credential) bool {
		t.Helper()
		ok, err := p.allows(name, id, func() ([]credential, error) { return own, nil })
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	good := secretLogin("good", "right")
	if !may(image) {
		t.Error("an imported image needs credentials")
	}
	if err := p.begin(image); err != nil || may(image) {
		t.Errorf("an image that is being pulled is everybody's: %v", err)
	}
	if err := p.end(image, id, &good.source); err != nil {
		t.Fatal(err)
	}
	p = &pulled{dir: p.dir, log: p.log} // a new start
	if may(image) || may(image, secretLogin("bad", "wrong")) || may("other.example/app:1", good) {
		t.Error("somebody without the credential may use the image")
	}
	if !may(image, secretLogin("bad", "wrong"), good) || !may("r.example/team/app@"+id, good) {
		t.Error("the owner may not use the image")
	}
	if !may(image, secretLogin("same", "right")) {
		t.Error("another secret with the same content does not do")
	}
	if !may(image, secretLogin("good", "rotated")) || !may(image, secretLogin("third", "rotated")) {
		t.Error("the same secret with new content does not do")
	}
	if err := p.end(image, id, nil); err != nil || !may(image) {
		t.Errorf("an image that needed no credentials: %v", err)
	}
	if err := p.end(image, id, &good.source); err != nil || !may(image) {
		t.Errorf("it stays so: %v", err)
	}
	if err := os.WriteFile(p.recordFile(id), []byte("{"), 0o600); err != nil || may(image, good) {
		t.Errorf("a damaged record lets everybody in: %v", err)
	}
}

// listedImages answers ListImages alone.
type listedImages struct {
	runtimeapi.ImageServiceClient
	list []*runtimeapi.Image
}

func (l listedImages) ListImages(context.Context, *runtimeapi.ListImagesRequest, ...grpc.CallOption) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: l.list}, nil
}

func TestPullsCutShortBelongToNobody(t *testing.T) {
	p := &pulled{dir: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	images := listedImages{list: []*runtimeapi.Image{{Id: "sha256:1", RepoTags: []string{"r.example/app:1"}}}}
	for _, name := range []string{"r.example/app:1", "r.example/absent:1"} {
		if err := p.begin(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.resume(t.Context(), images); err != nil {
		t.Fatal(err)
	}
	none := func() ([]credential, error) { return nil, nil }
	if ok, _ := p.allows("r.example/app:1", "sha256:1", none); ok {
		t.Error("an image whose pull was cut short is everybody's")
	}
	if ok, _ := p.allows("r.example/absent:1", "sha256:imported", none); !ok {
		t.Error("an intent is left of an image that never came")
	}
}
