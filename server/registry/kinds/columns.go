package kinds

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
)

type documented interface{ SwaggerDoc() map[string]string }

// doc is the published description of a field.
func doc(of documented, name string) string { return of.SwaggerDoc()[name] }

func column(name, kind, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: kind, Description: description}
}

// wide is a column that shows only with -o wide.
func wide(name, kind, description string) metav1.TableColumnDefinition {
	c := column(name, kind, description)
	c.Priority = 1
	return c
}

func nameColumn() metav1.TableColumnDefinition {
	c := column("Name", "string", doc(metav1.ObjectMeta{}, "name"))
	c.Format = "name"
	return c
}

func ageColumn() metav1.TableColumnDefinition {
	return column("Age", "string", doc(metav1.ObjectMeta{}, "creationTimestamp"))
}

func columns(c ...metav1.TableColumnDefinition) []metav1.TableColumnDefinition { return c }

// containerColumns show a pod template with -o wide; selector may be "".
func containerColumns(selector string) []metav1.TableColumnDefinition {
	c := columns(
		wide("Containers", "string", "Names of each container in the template."),
		wide("Images", "string", "Images referenced by each container in the template."),
	)
	if selector != "" {
		c = append(c, wide("Selector", "string", selector))
	}
	return c
}

func containerCells(containers []corev1.Container) (names, images string) {
	ns, is := make([]string, len(containers)), make([]string, len(containers))
	for i := range containers {
		ns[i], is[i] = containers[i].Name, containers[i].Image
	}
	return strings.Join(ns, ","), strings.Join(is, ",")
}

// since is the age of t as kubectl prints it.
func since(t metav1.Time, now time.Time) string { return elapsed(t.Time, now) }

func elapsed(t, now time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(t))
}

// age is the cell of ageColumn.
func age(m metav1.Object, now time.Time) string { return since(m.GetCreationTimestamp(), now) }

func orText[T ~string](s T, absent string) string {
	if s == "" {
		return absent
	}
	return string(s)
}

func derefOr[T any](p *T, absent T) T {
	if p == nil {
		return absent
	}
	return *p
}

// textOr prints *p, or absent.
func textOr[T ~string](p *T, absent string) string {
	if p == nil {
		return absent
	}
	return string(*p)
}

// upTo joins the first limit items and tells how many more there are.
func upTo(limit int, items []string) string {
	if len(items) <= limit {
		return orText(strings.Join(items, ","), "<unset>")
	}
	return fmt.Sprintf("%s + %d more...", strings.Join(items[:limit], ","), len(items)-limit)
}

// wideName is for tables that begin with something else.
func wideName() metav1.TableColumnDefinition {
	c := nameColumn()
	c.Priority = 1
	return c
}

// plainColumns and plainRow print kinds for which there is nothing special to show.
func plainColumns() []metav1.TableColumnDefinition {
	return columns(nameColumn(), column("Created At", "date", doc(metav1.ObjectMeta{}, "creationTimestamp")))
}

func plainRow[P metav1.Object](obj P, _ time.Time) []any {
	return []any{obj.GetName(), obj.GetCreationTimestamp().UTC().Format(time.RFC3339)}
}

// agedRow is for nameColumn and ageColumn alone.
func agedRow[P metav1.Object](obj P, now time.Time) []any {
	return []any{obj.GetName(), age(obj, now)}
}
