package join

import (
	"errors"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/utils/ptr"

	"orch/server/registry"
)

// objects lets auth look things up in the registry. The registry's table wants
// the token issuer, so the registry comes later.
type objects struct {
	registry atomic.Pointer[registry.Registry]
}

var errNotReady = errors.New("server is starting")

func look[T registry.Object](o *objects, namespace, name string) (T, error) {
	r := o.registry.Load()
	if r == nil {
		var none T
		return none, errNotReady
	}
	return registry.Of[T](r).Get(namespace, name)
}

func (o *objects) ServiceAccount(namespace, name string) (*corev1.ServiceAccount, error) {
	return look[*corev1.ServiceAccount](o, namespace, name)
}

func (o *objects) Secret(namespace, name string) (*corev1.Secret, error) {
	return look[*corev1.Secret](o, namespace, name)
}

func (o *objects) Pod(namespace, name string) (*corev1.Pod, error) {
	return look[*corev1.Pod](o, namespace, name)
}

func (o *objects) Node(name string) (*corev1.Node, error) {
	return look[*corev1.Node](o, "", name)
}

func (o *objects) PersistentVolumeClaim(namespace, name string) (*corev1.PersistentVolumeClaim, error) {
	return look[*corev1.PersistentVolumeClaim](o, namespace, name)
}

func (o *objects) PersistentVolume(name string) (*corev1.PersistentVolume, error) {
	return look[*corev1.PersistentVolume](o, "", name)
}

func (o *objects) ResourceSliceNode(name string) (string, error) {
	slice, err := look[*resourcev1.ResourceSlice](o, "", name)
	if err != nil {
		return "", err
	}
	return ptr.Deref(slice.Spec.NodeName, ""), nil
}
