package document

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
)

var merges = []string{
	`{"metadata":{"labels":{"x/y":null,"z":"1"}},"o":{"a":{"b":null,"c":[{"d":null},null]}}}`,
	`{"list":[{"a":null}],"big":12345678901234567890}`,
	`{"metadata":"flat","o":null,"absent":null}`,
	`{"metadata":{"labels":{"n":{"m":null}}}}`,
	`[]`, `[{"a":null}]`, `null`, `1`, `"a"`, `{`, `{} {}`, ``,
}

// sameAsMergePatch holds Merge against the library whose answers clients know.
func sameAsMergePatch(t *testing.T, doc, patch string) {
	t.Helper()
	got, gotErr := Merge([]byte(doc), []byte(patch))
	want, wantErr := jsonpatch.MergePatch([]byte(doc), []byte(patch))
	if gotErr != wantErr {
		t.Fatalf("%s on %s:\n got  %v\n want %v", patch, doc, gotErr, wantErr)
	}
	if gotErr == nil && !bytes.Equal(canonical(t, got), canonical(t, want)) {
		t.Fatalf("%s on %s:\n got  %s\n want %s", patch, doc, got, want)
	}
}

func TestMergeAnswersAsMergePatch(t *testing.T) {
	for _, patch := range merges {
		sameAsMergePatch(t, patched, patch)
	}
}

// FuzzMergePatch merges patches into a document and expects what the library gives.
func FuzzMergePatch(f *testing.F) {
	for _, patch := range merges {
		f.Add(patched, patch)
	}
	f.Fuzz(func(t *testing.T, doc, patch string) {
		if object(doc) && object(patch) {
			sameAsMergePatch(t, doc, patch)
		}
	})
}

func object(doc string) bool {
	return json.Valid([]byte(doc)) && strings.HasPrefix(strings.TrimSpace(doc), "{")
}

// TestMergeIsLinear merges 3 MB that stand a thousand deep, where each level
// read again would be gigabytes.
func TestMergeIsLinear(t *testing.T) {
	deep := []byte(strings.Repeat(`{"x":`, MaxNesting) + `"` + strings.Repeat("y", 3<<20) + `"` + strings.Repeat("}", MaxNesting))
	out, err := Merge(deep, deep)
	if err != nil || !bytes.Equal(out, deep) {
		t.Fatalf("%d bytes, %v", len(out), err)
	}
}
