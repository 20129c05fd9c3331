package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestImagesAreReproducible(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!"), 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(name string) []byte {
		t.Helper()
		m := image{refs: []string{"orch.local/x:1", "orch.local/x:2"}, program: program, ports: []string{"80/tcp", "81/tcp"}}
		path := filepath.Join(dir, name)
		if err := m.write(path); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	if !bytes.Equal(write("a"), write("b")) {
		t.Error("the same program gave two archives")
	}
}
