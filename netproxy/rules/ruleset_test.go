package rules

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files anew")

func testFacts() Facts {
	return Facts{
		NodeName: "node-1", Zone: "zone-a", RandomFully: true, ReversePath: true, TunnelLink: "orch-vxlan",
		ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), PodCIDR: netip.MustParsePrefix("10.42.0.0/24"),
		LocalDNS: netip.MustParseAddr("10.43.0.10"),
	}
}

// scenario is an input file: what the cluster holds.
type scenario struct {
	Services       []*corev1.Service
	EndpointSlices []*discoveryv1.EndpointSlice
	HostPorts      map[string][]HostPort
}

// TestGolden renders testdata/*.yaml and compares with *.rules beside it.
func TestGolden(t *testing.T) {
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
			of := make(map[types.NamespacedName][]*discoveryv1.EndpointSlice)
			for _, slice := range s.EndpointSlices {
				name := types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
				of[name] = append(of[name], slice)
			}
			got := Desired(testFacts(), s.Services, of, s.HostPorts).Transaction(nil)
			golden := strings.TrimSuffix(input, ".yaml") + ".rules"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want, _ := os.ReadFile(golden); !bytes.Equal(got, want) {
				t.Errorf("differs from %s (-update writes it anew):\n%s", golden, got)
			}
		})
	}
}

// kernel is a Backend that keeps rules as iptables-restore would.
type kernel struct {
	chains   map[Chain][]string
	restores int
	fail     error
}

func newKernel() *kernel { return &kernel{chains: make(map[Chain][]string)} }

func (k *kernel) Existing(context.Context) (chains map[Chain]int, held map[Chain]Chain, err error) {
	chains, held = make(map[Chain]int), make(map[Chain]Chain)
	for c, rules := range k.chains {
		if strings.HasPrefix(c.Name, chainPrefix) {
			chains[c] = len(rules)
		} else if len(rules) > 0 {
			held[c] = jumps()[c]
		}
	}
	return chains, held, nil
}

func (k *kernel) Restore(_ context.Context, transaction []byte) error {
	if k.fail != nil {
		return k.fail
	}
	k.restores++
	var table string
	for line := range strings.Lines(string(transaction)) {
		line = strings.TrimSpace(line)
		verb, rest, _ := strings.Cut(line, " ")
		name, rule, _ := strings.Cut(rest, " ")
		c := Chain{table, name}
		switch {
		case line[0] == '*':
			table = line[1:]
		case line[0] == ':':
			k.chains[Chain{table, verb[1:]}] = nil
		case verb == "-A" || verb == "-I":
			if target := rule[strings.LastIndex(rule, " ")+1:]; strings.HasPrefix(target, chainPrefix) {
				if _, found := k.chains[Chain{table, target}]; !found {
					return fmt.Errorf("no chain %s for %s", target, line)
				}
			}
			k.chains[c] = append(k.chains[c], rule)
		case verb == "-X":
			for other, rules := range k.chains {
				if strings.Contains(strings.Join(rules, "\n")+"\n", "-j "+name+"\n") {
					return fmt.Errorf("%s is still in use by %s", name, other.Name)
				}
			}
			delete(k.chains, c)
		}
	}
	return nil
}

// generator makes random services and slices.
type generator struct {
	*rand.Rand
	services map[types.NamespacedName]*corev1.Service
	slices   map[types.NamespacedName][]*discoveryv1.EndpointSlice
}

func newGenerator(seed uint64) *generator {
	return &generator{rand.New(rand.NewPCG(seed, 1)), make(map[types.NamespacedName]*corev1.Service), make(map[types.NamespacedName][]*discoveryv1.EndpointSlice)}
}

func (g *generator) Get(name types.NamespacedName) (*corev1.Service, []*discoveryv1.EndpointSlice) {
	return g.services[name], g.slices[name]
}

func (g *generator) Names() (names []types.NamespacedName) {
	for name := range g.services {
		names = append(names, name)
	}
	return names
}

func (g *generator) WaitSynced(context.Context) error { return nil }

func (g *generator) list() (all []*corev1.Service) {
	for _, service := range g.services {
		all = append(all, service)
	}
	return all
}

// change alters one of size services at random.
func (g *generator) change(size int) types.NamespacedName {
	i := g.IntN(size)
	name := types.NamespacedName{Namespace: "default", Name: fmt.Sprintf("svc-%d", i)}
	if g.IntN(8) == 0 {
		delete(g.services, name)
		return name
	}
	g.put(name, i, g.IntN(4))
	return name
}

func (g *generator) put(name types.NamespacedName, i, endpoints int) {
	local := corev1.ServiceInternalTrafficPolicyLocal
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, ClusterIP: fmt.Sprintf("10.43.%d.%d", 1+i/200, 1+i%200),
			Ports: []corev1.ServicePort{{Name: "a", Protocol: corev1.ProtocolTCP, Port: 80, NodePort: int32(30000 + i)}}},
	}
	switch g.IntN(6) {
	case 0:
		service.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	case 1:
		service.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	case 2:
		service.Spec.InternalTrafficPolicy = &local
	case 3:
		service.Spec.ExternalIPs = []string{fmt.Sprintf("203.0.113.%d", i%250)}
		service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{Name: "b", Protocol: corev1.ProtocolUDP, Port: 53})
	}
	slice := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4}
	for _, port := range service.Spec.Ports {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &port.Name, Protocol: &port.Protocol, Port: new(port.Port + 8000)})
	}
	nodes := []string{"node-1", "node-2"}
	for range endpoints {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{fmt.Sprintf("10.42.%d.%d", g.IntN(2), 2+g.IntN(200))},
			NodeName:   &nodes[g.IntN(2)],
			Conditions: discoveryv1.EndpointConditions{Ready: new(g.IntN(4) > 0), Serving: new(true), Terminating: new(g.IntN(2) > 0)},
		})
	}
	g.services[name], g.slices[name] = service, []*discoveryv1.EndpointSlice{slice}
}

