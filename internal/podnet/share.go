package podnet

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// ShareBits is the size of a node's share of the cluster network. A share lies
// within one block of that size, so that only those in the same block can overlap.
const ShareBits = 24

// Share gives the part of the cluster network that a Node names as its pods'.
// Whoever may write Nodes can name any; an error says why nobody follows it.
func Share(n *corev1.Node, cluster netip.Prefix) (netip.Prefix, error) {
	share, err := netip.ParsePrefix(n.Spec.PodCIDR)
	switch {
	case err != nil || !share.Addr().Is4():
		return netip.Prefix{}, fmt.Errorf("%q is no IPv4 network", n.Spec.PodCIDR)
	case share.Bits() < ShareBits:
		return netip.Prefix{}, fmt.Errorf("%s is more than a node's share, which is a /%d", share, ShareBits)
	case !cluster.Contains(share.Masked().Addr()):
		return netip.Prefix{}, fmt.Errorf("%s is outside of the cluster network %s", share, cluster)
	}
	return share.Masked(), nil
}

// Shares knows which nodes hold what of the cluster network, and which of them
// may: of those whose shares overlap the one that is there longest.
type Shares struct {
	cluster netip.Prefix
	blocks  map[netip.Prefix][]holder // in the order in which they came
	of      map[string]netip.Prefix   // block of each node
}

// holder is a node with its share.
type holder struct {
	name  string
	since int64 // when its Node was made
	share netip.Prefix
}

// NewShares gives the shares of a cluster network without nodes.
func NewShares(cluster netip.Prefix) *Shares {
	return &Shares{cluster: cluster, blocks: make(map[netip.Prefix][]holder), of: make(map[string]netip.Prefix)}
}

// Set takes notice of a node, and gives the names of those whose right to their
// shares may have changed with it.
func (s *Shares) Set(n *corev1.Node) []string {
	touched := s.Remove(n.Name)
	share, err := Share(n, s.cluster)
	if err != nil {
		return touched
	}
	block := blockOf(share)
	for _, h := range s.blocks[block] {
		touched = append(touched, h.name)
	}
	s.of[n.Name] = block
	s.blocks[block] = append(s.blocks[block], holder{n.Name, n.CreationTimestamp.Unix(), share})
	slices.SortFunc(s.blocks[block], func(a, b holder) int {
		return cmp.Or(cmp.Compare(a.since, b.since), cmp.Compare(a.name, b.name))
	})
	return touched
}

// Remove forgets a node, and gives the others whose right may have changed.
func (s *Shares) Remove(name string) (touched []string) {
	block, known := s.of[name]
	if !known {
		return nil
	}
	delete(s.of, name)
	s.blocks[block] = slices.DeleteFunc(s.blocks[block], func(h holder) bool { return h.name == name })
	if len(s.blocks[block]) == 0 {
		delete(s.blocks, block)
		return nil
	}
	for _, h := range s.blocks[block] {
		touched = append(touched, h.name)
	}
	return touched
}

// Check tells why the node's share is not followed; nil: it is.
func (s *Shares) Check(n *corev1.Node) error {
	if _, err := Share(n, s.cluster); err != nil {
		return err
	}
	var right []holder
	for _, h := range s.blocks[s.of[n.Name]] {
		before := slices.IndexFunc(right, func(r holder) bool { return r.share.Overlaps(h.share) })
		switch {
		case before < 0:
			right = append(right, h)
		case h.name == n.Name:
			return fmt.Errorf("%s overlaps with %s, which node %s has had for longer", h.share, right[before].share, right[before].name)
		}
	}
	return nil
}

func blockOf(share netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(share.Addr(), ShareBits).Masked()
}
