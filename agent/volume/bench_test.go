package volume

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/agent/objects/objectstest"
)

// BenchmarkPrepare prepares and removes what almost every pod has: a token,
// the cluster's CA and the namespace.
func BenchmarkPrepare(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("mounts need root")
	}
	ca := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "kube-root-ca.crt"}, Data: map[string]string{"ca.crt": "…"}}
	api := objectstest.New(ca)
	api.Token = func(_ int, r *authenticationv1.TokenRequest) error {
		r.Status.ExpirationTimestamp = metav1.NewTime(time.Now().Add(time.Hour))
		return nil
	}
	dir := b.TempDir()
	m := New(Config{Dir: dir, Client: api, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(b.Context())
	var running errgroup.Group
	running.Go(func() error { return m.Run(ctx) })
	defer func() {
		cancel()
		if err := running.Wait(); err != nil {
			b.Error(err)
		}
		if err := removeTree(dir); err != nil {
			b.Error(err)
		}
	}()
	sources := []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}},
		{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: ref("kube-root-ca.crt")}},
		{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.namespace"}}}}},
	}
	p := podWith(corev1.Volume{Name: "access", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: sources}}})
	m.Objects.Use(references(p)[0]) // another pod's
	for i := 0; b.Loop(); i++ {
		p.UID = types.UID(fmt.Sprint(i))
		if _, err := m.Prepare(ctx, p); err != nil {
			b.Fatal(err)
		}
		if err := m.Remove(ctx, p.UID); err != nil {
			b.Fatal(err)
		}
	}
}
