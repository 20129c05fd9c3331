// Package cases holds orch to what strangers found by using it: one test for
// each file of testdata, named after it, does the steps in the file's comment
// on servers of its own and expects what upstream answers.
package cases

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestEveryCaseHasATest finds, for testdata/node-07-address-flap.sh, a test
// whose name begins with TestNode07.
func TestEveryCaseHasATest(t *testing.T) {
	sources, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var tests []string
	for _, path := range sources {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok {
				tests = append(tests, f.Name.Name)
			}
		}
	}
	files, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		kind, rest, _ := strings.Cut(f.Name(), "-")
		number, _, _ := strings.Cut(rest, "-")
		want := "Test" + strings.ToUpper(kind[:1]) + kind[1:] + number
		if !anyPrefix(tests, want) {
			t.Errorf("no test for testdata/%s: its name would begin with %s", f.Name(), want)
		}
	}
}

func anyPrefix(names []string, prefix string) bool {
	for _, n := range names {
		if strings.HasPrefix(n, prefix) {
			return true
		}
	}
	return false
}
