package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"orch/server/backup"
)

// snapshotS3Flags say where snapshots are besides the machine.
func snapshotS3Flags() []cli.Flag {
	withAmazons := func(f *cli.StringFlag, name string) *cli.StringFlag {
		f.EnvVars = append(f.EnvVars, name)
		return f
	}
	return []cli.Flag{
		stringFlag("snapshot-s3-bucket", "", "`bucket` of S3-compatible storage that snapshots are copied to (default: none)"),
		stringFlag("snapshot-s3-endpoint", "", "`host:port` or URL of the storage; http:// for one without TLS (default: Amazon S3)"),
		stringFlag("snapshot-s3-region", "", "`region` of the bucket (default: the storage is asked)"),
		stringFlag("snapshot-s3-folder", "", "`folder` in the bucket"),
		withAmazons(stringFlag("snapshot-s3-access-key", "", "access `key` of the storage"), "AWS_ACCESS_KEY_ID"),
		withAmazons(stringFlag("snapshot-s3-secret-key", "", "secret `key`; other users of the machine see it here: better the environment or a file"), "AWS_SECRET_ACCESS_KEY"),
		stringFlag("snapshot-s3-secret-key-file", "", "`file` with the secret key"),
		stringFlag("snapshot-s3-ca-file", "", "`file` with the CA of the storage's certificate (default: the system's CAs)"),
		boolFlag("snapshot-s3-insecure", "do not check the storage's certificate"),
		&cli.DurationFlag{Name: "snapshot-s3-timeout", Value: 5 * time.Minute, Usage: "`time` that one upload or download may take", EnvVars: env("snapshot-s3-timeout")},
	}
}

// snapshotS3 reads them.
func snapshotS3(c *cli.Context) (backup.S3, error) {
	cfg := backup.S3{
		Endpoint: c.String("snapshot-s3-endpoint"), Bucket: c.String("snapshot-s3-bucket"), Region: c.String("snapshot-s3-region"),
		Folder: strings.Trim(c.String("snapshot-s3-folder"), "/"), AccessKey: c.String("snapshot-s3-access-key"),
		SecretKey: c.String("snapshot-s3-secret-key"), CAFile: c.String("snapshot-s3-ca-file"),
		Insecure: c.Bool("snapshot-s3-insecure"), Timeout: c.Duration("snapshot-s3-timeout"),
	}
	if file := c.String("snapshot-s3-secret-key-file"); file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return cfg, fmt.Errorf("--snapshot-s3-secret-key-file: %w", err)
		}
		cfg.SecretKey = strings.TrimSpace(string(data))
	}
	return cfg, nil
}

// snapshotPlaceFlags find the snapshots of the server on this machine.
func snapshotPlaceFlags() []cli.Flag {
	return append([]cli.Flag{
		dataDirFlag(),
		stringFlag("config", defaultConfig, "`file` with the server's flags, of which data-dir and snapshot-s3-… are used"),
	}, snapshotS3Flags()...)
}

// snapshotPlaces reads them; the bucket is nil when there is none.
func snapshotPlaces(c *cli.Context) (dataDir string, bucket *backup.Bucket, err error) {
	if err := readPartOfConfig(c); err != nil {
		return "", nil, err
	}
	cfg, err := snapshotS3(c)
	if err == nil {
		err = cfg.Validate()
	}
	if err == nil && cfg.Used() {
		bucket, err = backup.NewBucket(cfg)
	}
	return c.String("data-dir"), bucket, err
}

// readPartOfConfig is readConfigFile for a command that has some of the flags of
// orch server, whose file it is.
func readPartOfConfig(c *cli.Context) error {
	known := flagNames(serverFlags())
	return readConfig(c, func(s setting) error {
		if slices.Contains(known, s.name) {
			return nil
		}
		return s.errorf("unknown key %q%s; `orch server --help` lists what there is", s.name, didYouMean("", s.name, known))
	})
}
