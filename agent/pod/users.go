package pod

import (
	"errors"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// userBlock is how many users a pod with hostUsers: false has to itself
// (KEP-127). They are a block of the machine's, in which nothing else runs; its
// number is read back from the sandbox after a restart.
const userBlock = 1 << 16

// lastBlock is as far as blocks go: some file systems take larger ids for negative.
const lastBlock = 1<<31/userBlock - 1

// userBlocks says which pod has which block. The first, 0, is the machine's own.
type userBlocks struct {
	mu    sync.Mutex
	block map[types.UID]uint32
}

// take gives the pod's block, a free one the first time.
func (b *userBlocks) take(uid types.UID) (uint32, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n, ok := b.block[uid]; ok {
		return n, nil
	}
	used := make(map[uint32]bool, len(b.block))
	for _, n := range b.block {
		used[n] = true
	}
	for n := uint32(1); n <= lastBlock; n++ {
		if !used[n] {
			b.set(uid, n)
			return n, nil
		}
	}
	return 0, errors.New("no users are left for another pod with hostUsers: false")
}

// adopt notes the block that a sandbox was made with.
func (b *userBlocks) adopt(uid types.UID, s *runtimeapi.PodSandboxStatus) {
	ids := s.GetLinux().GetNamespaces().GetOptions().GetUsernsOptions().GetUids()
	if len(ids) == 0 || ids[0].GetHostId() < userBlock {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set(uid, ids[0].GetHostId()/userBlock)
}

func (b *userBlocks) set(uid types.UID, n uint32) {
	if b.block == nil {
		b.block = map[types.UID]uint32{}
	}
	b.block[uid] = n
}

// free gives a pod's block back when its sandboxes are gone.
func (b *userBlocks) free(uid types.UID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.block, uid)
}

// userNamespace is nil for a pod that has the machine's users.
func (m *Manager) userNamespace(pod *corev1.Pod) (*runtimeapi.UserNamespace, error) {
	if pod.Spec.HostUsers == nil || *pod.Spec.HostUsers {
		return nil, nil
	}
	n, err := m.users.take(pod.UID)
	if err != nil {
		return nil, err
	}
	ids := []*runtimeapi.IDMapping{{HostId: n * userBlock, ContainerId: 0, Length: userBlock}}
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}, nil
}

// mapUsers has a container's mounts show their owners as they are on disk, though
// its users are others there.
func mapUsers(mounts []*runtimeapi.Mount, users *runtimeapi.UserNamespace) {
	if users == nil {
		return
	}
	for _, mount := range mounts {
		mount.UidMappings, mount.GidMappings = users.Uids, users.Gids
	}
}
