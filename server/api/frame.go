package api

import (
	"sync"
	"unique"
	"weak"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// encodingKey names one encoding of one event: a watch's representation, and
// what the event is in its selection.
type encodingKey struct {
	media media
	as    schema.GroupVersionKind
	kind  schema.GroupVersionKind
	event string
	prior bool
}

// frameKey is an encodingKey that costs one word to compare and none to pass on:
// each watcher looks for each event's frame.
type frameKey = unique.Handle[encodingKey]

// cell holds an encoded frame for as long as watchers are busy writing it. The
// history keeps events for minutes; if it kept their encodings too, they would
// outweigh the objects. So the frame is held weakly: watchers that run close
// together share it, and the collector takes it soon after.
type cell struct {
	mu    sync.Mutex
	frame weak.Pointer[[]byte]
}

func (c *cell) get(encode func() ([]byte, error)) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if frame := c.frame.Value(); frame != nil {
		return *frame, nil
	}
	frame, err := encode()
	if err != nil {
		return nil, err
	}
	c.frame = weak.Make(&frame)
	return frame, nil
}
