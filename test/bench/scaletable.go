package main

import (
	"bytes"
	"fmt"
	"time"
)

// measurement is one figure of a size, as the table shows it and as it is drawn.
type measurement struct {
	name, unit string
	text       func(*figures) string
	value      func(*figures) float64 // nil: it is not drawn
}

func number(format string, value func(*figures) float64) func(*figures) string {
	return func(f *figures) string { return fmt.Sprintf(format, value(f)) }
}

func milliseconds(times func(*figures) []time.Duration) (text func(*figures) string, value func(*figures) float64) {
	return func(f *figures) string { return latency(times(f)) }, func(f *figures) float64 { return percentile(times(f), 99).Seconds() * 1000 }
}

func measurements() []measurement {
	one := func(name, unit, format string, value func(*figures) float64) measurement {
		return measurement{name, unit, number(format, value), value}
	}
	api := func(name string, times func(*figures) []time.Duration) measurement {
		text, value := milliseconds(times)
		return measurement{name, "p99, ms", text, value}
	}
	return []measurement{
		one("all nodes joined and Ready", "s", "%.1f s", func(f *figures) float64 { return f.joined.Seconds() }),
		one("server CPU time, meanwhile", "s", "%.1f s", func(f *figures) float64 { return f.joinCPU.Seconds() }),
		one("server memory, nodes alone", "MB", "%.0f MB", func(f *figures) float64 { return f.emptyRSS }),
		one("server memory, all pods", "MB", "%.0f MB", func(f *figures) float64 { return f.fullRSS }),
		one("server CPU, nodes alone", "% of a core", "%.1f %%", func(f *figures) float64 { return f.emptyCPU }),
		one("server CPU, all pods", "% of a core", "%.1f %%", func(f *figures) float64 { return f.fullCPU }),
		one("server CPU while filled", "% of a core", "%.0f %%", func(f *figures) float64 { return f.fillCPU }),
		one("created → bound", "pods/s", "%.0f/s", func(f *figures) float64 { return f.bound }),
		one("created → Running", "pods/s", "%.0f/s", func(f *figures) float64 { return f.running }),
		api("get a node", func(f *figures) []time.Duration { return f.get }),
		api("list 1,500 pods", func(f *figures) []time.Duration { return f.list }),
		api("create a ConfigMap", func(f *figures) []time.Duration { return f.create }),
	}
}

// scaleRows has a size per column; the table has one column of figures.
func scaleRows(all []*figures) (rows [][]string) {
	head, rule := []string{"what"}, []string{"---"}
	for _, f := range all {
		head, rule = append(head, fmt.Sprintf("%d nodes, %d pods", f.nodes, f.nodes*podsPerNode)), append(rule, "---")
	}
	rows = append(rows, head, rule)
	for _, m := range measurements() {
		line := []string{m.name}
		for _, f := range all {
			line = append(line, m.text(f))
		}
		rows = append(rows, line)
	}
	return rows
}

// Sizes of the drawing.
const (
	panelWidth, panelHeight = 300, 190
	panelColumns            = 3
	left, right, top, under = 46, 14, 34, 26
)

// scalePlot draws each measurement against the number of nodes, from zero.
func scalePlot(all []*figures) []byte {
	drawn := measurements()
	var out bytes.Buffer
	rows := (len(drawn) + panelColumns - 1) / panelColumns
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="10">`+"\n", panelColumns*panelWidth, rows*panelHeight)
	fmt.Fprintln(&out, `<rect width="100%" height="100%" fill="white"/>`)
	for i, m := range drawn {
		fmt.Fprintf(&out, `<g transform="translate(%d %d)">`+"\n", i%panelColumns*panelWidth, i/panelColumns*panelHeight)
		drawPanel(&out, m, all)
		fmt.Fprintln(&out, "</g>")
	}
	fmt.Fprintln(&out, "</svg>")
	return out.Bytes()
}

func drawPanel(out *bytes.Buffer, m measurement, all []*figures) {
	widest, highest := 1.0, 0.0
	for _, f := range all {
		widest, highest = max(widest, float64(f.nodes)), max(highest, m.value(f))
	}
	highest = roundUp(highest)
	x := func(nodes float64) float64 { return left + nodes/widest*(panelWidth-left-right) }
	y := func(value float64) float64 { return panelHeight - under - value/highest*(panelHeight-top-under) }
	fmt.Fprintf(out, `<text x="%d" y="16" font-size="11" font-weight="bold">%s (%s)</text>`+"\n", left, m.name, m.unit)
	for i := range 5 {
		value := highest * float64(i) / 4
		fmt.Fprintf(out, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%.4g</text>`+"\n", left, y(value), panelWidth-right, left-4, y(value)+3, value)
	}
	path := ""
	for i, f := range all {
		command := "L"
		if i == 0 {
			command = "M"
		}
		px, py := x(float64(f.nodes)), y(m.value(f))
		path += fmt.Sprintf("%s%.1f %.1f", command, px, py)
		fmt.Fprintf(out, `<circle cx="%.1f" cy="%.1f" r="2.5" fill="#1f5fa8"/><text x="%.1f" y="%d" text-anchor="middle">%d</text>`+"\n", px, py, px, panelHeight-under+13, f.nodes)
	}
	fmt.Fprintf(out, `<path d="%s" fill="none" stroke="#1f5fa8" stroke-width="1.5"/>`+"\n", path)
}

// roundUp gives the next number of the form 1, 2, 4 or 8 times a power of ten.
func roundUp(v float64) float64 {
	for scale := 0.001; ; scale *= 10 {
		for _, step := range []float64{1, 2, 4, 8} {
			if v <= step*scale {
				return step * scale
			}
		}
	}
}
