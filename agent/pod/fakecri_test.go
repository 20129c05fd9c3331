package pod

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeRuntime is a container runtime in memory. Its containers know the
// commands true, false, sleep N and "exit N after D"; all end at once on
// SIGTERM. It keeps a transcript of the calls that change something.
type fakeRuntime struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient

	mu         sync.Mutex
	serial     int
	boxes      map[string]*fakeBox
	containers map[string]*fakeContainer
	images     map[string]bool
	transcript []string
	streams    []*fakeStream
	fail       map[string]error // by method, once
	exec       func(container string, command []string) (int32, string)
}

type fakeBox struct {
	status *runtimeapi.PodSandboxStatus
	config *runtimeapi.PodSandboxConfig
}

type fakeContainer struct {
	status *runtimeapi.ContainerStatus
	config *runtimeapi.ContainerConfig
	box    string
	end    *time.Timer
	gone   chan struct{}
}

func newFakeRuntime() *fakeRuntime {
	return &fakeRuntime{
		boxes: make(map[string]*fakeBox), containers: make(map[string]*fakeContainer),
		images: map[string]bool{testImage: true}, fail: make(map[string]error),
	}
}

func (f *fakeRuntime) say(format string, args ...any) {
	f.transcript = append(f.transcript, fmt.Sprintf(format, args...))
}

// enter logs a call and gives the error that a test has planted for it.
func (f *fakeRuntime) enter(method string) error {
	err := f.fail[method]
	delete(f.fail, method)
	return err
}

func (f *fakeRuntime) id(kind string) string {
	f.serial++
	return fmt.Sprintf("%s%04d", kind, f.serial)
}

var errNoSuch = status.Error(codes.NotFound, "not found")

