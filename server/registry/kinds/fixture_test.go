package kinds

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"orch/server/auth"
	"orch/server/registry"
	"orch/store"
)

var update = flag.Bool("update", false, "rewrite testdata from what the table does")

// testTime is now in these tests.
var testTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// fixture is the whole table over a store in a temporary folder.
type fixture struct {
	*registry.Registry
	t   *testing.T
	ctx context.Context
}

type plainSealer struct{}

func (plainSealer) Encrypt(_ string, b []byte) ([]byte, error) { return b, nil }
func (plainSealer) Decrypt(_ string, b []byte) ([]byte, error) { return b, nil }

func testConfig() Config {
	_, cidr, _ := net.ParseCIDR("10.43.0.0/24")
	return Config{ServiceCIDR: cidr}
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	r, err := registry.New(registry.Config{
		Now: func() time.Time { return testTime }, Encryption: plainSealer{}, Resources: Table(testConfig()),
	})
	if err != nil {
		t.Fatal(err)
	}
	s := store.New(store.Config{Dir: t.TempDir(), Codec: r.StoreCodec()})
	r.UseStore(s)
	ctx, cancel := context.WithCancelCause(auth.WithUser(context.Background(), &auth.User{Name: "jane", Groups: []string{"dev"}}))
	stopped := make(chan error, 1)
	go func() { stopped <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(errors.New("test over")); <-stopped })
	select {
	case <-s.Ready():
	case err := <-stopped:
		stopped <- err
		t.Fatal(err)
	}
	return &fixture{Registry: r, t: t, ctx: ctx}
}

// put creates obj, which is of one of the table's kinds, or ends the test.
func put[T registry.Object](f *fixture, obj T) T {
	f.t.Helper()
	out, err := registry.Of[T](f.Registry).Create(f.ctx, obj)
	if err != nil {
		f.t.Fatalf("create %s: %v", obj.GetName(), err)
	}
	return out
}

// manifest is one object of testdata/objects.yaml and the entry it belongs to.
type manifest struct {
	res  *registry.Resource
	body []byte // JSON
}

func (d manifest) object(t *testing.T) registry.Object {
	t.Helper()
	obj := d.res.New()
	decoder := json.NewDecoder(bytes.NewReader(d.body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(obj); err != nil {
		t.Fatalf("%s: %v", d.res.Kind, err)
	}
	return obj
}

func documents(t *testing.T, table []*registry.Resource) []manifest {
	t.Helper()
	text, err := os.ReadFile("testdata/objects.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var docs []manifest
	for part := range strings.SplitSeq(string(text), "---\n") {
		body, err := yaml.YAMLToJSON([]byte(part))
		if err != nil {
			t.Fatal(err)
		}
		var kind metav1.TypeMeta
		if err := json.Unmarshal(body, &kind); err != nil {
			t.Fatal(err)
		}
		gvk := schema.FromAPIVersionAndKind(kind.APIVersion, kind.Kind)
		i := slices.IndexFunc(table, func(r *registry.Resource) bool { return r.GVK() == gvk })
		if i < 0 {
			t.Fatalf("no entry for %s", gvk)
		}
		docs = append(docs, manifest{table[i], body})
	}
	return docs
}

// golden compares got with a file in testdata, or writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(got, want) {
		return
	}
	g, w := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	for i := range max(len(g), len(w)) {
		if i >= len(g) || i >= len(w) || g[i] != w[i] {
			t.Fatalf("%s line %d: got\n%s\nwant\n%s", path, i+1, lineAt(g, i), lineAt(w, i))
		}
	}
}

func lineAt(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "(nothing)"
}

// causes are the field errors of an Invalid answer, "field: message" each.
func causes(err error) []string {
	var status *apierrors.StatusError
	if !errors.As(err, &status) || status.ErrStatus.Details == nil {
		return nil
	}
	var list []string
	for _, c := range status.ErrStatus.Details.Causes {
		list = append(list, c.Field+": "+c.Message)
	}
	return list
}
