package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// image is an embedded image: one program in an empty file system.
type image struct {
	archive string   // file name
	refs    []string // full names, tags included
	program string   // path of the executable
	ports   []string
	arch    string
}

func (t tree) images() []image {
	return []image{
		{archive: "pause.tar", refs: []string{"orch.local/pause:1"}, program: filepath.Join(t.work, "pause"), arch: t.arch},
		{
			archive: "hello.tar",
			refs:    []string{"orch.local/hello:latest", "orch.local/hello:1.0", "orch.local/hello:2.0"},
			program: filepath.Join(t.work, "hello"),
			ports:   []string{"8080/tcp"},
			arch:    t.arch,
		},
	}
}

// write makes an OCI archive. The same program always gives the same bytes: no
// times, no owners, fixed order. The layer is left uncompressed, for the
// archive is compressed as a whole and unpacking is then a plain copy.
func (m image) write(path string) error {
	layer, err := m.layer()
	if err != nil {
		return err
	}
	blobs := &blobs{}
	layerDesc := blobs.add(ocispec.MediaTypeImageLayer, layer)
	config, err := json.Marshal(m.config(layerDesc.Digest))
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    blobs.add(ocispec.MediaTypeImageConfig, config),
		Layers:    []ocispec.Descriptor{layerDesc},
	})
	if err != nil {
		return err
	}
	manifestDesc := blobs.add(ocispec.MediaTypeImageManifest, manifest)
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, ref := range m.refs {
		desc := manifestDesc
		desc.Annotations = map[string]string{"io.containerd.image.name": ref}
		index.Manifests = append(index.Manifests, desc)
	}
	indexJSON, err := json.Marshal(index)
	if err != nil {
		return err
	}
	files := append([]file{
		{ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`), 0o644},
		{ocispec.ImageIndexFile, indexJSON, 0o644},
	}, blobs.files...)
	archive, err := tarball(files)
	if err != nil {
		return err
	}
	return os.WriteFile(path, archive, 0o644)
}

// layer holds the program and the few files that programs expect to find.
func (m image) layer() ([]byte, error) {
	program, err := os.ReadFile(m.program)
	if err != nil {
		return nil, err
	}
	return tarball([]file{
		{filepath.Base(m.program), program, 0o755},
		{"etc/passwd", []byte("root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n"), 0o644},
		{"etc/group", []byte("root:x:0:\nnobody:x:65534:\n"), 0o644},
	})
}

func (m image) config(diffID digest.Digest) ocispec.Image {
	ports := map[string]struct{}{}
	for _, p := range m.ports {
		ports[p] = struct{}{}
	}
	created := time.Unix(0, 0).UTC()
	return ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{OS: "linux", Architecture: m.arch},
		Config: ocispec.ImageConfig{
			// The user is 65535 as for upstream's pause image: any but root.
			User:         "65535:65535",
			Entrypoint:   []string{"/" + filepath.Base(m.program)},
			Env:          []string{"PATH=/"},
			WorkingDir:   "/",
			ExposedPorts: ports,
		},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}},
	}
}

// blobs collects the content-addressed files of an image layout.
type blobs struct{ files []file }

func (b *blobs) add(mediaType string, data []byte) ocispec.Descriptor {
	sum := sha256.Sum256(data)
	hash := hex.EncodeToString(sum[:])
	b.files = append(b.files, file{"blobs/sha256/" + hash, data, 0o644})
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.NewDigestFromEncoded(digest.SHA256, hash), Size: int64(len(data))}
}

type file struct {
	name string
	data []byte
	mode int64
}

func tarball(files []file) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Format: tar.FormatUSTAR, ModTime: time.Unix(0, 0)}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}