func (f *fakeRuntime) RunPodSandbox(_ context.Context, in *runtimeapi.RunPodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.RunPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := in.GetConfig().GetMetadata()
	f.say("sandbox %s/%d", m.GetName(), m.GetAttempt())
	if err := f.enter("RunPodSandbox"); err != nil {
		return nil, err
	}
	id := f.id("box")
	f.boxes[id] = &fakeBox{config: in.GetConfig(), status: &runtimeapi.PodSandboxStatus{
		Id: id, Metadata: m, CreatedAt: time.Now().UnixNano(), Labels: in.GetConfig().GetLabels(),
		Network: &runtimeapi.PodSandboxNetworkStatus{Ip: fmt.Sprintf("10.42.0.%d", f.serial)},
	}}
	f.emit(id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (f *fakeRuntime) StopPodSandbox(_ context.Context, in *runtimeapi.StopPodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.StopPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.boxes[in.GetPodSandboxId()]
	if b == nil {
		return nil, errNoSuch
	}
	f.say("stop sandbox %s/%d", b.config.GetMetadata().GetName(), b.config.GetMetadata().GetAttempt())
	f.downBox(in.GetPodSandboxId())
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// downBox ends a sandbox and what runs in it.
func (f *fakeRuntime) downBox(id string) {
	f.boxes[id].status.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	for cid, c := range f.containers {
		if c.box == id {
			f.exit(cid, 137)
		}
	}
	f.emit(id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

func (f *fakeRuntime) RemovePodSandbox(_ context.Context, in *runtimeapi.RemovePodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.RemovePodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.boxes[in.GetPodSandboxId()]; b != nil {
		f.say("remove sandbox %s/%d", b.config.GetMetadata().GetName(), b.config.GetMetadata().GetAttempt())
		delete(f.boxes, in.GetPodSandboxId())
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (f *fakeRuntime) PodSandboxStatus(_ context.Context, in *runtimeapi.PodSandboxStatusRequest, _ ...grpc.CallOption) (*runtimeapi.PodSandboxStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.boxes[in.GetPodSandboxId()]
	if b == nil {
		return nil, errNoSuch
	}
	return &runtimeapi.PodSandboxStatusResponse{Status: clone(b.status)}, nil
}

func (f *fakeRuntime) ListPodSandbox(_ context.Context, in *runtimeapi.ListPodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &runtimeapi.ListPodSandboxResponse{}
	for id, b := range f.boxes {
		if !labeled(b.status.GetLabels(), in.GetFilter().GetLabelSelector()) {
			continue
		}
		out.Items = append(out.Items, &runtimeapi.PodSandbox{Id: id, Labels: b.status.GetLabels()})
	}
	return out, nil
}

func (f *fakeRuntime) CreateContainer(_ context.Context, in *runtimeapi.CreateContainerRequest, _ ...grpc.CallOption) (*runtimeapi.CreateContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := in.GetConfig().GetMetadata()
	f.say("create %s/%d", m.GetName(), m.GetAttempt())
	if err := f.enter("CreateContainer"); err != nil {
		return nil, err
	}
	id := f.id("c")
	f.containers[id] = &fakeContainer{config: in.GetConfig(), box: in.GetPodSandboxId(), gone: make(chan struct{}), status: &runtimeapi.ContainerStatus{
		Id: id, Metadata: m, CreatedAt: time.Now().UnixNano(), Image: in.GetConfig().GetImage(), ImageRef: "sha256:abc",
		Labels: in.GetConfig().GetLabels(), Annotations: in.GetConfig().GetAnnotations(), Mounts: in.GetConfig().GetMounts(),
		Resources: &runtimeapi.ContainerResources{Linux: clone(in.GetConfig().GetLinux().GetResources())},
	}}
	f.emit(in.GetPodSandboxId(), runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

func (f *fakeRuntime) StartContainer(_ context.Context, in *runtimeapi.StartContainerRequest, _ ...grpc.CallOption) (*runtimeapi.StartContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := in.GetContainerId()
	c := f.containers[id]
	if c == nil || f.boxes[c.box] == nil || f.boxes[c.box].status.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, errNoSuch
	}
	f.say("start %s/%d", c.config.GetMetadata().GetName(), c.config.GetMetadata().GetAttempt())
	if err := f.enter("StartContainer"); err != nil {
		c.status.StartedAt = time.Now().UnixNano()
		f.exit(id, 128)
		return nil, err
	}
	c.status.State, c.status.StartedAt = runtimeapi.ContainerState_CONTAINER_RUNNING, time.Now().UnixNano()
	f.emit(c.box, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	code, after := script(c.config.GetCommand())
	c.end = time.AfterFunc(after, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.exit(id, code)
	})
	return &runtimeapi.StartContainerResponse{}, nil
}

func labeled(have, want map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}

// script tells how a command ends.
func script(command []string) (code int32, after time.Duration) {
	after = 1000 * time.Hour
	switch {
	case len(command) == 0:
	case command[0] == "true":
		return 0, 0
	case command[0] == "false":
		return 1, 0
	case command[0] == "exit":
		_, _ = fmt.Sscan(command[1], &code)
		after, _ = time.ParseDuration(command[3])
	}
	return code, after
}

// exit ends a container. f.mu is held.
func (f *fakeRuntime) exit(id string, code int32) {
	c := f.containers[id]
	if c == nil || c.status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
		return
	}
	if c.end != nil {
		c.end.Stop()
	}
	c.status.State, c.status.ExitCode, c.status.FinishedAt = runtimeapi.ContainerState_CONTAINER_EXITED, code, time.Now().UnixNano()
	c.status.Reason = "Error"
	if code == 0 {
		c.status.Reason = "Completed"
	}
	close(c.gone)
	f.emit(c.box, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

func (f *fakeRuntime) StopContainer(_ context.Context, in *runtimeapi.StopContainerRequest, _ ...grpc.CallOption) (*runtimeapi.StopContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[in.GetContainerId()]; c != nil {
		f.say("stop %s/%d in %ds", c.config.GetMetadata().GetName(), c.config.GetMetadata().GetAttempt(), in.GetTimeout())
		f.exit(in.GetContainerId(), 143)
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

func (f *fakeRuntime) RemoveContainer(_ context.Context, in *runtimeapi.RemoveContainerRequest, _ ...grpc.CallOption) (*runtimeapi.RemoveContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[in.GetContainerId()]; c != nil {
		f.say("remove %s/%d", c.config.GetMetadata().GetName(), c.config.GetMetadata().GetAttempt())
		delete(f.containers, in.GetContainerId())
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (f *fakeRuntime) ListContainers(_ context.Context, in *runtimeapi.ListContainersRequest, _ ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &runtimeapi.ListContainersResponse{}
	for id, c := range f.containers {
		if !labeled(c.status.GetLabels(), in.GetFilter().GetLabelSelector()) {
			continue
		}
		out.Containers = append(out.Containers, &runtimeapi.Container{Id: id, PodSandboxId: c.box, Labels: c.status.GetLabels()})
	}
	return out, nil
}

func (f *fakeRuntime) ContainerStatus(_ context.Context, in *runtimeapi.ContainerStatusRequest, _ ...grpc.CallOption) (*runtimeapi.ContainerStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.containers[in.GetContainerId()]
	if c == nil {
		return nil, errNoSuch
	}
	return &runtimeapi.ContainerStatusResponse{Status: clone(c.status)}, nil
}

func (f *fakeRuntime) UpdateContainerResources(_ context.Context, in *runtimeapi.UpdateContainerResourcesRequest, _ ...grpc.CallOption) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.containers[in.GetContainerId()]
	f.say("update %s quota %d", c.config.GetMetadata().GetName(), in.GetLinux().GetCpuQuota())
	c.status.Resources = &runtimeapi.ContainerResources{Linux: clone(in.GetLinux())}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

func (f *fakeRuntime) ExecSync(_ context.Context, in *runtimeapi.ExecSyncRequest, _ ...grpc.CallOption) (*runtimeapi.ExecSyncResponse, error) {
	f.mu.Lock()
	c, exec := f.containers[in.GetContainerId()], f.exec
	if c == nil {
		f.mu.Unlock()
		return nil, errNoSuch
	}
	name := c.config.GetMetadata().GetName()
	f.say("exec %s %s", name, strings.Join(in.GetCmd(), " "))
	f.mu.Unlock()
	if exec == nil {
		return &runtimeapi.ExecSyncResponse{}, nil
	}
	code, out := exec(name, in.GetCmd())
	return &runtimeapi.ExecSyncResponse{ExitCode: code, Stdout: []byte(out)}, nil
}

func (f *fakeRuntime) ListImages(context.Context, *runtimeapi.ListImagesRequest, ...grpc.CallOption) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{{Id: "sha256:abc", Size: 42}}}, nil
}

func (f *fakeRuntime) ImageStatus(_ context.Context, in *runtimeapi.ImageStatusRequest, _ ...grpc.CallOption) (*runtimeapi.ImageStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.images[in.GetImage().GetImage()] {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	return &runtimeapi.ImageStatusResponse{Image: &runtimeapi.Image{Id: "sha256:abc", Size: 42}}, nil
}

func (f *fakeRuntime) PullImage(_ context.Context, in *runtimeapi.PullImageRequest, _ ...grpc.CallOption) (*runtimeapi.PullImageResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.say("pull %s as %q", in.GetImage().GetImage(), in.GetAuth().GetUsername())
	if err := f.enter("PullImage"); err != nil {
		return nil, err
	}
	if strings.Contains(in.GetImage().GetImage(), "missing") {
		return nil, status.Error(codes.NotFound, "no such image")
	}
	f.images[in.GetImage().GetImage()] = true
	return &runtimeapi.PullImageResponse{ImageRef: "sha256:abc"}, nil
}

// fakeStream is one subscriber of events.
type fakeStream struct {
	grpc.ClientStream
	ctx  context.Context
	news chan *runtimeapi.ContainerEventResponse
	cut  chan struct{}
}

func (s *fakeStream) Recv() (*runtimeapi.ContainerEventResponse, error) {
	select {
	case e := <-s.news:
		return e, nil
	case <-s.cut:
		return nil, errors.New("stream cut")
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

func (f *fakeRuntime) GetContainerEvents(ctx context.Context, _ *runtimeapi.GetEventsRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[runtimeapi.ContainerEventResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &fakeStream{ctx: ctx, news: make(chan *runtimeapi.ContainerEventResponse, 10_000), cut: make(chan struct{})}
	f.streams = append(f.streams, s)
	return s, nil
}

// emit tells the subscribers the state of a whole pod. f.mu is held.
func (f *fakeRuntime) emit(box string, kind runtimeapi.ContainerEventType) {
	b := f.boxes[box]
	if b == nil {
		return
	}
	e := &runtimeapi.ContainerEventResponse{
		ContainerEventType: kind, CreatedAt: time.Now().UnixNano(), PodSandboxStatus: clone(b.status),
	}
	for _, c := range f.containers {
		if c.box == box {
			e.ContainersStatuses = append(e.ContainersStatuses, clone(c.status))
		}
	}
	for _, s := range f.streams {
		s.news <- e
	}
}

// kill ends the running container of that name, as if it had crashed.
func (f *fakeRuntime) kill(name string, code int32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, c := range f.containers {
		if c.config.GetMetadata().GetName() == name && c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			f.exit(id, code)
		}
	}
}

// lines takes the transcript so far.
func (f *fakeRuntime) lines() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.transcript
	f.transcript = nil
	return t
}

func clone[T proto.Message](m T) T { return proto.Clone(m).(T) }
