// Command build makes the assets that the orch executable embeds, from sources
// and pinned modules alone, and only when something they are made of changed.
// Run it from anywhere in the checkout: go run ./runtime/embedded/build
//
// With -arch it builds for another architecture, beside those of this machine,
// and leaves an overlay file with which go build embeds them instead.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"orch/runtime/embedded"
)

func main() {
	arch := flag.String("arch", runtime.GOARCH, "architecture to build for: amd64 or arm64")
	flag.Parse()
	if err := run(context.Background(), *arch); err != nil {
		fmt.Fprintln(os.Stderr, "assets:", err)
		os.Exit(1)
	}
}

// tree names the folders the build reads and writes.
type tree struct {
	root, source, assets, work string
	arch                       string // that is built for
}

func run(ctx context.Context, arch string) error {
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	t := tree{
		root:   root,
		source: filepath.Join(root, "runtime/embedded/build"),
		assets: filepath.Join(root, "runtime/embedded/assets"),
		work:   filepath.Join(root, "bin/embedded"),
		arch:   arch,
	}
	if t.cross() {
		t.work += "-" + arch
		t.assets = filepath.Join(t.work, "assets")
	}
	inputs, err := t.inputs()
	if err != nil {
		return fmt.Errorf("hash the sources: %w", err)
	}
	if t.upToDate(inputs) {
		return nil
	}
	start := time.Now()
	fmt.Fprintf(os.Stderr, "assets: building runc, the shim, the CNI helper and the embedded images for %s\n", arch)
	manifest, err := t.build(ctx)
	if err != nil {
		return err
	}
	manifest.Inputs = inputs
	if t.cross() {
		if err := t.writeOverlay(manifest); err != nil {
			return err
		}
	}
	if err := writeManifest(filepath.Join(t.assets, embedded.ManifestName), manifest); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "assets: done in %s\n", time.Since(start).Round(100*time.Millisecond))
	return nil
}

// cross tells whether this machine cannot run what is built.
func (t tree) cross() bool { return t.arch != runtime.GOARCH }

// writeOverlay writes what makes go build -overlay embed these assets in place
// of those that it finds in the checkout.
func (t tree) writeOverlay(m *embedded.Manifest) error {
	replaced := filepath.Join(t.root, "runtime/embedded/assets")
	paths := map[string]string{filepath.Join(replaced, embedded.ManifestName): filepath.Join(t.assets, embedded.ManifestName)}
	for _, f := range append(m.Programs, m.Images...) {
		paths[filepath.Join(replaced, f.Name+embedded.Suffix)] = filepath.Join(t.assets, f.Name+embedded.Suffix)
	}
	data, err := json.Marshal(map[string]any{"Replace": paths})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(t.work, "overlay.json"), data, 0o644)
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the module (run this inside the checkout): %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// upToDate tells whether the assets on disk were built from inputs and are complete.
func (t tree) upToDate(inputs string) bool {
	data, err := os.ReadFile(filepath.Join(t.assets, embedded.ManifestName))
	if err != nil {
		return false
	}
	var m embedded.Manifest
	if json.Unmarshal(data, &m) != nil || m.Inputs != inputs {
		return false
	}
	for _, f := range append(m.Programs, m.Images...) {
		if _, err := os.Stat(filepath.Join(t.assets, f.Name+embedded.Suffix)); err != nil {
			return false
		}
	}
	return true
}

// build makes every program and image, compresses them into the assets folder
// and gives the manifest that names them.
func (t tree) build(ctx context.Context) (*embedded.Manifest, error) {
	for _, dir := range []string{t.work, t.assets} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := removeOld(t.assets); err != nil {
		return nil, err
	}
	var group errgroup.Group
	programs := t.programs()
	for _, p := range append(programs, t.contents()...) {
		group.Go(func() error { return p.build(ctx, t) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	manifest := &embedded.Manifest{}
	for _, p := range programs {
		f, err := t.compress(p.name)
		if err != nil {
			return nil, err
		}
		manifest.Programs = append(manifest.Programs, f)
	}
	for _, image := range t.images() {
		if err := image.write(filepath.Join(t.work, image.archive)); err != nil {
			return nil, fmt.Errorf("write image %s: %w", image.archive, err)
		}
		f, err := t.compress(image.archive)
		if err != nil {
			return nil, err
		}
		f.Refs = image.refs
		manifest.Images = append(manifest.Images, f)
	}
	return manifest, nil
}

// removeOld removes all assets but the page that git keeps.
func removeOld(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "README.md" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// compress writes work/name as an asset.
func (t tree) compress(name string) (embedded.File, error) {
	data, err := os.ReadFile(filepath.Join(t.work, name))
	if err != nil {
		return embedded.File{}, err
	}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		return embedded.File{}, err
	}
	defer encoder.Close()
	sum := sha256.Sum256(data)
	f := embedded.File{Name: name, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(data))}
	return f, os.WriteFile(filepath.Join(t.assets, name+embedded.Suffix), encoder.EncodeAll(data, nil), 0o644)
}

func writeManifest(path string, m *embedded.Manifest) error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// inputs is a hash over everything the assets are made of. Sources of other
// rooms count as a whole: the Go build cache makes a needless rebuild cheap.
func (t tree) inputs() (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), runtime.GOOS, t.arch)
	for _, path := range []string{"go.mod", "go.sum", "runtime/embedded/build", "netproxy", "internal"} {
		err := filepath.WalkDir(filepath.Join(t.root, path), func(path string, d os.DirEntry, err error) error {
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			if err != nil || d.IsDir() || strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			rel, _ := filepath.Rel(t.root, path)
			fmt.Fprintln(sum, rel, sha256.Sum256(data))
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
