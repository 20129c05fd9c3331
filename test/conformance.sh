#!/bin/sh
# Runs upstream's conformance suite against a throw-away server in a network
# namespace of its own. KIT is the folder with the kit's `build` and `run`;
# further arguments go to `run` (--focus sig-apps).
set -eu
kit=${KIT:?name the folder of the conformance kit: make conformance KIT=...}
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
built=${BUILT:-$root/.conformance}
[ -x "$built/bin/e2e.test" ] || "$kit/build" "$built"

ns=orch-conformance
dir=$(mktemp -d /tmp/oc.XXXX)
cleanup() {
	kill "$(cat "$dir/pid")" 2>/dev/null || true
	ip netns del "$ns" || true
	echo "data and log are kept in $dir" >&2
}
trap cleanup EXIT
ip netns add "$ns"
ip -n "$ns" link set lo up
ip -n "$ns" link add eth0 type veth peer name eth1
ip -n "$ns" addr add 10.98.0.2/24 dev eth0
ip -n "$ns" link set eth0 up
ip -n "$ns" link set eth1 up
ip -n "$ns" route add default via 10.98.0.1
mkdir -p "$dir/data/images"
ln "$built"/images/*.tar "$dir/data/images/" 2>/dev/null || cp "$built"/images/*.tar "$dir/data/images/"
setsid nsenter --net="/run/netns/$ns" "$root/bin/orch" server --data-dir "$dir/data" --node-name conformance --node-ip 10.98.0.2 \
	--write-kubeconfig "$dir/kubeconfig" </dev/null >"$dir/log" 2>&1 &
echo $! >"$dir/pid"
until nsenter --net="/run/netns/$ns" "$root/bin/orch" kubectl --kubeconfig "$dir/kubeconfig" wait --for=condition=Ready node/conformance --timeout=30s >/dev/null 2>&1; do
	kill -0 "$(cat "$dir/pid")" || { tail "$dir/log" >&2; exit 1; }
	sleep 0.2
done
nsenter --net="/run/netns/$ns" "$kit/run" "$dir/kubeconfig" --kit "$built" "$@"
