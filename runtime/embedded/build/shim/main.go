// Command shim is containerd-shim-runc-v2, the parent process of a pod's
// containers that lets them outlive orch. It is containerd's own, without the
// plugins that orch does not use, because each pod pays for one of these.
package main

import (
	"context"
	goruntime "runtime"

	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task/plugin"
	"github.com/containerd/containerd/v2/pkg/shim"
)

func main() {
	// Each processor in use has its own caches and threads; a shim is idle but
	// for moments. Set here because containerd sets the variable to 4.
	goruntime.GOMAXPROCS(1)
	shim.RunShim(context.Background(), manager.NewShimManager("io.containerd.runc.v2"))
}
