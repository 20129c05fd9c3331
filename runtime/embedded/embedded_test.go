package embedded

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func load(t *testing.T) *Manifest {
	t.Helper()
	m, err := Load()
	if errors.Is(err, ErrNotBuilt) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestAssetsAreWhatTheManifestSays(t *testing.T) {
	m := load(t)
	for _, f := range append(m.Programs, m.Images...) {
		in, err := Open(f)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		n, err := io.Copy(sum, in)
		if err != nil || n != f.Size || hex.EncodeToString(sum.Sum(nil)) != f.SHA256 {
			t.Errorf("%s: %d bytes of %d, %v", f.Name, n, f.Size, err)
		}
		in.Close()
	}
}

func TestUnpackPrograms(t *testing.T) {
	m, dir := load(t), t.TempDir()
	program := filepath.Join(dir, m.Programs[0].Name)
	unpack := func() os.FileInfo {
		t.Helper()
		if err := m.UnpackPrograms(dir); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(program)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	first := unpack()
	if first.Mode().Perm() != 0o755 || first.Size() != m.Programs[0].Size {
		t.Errorf("unpacked as %v, %d bytes", first.Mode(), first.Size())
	}
	if again := unpack(); !os.SameFile(first, again) {
		t.Error("the same program was unpacked twice")
	}
	// One that differs is replaced, and what runs from the old file goes on.
	if err := os.WriteFile(filepath.Join(dir, "."+m.Programs[0].Name+".sha256"), []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again := unpack(); os.SameFile(first, again) {
		t.Error("an older program was kept, or written over")
	}
	if err := os.WriteFile(filepath.Join(dir, "."+m.Programs[0].Name+".new123"), nil, 0o600); err != nil { // of a start that was killed
		t.Fatal(err)
	}
	if err := os.Truncate(program, 10); err != nil {
		t.Fatal(err)
	}
	if again := unpack(); again.Size() != first.Size() {
		t.Error("a damaged program was kept")
	}
	if leftovers, _ := filepath.Glob(filepath.Join(dir, ".*.new*")); len(leftovers) > 0 {
		t.Errorf("left behind %v", leftovers)
	}
}
