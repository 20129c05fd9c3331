// Package accounts keeps what every namespace needs to run pods: the default
// service account and the ConfigMap with the cluster's CA.
package accounts

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/loop"
	"orch/server/registry"
)

// RootCAConfigMap is the name under which pods find the cluster's CA.
const RootCAConfigMap = "kube-root-ca.crt"

const rootCADescription = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. " +
	"No other usage is guaranteed across distributions of Kubernetes clusters."

// ServiceAccount makes the account "default" in each active namespace.
func ServiceAccount(r *registry.Registry) *loop.Controller {
	accounts := registry.Of[*corev1.ServiceAccount](r)
	namespaces := registry.Of[*corev1.Namespace](r)
	return &loop.Controller{
		Name:    "serviceaccount",
		Workers: 4,
		Sources: []loop.Source{
			namespaceChanges(r),
			loop.Changes(r, func(_, a *corev1.ServiceAccount, deleted bool) []loop.Key {
				if !deleted || a.Name != "default" {
					return nil
				}
				return []loop.Key{{Name: a.Namespace}}
			}),
		},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			if !active(namespaces, key.Name) {
				return 0, nil
			}
			if _, err := accounts.Get(key.Name, "default"); err == nil {
				return 0, nil
			}
			_, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: key.Name, Name: "default"}})
			return 0, ignoreLateComer(err)
		},
	}
}

// RootCA keeps the CA bundle in each active namespace.
func RootCA(r *registry.Registry, bundle []byte) *loop.Controller {
	maps := registry.Of[*corev1.ConfigMap](r)
	namespaces := registry.Of[*corev1.Namespace](r)
	return &loop.Controller{
		Name:    "root-ca-certificate-publisher",
		Workers: 4,
		Sources: []loop.Source{
			namespaceChanges(r),
			loop.Changes(r, func(_, m *corev1.ConfigMap, _ bool) []loop.Key {
				if m.Name != RootCAConfigMap {
					return nil
				}
				return []loop.Key{{Name: m.Namespace}}
			}),
		},
		Reconcile: func(ctx context.Context, key loop.Key) (time.Duration, error) {
			if !active(namespaces, key.Name) {
				return 0, nil
			}
			old, err := maps.Get(key.Name, RootCAConfigMap)
			if err != nil {
				_, err = maps.Create(ctx, &corev1.ConfigMap{
					ObjectMeta: metav1.ObjectMeta{Namespace: key.Name, Name: RootCAConfigMap,
						Annotations: map[string]string{"kubernetes.io/description": rootCADescription}},
					Data: map[string]string{"ca.crt": string(bundle)},
				})
				return 0, ignoreLateComer(err)
			}
			if len(old.Data) == 1 && old.Data["ca.crt"] == string(bundle) && old.Annotations["kubernetes.io/description"] != "" {
				return 0, nil
			}
			_, err = maps.Mutate(ctx, key.Name, RootCAConfigMap, func(m *corev1.ConfigMap) error {
				m.Data = map[string]string{"ca.crt": string(bundle)}
				metav1.SetMetaDataAnnotation(&m.ObjectMeta, "kubernetes.io/description", rootCADescription)
				return nil
			})
			return 0, ignoreLateComer(err)
		},
	}
}

func namespaceChanges(r *registry.Registry) loop.Source {
	return loop.Changes(r, func(_, ns *corev1.Namespace, deleted bool) []loop.Key {
		if deleted {
			return nil
		}
		return []loop.Key{{Name: ns.Name}}
	})
}

func active(namespaces registry.Typed[*corev1.Namespace], name string) bool {
	ns, err := namespaces.Get("", name)
	return err == nil && ns.Status.Phase != corev1.NamespaceTerminating && ns.DeletionTimestamp == nil
}

// ignoreLateComer forgives that someone else was faster, or that the namespace
// began to end meanwhile.
func ignoreLateComer(err error) error {
	if apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	return err
}
