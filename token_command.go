package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"orch/internal/joining"
	"orch/internal/pki"
)

// Bootstrap tokens are Secrets of kube-system, as in every Kubernetes cluster;
// see https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens.
const (
	bootstrapPrefix = "bootstrap-token-"
	bootstrapGroup  = "system:bootstrappers:orch"
)

func tokenCommand() *cli.Command {
	return &cli.Command{
		Name:  "token",
		Usage: "look after the tokens that machines join with",
		Subcommands: []*cli.Command{
			{
				Name: "create", Usage: "make a token and print it", Action: createToken,
				Flags: []cli.Flag{
					kubeconfigFlag(),
					&cli.DurationFlag{Name: "ttl", Value: 24 * time.Hour, Usage: "`time` after which it is void; 0: never", EnvVars: env("ttl")},
					stringFlag("description", "", "what the token is for"),
				},
			},
			{Name: "list", Aliases: []string{"ls"}, Usage: "list the tokens, without their secrets", Flags: []cli.Flag{kubeconfigFlag()}, Action: listTokens},
			{Name: "delete", Aliases: []string{"rm"}, Usage: "make tokens void", ArgsUsage: "ID...", Flags: []cli.Flag{kubeconfigFlag()}, Action: deleteTokens},
			{
				Name: "rotate", Usage: "replace the long-lived tokens that servers and agents join with, and print the new ones", Action: rotateTokens,
				Description: "Machines that have joined go on, also after a restart with the old token. On every server the files\n" +
					"<data-dir>/server/token and agent-token have the new ones.",
				Flags: []cli.Flag{
					kubeconfigFlag(),
					&cli.StringFlag{Name: "only", Usage: "`server` or agent: leave the other token as it is"},
					&cli.DurationFlag{Name: "grace", Usage: "`time` for which the old tokens are good still; 0: void at once"},
					stringFlag("new-token", "", "`secret` for servers (default: one is made)"),
					stringFlag("new-agent-token", "", "`secret` for agents (default: one is made)"),
				},
			},
		},
	}
}

// clusterConfig reads the kubeconfig that --kubeconfig or $KUBECONFIG names, or
// that is found.
func clusterConfig(c *cli.Context) (*rest.Config, error) {
	path := c.String("kubeconfig")
	if path == "" && os.Getenv(clientcmd.RecommendedConfigPathEnvVar) == "" {
		if path = findKubeconfig(); path == "" {
			return nil, errors.New("no kubeconfig was found: run this as root on a server, or give --kubeconfig")
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = path
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", cmp.Or(path, os.Getenv(clientcmd.RecommendedConfigPathEnvVar)), err)
	}
	return config, nil
}

func clusterClient(c *cli.Context) (*kubernetes.Clientset, *rest.Config, error) {
	config, err := clusterConfig(c)
	if err != nil {
		return nil, nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	return client, config, err
}

func createToken(c *cli.Context) error {
	client, config, err := clusterClient(c)
	if err != nil {
		return err
	}
	if c.Duration("ttl") < 0 {
		return fmt.Errorf("--ttl %s: must not be negative", c.Duration("ttl"))
	}
	hash, err := caHash(config)
	if err != nil {
		return err
	}
	id, secret := tokenPart(6), tokenPart(16)
	object := bootstrapSecret(id, secret, c.String("description"), c.Duration("ttl"), time.Now())
	if _, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Create(c.Context, object, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create token: %w", err)
	}
	_, err = fmt.Fprintln(c.App.Writer, joining.Token{CAHash: hash, User: joining.UserNode, Secret: id + "." + secret})
	return err
}

// tokenPart is random text of small letters and digits, as the ID and the
// secret of a bootstrap token must be.
func tokenPart(length int) string {
	return strings.ToLower(rand.Text())[:length]
}

func bootstrapSecret(id, secret, description string, ttl time.Duration, now time.Time) *corev1.Secret {
	data := map[string]string{
		"token-id": id, "token-secret": secret, "usage-bootstrap-authentication": "true", "auth-extra-groups": bootstrapGroup,
	}
	if description != "" {
		data["description"] = description
	}
	if ttl > 0 {
		data["expiration"] = now.Add(ttl).UTC().Format(time.RFC3339)
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: bootstrapPrefix + id},
		Type:       corev1.SecretTypeBootstrapToken, StringData: data,
	}
}

// caHash is what a joining machine compares the server's CA with.
func caHash(config *rest.Config) (string, error) {
	if err := rest.LoadTLSFiles(config); err != nil {
		return "", fmt.Errorf("read the cluster's CA: %w", err)
	}
	block, _ := pem.Decode(config.CAData)
	if block == nil {
		return "", errors.New("the kubeconfig names no CA of the cluster")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("read the cluster's CA: %w", err)
	}
	return pki.HashOf(cert), nil
}

func listTokens(c *cli.Context) error {
	client, _, err := clusterClient(c)
	if err != nil {
		return err
	}
	list, err := client.CoreV1().Secrets(metav1.NamespaceSystem).List(c.Context, metav1.ListOptions{
		FieldSelector: "type=" + string(corev1.SecretTypeBootstrapToken),
	})
	if err != nil {
		return fmt.Errorf("list tokens: %w", err)
	}
	table := tabwriter.NewWriter(c.App.Writer, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tEXPIRES\tDESCRIPTION")
	for _, s := range list.Items {
		fmt.Fprintf(table, "%s\t%s\t%s\n", s.Data["token-id"], expiry(string(s.Data["expiration"]), time.Now()), s.Data["description"])
	}
	return table.Flush()
}

// expiry words when a token ends.
func expiry(text string, now time.Time) string {
	end, err := time.Parse(time.RFC3339, text)
	switch {
	case text == "":
		return "never"
	case err != nil || !now.Before(end):
		return "expired"
	default:
		return "in " + end.Sub(now).Round(time.Minute).String()
	}
}

func deleteTokens(c *cli.Context) error {
	if c.NArg() == 0 {
		return errors.New("orch token delete: name at least one token ID (see orch token list)")
	}
	client, _, err := clusterClient(c)
	if err != nil {
		return err
	}
	for _, token := range c.Args().Slice() {
		if err := deleteToken(c.Context, client, token); err != nil {
			return err
		}
		fmt.Fprintln(c.App.Writer, "deleted", tokenID(token))
	}
	return nil
}

func deleteToken(ctx context.Context, client kubernetes.Interface, token string) error {
	err := client.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, bootstrapPrefix+tokenID(token), metav1.DeleteOptions{})
	if err != nil {
		return fmt.Errorf("delete token: %w", err)
	}
	return nil
}

// tokenID takes a token's ID, or any longer form of it, so that what `create`
// printed can be given back.
func tokenID(token string) string {
	if t, err := joining.ParseToken(token); err == nil {
		token = t.Secret
	}
	id, _, _ := strings.Cut(token, ".")
	return id
}
