package api

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1beta1 "k8s.io/apimachinery/pkg/apis/meta/v1beta1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"orch/server/registry"
)

// flushSize is how much of a list is encoded before it is written out.
const flushSize = 4 * piece

// answerList writes a page of objects without building a list object of it.
func (s *Server) answerList(w http.ResponseWriter, r *http.Request, q *request, a accept, page *registry.ListResult) error {
	gvk := q.res.GVK()
	gvk.Kind += "List"
	meta := metav1.ListMeta{ResourceVersion: formatRevision(page.ResourceVersion), Continue: page.Continue, RemainingItemCount: page.Remaining}
	switch a.as.Kind {
	case "Table":
		opts, err := q.tableOptions(a)
		if err != nil {
			return err
		}
		table, err := newTable(q.rows(), a.as, opts, time.Now(), page.Items...)
		if err != nil {
			return err
		}
		table.ListMeta = meta
		s.respond(w, r, a, http.StatusOK, table, a.as)
		return nil
	case "PartialObjectMetadataList":
		s.respond(w, r, a, http.StatusOK, partialList(meta, a.as, page.Items), a.as)
		return nil
	case "PartialObjectMetadata":
		return notAcceptableMessage(fmt.Sprintf("you requested PartialObjectMetadata, but the requested object is a list (%s)", typeName(q.res.Group, q.res.NewList())))
	}
	if a.media == mediaProtobuf {
		return writeProtobufList(w, r, gvk, &meta, page.Items)
	}
	return writeTextList(w, r, a, gvk, &meta, page.Items)
}

// writeTextList streams compact JSON; the indented and YAML forms, which are
// for people, are made from it as a whole.
func writeTextList(w http.ResponseWriter, r *http.Request, a accept, gvk schema.GroupVersionKind, meta *metav1.ListMeta, items []registry.Object) error {
	out := newBody(w, r, http.StatusOK, a.media.contentType())
	defer out.Close()
	if a.media == mediaJSON && !a.pretty {
		return encodeJSONList(out, gvk, meta, items, func(p []byte) error { out.writeOn(r, p); return nil })
	}
	var whole bytes.Buffer
	keep := func(p []byte) error { whole.Write(p); return r.Context().Err() }
	if err := encodeJSONList(&whole, gvk, meta, items, keep); err != nil {
		return err
	}
	compact := &runtime.Unknown{Raw: bytes.TrimSuffix(whole.Bytes(), []byte("\n"))}
	buf := getBuffer()
	defer putBuffer(buf)
	if err := appendObject(buf, a, gvk, rawJSON{compact}); err != nil {
		return err
	}
	_, err := out.Write(buf.Bytes())
	return err
}

// rawJSON is an object that is encoded already.
type rawJSON struct{ *runtime.Unknown }

func (o rawJSON) MarshalJSON() ([]byte, error) { return o.Raw, nil }

// encodeJSONList writes to out, by piece as long as there is more to come.
func encodeJSONList(out io.Writer, gvk schema.GroupVersionKind, meta *metav1.ListMeta, items []registry.Object, piece func([]byte) error) error {
	buf := getBuffer()
	defer putBuffer(buf)
	appendKind(buf, gvk)
	head, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	buf.WriteString(`,"metadata":`)
	buf.Write(head)
	buf.WriteString(`,"items":[`)
	for i, item := range items {
		if i > 0 {
			buf.WriteByte(',')
		}
		if err := appendJSONItem(buf, item); err != nil {
			return err
		}
		if buf.Len() >= flushSize {
			if err := piece(buf.Next(flushSize)); err != nil {
				return err
			}
		}
	}
	buf.WriteString("]}\n")
	out.Write(buf.Bytes())
	return nil
}

// writeProtobufList writes the list message by hand: all lists have their
// ListMeta as field 1 and their items as field 2.
func writeProtobufList(w http.ResponseWriter, r *http.Request, gvk schema.GroupVersionKind, meta *metav1.ListMeta, items []registry.Object) error {
	head, err := meta.Marshal()
	if err != nil {
		return err
	}
	sizes := make([]int, len(items))
	total := 1 + varintSize(len(head)) + len(head)
	for i, item := range items {
		msg, ok := item.(message)
		if !ok {
			return notAcceptable(contentJSON, contentYAML)
		}
		sizes[i] = msg.Size()
		total += 1 + varintSize(sizes[i]) + sizes[i]
	}
	buf := getBuffer()
	defer putBuffer(buf)
	appendEnvelope(buf, gvk, total)
	buf.Write(appendField(buf.AvailableBuffer(), 1, head))
	out := newBody(w, r, http.StatusOK, contentProtobuf)
	defer out.Close()
	for i, item := range items {
		buf.Write(binary.AppendUvarint(append(buf.AvailableBuffer(), 2<<3|2), uint64(sizes[i])))
		if err := appendMessage(buf, item.(message), sizes[i]); err != nil {
			panic(err) // the header is out: only breaking off tells the client
		}
		if buf.Len() >= flushSize {
			out.writeOn(r, buf.Next(flushSize))
		}
	}
	buf.Write(envelopeEnd)
	out.Write(buf.Bytes())
	return nil
}

func partial(obj registry.Object, as schema.GroupVersionKind) *metav1.PartialObjectMetadata {
	p := partialOf(obj)
	p.SetGroupVersionKind(as.GroupVersion().WithKind("PartialObjectMetadata"))
	return p
}

// metaHolder is what ObjectMeta offers to whoever embeds it.
type metaHolder interface{ GetObjectMeta() metav1.Object }

func partialOf(obj registry.Object) *metav1.PartialObjectMetadata {
	if holder, ok := obj.(metaHolder); ok {
		if meta, ok := holder.GetObjectMeta().(*metav1.ObjectMeta); ok {
			return &metav1.PartialObjectMetadata{ObjectMeta: *meta}
		}
	}
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Name: obj.GetName(), GenerateName: obj.GetGenerateName(), Namespace: obj.GetNamespace(),
		UID: obj.GetUID(), ResourceVersion: obj.GetResourceVersion(), Generation: obj.GetGeneration(),
		CreationTimestamp: obj.GetCreationTimestamp(), DeletionTimestamp: obj.GetDeletionTimestamp(),
		DeletionGracePeriodSeconds: obj.GetDeletionGracePeriodSeconds(),
		Labels:                     obj.GetLabels(), Annotations: obj.GetAnnotations(),
		OwnerReferences: obj.GetOwnerReferences(), Finalizers: obj.GetFinalizers(), ManagedFields: obj.GetManagedFields(),
	}}
}

func partialList(meta metav1.ListMeta, as schema.GroupVersionKind, items []registry.Object) runtime.Object {
	partials := make([]metav1.PartialObjectMetadata, len(items))
	for i, item := range items {
		partials[i] = *partial(item, as)
	}
	if as.Version == "v1beta1" {
		return &metav1beta1.PartialObjectMetadataList{ListMeta: meta, Items: partials}
	}
	return &metav1.PartialObjectMetadataList{ListMeta: meta, Items: partials}
}

// typeName is what upstream's internal type for obj is called in messages.
func typeName(group string, obj any) string {
	_, name, _ := strings.Cut(fmt.Sprintf("%T", obj), ".")
	return "*" + registry.InternalPackage(group) + "." + name
}

func asStatus(obj runtime.Object) (*metav1.Status, bool) {
	status, ok := obj.(*metav1.Status)
	return status, ok
}
