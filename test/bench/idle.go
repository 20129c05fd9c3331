package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"orch/test/cluster"
)

// settleTime lets a server finish what it does after its start.
const settleTime = 20 * time.Second

// usage is what a process has used.
type usage struct {
	rss, anonymous int64 // bytes
	cpu            time.Duration
	written        int64 // bytes that went to the disk
}

func measureProcess(pid int) (usage, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	memory, err := fields(filepath.Join(dir, "smaps_rollup"))
	if err != nil {
		return usage{}, err
	}
	u := usage{rss: memory["Rss"] << 10, anonymous: memory["Anonymous"] << 10}
	io, err := fields(filepath.Join(dir, "io"))
	if err != nil {
		return usage{}, err
	}
	u.written = io["write_bytes"] - io["cancelled_write_bytes"]
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return usage{}, err
	}
	// After the name in parentheses: utime and stime are the 12th and 13th, in
	// hundredths of a second (proc(5)).
	words := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	for _, word := range words[11:13] {
		ticks, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return usage{}, err
		}
		u.cpu += time.Duration(ticks) * 10 * time.Millisecond
	}
	return u, nil
}

// fields reads lines of the form "Name: 123 ...".
func fields(path string) (map[string]int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	values := map[string]int64{}
	for _, line := range strings.Split(string(data), "\n") {
		name, rest, ok := strings.Cut(line, ":")
		if words := strings.Fields(rest); ok && len(words) > 0 {
			if n, err := strconv.ParseInt(words[0], 10, 64); err == nil {
				values[name] = n
			}
		}
	}
	return values, nil
}

// idleCost watches a server with a node and no pods.
func (b *bench) idleCost(ctx context.Context) error {
	return b.with(ctx, func(node *cluster.Node) error {
		if err := waitReady(ctx, node); err != nil {
			return err
		}
		if err := pause(ctx, settleTime); err != nil {
			return err
		}
		before, err := measureProcess(node.PID())
		if err != nil {
			return err
		}
		if err := pause(ctx, b.idle); err != nil {
			return err
		}
		after, err := measureProcess(node.PID())
		if err != nil {
			return err
		}
		others, err := node.Processes()
		if err != nil {
			return err
		}
		if len(others) > 0 {
			return fmt.Errorf("%d further processes run on an idle node", len(others))
		}
		b.add("idle memory, one process, no pods: RSS", "100 MB", "%.0f MB", float64(after.rss)/1e6)
		b.add("idle memory: anonymous part of it", "", "%.0f MB", float64(after.anonymous)/1e6)
		b.add("idle CPU", "0.5 % of a core", "%.2f %%", 100*(after.cpu-before.cpu).Seconds()/b.idle.Seconds())
		b.add("idle disk writes", "4 KiB/s", "%.1f KiB/s", float64(after.written-before.written)/1024/b.idle.Seconds())
		return nil
	})
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
