package overlay

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	goruntime "runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"orch/internal/podnet"
)

const insideEnv = "ORCH_TEST_INSIDE"

// isolated runs the calling test again in a network namespace of its own and
// reports its outcome; it returns true in that second run.
func isolated(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) != "" {
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("inside: %v\n%s", err, out)
	}
	return false
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until ok, looking often.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline, tick := time.After(40*time.Second), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within 40 s", what)
		}
	}
}

var (
	here      = netip.MustParseAddr("192.0.2.1")
	there     = netip.MustParseAddr("192.0.2.2")
	hereRange = netip.MustParsePrefix("10.42.0.0/24")
	farRange  = netip.MustParsePrefix("10.42.1.0/24")
)

// otherNode is a second machine beside this process's namespace: a cable, the
// overlay's entries towards here, and a server at its tunnel address.
func otherNode(t *testing.T) net.Listener {
	t.Helper()
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	home, err := netns.Get()
	must(t, err)
	far, err := netns.New() // and enter it
	must(t, err)
	must(t, netns.Set(home))
	cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", TxQLen: -1, Flags: net.FlagUp}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(far))}
	must(t, netlink.LinkAdd(cable))
	address(t, "eth0", here)
	must(t, netns.Set(far))
	address(t, "eth0", there)
	device := &Device{Name: "vx", Addr: there, Range: farRange, MTU: 1450}
	must(t, device.ensure())
	must(t, device.apply(newEntries(), plan(map[string]podnet.Peer{"here": {Addr: here, Range: hereRange}})))
	listener, err := net.Listen("tcp", farRange.Addr().String()+":0")
	must(t, err)
	must(t, netns.Set(home))
	t.Cleanup(func() { listener.Close(); far.Close(); home.Close() })
	return listener
}

func address(t *testing.T, name string, addr netip.Addr) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	must(t, err)
	a, err := netlink.ParseAddr(addr.String() + "/24")
	must(t, err)
	must(t, netlink.AddrAdd(link, a))
	must(t, netlink.LinkSetUp(link))
}

// running starts an overlay here, which hears of nodes from feed; the function
// ends it.
func running(t *testing.T, feed *podnet.Feed) (device *Device, stop func()) {
	t.Helper()
	device = &Device{Name: LinkName, Addr: here, Range: hereRange, MTU: 1450, Limits: testLimits}
	o := New("here", device, opener(feed), func(podnet.Update) {}, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()
	return device, func() { cancel(); must(t, <-done) }
}

// opener opens streams of feed, without a network.
func opener(feed *podnet.Feed) func(context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) {
		out, in := io.Pipe()
		go func() {
			feed.ServeHTTP(&piped{header: http.Header{}, to: in}, httptest.NewRequestWithContext(ctx, http.MethodGet, podnet.Path, nil))
			in.Close()
		}()
		return out, nil
	}
}

type piped struct {
	header http.Header
	to     io.Writer
}

func (p *piped) Header() http.Header            { return p.header }
func (p *piped) WriteHeader(int)                {}
func (p *piped) Write(data []byte) (int, error) { return p.to.Write(data) }
func (p *piped) Flush()                         {}

func linkExists() bool { _, err := netlink.LinkByName(LinkName); return err == nil }

// held reads the overlay's entries in the kernel.
func held(t *testing.T) entries {
	t.Helper()
	link, err := netlink.LinkByName(LinkName)
	must(t, err)
	e, err := (&Device{Name: LinkName, link: link}).entries()
	must(t, err)
	return e
}

// Nodes come and go, and so do the ways to them; what an earlier process left
// is taken over, what nobody wants any more is removed.
func TestOverlay(t *testing.T) {
	if !isolated(t) {
		return
	}
	listener := otherNode(t)
	feed := podnet.NewFeed(netip.MustParsePrefix("10.42.0.0/16"))
	feed.OnNode(nil, testNode("here", hereRange.String(), here.String()), false)
	feed.Known()
	_, stop := running(t, feed)

	other := testNode("there", farRange.String(), there.String())
	feed.OnNode(nil, other, false)
	var source net.Addr
	eventually(t, "a connection to the other node's range", func() bool {
		conn, err := net.DialTimeout("tcp", listener.Addr().String(), time.Second)
		if err != nil {
			return false
		}
		defer conn.Close()
		source = conn.LocalAddr()
		return true
	})
	if got := netip.MustParseAddrPort(source.String()).Addr(); got != hereRange.Addr() {
		t.Errorf("the node speaks as %s; answers would not come back through the overlay", got)
	}

	stop()
	before, err := netlink.LinkByName(LinkName)
	must(t, err)
	stray := &Device{Name: LinkName, link: before}
	must(t, stray.apply(newEntries(), plan(map[string]podnet.Peer{"gone": {Addr: netip.MustParseAddr("192.0.2.9"), Range: netip.MustParsePrefix("10.42.9.0/24")}})))
	_, stop = running(t, feed)
	eventually(t, "removal of a stray route", func() bool { return len(held(t).routes) == 1 })
	eventually(t, "removal of a stray forwarding entry", func() bool { return len(held(t).forwards) == 1 })
	if after, err := netlink.LinkByName(LinkName); err != nil || after.Attrs().Index != before.Attrs().Index {
		t.Errorf("the link was not taken over: %v", err)
	}

	feed.OnNode(other, other, true)
	eventually(t, "removal of the node's entries", func() bool {
		e := held(t)
		return len(e.routes)+len(e.neighbours)+len(e.forwards) == 0
	})
	stop()

	// Alone again: the next start removes the link.
	_, stop = running(t, feed)
	eventually(t, "removal of the link", func() bool { return !linkExists() })
	stop()
}
