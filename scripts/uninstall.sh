#!/bin/sh
# Stops orch and its pods and removes what install.sh put on this machine.
#
#   sudo ./scripts/uninstall.sh [--purge]     --purge removes the data as well
#
#   ORCH_DATA_DIR   where orch keeps everything (default /var/lib/orch)
set -eu

data_dir=${ORCH_DATA_DIR:-/var/lib/orch}
purge=
case ${1:-} in
'') ;;
--purge) purge=1 ;;
*)
	echo "usage: $0 [--purge]" >&2
	exit 2
	;;
esac

say() { printf '[orch] %s\n' "$*"; }
[ "$(id -u)" = 0 ] || {
	echo "uninstalling needs root: run sudo $0" >&2
	exit 1
}

say "stopping orch"
if [ -d /run/systemd/system ]; then
	systemctl disable -q --now orch 2>/dev/null || true
	rm -f /etc/systemd/system/orch.service
	systemctl daemon-reload
elif [ -f /run/orch.pid ]; then
	pid=$(cat /run/orch.pid)
	kill "$pid" 2>/dev/null || true
	while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
	rm -f /run/orch.pid
fi

# children PID: PID and all that it started, the innermost first.
children() {
	below=$(cat "/proc/$1/task/$1/children" 2>/dev/null) || true
	# In a subshell each, as plain sh has no local variables.
	for child in $below; do (children "$child"); done
	echo "$1"
}

say "stopping the pods"
for dir in /proc/[0-9]*; do
	program=$(tr '\0' '\n' <"$dir/cmdline" 2>/dev/null | head -n 1) || continue
	if [ "$program" = "$data_dir/agent/bin/containerd-shim-runc-v2" ]; then
		for pid in $(children "${dir#/proc/}"); do kill -9 "$pid" 2>/dev/null || true; done
	fi
done
awk -v dir="$data_dir/" 'index($2, dir) == 1 { print $2 }' /proc/self/mounts | sort -r | while read -r point; do
	umount -l "$point" || true
done

say "removing network rules and links"
if command -v iptables-save >/dev/null 2>&1; then
	for table in nat filter mangle raw; do
		if iptables-save -t "$table" 2>/dev/null | grep -q ORCH-; then
			iptables-save -t "$table" | grep -v ORCH- | iptables-restore -T "$table"
		fi
	done
fi
for link in $(ip -o link show 2>/dev/null | awk -F': ' '$2 ~ /^orch/ { sub(/@.*/, "", $2); print $2 }'); do
	ip link delete "$link" 2>/dev/null || true
done

rm -f /usr/local/bin/orch /etc/orch/kubeconfig.yaml
if [ -n "$purge" ]; then
	rm -rf "$data_dir" /var/log/orch.log
	say "removed, data included"
else
	say "removed; the data are kept in $data_dir"
fi
