package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"orch/internal/minisign"
	"orch/internal/version"
)

// noKey is the exit status of `orch verify` that knows no key to check with, and so
// can say nothing; install.sh asks minisign then.
const noKey = 3

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name: "verify", Usage: "check that a file (a release's sha256sums.txt) was signed by whom this orch is from", ArgsUsage: "FILE",
		Description: "The signature is FILE.minisig, as minisign makes it.",
		Flags:       []cli.Flag{&cli.StringFlag{Name: "key", Value: version.ReleaseKey, Usage: "public `key` of minisign"}},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return errors.New("orch verify: name one file")
			}
			if c.String("key") == "" {
				return cli.Exit("orch: this executable knows no key: give --key", noKey)
			}
			path := c.Args().First()
			message, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			signature, err := os.ReadFile(path + ".minisig")
			if errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("%s is not signed: there is no %s.minisig", path, path)
			}
			if err == nil {
				err = minisign.Verify(c.String("key"), message, signature)
			}
			if err != nil {
				return fmt.Errorf("signature of %s: %w", path, err)
			}
			_, err = fmt.Fprintln(c.App.Writer, path, "is signed by", c.String("key"))
			return err
		},
	}
}
