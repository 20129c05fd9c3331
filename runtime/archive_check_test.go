package runtime

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"strings"
	"testing"
)

func tarOf(t *testing.T, names ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range names {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: 4096, Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestCheckArchive(t *testing.T) {
	t.Parallel()
	good := tarOf(t, "layer.tar", "manifest.json")
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	if _, err := w.Write(good); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(zipped.Bytes())
	damaged[len(damaged)-6]++ // of its checksum
	for name, test := range map[string]struct {
		data []byte
		want string
	}{
		"docker":          {good, ""},
		"OCI":             {tarOf(t, "./index.json"), ""},
		"gzip":            {zipped.Bytes(), ""},
		"wrong checksum":  {damaged, "damaged or cut short"},
		"cut short":       {good[:5000], "damaged or cut short"},
		"gzip, cut short": {zipped.Bytes()[:zipped.Len()/2], "damaged or cut short"},
		"no images":       {tarOf(t, "a"), "holds no images"},
		"no tar":          {bytes.Repeat([]byte("text"), 1000), "damaged or cut short"},
		"empty":           {nil, "holds no images"},
	} {
		err := checkArchive(bytes.NewReader(test.data))
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}
