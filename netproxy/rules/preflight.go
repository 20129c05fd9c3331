package rules

import (
	"context"
	"fmt"
	"os/exec"
	"syscall"
)

// features are the extensions that rules use, each with the kernel module that
// has it and a rule that needs it.
var features = []struct{ module, rule string }{
	{"nf_nat", "*nat\n-A OUTPUT -p tcp -m tcp -j DNAT --to-destination 192.0.2.1:80\nCOMMIT\n"},
	{"xt_MASQUERADE", "*nat\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n"},
	{"xt_mark", "*nat\n-A OUTPUT -m mark --mark 0x1/0x1 -j MARK --set-xmark 0x1/0x1\nCOMMIT\n"},
	{"xt_comment", "*nat\n-A OUTPUT -m comment --comment x\nCOMMIT\n"},
	{"xt_addrtype", "*nat\n-A OUTPUT -m addrtype --dst-type LOCAL\nCOMMIT\n"},
	{"xt_statistic", "*nat\n-A OUTPUT -m statistic --mode random --probability 0.5\nCOMMIT\n"},
	{"xt_recent", "*nat\n-A OUTPUT -m recent --name orch-preflight --set --rsource\nCOMMIT\n"},
	{"xt_conntrack", "*filter\n-A OUTPUT -m conntrack --ctstate NEW\nCOMMIT\n"},
	{"ipt_REJECT", "*filter\n-A OUTPUT -j REJECT\nCOMMIT\n"},
}

// Preflight tries every extension that rules use in a network namespace that
// ends with the attempt. The error names the first that is missing.
func Preflight(ctx context.Context) error {
	tables, err := NewIPTables()
	if err != nil {
		return err
	}
	for _, feature := range features {
		cmd := exec.CommandContext(ctx, "iptables-restore", "--noflush")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET}
		if _, err := tables.run(cmd, []byte(feature.rule)); err != nil {
			return fmt.Errorf("kernel support for service rules (modprobe %s): %w", feature.module, err)
		}
	}
	return nil
}
