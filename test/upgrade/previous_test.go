// Package upgrade replaces the executables of a cluster under load, node by node.
package upgrade

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"orch/test/cluster"
)

// previous gives the executable to upgrade from: $ORCH_OLD, or what is built
// here of the commit that $ORCH_OLD_REF names, by default the one before HEAD.
// Without such a commit the test is skipped.
func previous(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("ORCH_OLD"); path != "" {
		return path
	}
	ref := os.Getenv("ORCH_OLD_REF")
	if ref == "" {
		ref = "HEAD~1"
	}
	top, err := output(exec.Command("git", "rev-parse", "--show-toplevel"))
	if err != nil {
		t.Skipf("no previous commit to upgrade from: %v", err)
	}
	commit, err := output(exec.Command("git", "rev-parse", "--verify", "--quiet", ref+"^{commit}"))
	if err != nil {
		t.Skipf("no previous commit to upgrade from: %s is not in this clone (of depth 1?)", ref)
	}
	dir := t.TempDir()
	if out, err := output(exec.Command("sh", "-c", fmt.Sprintf("git -C '%s' archive %s | tar x -C '%s'", top, commit, dir))); err != nil {
		t.Fatalf("lay out %s: %v: %s", ref, err, out)
	}
	// What is embedded seldom changes; make sees when it did.
	assets := "runtime/embedded/assets"
	if out, err := output(exec.Command("sh", "-c", fmt.Sprintf("cp -n '%s'/%s/* '%s'/%s/", top, assets, dir, assets))); err != nil {
		t.Logf("the assets are built anew: %s", out)
	}
	build := exec.CommandContext(t.Context(), "make", "-s", "-C", dir, "build")
	// Variables of a make that runs this test are not for that one.
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); name != "MAKEFLAGS" && name != "MAKELEVEL" && name != "MFLAGS" {
			build.Env = append(build.Env, v)
		}
	}
	if out, err := output(build); err != nil {
		t.Skipf("the previous commit %s does not build: %v: %s", commit, err, out[max(0, len(out)-2000):])
	}
	t.Logf("upgrading from %s", commit)
	return filepath.Join(dir, "bin", "orch")
}

func output(cmd *exec.Cmd) (string, error) {
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// current is the executable to upgrade to.
func current(t *testing.T) string {
	t.Helper()
	path, err := cluster.Orch()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
