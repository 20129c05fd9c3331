// Package version holds the version of this build and of the Kubernetes API it serves.
package version

import (
	goruntime "runtime"

	apimachineryversion "k8s.io/apimachinery/pkg/version"
)

// Set by the linker (see the Makefile).
var (
	Orch      = "dev"
	Commit    = ""
	BuildDate = "1970-01-01T00:00:00Z"

	// ReleaseKey is the minisign key that the checksums of releases are signed with;
	// "": they are not.
	ReleaseKey = ""
)

// Kubernetes is the version of the API served, as /version reports it. The
// minor is the one of the k8s.io libraries in go.mod.
const Kubernetes = "v1.37.2+orch"

// Info is the answer of /version.
func Info() apimachineryversion.Info {
	return apimachineryversion.Info{
		Major:        "1",
		Minor:        "37",
		GitVersion:   Kubernetes,
		GitCommit:    Commit,
		GitTreeState: "clean",
		BuildDate:    BuildDate,
		GoVersion:    goruntime.Version(),
		Compiler:     goruntime.Compiler,
		Platform:     goruntime.GOOS + "/" + goruntime.GOARCH,
	}
}
