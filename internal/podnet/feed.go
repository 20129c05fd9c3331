package podnet

import (
	"bytes"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Feed is the server's side: it takes the events of Nodes and tells those who
// listen what changes for the pod network, which is little. A change is encoded
// once, however many listen.
type Feed struct {
	known  chan struct{} // closed once all nodes are known
	closed chan struct{}

	mu    sync.Mutex // guards what follows
	peers map[string]Peer
	whole []byte  // the line with all peers; nil: to be made
	last  *change // the latest; its successor is not there yet
}

// change is a link of a chain that each listener walks along at its own pace.
// What all have passed is collected.
type change struct {
	line     []byte
	next     *change
	followed chan struct{} // closed once next is set
}

// NewFeed makes a feed that knows no nodes.
func NewFeed() *Feed {
	return &Feed{
		known: make(chan struct{}), closed: make(chan struct{}), peers: make(map[string]Peer),
		last: &change{followed: make(chan struct{})},
	}
}

// OnNode takes notice of a change of a Node.
func (f *Feed) OnNode(_, n *corev1.Node, deleted bool) {
	p, ok := PeerOf(n)
	ok = ok && !deleted
	f.mu.Lock()
	defer f.mu.Unlock()
	if old, known := f.peers[n.Name]; known == ok && (!ok || old == p) {
		return // most changes of nodes are none here
	}
	update := Update{Gone: []string{n.Name}}
	if ok {
		f.peers[n.Name] = p
		update = Update{Peers: map[string]Peer{n.Name: p}}
	} else {
		delete(f.peers, n.Name)
	}
	f.whole = nil
	next := &change{line: lineOf(update), followed: make(chan struct{})}
	f.last.next = next
	close(f.last.followed)
	f.last = next
}

// Known lets listeners in: OnNode has been told of all nodes that there are.
func (f *Feed) Known() { close(f.known) }

// Close ends all streams.
func (f *Feed) Close() { close(f.closed) }

// all gives the line with all peers, and the change from which to go on.
func (f *Feed) all() ([]byte, *change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.whole == nil {
		f.whole = lineOf(Update{Whole: true, Peers: f.peers})
	}
	return f.whole, f.last
}

func lineOf(u Update) []byte {
	line, err := json.Marshal(u)
	if err != nil {
		panic(err) // it holds nothing but names and addresses
	}
	return append(line, '\n')
}

// pace is the least time between two writes to a listener: where many nodes join
// at once, it hears of them together.
const pace = 100 * time.Millisecond

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
	line, at := f.all()
	for {
		if _, err := w.Write(line); err != nil || to.Flush() != nil {
			return
		}
		rested := time.After(pace)
		if !f.await(r, at.followed) {
			return
		}
		<-rested
		line, at = at.since()
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

// since gives the lines of all changes after c, and the last of them.
func (c *change) since() ([]byte, *change) {
	var lines bytes.Buffer
	for {
		select {
		case <-c.followed:
			c = c.next
			lines.Write(c.line)
		default:
			return lines.Bytes(), c
		}
	}
}
