package podnet

import (
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch/internal/fanout"
)

// Feed is the server's side: it takes the events of Nodes and tells those who
// listen what changes for the pod network, which is little. A change is encoded
// once, however many listen. What a Node says that cannot be is left out: a
// share outside of the cluster network, or one that another node has had for
// longer, until that one goes.
type Feed struct {
	cluster netip.Prefix

	known  chan struct{} // closed once all nodes are known
	closed chan struct{}

	mu    sync.Mutex              // guards what follows
	nodes map[string]*corev1.Node // with a share
	share *Shares
	peers map[string]Peer // what listeners are told
	last  *change         // the latest; its successor is not there yet
	whole []byte          // a line with all peers, as they were at from; nil: to be made
	from  *change         // nil with whole, for it keeps all that follow
	since int             // changes after from
}

// change is a link of a chain that each listener walks along at its own pace.
// What all have passed is collected.
type change struct {
	line     []byte
	next     *change
	followed chan struct{} // closed once next is set
}

// NewFeed makes a feed of a cluster network that knows no nodes.
func NewFeed(cluster netip.Prefix) *Feed {
	return &Feed{
		cluster: cluster, known: make(chan struct{}), closed: make(chan struct{}),
		nodes: make(map[string]*corev1.Node), share: NewShares(cluster), peers: make(map[string]Peer),
		last: &change{followed: make(chan struct{})},
	}
}

// OnNode takes notice of a change of a Node.
func (f *Feed) OnNode(old, n *corev1.Node, deleted bool) {
	if old != nil && !deleted && sameInNetwork(old, n) {
		return // most changes of nodes are none here
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var touched []string
	if deleted {
		touched = f.share.Remove(n.Name)
		delete(f.nodes, n.Name)
	} else {
		touched = f.share.Set(n)
		f.nodes[n.Name] = inNetwork(n)
	}
	update := Update{Peers: make(map[string]Peer)}
	for _, name := range append(touched, n.Name) {
		f.tell(name, &update)
	}
	if len(update.Peers) > 0 || len(update.Gone) > 0 {
		f.append(update)
	}
}

func sameInNetwork(a, b *corev1.Node) bool {
	return a.Spec.PodCIDR == b.Spec.PodCIDR && a.UID == b.UID && slices.Equal(a.Status.Addresses, b.Status.Addresses)
}

// inNetwork is all that counts here of a Node, which is a small part of it.
func inNetwork(n *corev1.Node) *corev1.Node {
	meta := metav1.ObjectMeta{Name: n.Name, CreationTimestamp: n.CreationTimestamp}
	return &corev1.Node{ObjectMeta: meta, Spec: corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR}, Status: corev1.NodeStatus{Addresses: n.Status.Addresses}}
}

// tell notes in update how listeners must see the node from now on, if that is
// new. Call with mu held.
func (f *Feed) tell(name string, update *Update) {
	var p Peer
	n, ok := f.nodes[name]
	if ok = ok && f.share.Check(n) == nil; ok {
		p, ok = PeerOf(n, f.cluster)
	}
	old, known := f.peers[name]
	switch {
	case ok && (!known || old != p):
		f.peers[name], update.Peers[name] = p, p
	case !ok && known:
		delete(f.peers, name)
		update.Gone = append(update.Gone, name)
	}
}

// append adds a change to the chain. Call with mu held.
func (f *Feed) append(update Update) {
	if f.since++; f.since > len(f.peers)/8 {
		f.whole, f.from = nil, nil // too much to be brought up to date with
	}
	next := &change{line: lineOf(update), followed: make(chan struct{})}
	f.last.next = next
	close(f.last.followed)
	f.last = next
}

// Known lets listeners in: OnNode has been told of all nodes that there are.
func (f *Feed) Known() { close(f.known) }

// Close ends all streams.
func (f *Feed) Close() { close(f.closed) }

// all gives a line with all peers, and the change from which to go on.
func (f *Feed) all() ([]byte, *change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.whole == nil {
		f.whole, f.from, f.since = lineOf(Update{Whole: true, Peers: f.peers}), f.last, 0
	}
	return f.whole, f.from
}

func lineOf(u Update) []byte {
	line, err := json.Marshal(u)
	if err != nil {
		panic(err) // it holds nothing but names and addresses
	}
	return append(line, '\n')
}

// rest is the least time between two writes to a listener: where many nodes join
// at once, it hears of them together.
func (f *Feed) rest() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fanout.Rest(len(f.peers))
}

// readTime is how long a listener may take to read what is sent at once.
const readTime = 30 * time.Second

// ServeHTTP streams Updates.
func (f *Feed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case <-f.known:
	case <-f.closed:
		http.Error(w, "the server is stopping", http.StatusServiceUnavailable)
		return
	case <-r.Context().Done():
		return
	}
	w.Header().Set("Content-Type", "application/json")
	to := http.NewResponseController(w)
	_ = to.SetReadDeadline(time.Time{}) // a writer without deadlines needs none taken away
	whole, at := f.all()
	for lines := whole; ; lines = nil {
		_ = to.SetWriteDeadline(time.Now().Add(readTime))
		_, err := w.Write(lines)
		if err == nil {
			at, err = at.writeNext(w)
		}
		if err != nil || to.Flush() != nil {
			return
		}
		_ = to.SetWriteDeadline(time.Time{})
		rested := time.After(f.rest())
		if !f.await(r, at.followed) {
			return
		}
		<-rested
	}
}

// await tells whether the next change came before the end of the stream.
func (f *Feed) await(r *http.Request, followed <-chan struct{}) bool {
	select {
	case <-followed:
		return true
	case <-f.closed:
	case <-r.Context().Done():
	}
	return false
}

// writeNext writes the lines of all changes after c, and gives the last of them.
func (c *change) writeNext(w io.Writer) (*change, error) {
	for {
		select {
		case <-c.followed:
			c = c.next
			if _, err := w.Write(c.line); err != nil {
				return nil, err
			}
		default:
			return c, nil
		}
	}
}
