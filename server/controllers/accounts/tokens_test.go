package accounts

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/server/controllers/harness"
)

type fakeIssuer struct{}

func (fakeIssuer) IssueForSecret(a *corev1.ServiceAccount, s *corev1.Secret) (string, error) {
	return "token of " + a.Name + " in " + s.Name, nil
}

func TestTokens(t *testing.T) {
	h := harness.New(t)
	h.Run(Tokens(h.Registry, fakeIssuer{}, []byte("ca")))
	account := harness.Create(h, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: harness.Namespace, Name: "robot"}})
	secret := func(name, account string) *corev1.Secret {
		return &corev1.Secret{Type: corev1.SecretTypeServiceAccountToken, ObjectMeta: metav1.ObjectMeta{
			Namespace: harness.Namespace, Name: name, Annotations: map[string]string{corev1.ServiceAccountNameKey: account}}}
	}
	harness.Create(h, secret("s", "robot"))
	s := harness.Wait(h, "s", "its token", func(s *corev1.Secret) bool { return len(s.Data) == 3 })
	if string(s.Data["token"]) != "token of robot in s" || string(s.Data["ca.crt"]) != "ca" || string(s.Data["namespace"]) != harness.Namespace ||
		s.Annotations[corev1.ServiceAccountUIDKey] != string(account.UID) {
		t.Errorf("data %s, annotations %v", s.Data, s.Annotations)
	}
	harness.Create(h, secret("stray", "nobody"))
	harness.WaitAll(h, "the stray one gone", func(all []*corev1.Secret) bool { return len(all) == 1 })
	harness.Delete[*corev1.ServiceAccount](h, "robot")
	harness.WaitAll(h, "none left", func(all []*corev1.Secret) bool { return len(all) == 0 })
}

func TestEveryNamespaceHasAnAccountAndTheCA(t *testing.T) {
	h := harness.New(t)
	h.Run(ServiceAccount(h.Registry), RootCA(h.Registry, []byte("ca")))
	harness.Wait(h, "default", "the account", func(*corev1.ServiceAccount) bool { return true })
	m := harness.Wait(h, RootCAConfigMap, "the CA", func(m *corev1.ConfigMap) bool { return m.Data["ca.crt"] == "ca" })
	harness.Change(h, m.Name, func(m *corev1.ConfigMap) { m.Data["ca.crt"] = "forged" })
	harness.Wait(h, RootCAConfigMap, "the CA again", func(m *corev1.ConfigMap) bool { return m.Data["ca.crt"] == "ca" })
	harness.Delete[*corev1.ServiceAccount](h, "default")
	harness.Wait(h, "default", "the account again", func(*corev1.ServiceAccount) bool { return true })
}
