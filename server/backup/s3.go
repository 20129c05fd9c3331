package backup

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"orch/internal/pki"
)

// S3 says where in S3-compatible storage snapshots are kept. The zero value:
// nowhere.
type S3 struct {
	Endpoint  string // host, host:port or a URL; "": Amazon's
	Bucket    string
	Region    string // "": asked of the server
	Folder    string // "": the bucket's top
	AccessKey string
	SecretKey string
	CAFile    string // of the endpoint's certificate; "": the system's
	Insecure  bool   // its certificate is not checked
	Timeout   time.Duration
}

// Used tells whether snapshots go to S3 at all.
func (c *S3) Used() bool { return c.Bucket != "" }

// Validate checks what can be checked without the network; its errors name the
// flag.
func (c *S3) Validate() error {
	switch {
	case !c.Used() && (c.Endpoint != "" || c.Folder != ""):
		return errors.New("--snapshot-s3-bucket is missing: snapshots go to S3 when it is set")
	case !c.Used():
		return nil
	case c.AccessKey == "" || c.SecretKey == "":
		return errors.New("--snapshot-s3-bucket: --snapshot-s3-access-key and --snapshot-s3-secret-key-file (or $ORCH_SNAPSHOT_S3_SECRET_KEY) are needed with it")
	case c.Timeout <= 0:
		return fmt.Errorf("--snapshot-s3-timeout %s: use a time above 0", c.Timeout)
	}
	_, err := c.url()
	return err
}

func (c *S3) url() (*url.URL, error) {
	text := c.Endpoint
	if text == "" {
		text = "s3.amazonaws.com"
	}
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("--snapshot-s3-endpoint %q: use host:port, https://host:port or http://host:port", c.Endpoint)
	}
	return u, nil
}

// Bucket is the place in S3.
type Bucket struct {
	cfg      S3
	endpoint string
	client   *minio.Client
}

// NewBucket reads the CA's file and nothing else.
func NewBucket(c S3) (*Bucket, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	u, err := c.url()
	if err != nil {
		return nil, err
	}
	transport, err := c.transport()
	if err != nil {
		return nil, err
	}
	client, err := minio.New(u.Host, &minio.Options{
		Creds: credentials.NewStaticV4(c.AccessKey, c.SecretKey, ""), Secure: u.Scheme == "https",
		Region: c.Region, Transport: transport, MaxRetries: attempts,
	})
	if err != nil {
		return nil, fmt.Errorf("--snapshot-s3-endpoint %s: %w", c.Endpoint, err)
	}
	return &Bucket{cfg: c, endpoint: u.Scheme + "://" + u.Host, client: client}, nil
}

// attempts of one request; who uploads by schedule comes again later.
const attempts = 3

func (c *S3) transport() (*http.Transport, error) {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		IdleConnTimeout:       10 * time.Second, // it is hours until the next use
		DisableCompression:    true,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.Insecure},
	}
	if c.CAFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("--snapshot-s3-ca-file: %w", err)
	}
	if t.TLSClientConfig.RootCAs, err = pki.ParseBundle(pem); err != nil {
		return nil, fmt.Errorf("--snapshot-s3-ca-file %s: %w", c.CAFile, err)
	}
	return t, nil
}

func (b *Bucket) key(name string) string { return path.Join(b.cfg.Folder, name+suffix) }

func (b *Bucket) location(name string) string { return "s3://" + path.Join(b.cfg.Bucket, b.key(name)) }

// sumKey is the object's metadata that holds the SHA-256 of the whole file, in
// hexadecimal. ETags do not: they depend on how it was uploaded.
const sumKey = "Sha256"

// Put copies a snapshot's file into the bucket. An object appears there only
// when all of it has arrived.
func (b *Bucket) Put(ctx context.Context, file Info, progress Progress) error {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.Timeout)
	defer cancel()
	f, err := os.Open(file.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, f)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return err
	}
	if size > partSize { // a killed process may have left parts, which cost money
		_ = b.client.RemoveIncompleteUpload(ctx, b.cfg.Bucket, b.key(file.Name))
	}
	_, err = b.client.PutObject(ctx, b.cfg.Bucket, b.key(file.Name), f, size, minio.PutObjectOptions{
		ContentType:    "application/zstd",
		UserMetadata:   map[string]string{sumKey: hex.EncodeToString(sum.Sum(nil))},
		SendContentMd5: true, // which every S3 server checks
		PartSize:       partSize,
		NumThreads:     1,
		Progress:       &counter{total: size, progress: progress},
	})
	if err != nil {
		return b.explain("upload "+file.Name, err)
	}
	got, err := b.client.StatObject(ctx, b.cfg.Bucket, b.key(file.Name), minio.StatObjectOptions{})
	if err == nil && got.Size != size {
		err = fmt.Errorf("it has %d bytes there instead of %d", got.Size, size)
	}
	if err != nil {
		return b.explain("look at "+file.Name+" after its upload", err)
	}
	return nil
}

// partSize is the memory that an upload takes.
const partSize = 16 << 20

