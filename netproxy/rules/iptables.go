package rules

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// ErrNoIPTables means the iptables executables are not installed.
var ErrNoIPTables = errors.New("iptables is not installed: install the package \"iptables\" (apt-get install iptables, dnf install iptables-nft, apk add iptables)")

// IPTables is the iptables back end: go-iptables finds the executable and what
// it can do; rules themselves go through iptables-save and iptables-restore,
// many at a time.
type IPTables struct {
	client *iptables.IPTables
	own    processes
	// RandomFully tells that MASQUERADE knows --random-fully.
	RandomFully bool
	// ReversePath tells that there is the match rpfilter; set by Probe.
	ReversePath bool
}

// NewIPTables looks for iptables; ErrNoIPTables if there is none.
func NewIPTables() (*IPTables, error) {
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore"} {
		if _, err := exec.LookPath(name); err != nil {
			return nil, fmt.Errorf("%s: %w", name, ErrNoIPTables)
		}
	}
	client, err := iptables.New(iptables.IPFamily(iptables.ProtocolIPv4), iptables.Timeout(5))
	if err != nil {
		return nil, fmt.Errorf("find out the version of iptables: %w", err)
	}
	return &IPTables{client: client, RandomFully: client.HasRandomFully()}, nil
}

// Existing counts the rules of each chain of ours in the kernel, and lists the
// jumps to them that the kernel's own chains hold.
func (t *IPTables) Existing(ctx context.Context) (chains map[Chain]int, held map[Chain]Chain, err error) {
	chains, held = make(map[Chain]int), make(map[Chain]Chain)
	for _, table := range tables {
		saved, err := t.run(exec.CommandContext(ctx, "iptables-save", "-t", table), nil)
		if err != nil && table == rawTable && !t.ReversePath {
			continue // an old kernel may have no such table
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read %s rules: %w", table, err)
		}
		parseSaved(table, saved, chains, held)
	}
	return chains, held, nil
}

// parseSaved reads iptables-save output of one table.
func parseSaved(table string, saved []byte, chains map[Chain]int, held map[Chain]Chain) {
	wanted := jumps()
	lines := bufio.NewScanner(bytes.NewReader(saved))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if name, found := strings.CutPrefix(line, ":"); found && strings.HasPrefix(name, chainPrefix) {
			name, _, _ = strings.Cut(name, " ")
			chains[Chain{table, name}] = 0
		}
		if rest, found := strings.CutPrefix(line, "-A "); found {
			name, rule, _ := strings.Cut(rest, " ")
			from := Chain{table, name}
			if _, found := chains[from]; found {
				chains[from]++
			}
			if target, ours := wanted[from]; ours && rule == "-j "+target.Name {
				held[from] = target
			}
		}
	}
}

// Restore applies a transaction.
func (t *IPTables) Restore(ctx context.Context, transaction []byte) error {
	_, err := t.run(exec.CommandContext(ctx, "iptables-restore", "--noflush", "--wait", "5"), transaction)
	if err != nil {
		return fmt.Errorf("apply rules: %w", err)
	}
	return nil
}

// Probe finds out what the kernel's filter can do, by trying.
func (t *IPTables) Probe(ctx context.Context) {
	const probe = "ORCH-PROBE"
	err := t.Restore(ctx, []byte("*raw\n:"+probe+" - [0:0]\n-A "+probe+" -m rpfilter --invert -j DROP\nCOMMIT\n"))
	t.ReversePath = err == nil
	if t.ReversePath {
		_ = t.Restore(ctx, []byte("*raw\n-F "+probe+"\n-X "+probe+"\nCOMMIT\n")) // the first sync removes it, too
	}
}

// insertJumps is the transaction that adds the jumps that are wanted and not
// held yet.
func insertJumps(wanted, held map[Chain]Chain) []byte {
	var out bytes.Buffer
	for _, table := range tables {
		var missing []Chain
		for _, from := range slices.SortedFunc(maps.Keys(wanted), compareChains) {
			if _, there := held[from]; !there && from.Table == table {
				missing = append(missing, from)
			}
		}
		if len(missing) == 0 {
			continue
		}
		out.WriteString("*" + table + "\n")
		for _, from := range missing {
			out.WriteString("-I " + from.Name + " 1 -j " + wanted[from].Name + "\n")
		}
		out.WriteString("COMMIT\n")
	}
	return out.Bytes()
}

// Cleanup removes every rule and chain of ours, for uninstalling.
func (t *IPTables) Cleanup(ctx context.Context) error {
	chains, _, err := t.Existing(ctx)
	if err != nil {
		return err
	}
	for from, target := range jumps() {
		if _, found := chains[target]; !found {
			continue
		}
		for {
			held, err := t.client.Exists(from.Table, from.Name, "-j", target.Name)
			if err != nil {
				return fmt.Errorf("look for the jump to %s: %w", target.Name, err)
			}
			if !held {
				break
			}
			if err := t.client.Delete(from.Table, from.Name, "-j", target.Name); err != nil {
				return fmt.Errorf("remove the jump to %s: %w", target.Name, err)
			}
		}
	}
	removal := &Ruleset{}
	applied := make(map[Chain][]string)
	removal.stale = make(map[Chain]bool)
	for c := range chains {
		applied[c] = nil
	}
	removal.restale(chains)
	if transaction := removal.Transaction(applied); transaction != nil {
		return t.Restore(ctx, transaction)
	}
	return nil
}

// run executes a command; its error carries what the command said.
func (t *IPTables) run(cmd *exec.Cmd, stdin []byte) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	err := cmd.Start()
	if err == nil {
		t.own.add(cmd.Process.Pid)
		err = cmd.Wait()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", cmd.Args[0], err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}
