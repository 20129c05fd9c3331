package version

import (
	"fmt"

	"k8s.io/apimachinery/pkg/util/version"
)

// oldestAgent is how many minor versions a node may be behind its servers, and
// serverSpread how many servers of one cluster may be apart; see
// https://kubernetes.io/releases/version-skew-policy.
const (
	oldestAgent  = 3
	serverSpread = 1
)

// AgentSkew tells why a node made for one version of the Kubernetes API may not
// join a server of another; nil: it may. An empty version is not known.
func AgentSkew(server, agent string) error {
	ahead, err := minorsAhead(server, agent)
	switch {
	case err != nil:
		return err
	case ahead > 0:
		return fmt.Errorf("this node is of version %s and the server of %s: a node must not be newer than the servers; upgrade the servers first, or install an orch of version %s here", agent, server, server)
	case ahead < -oldestAgent:
		return fmt.Errorf("this node is of version %s and the server of %s: a node may be %d minor versions older, not more; install a newer orch here", agent, server, oldestAgent)
	}
	return nil
}

// ServerSkew tells why a server may not join a cluster with a server of another
// version; nil: it may.
func ServerSkew(there, joining string) error {
	ahead, err := minorsAhead(there, joining)
	if err == nil && max(ahead, -ahead) > serverSpread {
		err = fmt.Errorf("this server is of version %s and that of the cluster of %s: servers may be %d minor version apart, not more; install an orch of version %s here", joining, there, serverSpread, there)
	}
	return err
}

// minorsAhead is how many minor versions b is newer than a.
func minorsAhead(a, b string) (int, error) {
	if b == "" {
		return 0, nil
	}
	of, err := version.ParseSemantic(a)
	if err != nil {
		return 0, fmt.Errorf("version %q: %w", a, err)
	}
	other, err := version.ParseSemantic(b)
	if err != nil {
		return 0, fmt.Errorf("version %q: %w", b, err)
	}
	if of.Major() != other.Major() {
		return 100 * (int(other.Major()) - int(of.Major())), nil
	}
	return int(other.Minor()) - int(of.Minor()), nil
}
