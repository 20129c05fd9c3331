package runtime

import (
	"context"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/services/tasks/v1"
	containerdclient "github.com/containerd/containerd/v2/client"
	eventtypes "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// A command that ends without having read its input (true, a tar that refuses
// a file) leaves the input in the FIFO between containerd and the shim, both of
// which wait for the other for ever: the client gets no answer, and every such
// call leaves goroutines and descriptors behind. endExecs frees them.
const (
	// inputSettles is how long a command's output may take on its way once the
	// command has ended, before the first look.
	inputSettles = 200 * time.Millisecond
	// outputDrains is how long a client may take to read the rest of the output.
	outputDrains = 30 * time.Second
	// execsAtOnce bounds how many ended commands are looked after.
	execsAtOnce = 64
)

// endExecs follows containerd's events until ctx ends.
func (r *Runtime) endExecs(ctx context.Context) error {
	client, err := containerdclient.NewWithConn(r.conn)
	if err != nil {
		return err
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	group, running := errgroup.WithContext(ctx)
	group.SetLimit(execsAtOnce)
	for ctx.Err() == nil {
		exits, errs := client.EventService().Subscribe(running, `topic=="/tasks/exit"`)
		r.followExits(running, exits, errs, func(e *events.TaskExit) {
			group.Go(func() error { r.endExec(running, client.TaskService(), e); return nil })
		})
	}
	return group.Wait()
}

// followExits calls ended for each command that ended, until the stream ends.
func (r *Runtime) followExits(ctx context.Context, exits <-chan *eventtypes.Envelope, errs <-chan error, ended func(*events.TaskExit)) {
	for {
		select {
		case envelope := <-exits:
			event, err := typeurl.UnmarshalAny(envelope.Event)
			if exit, ok := event.(*events.TaskExit); err == nil && ok && exit.ID != exit.ContainerID {
				ended(exit)
			}
		case err := <-errs:
			if ctx.Err() == nil {
				r.log.Warn("events of containerd ended, they are asked for again", "err", err)
				select {
				case <-time.After(time.Second):
				case <-ctx.Done():
				}
			}
			return
		case <-ctx.Done():
			return
		}
	}
}

// endExec has the shim let go of a command whose input nobody will read, once
// its output was taken.
func (r *Runtime) endExec(ctx context.Context, shims tasks.TasksClient, exit *events.TaskExit) {
	deadline := time.Now().Add(outputDrains)
	for {
		select {
		case <-time.After(inputSettles):
		case <-ctx.Done():
			return
		}
		got, err := shims.Get(ctx, &tasks.GetRequest{ContainerID: exit.ContainerID, ExecID: exit.ID})
		if err != nil {
			return // it is gone, as it should be
		}
		if waiting(got.Process.Stdin) == 0 {
			return
		}
		if waiting(got.Process.Stdout)+waiting(got.Process.Stderr) == 0 || time.Now().After(deadline) {
			break
		}
	}
	_, err := shims.DeleteProcess(ctx, &tasks.DeleteProcessRequest{ContainerID: exit.ContainerID, ExecID: exit.ID})
	if err != nil {
		r.log.Debug("end a command that did not read its input", "container", exit.ContainerID, "err", err)
	}
}

// waiting gives the bytes in a FIFO that nobody has read yet.
func waiting(path string) int {
	if path == "" {
		return 0
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ) // FIONREAD by its other name
	if err != nil {
		return 0
	}
	return n
}
