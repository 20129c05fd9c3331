package runtime

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
)

// CheckArchive reads an archive of images to its end, without keeping anything: it
// tells what is damaged, cut short, or no such archive.
func CheckArchive(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, fmt.Errorf("%s is no file", name))
	}
	if err := checkArchive(file); err != nil {
		return fmt.Errorf("image archive %s: %w", name, err)
	}
	return nil
}

func checkArchive(in io.Reader) error {
	plain, err := compression.DecompressStream(in)
	if err != nil {
		return fmt.Errorf("cannot be read: %w", err)
	}
	defer plain.Close()
	listed := false // docker's manifest.json or OCI's index.json
	for archive := tar.NewReader(plain); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			_, err = io.Copy(io.Discard, archive)
		}
		if err != nil {
			return fmt.Errorf("is damaged or cut short: %w", err)
		}
		entry := path.Clean(header.Name)
		listed = listed || entry == "manifest.json" || entry == "index.json"
	}
	// Behind the end of the tar there is still the checksum of the compression.
	if _, err := io.Copy(io.Discard, plain); err != nil {
		return fmt.Errorf("is damaged or cut short: %w", err)
	}
	if !listed {
		return errors.New("holds no images: it has neither a manifest.json (docker save) nor an index.json (OCI)")
	}
	return nil
}
