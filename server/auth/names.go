package auth

import (
	"slices"
	"strings"
)

// Well-known names of users and groups.
const (
	GroupMasters         = "system:masters"
	GroupAuthenticated   = "system:authenticated"
	GroupUnauthenticated = "system:unauthenticated"
	GroupNodes           = "system:nodes"
	GroupServiceAccounts = "system:serviceaccounts"
	GroupBootstrappers   = "system:bootstrappers"
	UserAnonymous        = "system:anonymous"

	NodeUserPrefix           = "system:node:"
	serviceAccountPrefix     = "system:serviceaccount:"
	serviceAccountsNSPrefix  = "system:serviceaccounts:"
	bootstrapperUserPrefix   = "system:bootstrap:"
	extraPodName             = "authentication.kubernetes.io/pod-name"
	ExtraPodUID              = "authentication.kubernetes.io/pod-uid"
	extraNodeName            = "authentication.kubernetes.io/node-name"
	ExtraNodeUID             = "authentication.kubernetes.io/node-uid"
	extraCredentialID        = "authentication.kubernetes.io/credential-id"
	defaultAudienceForOthers = "https://kubernetes.default.svc"

	// SecretJoinTokens, in kube-system, says which join tokens are in force once
	// they were rotated.
	SecretJoinTokens = "orch-join-tokens"
)

// ServiceAccountUser is the user name of a service account.
func ServiceAccountUser(namespace, name string) string {
	return serviceAccountPrefix + namespace + ":" + name
}

// BootstrapUser is the user name of a bootstrap token.
func BootstrapUser(id string) string { return bootstrapperUserPrefix + id }

// SplitServiceAccount takes a service account's user name apart.
func SplitServiceAccount(user string) (namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(user, serviceAccountPrefix)
	if !ok {
		return "", "", false
	}
	namespace, name, ok = strings.Cut(rest, ":")
	return namespace, name, ok && namespace != "" && name != "" && !strings.Contains(name, ":")
}

// InGroup tells whether u is a member of group.
func (u *User) InGroup(group string) bool { return slices.Contains(u.Groups, group) }

// NodeName is the node that u is, when it is one.
func (u *User) NodeName() (string, bool) {
	name, ok := strings.CutPrefix(u.Name, NodeUserPrefix)
	return name, ok && name != "" && u.InGroup(GroupNodes)
}
