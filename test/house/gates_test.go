package house

import (
	"go/ast"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestGates holds docs/gates.md to its form: every gate once, in order, in a
// state that is explained, and what is claimed anew names a test that exists.
func TestGates(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/gates.md")
	if err != nil {
		t.Fatal(err)
	}
	exists := map[string]bool{}
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && s.test {
				exists[f.Name.Name] = true
			}
		}
	}
	for _, n := range testName.FindAllStringSubmatch(string(text), -1) {
		if !exists[n[1]] {
			t.Errorf("there is no %s", n[1])
		}
	}
	_, table, _ := strings.Cut(string(text), "| gate |")
	var gates []string
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 6 || strings.Contains(line, "---") || strings.Contains(line, "stage in") {
			continue
		}
		gate, state, note := strings.TrimSuffix(strings.TrimSpace(cells[1]), " *"), strings.TrimSpace(cells[3]), strings.TrimSpace(cells[4])
		gates = append(gates, gate)
		switch state {
		case "served", "inside":
		case "later":
			if note == "" {
				t.Errorf("%s: with which piece of work?", gate)
			}
		case "here":
			if !testName.MatchString(note) {
				t.Errorf("%s: no test is named", gate)
			}
		default:
			t.Errorf("%s: what is %q?", gate, state)
		}
	}
	if !slices.IsSorted(gates) || len(slices.Compact(slices.Clone(gates))) != len(gates) {
		t.Error("the gates are not in order, each once")
	}
	if len(gates) < 150 {
		t.Errorf("only %d gates", len(gates))
	}
}
