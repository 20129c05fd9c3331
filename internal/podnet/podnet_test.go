package podnet

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func testNode(name, podCIDR string, addresses ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDR: podCIDR}}
	for _, a := range addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

func TestPeerOf(t *testing.T) {
	for _, tt := range []struct {
		name string
		node *corev1.Node
		want Peer
		ok   bool
	}{
		{"whole", testNode("b", "10.42.1.0/24", "192.0.2.2"), Peer{netip.MustParseAddr("192.0.2.2"), netip.MustParsePrefix("10.42.1.0/24")}, true},
		{"the first IPv4 address counts", testNode("b", "10.42.1.0/24", "fd00::1", "192.0.2.2", "192.0.2.3"), Peer{netip.MustParseAddr("192.0.2.2"), netip.MustParsePrefix("10.42.1.0/24")}, true},
		{"no range yet", testNode("b", "", "192.0.2.2"), Peer{}, false},
		{"no address yet", testNode("b", "10.42.1.0/24"), Peer{}, false},
		{"IPv6 range", testNode("b", "fd00::/64", "192.0.2.2"), Peer{}, false},
	} {
		if got, ok := PeerOf(tt.node); got != tt.want || ok != tt.ok {
			t.Errorf("%s: got %v, %v", tt.name, got, ok)
		}
	}
}

// listener follows a feed over HTTP.
type listener struct {
	updates chan Update
	ended   chan error
}

func listen(t *testing.T, url string) *listener {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &listener{updates: make(chan Update, 100), ended: make(chan error, 1)}
	var following sync.WaitGroup
	following.Go(func() {
		l.ended <- Follow(ctx, func(ctx context.Context) (io.ReadCloser, error) {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return nil, err
			}
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				return nil, err
			}
			return response.Body, nil
		}, func(u Update) {
			select {
			case l.updates <- u:
			case <-ctx.Done(): // nobody takes them
			}
		})
	})
	t.Cleanup(func() { cancel(); following.Wait() })
	return l
}

// await takes updates until the peers are those that are wanted.
func (l *listener) await(t *testing.T, have map[string]Peer, want ...string) (updates int) {
	t.Helper()
	for timeout := time.After(20 * time.Second); ; {
		select {
		case u := <-l.updates:
			if u.Whole {
				clear(have)
			}
			maps.Copy(have, u.Peers)
			for _, name := range u.Gone {
				delete(have, name)
			}
			updates++
		case err := <-l.ended:
			t.Fatalf("the stream ended: %v", err)
		case <-timeout:
			t.Fatalf("have %v, want %v", have, want)
		}
		complete := len(have) == len(want)
		for _, name := range want {
			_, found := have[name]
			complete = complete && found
		}
		if complete {
			return updates
		}
	}
}

// Each listener hears of all nodes first and then of what changes for the pod
// network; reports of nodes are none of its business.
func TestFeed(t *testing.T) {
	feed := NewFeed()
	server := httptest.NewServer(feed)
	t.Cleanup(server.Close)
	early := listen(t, server.URL) // before the nodes are known
	for i := range 3 {
		feed.OnNode(nil, testNode(fmt.Sprint("n", i), fmt.Sprintf("10.42.%d.0/24", i), "192.0.2.1"), false)
	}
	feed.OnNode(nil, testNode("unready", ""), false)
	feed.Known()
	late := listen(t, server.URL)
	peers := map[*listener]map[string]Peer{early: {}, late: {}}
	for l, have := range peers {
		if updates := l.await(t, have, "n0", "n1", "n2"); updates != 1 {
			t.Errorf("%d updates told of what there was", updates)
		}
	}
	report := testNode("n1", "10.42.1.0/24", "192.0.2.1")
	for i := range 1000 {
		report.ResourceVersion = fmt.Sprint(i)
		feed.OnNode(report, report, false)
	}
	feed.OnNode(nil, testNode("n2", "10.42.2.0/24", "192.0.2.1"), true)
	feed.OnNode(nil, testNode("unready", "10.42.9.0/24", "192.0.2.1"), false)
	feed.OnNode(nil, testNode("n0", "10.42.0.0/24", "192.0.2.7"), false)
	for l, have := range peers {
		if updates := l.await(t, have, "n0", "n1", "unready"); updates != 2 {
			t.Errorf("%d updates told of one node that went and one that came", updates)
		}
		if u := <-l.updates; u.Peers["n0"].Addr != netip.MustParseAddr("192.0.2.7") || len(u.Peers) != 1 || u.Whole || len(u.Gone) != 0 {
			t.Errorf("a node moved: %v", u)
		}
	}
	feed.Close()
	for l := range peers {
		if err := <-l.ended; err == nil {
			t.Error("the stream goes on")
		}
	}
}

// Who joins while many others do hears of them all, whether the line with all
// peers was made before or after.
func TestFeedWhileManyJoin(t *testing.T) {
	feed := NewFeed()
	server := httptest.NewServer(feed)
	t.Cleanup(server.Close)
	t.Cleanup(feed.Close)
	feed.Known()
	var names []string
	made := map[*byte]bool{}
	for i := range 100 {
		name := fmt.Sprint("n", i)
		names = append(names, name)
		feed.OnNode(nil, testNode(name, fmt.Sprintf("10.42.%d.0/24", i), "192.0.2.1"), false)
		whole, _ := feed.all()
		made[&whole[0]] = true
		if i%7 == 0 {
			listen(t, server.URL).await(t, map[string]Peer{}, names...)
		}
	}
	if len(made) > 40 {
		t.Errorf("the line was made %d times for 100 changes", len(made))
	}
	for _, name := range names[:5] {
		feed.OnNode(nil, testNode(name, ""), true)
	}
	listen(t, server.URL).await(t, map[string]Peer{}, names[5:]...)
}

// What does not begin with all nodes is no feed: some proxy's page, or the rest of one.
func TestFollowRefuses(t *testing.T) {
	for _, text := range []string{"", "<html>", `{"peers":{"a":{"addr":"192.0.2.1","range":"10.42.0.0/24"}}}`, `{"whole":true,"peers":{"a":{"addr":"x"}}}`} {
		err := Follow(t.Context(), func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(text)), nil
		}, func(u Update) { t.Errorf("%q: %v is taken", text, u) })
		if err == nil {
			t.Errorf("%q is followed", text)
		}
	}
}

// FuzzFollow is whatever a server may send to a node: it ends, and what is taken
// began with all nodes.
func FuzzFollow(f *testing.F) {
	f.Add([]byte(`{"whole":true,"peers":{"a":{"addr":"192.0.2.1","range":"10.42.0.0/24"}}}` + "\n" + `{"gone":["a"]}` + "\n"))
	f.Add([]byte(`{"whole":true,"peers":{"a":{}}}{"peers":{"b":{"addr":"::1","range":"fd00::/8"}}}`))
	f.Add([]byte(`{"peers":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		first := true
		open := func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(string(data))), nil
		}
		err := Follow(context.Background(), open, func(u Update) {
			if first && !u.Whole {
				t.Error("what is not all nodes was taken for them")
			}
			first = false
		})
		if err == nil {
			t.Error("a stream without end")
		}
	})
}
