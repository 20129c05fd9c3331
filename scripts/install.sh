#!/bin/sh
# Installs orch and starts it as a server. In a checkout it builds orch first.
#
#   sudo ./scripts/install.sh
#
#   ORCH_DATA_DIR   where orch keeps everything (default /var/lib/orch)
#   ORCH_ARGS       further flags for `orch server`
#   ORCH_BIN        an executable that is built already
set -eu

data_dir=${ORCH_DATA_DIR:-/var/lib/orch}
args=${ORCH_ARGS:-}
bin=/usr/local/bin/orch
log=/var/log/orch.log
kubeconfig=/etc/orch/kubeconfig.yaml

say() { printf '[orch] %s\n' "$*"; }
die() { printf '[orch] %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "installing needs root: run sudo $0"

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
built=${ORCH_BIN:-}
if [ -z "$built" ]; then
	[ -f "$root/go.mod" ] || die "run this script inside a checkout of orch"
	if ! command -v go >/dev/null 2>&1; then
		# sudo drops the PATH under which Go is often installed.
		[ -x /usr/local/go/bin/go ] || die "building needs Go: install it to /usr/local/go (see https://go.dev/doc/install)"
		PATH=$PATH:/usr/local/go/bin
		export PATH
	fi
	say "installing what the build needs"
	"$root/scripts/prerequisites.sh"
	say "building (a few minutes the first time)"
	make -C "$root" build >/dev/null
	built=$root/bin/orch
fi
# A running server keeps its old file until it starts anew.
mkdir -p "${bin%/*}"
install -m 755 "$built" "$bin.new"
mv -f "$bin.new" "$bin"
say "installed $("$bin" version | head -n 1) to $bin"

"$bin" check --data-dir "$data_dir" >/tmp/orch-check.$$ || {
	cat /tmp/orch-check.$$ >&2
	rm -f /tmp/orch-check.$$
	die "this machine lacks something, see above; mend it and run $0 again"
}
rm -f /tmp/orch-check.$$

has_systemd() { [ -d /run/systemd/system ]; }

start_systemd() {
	sed -e "s|@BIN@|$bin|; s|@DATA_DIR@|$data_dir|; s|@ARGS@|$args|" "$root/scripts/orch.service" >/etc/systemd/system/orch.service
	systemctl daemon-reload
	systemctl enable -q orch
	systemctl restart orch
}

# Where nothing supervises services, orch runs detached with a log file.
start_detached() {
	pid_file=/run/orch.pid
	if [ -f "$pid_file" ] && kill -0 "$(cat "$pid_file")" 2>/dev/null; then
		say "stopping the running server (pods go on running)"
		kill "$(cat "$pid_file")"
		while kill -0 "$(cat "$pid_file")" 2>/dev/null; do sleep 0.1; done
	fi
	# shellcheck disable=SC2086
	setsid "$bin" server --data-dir "$data_dir" $args </dev/null >>"$log" 2>&1 &
	echo $! >"$pid_file"
}

if has_systemd; then
	say "starting the service orch (log: journalctl -u orch)"
	start_systemd
else
	say "starting orch server (log: $log)"
	start_detached
fi

say "waiting for the node to be Ready"
tries=0
until "$bin" kubectl --kubeconfig "$kubeconfig" get nodes --no-headers 2>/dev/null | grep -q ' Ready '; do
	tries=$((tries + 1))
	[ $((tries % 20)) != 0 ] || say "still waiting ($((tries / 2)) s)"
	if [ "$tries" -gt 120 ] || { ! has_systemd && ! kill -0 "$(cat "$pid_file")" 2>/dev/null; }; then
		has_systemd || tail -n 5 "$log" >&2
		die "the node did not become Ready; the log says why"
	fi
	sleep 0.5
done
"$bin" kubectl --kubeconfig "$kubeconfig" get nodes

cat <<TXT

orch is running. Try:
  orch kubectl create deployment hello --image=orch.local/hello --replicas=3
  orch kubectl expose deployment hello --port=80 --target-port=8080
  orch kubectl get pods,services
The kubeconfig for other tools is $kubeconfig.
TXT
