// Package kernel is the running kernel's network: its parameters, and word of
// what changes in it.
package kernel

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

const parameters = "/proc/sys/"

// Set sets a kernel parameter given by its path below /proc/sys, leaving it
// alone where it has the value already (a read-only /proc/sys that is right need
// not fail).
func Set(name, value string) error {
	if old, err := os.ReadFile(parameters + name); err == nil && string(old) == value+"\n" {
		return nil
	}
	if err := os.WriteFile(parameters+name, []byte(value), 0); err != nil {
		return fmt.Errorf("set kernel parameter: %w", err)
	}
	return nil
}

// Number reads a kernel parameter.
func Number(name string) (int, error) { return numberIn(parameters + name) }

func numberIn(path string) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}
