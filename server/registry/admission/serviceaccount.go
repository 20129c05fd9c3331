package admission

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/ptr"

	"orch/server/auth"
	"orch/server/registry"
)

const (
	defaultAccount = "default"
	tokenPath      = "/var/run/secrets/kubernetes.io/serviceaccount"
	tokenVolume    = "kube-api-access-"
	// tokenSeconds is odd on purpose: a token of just this lifetime is one that
	// nobody chose, and the issuer lets it live longer.
	tokenSeconds = 3607
	// accountWait is how long a pod in a new namespace waits for its default
	// service account, which a controller makes.
	accountWait = 2 * time.Second
)

// serviceAccount gives each pod a service account that exists, its token and
// its pull secrets.
type serviceAccount struct{}

func (s serviceAccount) Admit(ctx context.Context, a *registry.Attempt) error {
	if isOf(a, "", "pods", "ephemeralcontainers") && a.Operation == registry.OperationUpdate {
		return s.admitEphemeral(ctx, a)
	}
	pod := newPod(a)
	if pod == nil {
		return nil
	}
	if isMirror(pod) {
		return checkMirror(pod)
	}
	if pod.Spec.ServiceAccountName == "" {
		pod.Spec.ServiceAccountName = defaultAccount
	}
	pod.Spec.DeprecatedServiceAccount = pod.Spec.ServiceAccountName
	account, err := findAccount(ctx, a, pod.Spec.ServiceAccountName)
	if err != nil {
		return err
	}
	if mountsToken(account, pod) {
		mountToken(&pod.Spec)
	}
	if len(pod.Spec.ImagePullSecrets) == 0 {
		pod.Spec.ImagePullSecrets = append(pod.Spec.ImagePullSecrets, account.ImagePullSecrets...)
	}
	if limitsSecrets(account) {
		return checkSecrets(account, pod)
	}
	return nil
}

func (serviceAccount) admitEphemeral(ctx context.Context, a *registry.Attempt) error {
	pod, ok := a.Object.(*corev1.Pod)
	if !ok || isMirror(pod) {
		return nil
	}
	account, err := findAccount(ctx, a, pod.Spec.ServiceAccountName)
	if err != nil || !limitsSecrets(account) {
		return err
	}
	for i := range pod.Spec.EphemeralContainers {
		c := &pod.Spec.EphemeralContainers[i]
		if err := checkEnvSecrets(account, "ephemeral container", c.Name, c.Env, c.EnvFrom); err != nil {
			return err
		}
	}
	return nil
}

// findAccount waits for the default account of a new namespace.
func findAccount(ctx context.Context, a *registry.Attempt, name string) (*corev1.ServiceAccount, error) {
	account, err := registry.Of[*corev1.ServiceAccount](a.Registry).Get(a.Namespace, name)
	if apierrors.IsNotFound(err) && name == defaultAccount {
		account, err = awaitAccount(ctx, a, name)
	}
	if err != nil {
		if apierrors.IsNotFound(err) {
			err = apierrors.NewNotFound(schema.GroupResource{Resource: "serviceaccount"}, name)
		}
		// Not wrapped: the answer is 403 and not the 404 inside.
		return nil, fmt.Errorf("error looking up service account %s/%s: %v", a.Namespace, name, err)
	}
	return account, nil
}

func awaitAccount(ctx context.Context, a *registry.Attempt, name string) (*corev1.ServiceAccount, error) {
	missing := apierrors.NewNotFound(schema.GroupResource{Resource: "serviceaccounts"}, name)
	ctx, cancel := context.WithTimeout(ctx, accountWait)
	defer cancel()
	watch, err := a.Registry.Watch(ctx, a.Registry.Lookup("", "v1", "serviceaccounts"), registry.Selection{
		Namespace: a.Namespace, Fields: fields.OneTermEqualSelector("metadata.name", name),
	}, &metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, missing
	}
	defer watch.Stop()
	for {
		events, err := watch.Next(ctx)
		if err != nil {
			return nil, missing
		}
		for _, event := range events {
			if account, ok := event.Object.(*corev1.ServiceAccount); ok && event.Type != "DELETED" {
				return account, nil
			}
		}
	}
}

// mountsToken: the pod's wish counts before the account's.
func mountsToken(account *corev1.ServiceAccount, pod *corev1.Pod) bool {
	if pod.Spec.AutomountServiceAccountToken != nil {
		return *pod.Spec.AutomountServiceAccountToken
	}
	return ptr.Deref(account.AutomountServiceAccountToken, true)
}

