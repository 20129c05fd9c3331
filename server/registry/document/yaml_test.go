package document

import (
	"fmt"
	"strings"
	"testing"
)

var yamlDocuments = []string{
	"a: &x b\nc: *x\n",
	"base: &b {a: 1}\nmore:\n  <<: *b\n",
	"data:\n  run.sh: |\n    a & b *c &d *\n",
	"a: &a [*a]",
	"{\"a\": \"b\"}",
	"a: 1\n---\nb: 2\n",
	"? [a]\n: b\n",
	"- - - a",
	"%TAG ! tag:\n--- !x a",
}

func TestYAMLAliases(t *testing.T) {
	for _, doc := range yamlDocuments[:3] {
		if _, err := FromYAML([]byte(doc)); err != nil {
			t.Errorf("%q: %v", doc, err)
		}
	}
	var list strings.Builder
	fmt.Fprintf(&list, "a: &a %s\nb: [", strings.Repeat("x", 100_000))
	for range 4_000 {
		list.WriteString("*a,")
	}
	list.WriteString("]\n")
	laughs := "l0: &l0 [" + strings.Repeat("x", 1000) + "]\n"
	for i := range 9 {
		laughs += fmt.Sprintf("l%d: &l%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*l%d,", i), 10), ","))
	}
	for name, doc := range map[string]string{"a long scalar": list.String(), "ten times ten": laughs} {
		out, err := FromYAML([]byte(doc))
		if err == nil || !strings.Contains(err.Error(), "with its aliases written out") {
			t.Errorf("%s: %d bytes, %v", name, len(out), err)
		}
	}
	if _, err := FromYAML([]byte(strings.Repeat("- ", 5000) + "a")); err == nil {
		t.Error("deep nesting is taken")
	}
}

// FuzzYAML converts documents: what comes out is not much larger.
func FuzzYAML(f *testing.F) {
	for _, doc := range yamlDocuments {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		out, err := FromYAML(data)
		if err == nil && len(out) > 6*maxWritten {
			t.Errorf("%d bytes become %d", len(data), len(out))
		}
	})
}
