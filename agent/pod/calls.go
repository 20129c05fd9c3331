package pod

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// callBound is how long a call to the runtime may take, as kubelet has it. A
// sandbox needs its network too, and gets twice that.
const callBound = 2 * time.Minute

// calls is the runtime as the workers use it. What makes or takes away
// something is let end, whatever becomes of the caller: a runtime that is told
// to forget a call half-way leaves what it had made so far to nobody. Waiting
// for a container to stop or a command to end may be given up.
type calls struct {
	runtimeapi.RuntimeServiceClient
	beside *sync.WaitGroup // commands that nobody waits for any more

	mu     sync.Mutex
	making map[chan struct{}]bool // closed when the call has ended; guarded by mu
}

func newCalls(to runtimeapi.RuntimeServiceClient, beside *sync.WaitGroup) *calls {
	return &calls{RuntimeServiceClient: to, beside: beside, making: make(map[chan struct{}]bool)}
}

// call is a method of the runtime.
type call[In, Out any] func(context.Context, In, ...grpc.CallOption) (Out, error)

// letEnd makes a call that its caller cannot cut short.
func letEnd[In, Out any](ctx context.Context, most time.Duration, to call[In, Out], in In, opts []grpc.CallOption) (Out, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), most)
	defer cancel()
	return to(ctx, in, opts...)
}

// begin notes that something is being made; the function it gives says that
// this has ended.
func (c *calls) begin() func() {
	ended := make(chan struct{})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.making[ended] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.making, ended)
		close(ended)
	}
}

// settled waits until all that is being made now is made. What was there before
// and is not known to the runtime afterwards belongs to nobody.
func (c *calls) settled(ctx context.Context) error {
	c.mu.Lock()
	pending := make([]chan struct{}, 0, len(c.making))
	for ended := range c.making {
		pending = append(pending, ended)
	}
	c.mu.Unlock()
	for _, ended := range pending {
		select {
		case <-ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (c *calls) RunPodSandbox(ctx context.Context, in *runtimeapi.RunPodSandboxRequest, opts ...grpc.CallOption) (*runtimeapi.RunPodSandboxResponse, error) {
	defer c.begin()()
	return letEnd(ctx, 2*callBound, c.RuntimeServiceClient.RunPodSandbox, in, opts)
}

func (c *calls) StopPodSandbox(ctx context.Context, in *runtimeapi.StopPodSandboxRequest, opts ...grpc.CallOption) (*runtimeapi.StopPodSandboxResponse, error) {
	return letEnd(ctx, callBound, c.RuntimeServiceClient.StopPodSandbox, in, opts)
}

func (c *calls) RemovePodSandbox(ctx context.Context, in *runtimeapi.RemovePodSandboxRequest, opts ...grpc.CallOption) (*runtimeapi.RemovePodSandboxResponse, error) {
	return letEnd(ctx, callBound, c.RuntimeServiceClient.RemovePodSandbox, in, opts)
}

func (c *calls) PodSandboxStatus(ctx context.Context, in *runtimeapi.PodSandboxStatusRequest, opts ...grpc.CallOption) (*runtimeapi.PodSandboxStatusResponse, error) {
	return letEnd(ctx, callBound, c.RuntimeServiceClient.PodSandboxStatus, in, opts)
}

func (c *calls) CreateContainer(ctx context.Context, in *runtimeapi.CreateContainerRequest, opts ...grpc.CallOption) (*runtimeapi.CreateContainerResponse, error) {
	return letEnd(ctx, callBound, c.RuntimeServiceClient.CreateContainer, in, opts)
}

func (c *calls) StartContainer(ctx context.Context, in *runtimeapi.StartContainerRequest, opts ...grpc.CallOption) (*runtimeapi.StartContainerResponse, error) {
	return letEnd(ctx, callBound, c.RuntimeServiceClient.StartContainer, in, opts)
}

func (c *calls) RemoveContainer(ctx context.Context, in *runtimeapi.RemoveContainerRequest, opts ...grpc.CallOption) (*runtimeapi.RemoveContainerResponse, error) {
	return letEnd(ctx, callBound, c.RuntimeServiceClient.RemoveContainer, in, opts)
}

func (c *calls) ContainerStatus(ctx context.Context, in *runtimeapi.ContainerStatusRequest, opts ...grpc.CallOption) (*runtimeapi.ContainerStatusResponse, error) {
	return letEnd(ctx, callBound, c.RuntimeServiceClient.ContainerStatus, in, opts)
}

func (c *calls) UpdateContainerResources(ctx context.Context, in *runtimeapi.UpdateContainerResourcesRequest, opts ...grpc.CallOption) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	return letEnd(ctx, callBound, c.RuntimeServiceClient.UpdateContainerResources, in, opts)
}

// StopContainer may be given up, for the sake of one with less grace: the
// runtime has made nothing, and the signal is sent.
func (c *calls) StopContainer(ctx context.Context, in *runtimeapi.StopContainerRequest, opts ...grpc.CallOption) (*runtimeapi.StopContainerResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(in.GetTimeout())*time.Second+callBound)
	defer cancel()
	return c.RuntimeServiceClient.StopContainer(ctx, in, opts...)
}

// ExecSync returns when ctx ends, but the command goes on until it ends, its
// timeout ends it, or its container does.
func (c *calls) ExecSync(ctx context.Context, in *runtimeapi.ExecSyncRequest, opts ...grpc.CallOption) (*runtimeapi.ExecSyncResponse, error) {
	type result struct {
		response *runtimeapi.ExecSyncResponse
		err      error
		panicked any
	}
	free, cancel := context.WithCancel(context.WithoutCancel(ctx))
	if in.GetTimeout() > 0 {
		cancel()
		free, cancel = context.WithTimeout(context.WithoutCancel(ctx), time.Duration(in.GetTimeout())*time.Second+callBound)
	}
	results := make(chan result, 1)
	c.beside.Go(func() {
		var r result
		defer func() {
			cancel()
			r.panicked = recover()
			results <- r
		}()
		r.response, r.err = c.RuntimeServiceClient.ExecSync(free, in, opts...)
	})
	select {
	case r := <-results:
		if r.panicked != nil {
			panic(r.panicked) // it is this pod's affair
		}
		return r.response, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
