package api

import (
	"bytes"
	"reflect"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"

	"orch/server/registry/document"
)

// check refuses a body that costs more than its size to make an object of. gvk
// is what it is, unless it says something else.
func (c *codec) check(data []byte, m media, gvk schema.GroupVersionKind) error {
	if m == mediaProtobuf {
		return c.checkProtobuf(data, gvk)
	}
	if m == mediaYAML {
		written, err := document.FromYAML(data)
		if err != nil {
			return err
		}
		data = written
	}
	if err := document.CheckShape(data); err != nil || !document.SuspectJSON(data) {
		return err
	}
	if said, err := json.DefaultMetaFactory.Interpret(data); err == nil {
		gvk = saidKind(*said, gvk)
	}
	return document.CheckQuantities(data, c.typeOf(gvk))
}

var protobufPrefix = []byte("k8s\x00")

func (c *codec) checkProtobuf(data []byte, gvk schema.GroupVersionKind) error {
	data, ok := bytes.CutPrefix(data, protobufPrefix)
	if !ok || !document.SuspectProtobuf(data) {
		return nil
	}
	var envelope runtime.Unknown
	if envelope.Unmarshal(data) != nil {
		return nil // the decoder will say why
	}
	return document.CheckProtobufQuantities(envelope.Raw, c.typeOf(saidKind(envelope.GroupVersionKind(), gvk)))
}

// saidKind completes the kind that a body says to be.
func saidKind(said, expected schema.GroupVersionKind) schema.GroupVersionKind {
	if said.Kind == "" {
		said.Kind = expected.Kind
	}
	if said.Version == "" {
		said.Group, said.Version = expected.Group, expected.Version
	}
	return said
}

// typeOf gives the Go type that a kind is decoded into.
func (c *codec) typeOf(gvk schema.GroupVersionKind) reflect.Type {
	if obj, err := c.scheme.New(gvk); err == nil {
		return reflect.TypeOf(obj)
	}
	return nil
}