// List gives the snapshots in the bucket's folder, oldest first.
func (b *Bucket) List(ctx context.Context) ([]Info, error) {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.Timeout)
	defer cancel()
	prefix := ""
	if b.cfg.Folder != "" {
		prefix = path.Clean(b.cfg.Folder) + "/"
	}
	var list []Info
	for object := range b.client.ListObjectsIter(ctx, b.cfg.Bucket, minio.ListObjectsOptions{Prefix: prefix}) {
		if object.Err != nil {
			return nil, b.explain("list", object.Err)
		}
		name, ok := strings.CutSuffix(strings.TrimPrefix(object.Key, prefix), suffix)
		if ok && validName.MatchString(name) {
			list = append(list, Info{Name: name, Path: b.location(name), Created: object.LastModified, Size: object.Size})
		}
	}
	sortByAge(list)
	return list, nil
}

// Fetch copies a snapshot into dir, gives its path there, and refuses one that
// is not what was uploaded.
func (b *Bucket) Fetch(ctx context.Context, name, dir string, progress Progress) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.Timeout)
	defer cancel()
	target, err := pathOf(dir, name)
	if err != nil {
		return "", err
	}
	name = strings.TrimSuffix(name, suffix)
	err = writeWhole(dir, target, func(file *os.File) error {
		object, err := b.client.GetObject(ctx, b.cfg.Bucket, b.key(name), minio.GetObjectOptions{})
		if err != nil {
			return err
		}
		defer object.Close()
		stat, err := object.Stat()
		if err != nil {
			return err
		}
		sum := sha256.New()
		counted := io.TeeReader(object, &counter{total: stat.Size, progress: progress})
		if _, err := io.Copy(io.MultiWriter(file, sum), counted); err != nil {
			return err
		}
		return checkSum(sum, stat.UserMetadata[sumKey])
	})
	if err != nil {
		return "", b.explain("fetch "+name, err)
	}
	return target, nil
}

func checkSum(sum hash.Hash, want string) error {
	if got := hex.EncodeToString(sum.Sum(nil)); want != "" && got != want {
		return fmt.Errorf("its SHA-256 is %s instead of %s: it is not what was uploaded", got, want)
	}
	return nil
}

// Delete removes a snapshot from the bucket.
func (b *Bucket) Delete(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.Timeout)
	defer cancel()
	key := b.key(strings.TrimSuffix(name, suffix))
	// S3 says nothing about objects that are not there.
	if _, err := b.client.StatObject(ctx, b.cfg.Bucket, key, minio.StatObjectOptions{}); err != nil {
		return b.explain("delete "+name, err)
	}
	if err := b.client.RemoveObject(ctx, b.cfg.Bucket, key, minio.RemoveObjectOptions{}); err != nil {
		return b.explain("delete "+name, err)
	}
	return nil
}

// mends tells what to do about the errors that S3 servers answer with.
var mends = map[string]string{
	minio.NoSuchBucket:             "make the bucket, or mend --snapshot-s3-bucket",
	"InvalidAccessKeyId":           "mend --snapshot-s3-access-key",
	"XAdminUserNotFound":           "mend --snapshot-s3-access-key", // the Versity gateway's word for it
	"SignatureDoesNotMatch":        "mend the secret key (--snapshot-s3-secret-key-file or $ORCH_SNAPSHOT_S3_SECRET_KEY)",
	minio.AccessDenied:             "let this access key list, read, write and delete in the bucket",
	"AuthorizationHeaderMalformed": "mend --snapshot-s3-region",
	"RequestTimeTooSkewed":         "set this machine's clock",
}

// explain names the bucket, its endpoint and, where it is known, the mend.
func (b *Bucket) explain(what string, err error) error {
	var unknown x509.UnknownAuthorityError
	var network net.Error
	var answer minio.ErrorResponse
	_ = errors.As(err, &answer)
	mend := mends[answer.Code]
	switch {
	case answer.Code == minio.NoSuchKey:
		return fmt.Errorf("%s: %w in S3 bucket %s at %s, folder %q", what, ErrNotFound, b.cfg.Bucket, b.endpoint, b.cfg.Folder)
	case errors.As(err, &unknown):
		mend = "give the CA's certificate by --snapshot-s3-ca-file"
	case errors.Is(err, context.DeadlineExceeded):
		mend = "raise --snapshot-s3-timeout if the storage is only slow"
	case answer.Code == "" && errors.As(err, &network):
		mend = "check --snapshot-s3-endpoint and the way there"
	}
	err = fmt.Errorf("%s: S3 bucket %s at %s: %w", what, b.cfg.Bucket, b.endpoint, err)
	if mend != "" {
		err = fmt.Errorf("%w (%s)", err, mend)
	}
	return err
}

// counter tells of the bytes that pass, as what minio reads from for its
// progress, or what is written to.
type counter struct {
	done, total int64
	progress    Progress
}

func (c *counter) Read(b []byte) (int, error) { return c.Write(b) }

func (c *counter) Write(b []byte) (int, error) {
	c.done += int64(len(b))
	if c.progress != nil {
		c.progress(c.done, c.total)
	}
	return len(b), nil
}
