package connections

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// headers are those of a plain request.
func headers(t *testing.T) []byte {
	t.Helper()
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "x"}, {":path", "/"}} {
		if err := e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	return block.Bytes()
}

// floods are frames that ask for nothing, or for what is taken back at once.
func floods(t *testing.T) map[string]func(f *http2.Framer, i uint32) error {
	block := headers(t)
	start := func(f *http2.Framer, stream uint32) error {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block, EndHeaders: true})
	}
	return map[string]func(f *http2.Framer, i uint32) error{
		"PING":     func(f *http2.Framer, _ uint32) error { return f.WritePing(false, [8]byte{}) },
		"SETTINGS": func(f *http2.Framer, _ uint32) error { return f.WriteSettings() },
		"rapid reset": func(f *http2.Framer, i uint32) error {
			if err := start(f, 2*i+1); err != nil {
				return err
			}
			return f.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		},
		"empty DATA": func(f *http2.Framer, i uint32) error {
			if i == 0 {
				return start(f, 1)
			}
			return f.WriteData(1, false, nil)
		},
		"CONTINUATION": func(f *http2.Framer, i uint32) error {
			if i == 0 {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block})
			}
			return f.WriteContinuation(1, false, nil)
		},
		"PRIORITY":      func(f *http2.Framer, i uint32) error { return f.WritePriority(2*i+1, http2.PriorityParam{}) },
		"unknown":       func(f *http2.Framer, _ uint32) error { return f.WriteRawFrame(0xfe, 0, 0, nil) },
		"WINDOW_UPDATE": func(f *http2.Framer, _ uint32) error { return f.WriteWindowUpdate(0, 1) },
	}
}

// A flood ends its connection, whether the client reads what comes back or not.
func TestFloodsEndTheConnection(t *testing.T) {
	w := newWorld(t, Limits{Strangers: 100, PerAddress: 100, Probation: 1}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
	}))
	for name, frame := range floods(t) {
		for _, reads := range []bool{true, false} {
			conn, err := tls.Dial("tcp", w.address, &tls.Config{RootCAs: w.ca.Pool(), NextProtos: []string{"h2"}})
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(conn, http2.ClientPreface)
			framer := http2.NewFramer(conn, conn)
			err = framer.WriteSettings()
			if reads {
				go io.Copy(io.Discard, conn)
			}
			var i uint32
			for ; err == nil && i < 1_000_000; i++ {
				err = frame(framer, i)
			}
			if err == nil {
				t.Errorf("%s (the client reads: %t): open after %d frames", name, reads, i)
			}
			conn.Close()
		}
	}
}

// An ordinary client is not disturbed: many requests, some taken back.
func TestMeterLetsClientsBe(t *testing.T) {
	w := newWorld(t, Limits{Strangers: 100, PerAddress: 100, Probation: 1}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, r.Body)
	}))
	transport := &http2.Transport{TLSClientConfig: &tls.Config{RootCAs: w.ca.Pool()}}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport}
	body := strings.Repeat("x", 100<<10)
	for i := range 1500 {
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "POST", "https://"+w.address, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if i%3 > 0 {
			n, err := io.Copy(io.Discard, resp.Body)
			if err != nil || n != int64(len(body)) {
				t.Fatalf("request %d: %d bytes, %v", i, n, err)
			}
		}
		resp.Body.Close()
		cancel()
	}
}

// The allowance comes back with time.
func TestMeterRefills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(time.Now())
		var sent bytes.Buffer
		sent.WriteString(http2.ClientPreface)
		f := http2.NewFramer(&sent, nil)
		f.WritePing(false, [8]byte{})
		if err := m.read(sent.Bytes(), time.Now); err != nil {
			t.Fatal(err)
		}
		ping := sent.Bytes()[len(http2.ClientPreface):]
		for range framesAtOnce - 1 {
			for i := range ping { // however the bytes arrive
				if err := m.read(ping[i:i+1], time.Now); err != nil {
					t.Fatal(err)
				}
			}
		}
		if m.read(ping, time.Now) == nil {
			t.Error("one more than allowed")
		}
		m.allowed = 0
		time.Sleep(time.Second)
		for range framesPerSec {
			if err := m.read(ping, time.Now); err != nil {
				t.Fatal(err)
			}
		}
		if m.read(ping, time.Now) == nil {
			t.Error("one more than a second gives")
		}
	})
}

// FuzzMeter reads anything, in pieces of any size, and never gets out of step:
// all at once and byte by byte are the same.
func FuzzMeter(f *testing.F) {
	var sent bytes.Buffer
	sent.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(&sent, nil)
	framer.WriteSettings()
	framer.WriteData(1, true, []byte("hello"))
	f.Add(sent.Bytes())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		at := func() time.Time { return time.Time{} }
		whole, pieces := newMeter(at()), newMeter(at())
		first := whole.read(data, at)
		var second error
		for i := 0; i < len(data) && second == nil; i++ {
			second = pieces.read(data[i:i+1], at)
		}
		if first != second || first == nil && *whole != *pieces {
			t.Errorf("%v %+v, byte by byte %v %+v", first, whole, second, pieces)
		}
	})
}
