package rules

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/knftables"
	"sigs.k8s.io/yaml"
)

func newFakeNFTables() (*NFTables, *knftables.Fake) {
	fake := knftables.NewFake(knftables.IPv4Family, nftTable)
	return newNFTables(testFacts(), fake), fake
}

func applied(t *testing.T, n *NFTables) {
	t.Helper()
	if err := n.Apply(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// dump is the table with its elements in order; the fake keeps them as they came.
func dump(fake *knftables.Fake) string {
	lines := strings.SplitAfter(fake.Dump(), "\n")
	isElement := func(line string) bool { return strings.HasPrefix(line, "add element") }
	if first := slices.IndexFunc(lines, isElement); first >= 0 {
		slices.Sort(lines[first : len(lines)-1])
	}
	return strings.Join(lines, "")
}

// TestNFTGolden renders testdata/*.yaml and compares with *.nft beside it.
func TestNFTGolden(t *testing.T) {
	inputs, _ := filepath.Glob("testdata/*.yaml")
	for _, input := range inputs {
		t.Run(strings.TrimSuffix(filepath.Base(input), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(input)
			if err != nil {
				t.Fatal(err)
			}
			var s scenario
			if err := yaml.UnmarshalStrict(data, &s); err != nil {
				t.Fatal(err)
			}
			n, fake := newFakeNFTables()
			for _, service := range s.Services {
				name := types.NamespacedName{Namespace: service.Namespace, Name: service.Name}
				var of []*discoveryv1.EndpointSlice
				for _, slice := range s.EndpointSlices {
					if slice.Namespace == name.Namespace && slice.Labels[discoveryv1.LabelServiceName] == name.Name {
						of = append(of, slice)
					}
				}
				n.SetService(name, service, of)
			}
			for sandbox, ports := range s.HostPorts {
				n.SetHostPorts(sandbox, ports)
			}
			applied(t, n)
			got := dump(fake)
			golden := strings.TrimSuffix(input, ".yaml") + ".nft"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want, _ := os.ReadFile(golden); got != string(want) {
				t.Errorf("differs from %s (-update writes it anew):\n%s", golden, got)
			}
		})
	}
}

// TestNFTIncremental changes services at random and checks after each step that
// the table is what a fresh rendering gives, and that there is nothing left to do.
func TestNFTIncremental(t *testing.T) {
	g := newGenerator(1)
	n, fake := newFakeNFTables()
	for step := range 300 {
		name := g.change(60)
		n.SetService(name, g.services[name], g.slices[name])
		applied(t, n)
		second := n.nft.NewTransaction()
		for c := range n.chains {
			n.touchedChains[c] = true
		}
		for e := range n.elements {
			n.touchedElements[e] = true
		}
		if n.write(second); second.NumOperations() > 0 {
			t.Fatalf("step %d: the second sync emits\n%s", step, second)
		}
		n.commit()
		if step%10 > 0 {
			continue
		}
		whole, want := newFakeNFTables()
		for name, service := range g.services {
			whole.SetService(name, service, g.slices[name])
		}
		applied(t, whole)
		if got := dump(fake); got != dump(want) {
			t.Fatalf("step %d: the kernel holds something else than a fresh rendering:\n%s\nwant:\n%s", step, got, dump(want))
		}
	}
}

// A new process takes over what an earlier one left: what nobody wants goes,
// and sets that remember clients stay.
func TestNFTAdopts(t *testing.T) {
	g := newGenerator(2)
	n, fake := newFakeNFTables()
	for range 40 {
		name := g.change(20)
		n.SetService(name, g.services[name], g.slices[name])
	}
	applied(t, n)
	want := dump(fake)
	stale := types.NamespacedName{Namespace: "default", Name: "stale"}
	g.put(stale, 99, 2)
	n.SetService(stale, g.services[stale], g.slices[stale])
	applied(t, n)
	delete(g.services, stale)

	next := newNFTables(testFacts(), fake)
	if err := next.Prepare(context.Background()); err != nil {
		t.Fatal(err)
	}
	for name, service := range g.services {
		next.SetService(name, service, g.slices[name])
	}
	applied(t, next)
	if got := dump(fake); got != want {
		t.Errorf("after a restart:\n%s\nwant:\n%s", got, want)
	}
	if damaged, err := next.Repair(context.Background()); damaged || err != nil {
		t.Errorf("damaged %v, %v", damaged, err)
	}
	tx := fake.NewTransaction()
	tx.Delete(&knftables.Table{})
	if err := fake.Run(context.Background(), tx); err != nil {
		t.Fatal(err)
	}
	if damaged, err := next.Repair(context.Background()); !damaged || err != nil {
		t.Errorf("a table that is gone: damaged %v, %v", damaged, err)
	}
	applied(t, next)
	if got := dump(fake); got != want {
		t.Errorf("after a repair:\n%s\nwant:\n%s", got, want)
	}
}
