package backup_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"orch/internal/s3server"
	"orch/server/backup"
)

// state is a store whose state is its bytes.
type state []byte

func (s state) Backup(_ context.Context, w io.Writer, _ func(done, total int64)) (int64, error) {
	_, err := w.Write(s)
	return 7, err
}
func (state) Group() string { return "g/1" }

func configOf(s *s3server.Server) backup.S3 {
	return backup.S3{
		Endpoint: s.Address, Bucket: s3server.Bucket, Folder: "clusters/one", Region: s3server.Region, AccessKey: s3server.AccessKey, SecretKey: s3server.SecretKey,
		CAFile: s.CAFile, Timeout: 20 * time.Second,
	}
}

func bucketOf(t *testing.T, cfg backup.S3) *backup.Bucket {
	t.Helper()
	b, err := backup.NewBucket(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func keeper(dir string, b *backup.Bucket, s state, report backup.Report) *backup.Keeper {
	return backup.NewKeeper(backup.Config{
		Dir: dir, Server: "a", Retain: 2, Bucket: b, Store: s, Logger: slog.New(slog.DiscardHandler), Report: report,
		Header: func(name string) (backup.Header, error) { return backup.Header{Name: name}, nil },
	})
}

func names(t *testing.T, b *backup.Bucket) string {
	t.Helper()
	list, err := b.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, info := range list {
		all = append(all, info.Name)
	}
	return strings.Join(all, " ")
}

// TestBucket brings a snapshot that takes several parts there and back.
func TestBucket(t *testing.T) {
	s := s3server.Start(t, "127.0.0.1:0")
	b := bucketOf(t, configOf(s))
	if got := names(t, b); got != "" {
		t.Errorf("an empty bucket has %s", got)
	}
	content := make(state, 20<<20) // random, so that it does not shrink
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(content)
	var told int64
	k := keeper(t.TempDir(), b, content, nil)
	info, err := k.Save(t.Context(), "one", func(done, _ int64) { told = done })
	if err != nil {
		t.Fatal(err)
	}
	if told < info.Size {
		t.Errorf("progress ends at %d of %d", told, info.Size)
	}
	if got := names(t, b); got != "one" {
		t.Errorf("the bucket has %q", got)
	}
	dir := t.TempDir()
	r, err := backup.Find(t.Context(), dir, "one", configOf(s), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("back come %d bytes, %v", len(got), err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}

	unfinished(t, s, "clusters/one/half.orch")
	if got := names(t, b); got != "one" {
		t.Errorf("with an unfinished upload the bucket has %q", got)
	}
	// Somebody changes the object behind our back.
	file := s.File("clusters/one/one.orch")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Fetch(t.Context(), "one", t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "not what was uploaded") {
		t.Errorf("a changed object: %v", err)
	}
	if err := b.Delete(t.Context(), "one"); err != nil {
		t.Error(err)
	}
	if err := b.Delete(t.Context(), "one"); !errors.Is(err, backup.ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	if _, err := backup.Find(t.Context(), t.TempDir(), "one", configOf(s), nil); !errors.Is(err, backup.ErrNotFound) {
		t.Errorf("fetched after it was deleted: %v", err)
	}
}

// unfinished uploads one part of an object, as a process does that is killed.
func unfinished(t *testing.T, s *s3server.Server, key string) {
	t.Helper()
	core, err := minio.NewCore(s.Address, &minio.Options{
		Creds: credentials.NewStaticV4(s3server.AccessKey, s3server.SecretKey, ""), Secure: true, Region: s3server.Region, Transport: trusting(t, s),
	})
	if err != nil {
		t.Fatal(err)
	}
	id, err := core.NewMultipartUpload(t.Context(), s3server.Bucket, key, minio.PutObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	part := strings.NewReader("part")
	if _, err := core.PutObjectPart(t.Context(), s3server.Bucket, key, id, 1, part, part.Size(), minio.PutObjectPartOptions{}); err != nil {
		t.Fatal(err)
	}
}

func trusting(t *testing.T, s *s3server.Server) *http.Transport {
	t.Helper()
	pem, err := os.ReadFile(s.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
}

// TestRefused: errors name the place, and what mends it.
func TestRefused(t *testing.T) {
	s := s3server.Start(t, "127.0.0.1:0")
	for name, c := range map[string]struct {
		spoil func(*backup.S3)
		want  string
	}{
		"bucket":     {func(c *backup.S3) { c.Bucket = "nowhere" }, "--snapshot-s3-bucket"},
		"access key": {func(c *backup.S3) { c.AccessKey = "nobody" }, "--snapshot-s3-access-key"},
		"secret key": {func(c *backup.S3) { c.SecretKey = "wrong" }, "secret key"},
		"region":     {func(c *backup.S3) { c.Region = "moon-1" }, "--snapshot-s3-region"},
		"authority":  {func(c *backup.S3) { c.CAFile = "" }, "--snapshot-s3-ca-file"},
		"address":    {func(c *backup.S3) { c.Endpoint = "127.0.0.1:1" }, "--snapshot-s3-endpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := configOf(s)
			c.spoil(&cfg)
			b := bucketOf(t, cfg)
			dir := t.TempDir()
			info, err := keeper(dir, b, state("x"), nil).Save(t.Context(), "one", nil)
			var upload *backup.UploadError
			if !errors.As(err, &upload) {
				t.Fatalf("saved, uploaded? %v", err)
			}
			for _, part := range []string{c.want, cfg.Bucket, cfg.Endpoint} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q lacks %q", err, part)
				}
			}
			if _, err := os.Stat(info.Path); err != nil {
				t.Errorf("the snapshot here is gone: %v", err)
			}
		})
	}
	cfg := configOf(s)
	cfg.CAFile, cfg.Insecure = "", true
	if got := names(t, bucketOf(t, cfg)); got != "" {
		t.Errorf("the bucket has %q", got)
	}
}

// TestUploadsLater: a snapshot whose upload failed is uploaded by a later
// process, and old ones go away in both places.
func TestUploadsLater(t *testing.T) {
	s := s3server.Start(t, "127.0.0.1:0")
	cfg := configOf(s)
	b, dir := bucketOf(t, cfg), t.TempDir()
	s.Kill(t)
	if _, err := keeper(dir, b, state("x"), nil).Save(t.Context(), "scheduled-a-20300101-000000.000", nil); err == nil {
		t.Fatal("uploaded to nobody")
	}
	s.Run(t)
	outcomes := make(chan backup.Outcome, 10)
	k := keeper(dir, b, state("x"), func(o backup.Outcome) { outcomes <- o })
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	if o := <-outcomes; o.Where != backup.InS3 || o.Err != nil {
		t.Errorf("%+v", o)
	}
	for _, name := range []string{"by-hand", "scheduled-b-20300101-000000.000", "scheduled-a-20300101-000001.000", "scheduled-a-20300101-000002.000"} {
		if _, err := k.Save(t.Context(), name, nil); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	want := "by-hand scheduled-a-20300101-000001.000 scheduled-a-20300101-000002.000 scheduled-b-20300101-000000.000"
	got := strings.Fields(names(t, b))
	slices.Sort(got) // they are as good as of one age
	if strings.Join(got, " ") != want {
		t.Errorf("the bucket has %v, not %s", got, want)
	}
	if wishes, _ := filepath.Glob(dir + "/.*"); len(wishes) > 0 {
		t.Errorf("left over: %v", wishes)
	}
}
