#!/bin/sh
# Runs upstream's conformance suite against a throw-away cluster of one server
# and AGENTS agents (one, if not given), each in a network namespace of its own.
# KIT is the folder with the kit's `build` and `run`; further arguments go to
# `run` (--focus sig-apps).
set -eu
kit=${KIT:?name the folder of the conformance kit: make conformance KIT=...}
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
built=${BUILT:-$root/.conformance}
[ -x "$built/bin/e2e.test" ] || "$kit/build" "$built"

dir=$(mktemp -d /tmp/oc.XXXX)
(cd "$root" && go build -o "$dir/up" ./test/cluster/up)
ORCH=$root/bin/orch "$dir/up" -agents "${AGENTS:-1}" -images "$built/images" </dev/null >"$dir/log" 2>&1 &
cluster=$!
cleanup() {
	kill "$cluster" 2>/dev/null || true
	wait "$cluster" || true
	rm -rf "$dir"
}
trap cleanup EXIT
until grep -q '^export KUBECONFIG=' "$dir/log"; do
	kill -0 "$cluster" || { cat "$dir/log" >&2; exit 1; }
	sleep 0.2
done
# The suite runs where the server does, and reaches it as programs there do.
server=$(sed -n 's/.*network namespace \([^,]*\),.*/\1/p' "$dir/log" | head -n 1)
kubeconfig=$(dirname "$(sed -n 's/^export KUBECONFIG=//p' "$dir/log")")/kubeconfig.yaml
nsenter --net="/run/netns/$server" "$kit/run" "$kubeconfig" --kit "$built" "$@"
