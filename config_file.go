package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"
)

// maxConfig bounds a config file; the longest sensible one is a few kilobytes.
const maxConfig = 1 << 20 // bytes

// notInConfig are flags that a file cannot set: they lead to it, or are for once.
var notInConfig = []string{"config", "help", "recover", "from", "dry-run"}

// readConfigFile sets the flags that were given neither on the command line nor
// in the environment from the config file. A missing default file is fine.
func readConfigFile(c *cli.Context) error {
	return readConfig(c, func(s setting) error {
		return s.errorf("unknown key %q%s; `orch %s --help` lists what there is", s.name, didYouMean("", s.name, flagNames(c.Command.Flags)), c.Command.Name)
	})
}

// readConfig is readConfigFile; unknown is asked about keys of flags that the
// command does not have.
func readConfig(c *cli.Context, unknown func(setting) error) error {
	path := c.String("config")
	file, err := os.Open(path)
	switch {
	case os.IsNotExist(err) && !c.IsSet("config"):
		return nil
	case err != nil:
		return fmt.Errorf("--config: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxConfig+1))
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	settings, err := parseConfig(path, data)
	if err != nil {
		return err
	}
	for _, s := range settings {
		flag := flagNamed(c.Command.Flags, s.name)
		if flag == nil {
			err = unknown(s)
		} else {
			err = s.apply(c, flag)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// setting is one key of a config file with what stands behind it, as text: a
// token of digits is no number, and what 0644 means is the flag's to say.
type setting struct {
	path  string
	line  int
	name  string
	value *yaml.Node
}

// errorf tells where the trouble is.
func (s setting) errorf(format string, args ...any) error {
	return fmt.Errorf("%s:%d: %w", s.path, s.line, fmt.Errorf(format, args...))
}

// parseConfig reads the keys in their order, each of which may be there once.
func parseConfig(path string, data []byte) ([]setting, error) {
	if len(data) > maxConfig {
		return nil, fmt.Errorf("%s: is larger than %d bytes: is it a config file of orch?", path, maxConfig)
	}
	var document, second yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		return nil, nil // nothing but comments
	case err != nil:
		return nil, fmt.Errorf("%s: not YAML: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := decoder.Decode(&second); err == nil {
		return nil, setting{path: path, line: second.Line}.errorf("a second document begins here, and would be ignored: write all keys into one, without ---")
	} else if !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: not YAML: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	root := document.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, setting{path: path, line: root.Line}.errorf("must hold lines of the form `flag: value`, such as `node-name: a`")
	}
	lines := map[string]int{}
	var settings []setting
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		s := setting{path: path, line: key.Line, name: key.Value, value: value}
		if key.Kind != yaml.ScalarNode {
			return nil, s.errorf("a key must be the name of a flag")
		}
		if first, twice := lines[s.name]; twice {
			return nil, s.errorf("key %q is there already, in line %d: keep one of them (a list holds several values: [a, b])", s.name, first)
		}
		lines[s.name] = s.line
		settings = append(settings, s)
	}
	return settings, nil
}

// apply sets the flag unless something that wins over the file has set it. A
// value that makes no sense is an error all the same.
func (s setting) apply(c *cli.Context, flag cli.Flag) error {
	if slices.Contains(notInConfig, s.name) {
		return s.errorf("key %q: cannot stand in a file: give --%s on the command line", s.name, s.name)
	}
	texts, err := s.texts(flag)
	if err != nil {
		return err
	}
	given := c.IsSet(s.name)
	for _, text := range texts {
		if mend := mistyped(flag, text); mend != "" {
			return s.errorf("key %q: %q makes no sense: %s", s.name, text, mend)
		}
		if given {
			continue
		}
		if err := c.Set(s.name, text); err != nil {
			return s.errorf("key %q: %w", s.name, err)
		}
	}
	return nil
}

// texts gives the values as they are written; none for a key without a value,
// which is as if it were not there.
func (s setting) texts(flag cli.Flag) ([]string, error) {
	value := s.value
	if value.Kind == yaml.AliasNode {
		value = value.Alias
	}
	if absent(value) {
		return nil, nil
	}
	items := []*yaml.Node{value}
	if value.Kind == yaml.SequenceNode {
		if _, list := flag.(*cli.StringSliceFlag); !list {
			return nil, s.errorf("key %q: takes one value, and this is a list", s.name)
		}
		items = value.Content
	}
	var texts []string
	for _, item := range items {
		at := s
		at.line = item.Line
		switch {
		case absent(item):
			return nil, at.errorf("key %q: an item of the list is empty: remove it", s.name)
		case item.Kind != yaml.ScalarNode:
			return nil, at.errorf("key %q: must be a plain value%s, not a structure", s.name, mendOfStructure(flag))
		case item.Style&yaml.TaggedStyle != 0:
			return nil, at.errorf("key %q: write the value without the tag %s", s.name, item.Tag)
		}
		texts = append(texts, strings.TrimRight(item.Value, "\n")) // of a block of one line
	}
	return texts, nil
}

func absent(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func mendOfStructure(flag cli.Flag) string {
	if _, list := flag.(*cli.StringSliceFlag); list {
		return " or a list of them, such as [a=b, c=d]"
	}
	return ""
}

var wholeNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)

// mistyped tells how to write a value of the flag's type when text is none.
func mistyped(flag cli.Flag, text string) (mend string) {
	switch flag.(type) {
	case *cli.BoolFlag:
		if text != "true" && text != "false" {
			return "use true or false"
		}
	case *cli.IntFlag, *cli.Int64Flag:
		// Not as Go reads it: 010 would be eight.
		if _, err := strconv.ParseInt(text, 10, 64); err != nil || !wholeNumber.MatchString(text) {
			return "use a whole number in decimal digits"
		}
	case *cli.DurationFlag:
		if _, err := time.ParseDuration(text); err != nil {
			return "use a number with a unit, such as 30s, 5m or 12h"
		}
	}
	return ""
}
