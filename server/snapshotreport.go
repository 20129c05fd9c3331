package server

import (
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"orch/server/backup"
)

// snapshotReport gives what tells operators how snapshots go: a line in the log,
// an event of the server's node, and figures. A failing backup does not make the
// server unready: it serves as well as before.
func (a *assembly) snapshotReport() backup.Report {
	labels := []string{"where"}
	ended := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "orch_snapshots_total", Help: "Snapshots saved (where=disk) and uploaded (where=s3), by result.",
	}, append(labels, "result"))
	when := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "orch_snapshot_last_success_timestamp_seconds", Help: "When a snapshot was last saved or uploaded, in Unix time.",
	}, labels)
	size := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "orch_snapshot_last_size_bytes", Help: "Size of the last snapshot saved or uploaded.",
	}, labels)
	took := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "orch_snapshot_last_duration_seconds", Help: "How long the last snapshot took to save or upload.",
	}, labels)
	a.api.Register(ended, when, size, took)
	for _, where := range []string{backup.OnDisk, backup.InS3} {
		for _, result := range []string{"success", "failure"} {
			ended.WithLabelValues(where, result)
		}
	}
	log := a.cfg.Logger.With("component", "backup")
	recorder := a.events.recorder("orch-backup")
	node := &corev1.ObjectReference{Kind: "Node", Name: a.cfg.NodeName, UID: types.UID(a.cfg.NodeName)}
	return func(o backup.Outcome) {
		if o.Err != nil {
			ended.WithLabelValues(o.Where, "failure").Inc()
			log.Warn("snapshot failed", "where", o.Where, "name", o.Info.Name, "error", o.Err)
			recorder.Eventf(node, corev1.EventTypeWarning, "SnapshotFailed", "Snapshot to %s: %v", o.Where, o.Err)
			return
		}
		ended.WithLabelValues(o.Where, "success").Inc()
		when.WithLabelValues(o.Where).SetToCurrentTime()
		size.WithLabelValues(o.Where).Set(float64(o.Info.Size))
		took.WithLabelValues(o.Where).Set(o.Took.Seconds())
		log.Info("snapshot saved", "where", o.Where, "name", o.Info.Name, "bytes", o.Info.Size, "took", o.Took)
		recorder.Eventf(node, corev1.EventTypeNormal, "SnapshotSaved", "Snapshot %s to %s: %d bytes", o.Info.Name, o.Where, o.Info.Size)
	}
}
