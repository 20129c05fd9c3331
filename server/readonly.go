package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/server/controllers/nodes"
	"orch/server/registry"
	"orch/store"
)

// storeReadOnly is the condition of a server's node whose disk is full.
const storeReadOnly corev1.NodeConditionType = "StoreReadOnly"

// reportRetry is the pause after a report that could not be written.
const reportRetry = 5 * time.Second

// reportReadOnly tells, in a condition and an event of this server's node, when
// the store stops and begins to take writes.
func (a *assembly) reportReadOnly(ctx context.Context) error {
	reported := a.toldReadOnly()
	for {
		changed := a.store.ReadOnlyChanged()
		cause := a.store.ReadOnly()
		var again <-chan time.Time
		if (cause != nil) != reported {
			if err := a.tellReadOnly(store.LastWords(ctx), cause); err != nil {
				a.cfg.Logger.Debug("the state of the disk is not reported yet", "component", "server", "error", err)
				again = time.After(reportRetry)
			} else {
				reported = cause != nil
			}
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return nil
		}
	}
}

// toldReadOnly reports whether the condition stands since before this start.
func (a *assembly) toldReadOnly() bool {
	node, err := registry.Of[*corev1.Node](a.registry).Get("", a.cfg.NodeName)
	return err == nil && slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == storeReadOnly && c.Status == corev1.ConditionTrue
	})
}

// tellReadOnly writes condition and event. A server without a node has the event
// only.
func (a *assembly) tellReadOnly(ctx context.Context, cause error) error {
	condition, now := readOnlyCondition(cause), metav1.Now()
	_, err := registry.Of[*corev1.Node](a.registry).MutateStatus(ctx, "", a.cfg.NodeName, func(n *corev1.Node) error {
		nodes.SetCondition(n, condition, now)
		return nil
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	kind := corev1.EventTypeNormal
	if cause != nil {
		kind = corev1.EventTypeWarning
	}
	_, err = registry.Of[*corev1.Event](a.registry).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: fmt.Sprintf("%s.%x", a.cfg.NodeName, now.UnixNano())},
		InvolvedObject: corev1.ObjectReference{Kind: "Node", Name: a.cfg.NodeName, UID: types.UID(a.cfg.NodeName)},
		Type:           kind, Reason: condition.Reason, Message: condition.Message,
		Source: corev1.EventSource{Component: "orch-store", Host: a.cfg.NodeName}, FirstTimestamp: now, LastTimestamp: now, Count: 1,
	})
	return err
}

func readOnlyCondition(cause error) corev1.NodeCondition {
	if cause != nil {
		return corev1.NodeCondition{Type: storeReadOnly, Status: corev1.ConditionTrue, Reason: "StoreDiskFull", Message: cause.Error()}
	}
	return corev1.NodeCondition{Type: storeReadOnly, Status: corev1.ConditionFalse, Reason: "StoreWritable", Message: "the store takes writes"}
}
