// Command bench measures a built orch against its budgets and prints a table:
// start, idle cost, API rates, scheduling and pod start. `make bench` runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"orch/test/cluster"
)

func main() {
	only := flag.String("only", "", "regular expression of the sections to run: start, idle, agent, api, schedule, pods, three, steady")
	idle := flag.Duration("idle", time.Minute, "how long to watch an idle server")
	sizes := flag.String("scale", "", "instead of the sections: clusters of so many hollow nodes, such as 100,500,1000,2000")
	plot := flag.String("plot", "", "with -scale: the file to draw its figures in (SVG)")
	profiles := flag.String("profiles", "", "a folder for CPU and heap profiles of the server under api, schedule and -scale")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := run(&bench{idle: *idle, profiles: *profiles}, func(b *bench) error {
		if *sizes != "" {
			return b.scale(ctx, *sizes, *plot)
		}
		return b.sections(ctx, *only)
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// row is one line of the table.
type row struct{ what, measured, budget string }

// bench gathers rows on nodes of its own.
type bench struct {
	network  *cluster.Network
	idle     time.Duration
	profiles string // a folder; "": none are wanted
	rows     []row
	sizes    [][]string // the table of -scale
}

// run prints the tables of what measure has gathered, also after an error.
func run(b *bench, measure func(*bench) error) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: containers, namespaces and iptables are real here")
	}
	network, err := cluster.NewNetwork()
	if err != nil {
		return err
	}
	b.network = network
	err = measure(b)
	b.print()
	return errors.Join(err, network.Close())
}

func (b *bench) sections(ctx context.Context, only string) error {
	chosen, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	for _, section := range []struct {
		name    string
		measure func(context.Context) error
	}{
		{"start", b.start}, {"idle", b.idleCost}, {"agent", b.agents}, {"api", b.apiRates}, {"schedule", b.scheduling}, {"pods", b.pods}, {"three", b.threeServers}, {"steady", b.steady},
	} {
		if !chosen.MatchString(section.name) {
			continue
		}
		fmt.Fprintln(os.Stderr, "bench:", section.name)
		if err := section.measure(ctx); err != nil {
			return fmt.Errorf("%s: %w", section.name, err)
		}
	}
	return nil
}

func (b *bench) add(what, budget, format string, args ...any) {
	b.rows = append(b.rows, row{what, fmt.Sprintf(format, args...), budget})
	fmt.Fprintf(os.Stderr, "bench: %s: %s (budget %s)\n", what, b.rows[len(b.rows)-1].measured, budget)
}

// print writes a Markdown table, which docs/benchmarks.md takes as it is.
func (b *bench) print() {
	lines := [][]string{{"what", "measured", "budget"}, {"---", "---", "---"}}
	for _, r := range b.rows {
		lines = append(lines, []string{r.what, r.measured, r.budget})
	}
	if len(b.rows) == 0 {
		lines = b.sizes
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', tabwriter.Debug)
	for _, line := range lines {
		fmt.Fprintln(table, "\t"+strings.Join(line, "\t")+"\t")
	}
	table.Flush()
}

// with runs measure on a server of its own, which is removed afterwards.
func (b *bench) with(ctx context.Context, measure func(*cluster.Node) error, args ...string) error {
	node, err := b.network.NewNode(args...)
	if err != nil {
		return err
	}
	err = node.Start()
	if err == nil {
		err = waitServing(ctx, node)
	}
	if err == nil {
		err = measure(node)
	}
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, node.LogTail())
	}
	return errors.Join(err, node.Close())
}