// TestIncremental changes services at random and checks after each step that
// the kernel holds what a fresh rendering gives, and that there is nothing
// left to do.
func TestIncremental(t *testing.T) {
	g, k := newGenerator(1), newKernel()
	ruleset, applied := NewRuleset(testFacts()), make(map[Chain][]string)
	for step := range 400 {
		name := g.change(100)
		ruleset.SetService(name, g.services[name], g.slices[name])
		if transaction := ruleset.Transaction(applied); transaction != nil {
			if err := k.Restore(context.Background(), transaction); err != nil {
				t.Fatalf("step %d: %v\n%s", step, err, transaction)
			}
		}
		ruleset.commit(applied)
		ruleset.restale(nil)
		if rest := ruleset.Transaction(applied); rest != nil {
			t.Fatalf("step %d: the second sync emits\n%s", step, rest)
		}
		fresh := newKernel()
		if err := fresh.Restore(context.Background(), Desired(testFacts(), g.list(), g.slices, nil).Transaction(nil)); err != nil {
			t.Fatal(err)
		}
		if !maps.EqualFunc(k.chains, fresh.chains, func(a, b []string) bool { return strings.Join(a, "\n") == strings.Join(b, "\n") }) {
			t.Fatalf("step %d: the kernel holds something else than a fresh rendering", step)
		}
	}
}

type noTracker struct{}

func (noTracker) Forget([]udpFrontend) error { return nil }

// TestEngineAdopts starts over a kernel with rules of an earlier process, one
// of them for a service that is gone.
func TestEngineAdopts(t *testing.T) {
	g, k := newGenerator(2), newKernel()
	for range 50 {
		g.change(20)
	}
	stale := types.NamespacedName{Namespace: "default", Name: "stale"}
	g.put(stale, 99, 2)
	runEngine(t, g, k, nil)
	delete(g.services, stale)
	runEngine(t, g, k, nil)
	fresh := newKernel()
	runEngine(t, g, fresh, nil)
	if !maps.EqualFunc(k.chains, fresh.chains, func(a, b []string) bool { return strings.Join(a, "\n") == strings.Join(b, "\n") }) {
		t.Error("an adopted kernel holds other rules than a fresh one")
	}
	restores := k.restores
	runEngine(t, g, k, func(e *Engine) {
		if k.restores != restores+2 { // Prepare and the first sync
			t.Errorf("%d transactions to start", k.restores-restores)
		}
		e.ServiceChanged(types.NamespacedName{Namespace: "default", Name: "nothing"})
		if err := e.Flush(context.Background()); err != nil || k.restores != restores+2 {
			t.Errorf("a change of nothing was written: %v", err)
		}
	})
}

// TestEngineRecovers lets a transaction fail and the rules vanish.
func TestEngineRecovers(t *testing.T) {
	g, k := newGenerator(3), newKernel()
	g.change(1)
	runEngine(t, g, k, func(e *Engine) {
		ports := []HostPort{{Protocol: "tcp", Port: 80, Pod: netip.MustParseAddrPort("10.42.0.2:80")}}
		want := len(k.chains)
		k.fail = errors.New("no")
		if err := e.Publish(context.Background(), "a", ports); err == nil {
			t.Error("publishing succeeded without rules")
		}
		k.fail = nil
		maps.DeleteFunc(k.chains, func(c Chain, _ []string) bool { return strings.HasPrefix(c.Name, chainPrefix) })
		if err := e.Flush(context.Background()); err != nil {
			t.Error(err)
		}
		if len(k.chains) < want {
			t.Errorf("%d chains of %d came back", len(k.chains), want)
		}
		if err := e.Publish(context.Background(), "b", ports); err == nil {
			t.Error("a taken host port was given again")
		}
	})
}

// runEngine runs an engine until it has synced and f has returned.
func runEngine(t *testing.T, g *generator, k *kernel, f func(*Engine)) {
	t.Helper()
	e := NewEngine(NewTables(testFacts(), k), g, NewReserved("node-1", netip.MustParsePrefix("10.43.0.0/16")), noTracker{}, nil, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	if err := e.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	select {
	case <-e.Synced():
	case <-time.After(10 * time.Second):
		t.Fatal("not synced")
	}
	if f != nil {
		f(e)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// BenchmarkChange renders one changed service among a thousand.
func BenchmarkChange(b *testing.B) {
	g := newGenerator(4)
	for i := range 1000 {
		g.put(types.NamespacedName{Namespace: "default", Name: fmt.Sprintf("svc-%d", i)}, i, 3)
	}
	ruleset, applied := Desired(testFacts(), g.list(), g.slices, nil), make(map[Chain][]string)
	ruleset.commit(applied)
	for b.Loop() {
		name := g.change(1000)
		ruleset.SetService(name, g.services[name], g.slices[name])
		ruleset.Transaction(applied)
		ruleset.commit(applied)
	}
}
