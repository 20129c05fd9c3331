package document

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
)

const patched = `{"metadata":{"name":"a","labels":{"x/y":"1","n":null}},"list":[1,2,[3,{"a":"b"}]],"big":12345678901234567890,"f":1.50,"empty":[],"o":{}}`

var operations = []string{
	`[{"op":"add","path":"/metadata/labels/z","value":"2"}]`,
	`[{"op":"add","path":"/list/-","value":{"a":[1]}},{"op":"add","path":"/list/0","value":0},{"op":"add","path":"/list/-1","value":9}]`,
	`[{"op":"add","path":"/list/9","value":1}]`,
	`[{"op":"add","path":"/list/x","value":1}]`,
	`[{"op":"add","path":"/list/2/1/c","value":1},{"op":"remove","path":"/list/2/0"}]`,
	`[{"op":"add","path":"","value":1}]`,
	`[{"op":"add","value":1}]`,
	`[{"op":"add","path":"/new"}]`,
	`[{"op":"remove","path":"/metadata/labels/x~1y"},{"op":"remove","path":"/list/-1"}]`,
	`[{"op":"remove","path":"/nothing"}]`,
	`[{"op":"remove","path":"/list/7"}]`,
	`[{"op":"replace","path":"/list/1","value":null},{"op":"replace","path":"/absent","value":1}]`,
	`[{"op":"replace","path":"/list/5","value":1}]`,
	`[{"op":"replace","path":"","value":{"a":1}},{"op":"add","path":"/b","value":2}]`,
	`[{"op":"move","from":"/metadata/labels","path":"/o/labels"},{"op":"move","from":"/list/0","path":"/list/1"}]`,
	`[{"op":"move","from":"/absent","path":"/o/labels"}]`,
	`[{"op":"move","from":"/list","path":"/absent/a"}]`,
	`[{"op":"copy","from":"/list","path":"/list/-"},{"op":"copy","from":"/metadata","path":"/o/m"}]`,
	`[{"op":"copy","from":"/absent","path":"/o/m"}]`,
	`[{"op":"copy","from":"/list/9","path":"/o/m"}]`,
	`[{"op":"test","path":"/list/2","value":[3,{"a":"b"}]},{"op":"test","path":"/big","value":12345678901234567890},{"op":"test","path":"/f","value":1.50}]`,
	`[{"op":"test","path":"/metadata/labels/n","value":null},{"op":"test","path":"/gone","value":null}]`,
	`[{"op":"test","path":"/metadata/name","value":"b"}]`,
	`[{"op":"test","path":"","value":{}}]`,
	`[{"op":"test","path":"/metadata/name/x","value":"b"}]`,
	`[{"op":"wish","path":"/a"}]`,
	`[{"path":"/a"}]`,
}

// sameAsJSONPatch holds Apply against the library whose answers clients know.
// It tells what the library panics at, which is refused here.
func sameAsJSONPatch(t *testing.T, doc, operations string) {
	t.Helper()
	patch, err := jsonpatch.DecodePatch([]byte(operations))
	if err != nil {
		return
	}
	got, gotErr := Apply([]byte(doc), patch)
	want, wantErr, panicked := libraryApply(doc, patch)
	if panicked || errors.Is(gotErr, ErrTooDeep) || errors.Is(gotErr, errTooMuchWork) {
		return
	}
	if (gotErr == nil) != (wantErr == nil) || gotErr != nil && gotErr.Error() != wantErr.Error() {
		t.Fatalf("%s on %s:\n got  %v\n want %v", operations, doc, gotErr, wantErr)
	}
	if gotErr == nil && !bytes.Equal(canonical(t, got), canonical(t, want)) {
		t.Fatalf("%s on %s:\n got  %s\n want %s", operations, doc, got, want)
	}
}

func libraryApply(doc string, patch jsonpatch.Patch) (out []byte, err error, panicked bool) {
	defer func() { panicked = recover() != nil }()
	out, err = patch.Apply([]byte(doc))
	return out, err, false
}

