package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
)

// secretFlags hold what other users of the machine must not see.
var secretFlags = []string{"token", "agent-token", "new-token", "new-agent-token", "snapshot-s3-access-key", "snapshot-s3-secret-key"}

// maxTokenFile bounds what is read of a token file: a token has some 100 bytes.
const maxTokenFile = 64 << 10 // bytes

// secret gives the value of a flag, or what is in the file that the flag's
// sister --<flag>-file names; "" when there is neither.
func secret(c *cli.Context, flag string) (string, error) {
	path := c.String(flag + "-file")
	if path == "" {
		return c.String(flag), nil
	}
	if c.String(flag) != "" {
		return "", fmt.Errorf("--%s and --%s-file are given both: keep one of them", flag, flag)
	}
	file, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("--%s-file: %w", flag, err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxTokenFile+1))
	if err != nil {
		return "", fmt.Errorf("--%s-file: %w", flag, err)
	}
	text := strings.TrimSpace(string(data))
	switch {
	case len(data) > maxTokenFile:
		return "", fmt.Errorf("--%s-file %s: is larger than %d bytes: it must hold a token and nothing else", flag, path, maxTokenFile)
	case text == "":
		return "", fmt.Errorf("--%s-file %s: is empty: it must hold the token", flag, path)
	case strings.ContainsAny(text, " \t\r\n"):
		return "", fmt.Errorf("--%s-file %s: must hold one token and nothing else", flag, path)
	}
	return text, nil
}

// forgetSecrets takes what was read by now out of the environment, so that no
// program that orch starts inherits it.
func forgetSecrets() error {
	for _, flag := range secretFlags {
		for _, name := range env(flag) {
			if err := os.Unsetenv(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// hideSecrets overwrites secrets in this process's command line, which every user
// of the machine can read, and tells which flags they were behind. os.Args lies in
// the same memory: whoever needs the values must have copied them.
func hideSecrets() (found []string, err error) {
	line, err := os.ReadFile("/proc/self/cmdline")
	if err != nil {
		return nil, err
	}
	spans := secretSpans(line)
	if len(spans) == 0 {
		return nil, nil
	}
	begin, err := argumentsAddress()
	if err != nil {
		return nil, err
	}
	memory, err := os.OpenFile("/proc/self/mem", os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	for _, s := range spans {
		found = append(found, s.flag)
		if _, writeErr := memory.WriteAt(bytes.Repeat([]byte("*"), s.end-s.begin), begin+int64(s.begin)); writeErr != nil {
			err = writeErr
		}
	}
	return found, errors.Join(err, memory.Close())
}

// span is where a secret lies in a command line.
type span struct {
	flag       string
	begin, end int
}

// secretSpans finds the values of secretFlags in a command line whose arguments
// end with a zero byte each.
func secretSpans(line []byte) []span {
	var spans []span
	at, flag := 0, "" // whose value comes next
	for _, argument := range bytes.SplitAfter(line, []byte{0}) {
		text := strings.TrimSuffix(string(argument), "\x00")
		if flag != "" && text != "" {
			spans = append(spans, span{flag, at, at + len(text)})
			flag = ""
		} else if name, value, joined := strings.Cut(strings.TrimLeft(text, "-"), "="); strings.HasPrefix(text, "-") && slices.Contains(secretFlags, name) {
			if !joined {
				flag = name
			} else if value != "" {
				spans = append(spans, span{name, at + len(text) - len(value), at + len(text)})
			}
		}
		at += len(argument)
	}
	return spans
}

// argumentsAddress is where the command line begins in this process's memory:
// field 48 of proc_pid_stat(5), which counts from 1 and whose second field, the
// name, is the last in parentheses.
func argumentsAddress() (int64, error) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 46 {
		return 0, errors.New("/proc/self/stat does not tell where the command line is")
	}
	return strconv.ParseInt(string(fields[45]), 10, 64)
}
