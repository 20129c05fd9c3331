package house

import (
	"go/ast"
	"os"
	"regexp"
	"strings"
	"testing"
)

var testName = regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9_]+)`")

// TestLimitsHaveTests holds docs/limits.md and docs/security.md to their
// promise: each row names a test, and that test exists.
func TestLimitsHaveTests(t *testing.T) {
	t.Parallel()
	exists := map[string]bool{}
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && s.test {
				exists[f.Name.Name] = true
			}
		}
	}
	for _, path := range []string{"../../docs/limits.md", "../../docs/security.md"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, rows, _ := strings.Cut(string(text), "|---|")
		for line := range strings.Lines(rows) {
			line = strings.TrimSpace(line)
			if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| what") || strings.HasPrefix(line, "| who") {
				continue
			}
			named := testName.FindAllStringSubmatch(line, -1)
			if len(named) == 0 {
				t.Errorf("%s: no test is named in: %s", path, line)
			}
			for _, n := range named {
				if !exists[n[1]] {
					t.Errorf("%s: there is no %s, named in: %s", path, n[1], line)
				}
			}
		}
	}
}
