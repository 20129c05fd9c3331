package api

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/duration"

	"orch/server/registry"
)

// Columns of resources whose entry has none.
var defaultColumns = []metav1.TableColumnDefinition{
	{Name: "Name", Type: "string", Format: "name", Description: "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names"},
	{Name: "Age", Type: "string", Description: "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata"},
}

// rows is how a request's objects are shown in a table.
type rows struct {
	kind    schema.GroupVersionKind
	columns []metav1.TableColumnDefinition
	row     func(obj registry.Object, now time.Time) []any
}

func (q *request) rows() rows {
	shown := rows{kind: q.kind(), columns: q.res.Columns, row: q.res.Row}
	if q.sub != nil && q.sub.Project != nil {
		shown.columns, shown.row = q.sub.Project.Columns, q.sub.Project.Row
	}
	if shown.row == nil {
		shown.columns, shown.row = defaultColumns, defaultRow
	}
	return shown
}

// newTable shows objects as rows of cells, as `kubectl get` prints them.
func newTable(shown rows, as schema.GroupVersionKind, opts *metav1.TableOptions, now time.Time, items ...registry.Object) (*metav1.Table, error) {
	table := &metav1.Table{
		TypeMeta: metav1.TypeMeta{Kind: "Table", APIVersion: as.GroupVersion().String()},
		Rows:     make([]metav1.TableRow, len(items)),
	}
	if !opts.NoHeaders {
		table.ColumnDefinitions = shown.columns
	}
	for i, item := range items {
		table.Rows[i].Cells = shown.row(item, now)
		switch opts.IncludeObject {
		case metav1.IncludeNone:
		case metav1.IncludeObject:
			named, err := withKind(item, shown.kind)
			if err != nil {
				return nil, err
			}
			table.Rows[i].Object.Object = named
		default:
			table.Rows[i].Object.Object = partial(item, as)
		}
	}
	return table, nil
}

func defaultRow(obj registry.Object, now time.Time) []any {
	return []any{obj.GetName(), age(obj.GetCreationTimestamp(), now)}
}

func age(since metav1.Time, now time.Time) string {
	if since.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(since.Time))
}

// withKind gives obj in a form that encodes with its kind.
func withKind(obj registry.Object, gvk schema.GroupVersionKind) (runtime.Object, error) {
	if !obj.GetObjectKind().GroupVersionKind().Empty() {
		return obj, nil
	}
	buf := getBuffer()
	defer putBuffer(buf)
	if err := appendJSON(buf, gvk, obj); err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", gvk.Kind, obj.GetName(), err)
	}
	return rawJSON{&runtime.Unknown{Raw: append([]byte(nil), buf.Bytes()...)}}, nil
}
