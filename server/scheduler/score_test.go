package scheduler

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestScores(t *testing.T) {
	n := func(cpu, memory string) *node {
		c := newCluster(nil)
		c.setNode(makeNode("a"))
		c.place(newPod(makePod("x", cpu, requests(corev1.ResourceMemory, memory))), "a")
		return c.byName["a"]
	}
	p := newPod(makePod("p", "500m", requests(corev1.ResourceMemory, "1Gi"))) // a quarter of each
	tests := []struct {
		name  string
		score func(*pod, *node) float64
		node  *node
		want  float64
	}{
		{"least allocated, empty", leastAllocated, n("0", "0"), 75},
		{"least allocated, half", leastAllocated, n("1", "2Gi"), 25},
		{"least allocated, full", leastAllocated, n("2", "4Gi"), 0},
		{"balanced, no difference", balancedAllocation, n("1", "2Gi"), 75},
		{"balanced, as uneven as before", balancedAllocation, n("500m", "2Gi"), 75},
	}
	for _, test := range tests {
		if got := test.score(p, test.node); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
	uneven := newPod(makePod("p", "1", requests(corev1.ResourceMemory, "0")))
	if with, without := balancedAllocation(uneven, n("0", "2Gi")), balancedAllocation(uneven, n("1", "0")); with <= 75 || without >= 75 {
		t.Errorf("evening out gives %v, making uneven %v", with, without)
	}
	if got := balancedAllocation(newPod(makePod("p", "")), n("1", "0")); got != 0 {
		t.Errorf("a pod without requests has a say: %v", got)
	}
	image := func(n *corev1.Node) {
		n.Status.Images = []corev1.ContainerImage{{Names: []string{"image:latest"}, SizeBytes: 500 << 20}}
	}
	c := newCluster(nil)
	c.setNode(makeNode("a", image))
	c.setNode(makeNode("b"))
	spots := c.imageSpots(p)
	if with, without := imageLocality(p, c.byName["a"], spots), imageLocality(p, c.byName["b"], spots); with <= 0 || without != 0 {
		t.Errorf("image present gives %v, absent %v", with, without)
	}
}