func canonical(t *testing.T, doc []byte) []byte {
	v, err := decode(doc)
	if err != nil {
		t.Fatalf("%s: %v", doc, err)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestApplyAnswersAsJSONPatch(t *testing.T) {
	for _, ops := range operations {
		sameAsJSONPatch(t, patched, ops)
	}
}

// FuzzJSONPatch applies patches to a document: nothing but an answer may come of it.
func FuzzJSONPatch(f *testing.F) {
	for _, ops := range operations {
		f.Add(patched, ops)
	}
	f.Fuzz(func(t *testing.T, doc, operations string) {
		patch, err := jsonpatch.DecodePatch([]byte(operations))
		if err != nil {
			return
		}
		out, err := Apply([]byte(doc), patch)
		if err == nil && !json.Valid(out) {
			t.Errorf("%s on %s gives %s", operations, doc, out)
		}
	})
}

// TestCopiesAreBounded doubles a value again and again: 2^40 times a kilobyte.
func TestCopiesAreBounded(t *testing.T) {
	ops := []string{fmt.Sprintf(`{"op":"add","path":"/a","value":["%s"]}`, strings.Repeat("x", 1000))}
	for range 40 {
		ops = append(ops, `{"op":"copy","from":"/a","path":"/a/-"}`)
	}
	_, err := Apply([]byte(`{}`), decodePatch(t, ops))
	var tooMuch *jsonpatch.AccumulatedCopySizeError
	if !errors.As(err, &tooMuch) {
		t.Fatalf("got %v", err)
	}
}

// TestNestingByOperations nests deeper than any document may be, by each way
// that puts one value into another.
func TestNestingByOperations(t *testing.T) {
	deep := strings.Repeat(`{"x":`, 700) + "1" + strings.Repeat("}", 700)
	bottom := strings.Repeat("/x", 699)
	for _, last := range []string{
		`{"op":"move","from":"/b","path":"/a` + bottom + `/y"}`,
		`{"op":"copy","from":"/b","path":"/a` + bottom + `/y"}`,
		`{"op":"add","path":"/a` + bottom + `/y","value":` + deep + `}`,
		`{"op":"replace","path":"/a` + bottom + `","value":` + deep + `}`,
	} {
		doc := `{"a":` + deep + `,"b":` + deep + `}`
		if _, err := Apply([]byte(doc), decodePatch(t, []string{last})); !errors.Is(err, ErrTooDeep) {
			t.Errorf("%.40s: got %v", last, err)
		}
	}
}

// TestPatchWorkIsBounded pushes a long list aside ten thousand times.
func TestPatchWorkIsBounded(t *testing.T) {
	doc := `{"a":[` + strings.Repeat("0,", 500_000) + `0],"b":{}}`
	for _, op := range []string{`{"op":"add","path":"/a/0","value":1}`, `{"op":"remove","path":"/a/0"}`} {
		var ops []string
		for range 10_000 {
			ops = append(ops, op)
		}
		if _, err := Apply([]byte(doc), decodePatch(t, ops)); !errors.Is(err, errTooMuchWork) {
			t.Errorf("%s: got %v", op, err)
		}
	}
	ops := []string{}
	for range 5_000 {
		ops = append(ops, `{"op":"move","from":"/a","path":"/b/a"}`, `{"op":"move","from":"/b/a","path":"/a"}`)
	}
	if _, err := Apply([]byte(doc), decodePatch(t, ops)); !errors.Is(err, errTooMuchWork) {
		t.Errorf("move to and fro: got %v", err)
	}
}

func decodePatch(t *testing.T, ops []string) jsonpatch.Patch {
	t.Helper()
	patch, err := jsonpatch.DecodePatch([]byte("[" + strings.Join(ops, ",") + "]"))
	if err != nil {
		t.Fatal(err)
	}
	return patch
}

func TestShape(t *testing.T) {
	for _, open := range []string{`{"a":`, `[`} {
		shut := map[string]string{`{"a":`: "}", `[`: "]"}[open]
		nested := func(n int) []byte {
			return bytes.Join([][]byte{bytes.Repeat([]byte(open), n), []byte(`"[{\"["`), bytes.Repeat([]byte(shut), n)}, nil)
		}
		if err := CheckShape(nested(MaxNesting)); err != nil {
			t.Errorf("%s %d deep: %v", open, MaxNesting, err)
		}
		if err := CheckShape(nested(MaxNesting + 1)); !errors.Is(err, ErrTooDeep) {
			t.Errorf("%s %d deep: %v", open, MaxNesting+1, err)
		}
	}
	long := []byte(`{"` + strings.Repeat("a", maxPath/2) + `" : {"` + strings.Repeat("b", maxPath/2) + `":1}}`)
	if err := CheckShape(long); !errors.Is(err, errPathTooLong) {
		t.Errorf("long names: %v", err)
	}
	values := []byte(`{"a":"` + strings.Repeat("b", maxPath) + `","c":["` + strings.Repeat(`\\`, maxPath) + `"],"d":1}`)
	if err := CheckShape(values); err != nil {
		t.Errorf("long values: %v", err)
	}
	wide := []byte("[" + strings.Repeat(`{"a":["]"]},`, 5000) + "1]")
	if err := CheckShape(wide); err != nil {
		t.Errorf("a wide document: %v", err)
	}
}
