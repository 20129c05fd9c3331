package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"syscall"
)

// Image is a container image made from a folder, for tests without a registry.
type Image struct {
	Ref        string // name and tag
	Rootfs     string
	Entrypoint []string
	Env        []string
}

// WriteArchive writes the image in the form of `docker save`.
func (i Image) WriteArchive(path string) error {
	layer, err := os.CreateTemp(filepath.Dir(path), "layer")
	if err != nil {
		return err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	sum := sha256.New()
	if err := writeTree(io.MultiWriter(layer, sum), i.Rootfs); err != nil {
		return err
	}
	size, err := layer.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": goruntime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": i.Entrypoint, "Env": append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, i.Env...)},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sum.Sum(nil))}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{i.Ref}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	archive := tar.NewWriter(out)
	for _, entry := range []struct {
		name    string
		size    int64
		content io.Reader
	}{
		{"config.json", int64(len(config)), bytes.NewReader(config)},
		{"layer.tar", size, layer},
		{"manifest.json", int64(len(manifest)), bytes.NewReader(manifest)},
	} {
		if err := archive.WriteHeader(&tar.Header{Name: entry.name, Mode: 0o644, Size: entry.size}); err != nil {
			return err
		}
		if _, err := io.Copy(archive, entry.content); err != nil {
			return err
		}
	}
	return archive.Close()
}

// writeTree writes the files below dir with their owners.
func writeTree(out io.Writer, dir string) error {
	archive := tar.NewWriter(out)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		link := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if link, err = os.Readlink(path); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		if header.Name, err = filepath.Rel(dir, path); err != nil {
			return err
		}
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			header.Uid, header.Gid = int(s.Uid), int(s.Gid)
		}
		if err := archive.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		_, err = io.Copy(archive, file)
		return err
	})
	if err != nil {
		return err
	}
	return archive.Close()
}

// Busybox is a small image with a shell and the usual tools, made of Debian's
// busybox-static. It is imported into the node as BusyboxRef.
const BusyboxRef = "test.local/busybox:1"

// ImportBusybox makes the image and imports it with `orch images import`.
func (n *Node) ImportBusybox() error {
	rootfs, err := os.MkdirTemp(n.Dir, "busybox")
	if err != nil {
		return err
	}
	if err := LayBusybox(rootfs); err != nil {
		return err
	}
	return n.Import(Image{Ref: BusyboxRef, Rootfs: rootfs, Entrypoint: []string{"/bin/sh"}})
}

// LayBusybox puts a shell and tools into a root file system.
func LayBusybox(rootfs string) error {
	for _, dir := range []string{"bin", "tmp", "etc", "root"} {
		if err := os.MkdirAll(filepath.Join(rootfs, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(rootfs, "tmp"), 0o777|fs.ModeSticky); err != nil {
		return err
	}
	return run("cp /bin/busybox "+rootfs+"/bin/busybox", "chroot "+rootfs+" /bin/busybox --install -s /bin")
}

// Import brings an image into the node with `orch images import`.
func (n *Node) Import(image Image) error {
	archive := filepath.Join(n.Dir, "image.tar")
	if err := image.WriteArchive(archive); err != nil {
		return err
	}
	defer os.Remove(archive)
	return run(n.Orch + " images import --data-dir " + n.DataDir() + " " + archive)
}
