package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// installerVariables are read by scripts/install.sh and mean nothing here.
var installerVariables = []string{
	"ORCH_URL", "ORCH_EXEC", "ORCH_BIN", "ORCH_BIN_DIR", "ORCH_RELEASES", "ORCH_VERSION", "ORCH_CHANNEL",
	"ORCH_SKIP_START", "ORCH_ROLE", "ORCH_PRINT_TOKEN", "ORCH_PUBLIC_KEY",
}

// dropEmptyVariables makes a variable that is set and empty the same as one that
// is not set: that is what templates and shells mean by it. It must come before
// the flags are read.
func dropEmptyVariables() error {
	for _, variable := range os.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		if value == "" && strings.HasPrefix(name, "ORCH_") {
			if err := os.Unsetenv(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkEnvironment finds variables that mean to be flags and are none: what is
// nearly the name of one is an error, anything else a warning.
func checkEnvironment(flags []cli.Flag, environ []string) (warnings []string, err error) {
	var known []string
	for _, flag := range flags {
		known = append(known, env(flag.Names()[0])...)
	}
	for _, variable := range environ {
		name, _, _ := strings.Cut(variable, "=")
		if !strings.HasPrefix(name, "ORCH_") || slices.Contains(known, name) || slices.Contains(installerVariables, name) || serviceLink(name) {
			continue
		}
		if right := nearest(name, known); right != "" {
			return warnings, fmt.Errorf("environment variable %s: there is no such flag: did you mean %s?", name, right)
		}
		warnings = append(warnings, fmt.Sprintf("environment variable %s: there is no such flag; it is ignored", name))
	}
	return warnings, nil
}

// serviceLink tells variables that Kubernetes sets in pods beside a Service that
// is called orch.
func serviceLink(name string) bool {
	return name == "ORCH_SERVICE_HOST" || name == "ORCH_PORT" || strings.HasPrefix(name, "ORCH_SERVICE_PORT") || strings.HasPrefix(name, "ORCH_PORT_")
}

func flagNames(flags []cli.Flag) []string {
	var names []string
	for _, flag := range flags {
		names = append(names, flag.Names()...)
	}
	return names
}

func flagNamed(flags []cli.Flag, name string) cli.Flag {
	for _, flag := range flags {
		if slices.Contains(flag.Names(), name) {
			return flag
		}
	}
	return nil
}

// didYouMean words the name that is nearest to a misspelt one, if any is near.
func didYouMean(prefix, name string, known []string) string {
	if right := nearest(name, known); right != "" {
		return ": did you mean " + prefix + right + "?"
	}
	return ""
}

// nearest gives the known name that name was meant to be; "": none is near.
func nearest(name string, known []string) string {
	best, least := "", 3 // letters to change
	for _, k := range known {
		if d := distance(bare(name), bare(k)); d < least && 3*d < len(bare(k)) {
			best, least = k, d
		}
	}
	return best
}

// bare leaves out how the words of a name are told apart.
func bare(name string) string {
	return strings.ToLower(strings.NewReplacer("-", "", "_", "", ".", "", " ", "").Replace(name))
}

// distance is how many letters must be changed, added or removed to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
