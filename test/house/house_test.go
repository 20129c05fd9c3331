// Package house checks the rules of the house that a program can check; see
// CONTRIBUTING.md for what they are for.
package house

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// module is the prefix of our own import paths.
const module = "orch/"

// mayImport says which rooms a room may import besides itself. What a room is
// not listed for, it must not know.
var mayImport = map[string][]string{
	"":         {"server", "agent", "store", "runtime", "netproxy", "internal"},
	"server":   {"store", "internal"},
	"agent":    {"runtime", "netproxy", "internal"},
	"store":    {"internal"},
	"runtime":  {"internal"},
	"netproxy": {"internal"},
	"internal": {},
	"test":     {"internal"},
}

// bannedImports are what this project exists to write itself.
var bannedImports = []string{"k8s.io/kubernetes", "k8s.io/apiserver"}

// bannedNames say nothing about what is in a package.
var bannedNames = []string{"util", "utils", "common", "helper", "helpers", "misc", "types", "pkg", "base", "shared", "lib"}

// longFile is where a reader begins to get lost; a table may be longer.
const longFile = 500 // lines

// source is one Go file.
type source struct {
	path string // from the root of the checkout
	room string // its top folder; "" is the root
	test bool
	file *ast.File
	set  *token.FileSet
}

func (s source) at(node ast.Node) string {
	return fmt.Sprintf("%s:%d", s.path, s.set.Position(node.Pos()).Line)
}

func sources(t *testing.T) []source {
	t.Helper()
	const root = "../.."
	var all []source
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); rel != "." && (strings.HasPrefix(name, ".") || name == "testdata" || rel == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		s := source{path: filepath.ToSlash(rel), test: strings.HasSuffix(path, "_test.go"), set: token.NewFileSet()}
		if first, _, inFolder := strings.Cut(s.path, "/"); inFolder {
			s.room = first
		}
		if s.file, err = parser.ParseFile(s.set, path, nil, parser.ParseComments|parser.SkipObjectResolution); err != nil {
			return err
		}
		all = append(all, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestHouseRules(t *testing.T) {
	t.Parallel()
	all := sources(t)
	documented, packages := map[string]bool{}, map[string]bool{}
	for _, s := range all {
		for _, broken := range slices.Concat(imports(s), names(s), statements(s)) {
			t.Error(broken)
		}
		if lines := s.set.Position(s.file.End()).Line; lines > longFile {
			t.Logf("%s has %d lines: is it one noun?", s.path, lines)
		}
		dir := filepath.Dir(s.path)
		packages[dir] = packages[dir] || !s.test
		doc := s.file.Doc.Text()
		if strings.HasPrefix(doc, "Package "+s.file.Name.Name+" ") || strings.HasPrefix(doc, "Command ") {
			documented[dir] = true
		}
	}
	for dir, hasCode := range packages {
		if hasCode && !documented[dir] {
			t.Errorf("%s: no file begins with a sentence on what the package is for", dir)
		}
	}
}

// imports checks the direction of imports.
func imports(s source) (broken []string) {
	for _, spec := range s.file.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		for _, banned := range bannedImports {
			if path == banned || strings.HasPrefix(path, banned+"/") {
				broken = append(broken, fmt.Sprintf("%s: %s must not be part of the product", s.at(spec), path))
			}
		}
		own, isOwn := strings.CutPrefix(path, module)
		if !isOwn {
			continue
		}
		room, _, _ := strings.Cut(own, "/")
		if room != s.room && !slices.Contains(mayImport[s.room], room) {
			broken = append(broken, fmt.Sprintf("%s: %q must not import %s", s.at(spec), s.room, path))
		}
	}
	return broken
}

// names checks what packages are called and how deep they lie.
func names(s source) (broken []string) {
	parts := strings.Split(filepath.Dir(s.path), "/")
	for _, part := range parts {
		if slices.Contains(bannedNames, part) {
			broken = append(broken, fmt.Sprintf("%s: a folder called %q says nothing about what is in it", s.path, part))
		}
	}
	if len(parts) > 3 && parts[0] != "runtime" { // the programs in runtime/embedded/build are one level deeper
		broken = append(broken, fmt.Sprintf("%s: more than two levels below %s/", s.path, parts[0]))
	}
	return broken
}

// statements checks the code itself.
func statements(s source) (broken []string) {
	complain := func(node ast.Node, text string) { broken = append(broken, s.at(node)+": "+text) }
	for _, declaration := range s.file.Decls {
		if f, ok := declaration.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			complain(f, "init() hides what happens at start: call it from where it is needed")
		}
	}
	ast.Inspect(s.file, func(node ast.Node) bool {
		switch n := node.(type) {
		case *ast.GoStmt:
			if !s.test {
				complain(n, "a bare go statement has no owner: use an errgroup or a WaitGroup")
			}
		case *ast.CallExpr:
			if s.test && called(n) == "time.Sleep" && !s.fakeTime() {
				complain(n, "a test that sleeps is slow or flaky: wait for what happens")
			}
			if name := called(n); name == "os.Exit" && s.file.Name.Name != "main" && !s.test {
				complain(n, "only main exits")
			}
		}
		return true
	})
	return broken
}

// fakeTime tells whether a test's clock is not the real one.
func (s source) fakeTime() bool {
	return slices.ContainsFunc(s.file.Imports, func(spec *ast.ImportSpec) bool { return spec.Path.Value == `"testing/synctest"` })
}

func called(call *ast.CallExpr) string {
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	of, ok := selector.X.(*ast.Ident)
	if !ok {
		return ""
	}
	return of.Name + "." + selector.Sel.Name
}
