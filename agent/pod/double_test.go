package pod

import (
	"context"

	"google.golang.org/grpc"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type ctx = context.Context

func missing(name string) error {
	return apierrors.NewNotFound(schema.GroupResource{Resource: "things"}, name)
}

// reopening is a runtime that only reopens logs.
type reopening struct {
	runtimeapi.RuntimeServiceClient
	call func()
}

func (r reopening) ReopenContainerLog(ctx, *runtimeapi.ReopenContainerLogRequest, ...grpc.CallOption) (*runtimeapi.ReopenContainerLogResponse, error) {
	r.call()
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}
