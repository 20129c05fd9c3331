package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// program is one executable and the command that makes it.
type program struct {
	name    string
	dir     string   // where the command runs
	env     []string // added to the environment
	command []string // -o <work>/<name> follows the first two words for go, the first for cc
}

// programs are unpacked on the node as they are.
func (t tree) programs() []program {
	programs := []program{
		{
			name: "runc",
			dir:  filepath.Join(t.source, "runc"),
			env:  []string{"CGO_ENABLED=1"},
			command: t.goBuild("runc",
				"-tags", "seccomp,urfave_cli_no_docs,netgo,osusergo",
				"-ldflags", "-s -w -linkmode external -extldflags -static",
				"github.com/opencontainers/runc"),
		},
		{
			name:    "containerd-shim-runc-v2",
			dir:     t.root,
			env:     []string{"CGO_ENABLED=0"},
			command: t.goBuild("containerd-shim-runc-v2", "-tags", "no_grpc", "-ldflags", "-s -w", "./runtime/embedded/build/shim"),
		},
	}
	if _, err := os.Stat(filepath.Join(t.root, "netproxy/plugin")); err == nil {
		programs = append(programs, program{
			name:    "orch-cni",
			dir:     t.root,
			env:     []string{"CGO_ENABLED=0"},
			command: t.goBuild("orch-cni", "-ldflags", "-s -w", "./netproxy/plugin"),
		})
	}
	return programs
}

// contents go into the embedded images.
func (t tree) contents() []program {
	return []program{
		{
			name: "pause",
			dir:  filepath.Join(t.source, "pause"),
			command: []string{t.compiler(), "-o", filepath.Join(t.work, "pause"),
				"-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-asynchronous-unwind-tables",
				"-fno-pie", "-no-pie", "-Wall", "-Werror", "-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-s", "pause.c"},
		},
		{
			name:    "hello",
			dir:     t.root,
			env:     []string{"CGO_ENABLED=0"},
			command: t.goBuild("hello", "-ldflags", "-s -w", "./runtime/embedded/build/hello"),
		},
	}
}

func (t tree) goBuild(name string, args ...string) []string {
	return append([]string{"go", "build", "-o", filepath.Join(t.work, name), "-trimpath", "-buildvcs=false"}, args...)
}

func (p program) build(ctx context.Context, t tree) error {
	cmd := exec.CommandContext(ctx, p.command[0], p.command[1:]...)
	cmd.Dir, cmd.Env = p.dir, append(append(os.Environ(), t.environment()...), p.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s%s", p.name, err, out, t.hint(p))
	}
	return nil
}

// triplets name the tools for an architecture.
var triplets = map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}

// compiler is the C compiler for the architecture.
func (t tree) compiler() string {
	if t.cross() {
		return triplets[t.arch] + "-gcc"
	}
	return "cc"
}

// environment makes the tools build for the architecture.
func (t tree) environment() []string {
	if !t.cross() {
		return nil
	}
	return []string{"GOARCH=" + t.arch, "CC=" + t.compiler(), "PKG_CONFIG_PATH=", "PKG_CONFIG_LIBDIR=/usr/lib/" + triplets[t.arch] + "/pkgconfig"}
}

// hint says what a machine that cannot build p most likely lacks.
func (t tree) hint(p program) string {
	switch {
	case p.name != "runc" && p.name != "pause":
		return ""
	case t.cross():
		return fmt.Sprintf("a C compiler and libseccomp for %s are needed; on Debian: dpkg --add-architecture %s && apt-get update && apt-get install gcc-%s libc6-dev-%[2]s-cross libseccomp-dev:%[2]s\n",
			t.arch, t.arch, strings.ReplaceAll(triplets[t.arch], "_", "-"))
	default:
		return "a C compiler and libseccomp are needed: apt-get install gcc libc6-dev libseccomp-dev pkg-config\n"
	}
}
