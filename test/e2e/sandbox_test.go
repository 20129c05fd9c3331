package e2e

import (
	"testing"

	"orch/test/cluster"
)

// sandbox is a machine for the install script, with service managers that are not
// the machine's own.
type sandbox struct{ *cluster.Sandbox }

func newSandbox(t *testing.T) *sandbox {
	t.Helper()
	return &sandbox{cluster.NewSandbox(t, unstarted(t))}
}

// fakeSystemd stands in for systemd: it really starts what the unit says.
func (b *sandbox) fakeSystemd() {
	b.Shell("mkdir -p /run/systemd/system /etc/systemd/system")
	b.Write("/usr/local/bin/journalctl", "#!/bin/sh\ntail -n 5 /var/log/fake.log\n")
	b.Write("/usr/local/bin/systemctl", `#!/bin/sh
echo "$*" >>/var/log/systemctl.calls
unit=/etc/systemd/system/orch.service
up() { [ -s /run/fake.pid ] && readlink /proc/$(cat /run/fake.pid)/exe >/dev/null; }
down() { up && kill $(cat /run/fake.pid); while up; do sleep 0.1; done; }
case "$*" in
"is-active -q orch") up && grep -q "node is ready" /var/log/fake.log ;;
"stop orch") down ;;
"restart --no-block orch")
	down
	: >/var/log/fake.log
	(
		for file in $(sed -n 's/^EnvironmentFile=//p' $unit); do set -a; . $file; set +a; done
		exec setsid $(sed -n 's/^ExecStart=//p' $unit)
	) </dev/null >>/var/log/fake.log 2>&1 &
	echo $! >/run/fake.pid ;;
esac
`)
}

// fakeOpenRC stands in for OpenRC in the same way.
func (b *sandbox) fakeOpenRC() {
	b.Write("/usr/local/sbin/openrc-run", "#!/bin/sh\nexit 1\n")
	b.Write("/usr/local/sbin/rc-update", "#!/bin/sh\necho \"rc-update $*\" >>/var/log/rc.calls\n")
	b.Write("/usr/local/sbin/rc-service", `#!/bin/sh
echo "rc-service $*" >>/var/log/rc.calls
. /etc/init.d/orch
up() { [ -s $pidfile ] && readlink /proc/$(cat $pidfile)/exe >/dev/null; }
down() { up && kill $(cat $pidfile); while up; do sleep 0.1; done; }
case "$1 $2" in
"orch status") up ;;
"orch stop") stop_pre; down ;;
"orch restart")
	down
	start_pre
	setsid $command $command_args </dev/null >>$output_log 2>>$error_log &
	echo $! >$pidfile ;;
esac
`)
}