// mountToken adds the token's volume and mounts it in every container that has
// nothing mounted there.
func mountToken(spec *corev1.PodSpec) {
	name, exists := "", false
	for i := range spec.Volumes {
		if strings.HasPrefix(spec.Volumes[i].Name, tokenVolume) {
			name, exists = spec.Volumes[i].Name, true
			break
		}
	}
	if !exists {
		name = tokenVolume + suffix(spec.ServiceAccountName)
	}
	mounted := mountIn(spec.InitContainers, name)
	mounted = mountIn(spec.Containers, name) || mounted
	if mounted && !exists {
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Projected: tokenSource()}})
	}
}

// suffix is the same for all pods of an account, unlike upstream's, so that
// pods of one workload differ in as little as possible: what they have in common
// is in memory once.
func suffix(account string) string {
	hash := fnv.New32a()
	hash.Write([]byte(account))
	return rand.SafeEncodeString(fmt.Sprintf("%010d", hash.Sum32()))[5:]
}

func mountIn(containers []corev1.Container, volume string) (mounted bool) {
	for i := range containers {
		c := &containers[i]
		taken := false
		for j := range c.VolumeMounts {
			taken = taken || c.VolumeMounts[j].MountPath == tokenPath
		}
		if !taken {
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: volume, ReadOnly: true, MountPath: tokenPath})
			mounted = true
		}
	}
	return mounted
}

// tokenSource is what a client inside the cluster needs: token, CA, namespace.
func tokenSource() *corev1.ProjectedVolumeSource {
	return &corev1.ProjectedVolumeSource{
		DefaultMode: ptr.To(corev1.ProjectedVolumeSourceDefaultMode),
		Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr.To[int64](tokenSeconds)}},
			{ConfigMap: &corev1.ConfigMapProjection{
				LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"},
				Items:                []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
			}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{
				Path:     "namespace",
				FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"},
			}}}},
		},
	}
}

// checkMirror: a node may not reach accounts and secrets by way of its copies
// of static pods.
func checkMirror(pod *corev1.Pod) error {
	if pod.Spec.ServiceAccountName != "" {
		return errors.New("a mirror pod may not reference service accounts")
	}
	for range auth.PodSecrets(pod) {
		return errors.New("a mirror pod may not reference secrets")
	}
	for i := range pod.Spec.Volumes {
		if p := pod.Spec.Volumes[i].Projected; p != nil {
			for j := range p.Sources {
				if p.Sources[j].ServiceAccountToken != nil {
					return errors.New("a mirror pod may not use ServiceAccountToken volume projections")
				}
			}
		}
	}
	return nil
}

// limitsSecrets tells whether the account restricts its pods to its own secrets.
func limitsSecrets(account *corev1.ServiceAccount) bool {
	on, _ := strconv.ParseBool(account.Annotations["kubernetes.io/enforce-mountable-secrets"])
	return on
}

func checkSecrets(account *corev1.ServiceAccount, pod *corev1.Pod) error {
	for i := range pod.Spec.Volumes {
		if s := pod.Spec.Volumes[i].Secret; s != nil && !ownsSecret(account, s.SecretName) {
			return fmt.Errorf("volume with secret.secretName=%q is not allowed because service account %s does not reference that secret", s.SecretName, account.Name)
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if err := checkEnvSecrets(account, "init container", c.Name, c.Env, c.EnvFrom); err != nil {
			return err
		}
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		if err := checkEnvSecrets(account, "container", c.Name, c.Env, c.EnvFrom); err != nil {
			return err
		}
	}
	for i, ref := range pod.Spec.ImagePullSecrets {
		owned := false
		for _, own := range account.ImagePullSecrets {
			owned = owned || own.Name == ref.Name
		}
		if !owned {
			return fmt.Errorf("imagePullSecrets[%d].name=%q is not allowed because service account %s does not reference that imagePullSecret", i, ref.Name, account.Name)
		}
	}
	return nil
}

func checkEnvSecrets(account *corev1.ServiceAccount, kind, container string, env []corev1.EnvVar, from []corev1.EnvFromSource) error {
	for i := range env {
		if v := env[i].ValueFrom; v != nil && v.SecretKeyRef != nil && !ownsSecret(account, v.SecretKeyRef.Name) {
			return fmt.Errorf("%s %s with envVar %s referencing secret.secretName=%q is not allowed because service account %s does not reference that secret",
				kind, container, env[i].Name, v.SecretKeyRef.Name, account.Name)
		}
	}
	for i := range from {
		if s := from[i].SecretRef; s != nil && !ownsSecret(account, s.Name) {
			return fmt.Errorf("%s %s with envFrom referencing secret.secretName=%q is not allowed because service account %s does not reference that secret",
				kind, container, s.Name, account.Name)
		}
	}
	return nil
}

func ownsSecret(account *corev1.ServiceAccount, name string) bool {
	for _, ref := range account.Secrets {
		if ref.Name == name {
			return true
		}
	}
	return false
}
