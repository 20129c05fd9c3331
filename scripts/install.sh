#!/bin/sh
# Installs orch on this machine as a service, or upgrades it. Pods go on running.
#
#   curl -sfL URL/install.sh | sh -                                      a server
#   curl -sfL URL/install.sh | ORCH_URL=https://HOST:6443 ORCH_TOKEN=T sh -    a node of HOST's cluster
#   curl -sfL URL/install.sh | ORCH_URL=… ORCH_TOKEN=T sh -s - server    a further server of it
#   sudo ./scripts/install.sh                                            from a checkout: builds first
#
#   ORCH_URL, ORCH_TOKEN   server to join and the token for it
#   ORCH_EXEC              "server" or "agent" and further flags; the script's arguments follow it
#   ORCH_DATA_DIR          where orch keeps everything (default /var/lib/orch)
#   ORCH_<FLAG>            any other flag of orch: ORCH_NODE_NAME=a is --node-name a
#   ORCH_VERSION           version to install; or
#   ORCH_CHANNEL           file that names it (default stable)
#   ORCH_RELEASES          URL below which releases lie
#   ORCH_BIN               install from here instead: an executable, or a folder with orch-ARCH,
#                          sha256sums.txt and archives of images (no network is needed)
#   ORCH_BIN_DIR           where the executable goes (default /usr/local/bin)
#   ORCH_SKIP_START        set to true to install without starting
#   ORCH_PRINT_TOKEN       set to true to end with a line that a further node can be installed
#                          with as it is, its token included
#   ORCH_PUBLIC_KEY        minisign key that releases are signed with, where it is not the script's own
#
# Running it again upgrades, and keeps the settings that are not given anew; a
# variable that is set and empty takes its setting back. Nothing is restarted
# when nothing changed. What makes no sense is refused before anything is
# touched: an orch that runs goes on as it was.
set -eu

# `make release` writes its RELEASES here. A checkout builds instead.
default_releases=
# ... and here the public half of the key that it signs with.
default_public_key=

etc=/etc/orch
env_file=$etc/orch.env
log=/var/log/orch.log
pid_file=/run/orch.pid
unit=/etc/systemd/system/orch.service
openrc_script=/etc/init.d/orch

say() { printf '[orch] %s\n' "$*"; }
die() {
	printf '[orch] %s\n' "$*" >&2
	exit 1
}

# --- where the executable comes from

detect_arch() {
	case $(uname -m) in
	x86_64 | amd64) echo amd64 ;;
	aarch64 | arm64) echo arm64 ;;
	*) die "this machine is a $(uname -m): orch runs on amd64 and arm64" ;;
	esac
}

try_fetch() { # URL FILE
	if command -v curl >/dev/null 2>&1; then
		curl -sfL --retry 2 -o "$2" "$1" </dev/null
	elif command -v wget >/dev/null 2>&1; then
		wget -qO "$2" "$1" </dev/null
	else
		die "downloading needs curl or wget: install one of them"
	fi
}

fetch() { # URL FILE
	try_fetch "$1" "$2" || die "cannot download $1"
}

hash_of() { sha256sum "$1" | cut -d ' ' -f 1; }

listed() { # NAME SUMS: the checksum that SUMS lists for NAME
	awk -v name="$1" '$2 == name || $2 == "*" name { print $1; exit }' "$2"
}

verify() { # FILE NAME SUMS
	want=$(listed "$2" "$3")
	[ -n "$want" ] || die "$3 lists no checksum for $2"
	got=$(hash_of "$1")
	[ "$got" = "$want" ] || die "the checksum of $2 is wrong: it is $got, should be $want. The file is damaged or was tampered with; nothing was installed"
}

# check_signature wants SUMS, the list of checksums, signed by whom releases are
# from. An orch that is installed knows the key; minisign is asked otherwise.
check_signature() { # SUMS
	key=${ORCH_PUBLIC_KEY:-$default_public_key}
	if [ -x "$bin" ] && "$bin" verify --help >/dev/null 2>&1; then
		verified=0
		"$bin" verify ${ORCH_PUBLIC_KEY:+--key "$ORCH_PUBLIC_KEY"} "$1" >"$tmp/verify" 2>&1 || verified=$?
		case $verified in
		0) return ;;
		3) ;; # it knows no key
		*) die "$(cat "$tmp/verify"); nothing was changed" ;;
		esac
	fi
	if [ -z "$key" ]; then
		say "the checksums were not checked against a signature: no key is known (ORCH_PUBLIC_KEY)"
	elif command -v minisign >/dev/null 2>&1; then
		[ -f "$1.minisig" ] || die "the checksums are not signed, and a key is known: nothing was changed"
		minisign -Vq -P "$key" -m "$1" -x "$1.minisig" </dev/null >/dev/null 2>&1 || die "the checksums are not signed by $key: the release was tampered with; nothing was changed"
	else
		say "the checksums could not be checked against their signature: neither an orch that knows the key nor minisign is installed"
	fi
}

# obtain leaves the executable at $staged.
obtain() {
	if [ -n "${ORCH_BIN:-}" ]; then
		[ -e "$ORCH_BIN" ] || die "ORCH_BIN: $ORCH_BIN does not exist"
		if [ -d "$ORCH_BIN" ]; then take_folder "$ORCH_BIN"; else take_file "$ORCH_BIN"; fi
	elif [ -n "${ORCH_VERSION:-}${ORCH_CHANNEL:-}${ORCH_RELEASES:-}" ]; then
		download
	elif [ -n "$here" ] && [ -f "$here/orch-$arch" ]; then
		take_folder "$here"
	elif [ -n "$here" ] && [ -f "$here/../go.mod" ] && [ -f "$here/prerequisites.sh" ]; then
		build "$(cd "$here/.." && pwd)"
	else
		download
	fi
	chmod 755 "$staged"
	"$staged" version >"$tmp/version" 2>&1 || die "the executable does not run here: $(head -n 1 "$tmp/version")"
}

take_file() {
	cp "$1" "$staged"
}

# take_folder is the way without a network.
take_folder() {
	[ -f "$1/orch-$arch" ] || die "$1 has no orch-$arch"
	[ -f "$1/sha256sums.txt" ] || die "$1 has no sha256sums.txt: copy it from the release as well"
	check_signature "$1/sha256sums.txt"
	cp "$1/orch-$arch" "$staged"
	verify "$staged" "orch-$arch" "$1/sha256sums.txt"
	for archive in "$1"/*.tar "$1"/*.tar.gz "$1"/*.tgz "$1"/*.tar.zst; do
		[ -f "$archive" ] || continue
		name=${archive##*/}
		if [ -n "$(listed "$name" "$1/sha256sums.txt")" ]; then
			verify "$archive" "$name" "$1/sha256sums.txt"
		fi
		printf '%s\n' "$archive" >>"$tmp/archives"
	done
}

download() {
	releases=${ORCH_RELEASES:-$default_releases}
	[ -n "$releases" ] || die "this copy of install.sh does not know where releases lie: set ORCH_RELEASES to their URL, or ORCH_BIN to an executable"
	releases=${releases%/}
	version=${ORCH_VERSION:-}
	if [ -z "$version" ]; then
		channel=${ORCH_CHANNEL:-stable}
		fetch "$releases/channels/$channel" "$tmp/channel"
		version=$(tr -d '[:space:]' <"$tmp/channel")
		[ -n "$version" ] || die "the channel $channel names no version"
	fi
	fetch "$releases/$version/sha256sums.txt" "$tmp/sums"
	try_fetch "$releases/$version/sha256sums.txt.minisig" "$tmp/sums.minisig" || rm -f "$tmp/sums.minisig"
	check_signature "$tmp/sums"
	want=$(listed "orch-$arch" "$tmp/sums")
	[ -n "$want" ] || die "$version is not there for $arch: its sha256sums.txt lists no orch-$arch"
	if [ -f "$bin" ] && [ "$(hash_of "$bin")" = "$want" ]; then
		cp "$bin" "$staged"
		return
	fi
	say "downloading orch $version for $arch"
	fetch "$releases/$version/orch-$arch" "$staged"
	verify "$staged" "orch-$arch" "$tmp/sums"
}

build() { # CHECKOUT
	if ! command -v go >/dev/null 2>&1; then
		# sudo drops the PATH under which Go is often installed.
		[ -x /usr/local/go/bin/go ] || die "building needs Go: install it to /usr/local/go (see https://go.dev/doc/install)"
		PATH=$PATH:/usr/local/go/bin
		export PATH
	fi
	say "installing what the build needs"
	"$1/scripts/prerequisites.sh" </dev/null
	say "building (a few minutes the first time)"
	make -C "$1" build </dev/null >/dev/null
	cp "$1/bin/orch" "$staged"
}

# --- settings: all flags are environment in one file that root alone can read,
# --- so that no token is in a unit file or in the list of processes

# These direct this script and are no flags of orch.
own_variables=' ORCH_URL ORCH_EXEC ORCH_BIN ORCH_BIN_DIR ORCH_RELEASES ORCH_VERSION ORCH_CHANNEL ORCH_SKIP_START ORCH_ROLE ORCH_PRINT_TOKEN ORCH_PUBLIC_KEY '

# with_settings becomes a command with the settings in FILE and no other ORCH_
# variable: this script's own would be taken for flags. Call it in a subshell.
with_settings() { # FILE COMMAND...
	for name in $(env | sed -n 's/^\(ORCH_[A-Za-z0-9_]*\)=.*/\1/p'); do unset "$name"; done
	set -a
	# shellcheck disable=SC1090
	. "$1"
	set +a
	shift
	exec "$@"
}

# set_option puts NAME into the new settings, or takes it out when VALUE is empty.
set_option() { # NAME VALUE
	case $2 in
	*'
'*) die "$1: a value with a line break cannot be kept" ;;
	esac
	sed -i "/^$1=/d" "$tmp/env"
	[ -n "$2" ] || return 0
	# Double quotes mean the same to the shell and to systemd.
	printf '%s="%s"\n' "$1" "$(printf '%s' "$2" | sed 's/[\\"`$]/\\&/g')" >>"$tmp/env"
}

option() { # NAME: its value in the new settings
	(
		unset "$1"
		# shellcheck disable=SC1091
		. "$tmp/env"
		eval "printf '%s' \"\${$1:-}\""
	)
}

setting() { # FLAG: its value in the new settings, or in the operator's own config file
	value=$(option "$(variable "$1")")
	if [ -z "$value" ] && [ -f "$etc/config.yaml" ]; then
		value=$(sed -n "s/^$1:[[:space:]]*//p" "$etc/config.yaml" | sed 's/[[:space:]]#.*//; s/[[:space:]]*$//' | tr -d "\"'")
	fi
	printf '%s' "$value"
}

variable() { printf 'ORCH_%s' "$1" | tr 'a-z-' 'A-Z_'; } # of a flag

take_environment() {
	for name in $(env | sed -n 's/^\(ORCH_[A-Z0-9_]*\)=.*/\1/p; s/^\(\(HTTPS*\|NO\|https*\|no\)_\(PROXY\|proxy\)\)=.*/\1/p'); do
		case $own_variables in
		*" $name "*) continue ;;
		esac
		taken="$taken $name"
		eval "set_option $name \"\${$name}\""
	done
	[ -z "${ORCH_URL+set}" ] || set_option ORCH_JOIN "$ORCH_URL"
}

# take_arguments turns flags into settings; repeated ones become a list.
take_arguments() {
	: >"$tmp/given"
	while [ $# -gt 0 ]; do
		case $1 in
		server | agent)
			role=$1
			shift
			continue
			;;
		--*=*) flag=${1%%=*} value=${1#*=} ;;
		--*)
			flag=$1 value=true
			case ${2:--} in
			-*) ;;
			*)
				value=$2
				shift
				;;
			esac
			;;
		*) die "unexpected argument $1: give server or agent, and flags of orch (--name value)" ;;
		esac
		shift
		name=$(variable "${flag#--}")
		flags="$flags ${flag#--}"
		if grep -qx "$name" "$tmp/given"; then value=$(option "$name"),$value; fi
		echo "$name" >>"$tmp/given"
		set_option "$name" "$value"
	done
}

# known_variable refuses what is no flag: a setting that is misspelt would be
# missing without a word.
known_variable() { # NAME
	grep -q "\[.*\$$1[],]" "$tmp/help" && return 0
	printf '%s=x\n' "$1" >"$tmp/odd"
	hint=$(with_settings "$tmp/odd" "$staged" "$role" --dry-run --config /dev/null 2>&1 | sed -n 's/.*\(did you mean.*\)/: \1/p')
	die "$1 is neither a flag of orch $role nor a variable of this script${hint:-: see orch $role --help}; nothing was changed"
}

# settle finds out what this machine shall be and writes it to $tmp/env.
settle() {
	if [ -f "$env_file" ]; then cp "$env_file" "$tmp/env"; else : >"$tmp/env"; fi
	was=$(option ORCH_ROLE)
	role='' flags='' taken=''
	# shellcheck disable=SC2086
	set -- ${ORCH_EXEC:-} "$@"
	take_environment
	take_arguments "$@"
	join=$(setting join)
	if [ -z "$role" ]; then
		if [ -n "${ORCH_URL:-}${ORCH_JOIN:-}" ] && [ -z "$was" ]; then role=agent; else role=${was:-server}; fi
	fi
	if [ -n "$was" ] && [ "$was" != "$role" ]; then
		die "this machine runs orch $was: run $bin_dir/orch-uninstall.sh first to make it a new $role"
	fi
	if [ -n "$join" ] && [ -z "$(setting token)" ]; then
		file=agent-token
		[ "$role" = agent ] || file=token
		die "joining $join needs ORCH_TOKEN: it is in /var/lib/orch/server/$file there"
	fi
	[ "$role" = server ] || [ -n "$join" ] || die "an agent needs ORCH_URL=https://HOST:6443 of a server, and ORCH_TOKEN"
	(with_settings /dev/null "$staged" "$role" --help) >"$tmp/help"
	for flag in $flags; do
		grep -q -- "--${flag}[ ,]" "$tmp/help" || die "orch $role has no flag --$flag: see orch $role --help"
		case $flag in
		recover | from) die "--$flag is for once: stop the service and run orch server --$flag by hand" ;;
		esac
	done
	for name in $taken; do
		case $name in
		ORCH_*) known_variable "$name" ;;
		esac
	done
	set_option ORCH_ROLE "$role"
	data_dir=$(setting data-dir)
	data_dir=${data_dir:-/var/lib/orch}
	kubeconfig=$(setting write-kubeconfig)
	kubeconfig=${kubeconfig:-$etc/kubeconfig.yaml}
	case $data_dir in
	*[!A-Za-z0-9._/-]* | [!/]* | /) die "--data-dir $data_dir: use an absolute path of letters, digits and . _ -" ;;
	esac
	sort -o "$tmp/env" "$tmp/env" # the same settings are the same file
}

# --- the service

detect_init() {
	if [ -d /run/systemd/system ]; then
		echo systemd
	elif command -v openrc-run >/dev/null 2>&1; then
		echo openrc
	else
		echo none
	fi
}

put() { # FILE MODE: standard input, if it differs from what is there
	cat >"$tmp/put"
	if [ -f "$1" ] && cmp -s "$tmp/put" "$1"; then return 0; fi
	mkdir -p "${1%/*}"
	install -m "$2" "$tmp/put" "$1.new"
	mv -f "$1.new" "$1"
	changed=1
}

write_systemd() {
	put "$unit" 644 <<UNIT
[Unit]
Description=orch: a container orchestrator in one executable
After=network-online.target dbus.service
Wants=network-online.target

[Service]
Type=notify
EnvironmentFile=$env_file
ExecStartPre=-/sbin/modprobe -a overlay vxlan
ExecStart=$bin $role
# A server that is joined may come up later than this one.
TimeoutStartSec=0
# Pods outlive orch: stop only the main process.
KillMode=process
Delegate=yes
Restart=always
RestartSec=2
LimitNOFILE=1048576
TasksMax=infinity
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
UNIT
}

write_openrc() {
	put "$openrc_script" 755 <<SCRIPT
#!$(command -v openrc-run)
name=orch
description="orch: a container orchestrator in one executable"
supervisor=supervise-daemon
command="$bin"
command_args="$role"
pidfile=$pid_file
output_log=$log
error_log=$log
respawn_delay=2
respawn_max=0
rc_ulimit="-n 1048576"

depend() {
	need net
	use dns
	after firewall
}

start_pre() {
	set -a
	. $env_file
	set +a
}

# When the machine goes down, pods end in order first; otherwise they go on.
stop_pre() {
	case \${RC_GOINGDOWN:-} in
	[Yy]*) ;;
	*) return 0 ;;
	esac
	supervisor=\$(cat "\$pidfile" 2>/dev/null) || return 0
	for pid in \$supervisor \$(cat "/proc/\$supervisor/task/\$supervisor/children" 2>/dev/null); do
		[ "\$(readlink "/proc/\$pid/exe")" = "\$command" ] || continue
		kill -PWR "\$pid"
		tries=0
		while [ -e "/proc/\$pid/exe" ] && [ "\$tries" -lt 600 ]; do
			tries=\$((tries + 1))
			sleep 0.1
		done
	done
	return 0
}
SCRIPT
}

running() {
	case $init in
	systemd) systemctl is-active -q orch ;;
	openrc) rc-service orch status >/dev/null 2>&1 ;;
	none) [ -f "$pid_file" ] && is_orch "$(cat "$pid_file")" ;;
	esac
}

# is_orch tells whether PID is orch, and not another process with its number.
is_orch() {
	case $(readlink "/proc/$1/exe" 2>/dev/null) in
	"$bin" | "$bin (deleted)" | "$staged"*) return 0 ;;
	*) return 1 ;;
	esac
}

start_service() {
	case $init in
	systemd)
		say "starting the service orch (log: journalctl -u orch)"
		systemctl daemon-reload
		systemctl enable -q orch
		systemctl restart --no-block orch
		;;
	openrc)
		say "starting the service orch (log: $log)"
		rc-update -q add orch default
		rc-service orch restart </dev/null
		;;
	none)
		stop_detached
		say "starting orch $role (log: $log); nothing starts it when this machine does: it has neither systemd nor OpenRC"
		(with_settings "$env_file" setsid "$bin" "$role") </dev/null >>"$log" 2>&1 &
		echo $! >"$pid_file"
		# Until it is orch, it looks as if orch had ended.
		tries=0
		until running || [ "$tries" -ge 50 ]; do
			tries=$((tries + 1))
			sleep 0.1
		done
		;;
	esac
}

stop_detached() {
	[ -f "$pid_file" ] || return 0
	old=$(cat "$pid_file")
	is_orch "$old" || return 0
	say "stopping orch (pods go on running)"
	kill "$old" 2>/dev/null || true
	tries=0
	while is_orch "$old"; do
		tries=$((tries + 1))
		[ "$tries" -ne 300 ] || kill -9 "$old" 2>/dev/null || true
		sleep 0.1
	done
}

log_lines() { if [ -f "$log" ]; then wc -l <"$log"; else echo 0; fi; }

ready() {
	if [ "$role" = server ]; then
		probe='get nodes --no-headers'
		case ,$(setting disable),$(setting disable-agent), in *,agent,* | *,true,*) probe='get --raw /readyz' ;; esac
		# shellcheck disable=SC2086
		"$bin" kubectl --kubeconfig "$kubeconfig" $probe </dev/null 2>/dev/null | grep -qE ' Ready |^ok'
	elif [ "$init" = systemd ]; then
		systemctl is-active -q orch
	else
		[ -e "$data_dir/agent/ready" ]
	fi
}

# gave_up tells whether orch has ended with an error: waiting is of no use.
gave_up() {
	case $init in
	systemd) [ "$(systemctl show -p NRestarts --value orch 2>/dev/null || echo 0)" -gt 2 ] 2>/dev/null ;;
	openrc) tail -n "+$((lines + 1))" "$log" 2>/dev/null | grep -q '^orch: ' ;;
	none) ! running ;;
	esac
}

wait_ready() {
	say "waiting until the $role is ready"
	tries=0
	until ready; do
		tries=$((tries + 1))
		[ $((tries % 20)) != 0 ] || say "still waiting ($((tries / 2)) s)"
		if [ "$tries" -gt 120 ] || gave_up; then
			if [ "$init" = systemd ]; then
				journalctl -u orch -n 5 --no-pager >&2 2>/dev/null || true
			else
				tail -n "+$((lines + 1))" "$log" | tail -n 5 >&2
			fi
			die "the $role did not become ready; the log says why"
		fi
		sleep 0.5
	done
}

# --- what takes it all away

write_killall() {
	{
		printf '#!/bin/sh\nbin=%s\ndata_dir=%s\n' "$bin" "$data_dir"
		cat <<'KILLALL'
# Stops orch and all its pods on this machine, and removes their mounts, network
# and cgroups. Data stay; starting orch brings the pods back.
set -u

say() { printf '[orch] %s\n' "$*"; }
[ "$(id -u)" = 0 ] || {
	echo "this needs root: run sudo $0" >&2
	exit 1
}

say "stopping orch"
if [ -d /run/systemd/system ] && [ -f /etc/systemd/system/orch.service ]; then
	systemctl stop orch
elif [ -x /etc/init.d/orch ] && command -v rc-service >/dev/null 2>&1; then
	rc-service orch stop </dev/null
fi

# daemons prints the ids of orch processes that hold files of this data directory.
daemons() {
	# One process looks at all: a busy machine has thousands of them.
	# shellcheck disable=SC2012
	ls -l /proc/[0-9]*/exe 2>/dev/null | awk -v bin="$bin" '
		{ at = index($0, "/proc/"); rest = substr($0, at); split(rest, part, "/exe -> ") }
		part[2] == bin || part[2] == bin " (deleted)" { print part[1] }' |
		while read -r dir; do
			# shellcheck disable=SC2010,SC2012
			ls -l "$dir/fd" 2>/dev/null | grep -qF " -> $data_dir/" && ours "$dir" && echo "${dir#/proc/}"
		done
}

# ours tells whether a process sees our data directory, and not another one that
# lies at the same path in a container or a mount namespace of its own.
ours() { [ "$(stat -Lc %d:%i "$1/root$data_dir" 2>/dev/null)" = "$(stat -Lc %d:%i "$data_dir")" ]; }

# shellcheck disable=SC2046
kill $(daemons) 2>/dev/null
tries=0
while [ -n "$(daemons)" ]; do
	tries=$((tries + 1))
	# shellcheck disable=SC2046
	[ "$tries" -ne 150 ] || kill -9 $(daemons) 2>/dev/null
	sleep 0.2
done
rm -f /run/orch.pid

# tree prints PID and all below it.
tree() {
	# In a subshell each, as plain sh has no local variables.
	# shellcheck disable=SC2013
	for child in $(cat "/proc/$1/task/$1/children" 2>/dev/null); do (tree "$child"); done
	echo "$1"
}

# pod_cgroups prints the cgroups of this machine's pods, the innermost first.
pod_cgroups() {
	for pod in "$data_dir"/agent/pods/*; do
		[ -d "$pod" ] || continue
		for root in /sys/fs/cgroup /sys/fs/cgroup/*; do
			[ ! -d "$root/kubepods" ] || find "$root/kubepods" -depth -type d -path "*/pod${pod##*/}*" 2>/dev/null
		done
	done
}

pod_processes() {
	grep -laF "$data_dir/agent/bin/containerd-shim-runc-v2" /proc/[0-9]*/cmdline 2>/dev/null |
		while read -r file; do
			dir=${file%/cmdline}
			program=$(tr '\0' '\n' 2>/dev/null <"$file" | head -n 1)
			[ "$program" = "$data_dir/agent/bin/containerd-shim-runc-v2" ] && ours "$dir" && tree "${dir#/proc/}"
		done 2>/dev/null # those that have ended meanwhile
	pod_cgroups | while read -r cgroup; do cat "$cgroup/cgroup.procs" 2>/dev/null; done
}

say "stopping the pods"
tries=0
while pids=$(pod_processes) && [ -n "$pids" ] && [ "$tries" -lt 50 ]; do
	tries=$((tries + 1))
	# shellcheck disable=SC2086
	kill -9 $pids 2>/dev/null
	sleep 0.1
done

# mounts prints what is mounted below the data directory, the innermost first.
mounts() { awk -v dir="$data_dir/" 'index($2, dir) == 1 { print $2 }' /proc/self/mounts | sort -r; }

tries=0
while [ -n "$(mounts)" ] && [ "$tries" -lt 20 ]; do
	tries=$((tries + 1))
	mounts | while read -r point; do umount -l "$(printf '%b' "$point")" 2>/dev/null; done
done

say "removing network rules and links"
# Chains that start with ORCH- are ours, and so are the jumps to them. Nobody
# else's rules are written anew: that would set back their counters.
removal() {
	awk '
		/^\*/ { table = $0; rules = chains = ends = "" }
		/^:ORCH-/ { name = substr($1, 2); chains = chains "-F " name "\n"; ends = ends "-X " name "\n" }
		$1 == "-A" && $2 !~ /^ORCH-/ {
			bare = $0
			gsub(/"[^"]*"/, "", bare)
			if (bare ~ / -[jg] ORCH-/) { sub(/^-A/, "-D"); rules = rules $0 "\n" }
		}
		/^COMMIT/ && chains != "" { printf "%s\n%s%s%sCOMMIT\n", table, rules, chains, ends }'
}
for tables in iptables iptables-nft iptables-legacy; do
	command -v "$tables-save" >/dev/null 2>&1 || continue
	rules=$("$tables-save" 2>/dev/null | removal)
	[ -z "$rules" ] || printf '%s\n' "$rules" | "$tables-restore" --noflush
done
if command -v nft >/dev/null 2>&1 && nft list table ip orch >/dev/null 2>&1; then
	nft delete table ip orch
fi
# Host ends of pods' links share one hardware address of orch's own.
for link in orch0 orch-vxlan $(ip -o link show 2>/dev/null | awk '/ 0e:6f:72:63:68:01 / { sub(/@.*|:$/, "", $2); print $2 }'); do
	ip link delete "$link" 2>/dev/null
done
ip route flush type unreachable proto 111 2>/dev/null

pod_cgroups | while read -r cgroup; do rmdir "$cgroup" 2>/dev/null; done
short=/run/orch/$(printf %s "$data_dir" | sha256sum | cut -c 1-12)
rm -rf "$short"
rmdir /run/orch 2>/dev/null
if [ -n "$(pod_processes)$(mounts)" ]; then
	echo "[orch] some processes or mounts of pods could not be removed: run $0 again" >&2
	exit 1
fi
exit 0
KILLALL
	} | put "$bin_dir/orch-killall.sh" 755
}

write_uninstall() {
	{
		printf '#!/bin/sh\nbin=%s\ndata_dir=%s\nkubeconfig=%s\n' "$bin" "$data_dir" "$kubeconfig"
		cat <<'UNINSTALL'
# Removes orch, its pods and its data from this machine.
#
#   orch-uninstall.sh [--keep-data]
set -u

keep=
case ${1:-} in
'') ;;
--keep-data) keep=1 ;;
*)
	echo "usage: $0 [--keep-data]" >&2
	exit 2
	;;
esac

say() { printf '[orch] %s\n' "$*"; }
"${bin%/*}/orch-killall.sh" || exit 1

say "removing the service and the executable"
if [ -f /etc/systemd/system/orch.service ]; then
	systemctl disable -q orch 2>/dev/null
	rm -f /etc/systemd/system/orch.service
	systemctl daemon-reload
	systemctl reset-failed orch 2>/dev/null
	rm -f /etc/systemd/logind.conf.d/99-orch.conf # of --shutdown-grace-period
fi
if [ -f /etc/init.d/orch ]; then
	rc-update -q delete orch default
	rm -f /etc/init.d/orch
fi
# Somebody else's kubelet may be at home in there: only what is empty goes.
for root in /sys/fs/cgroup /sys/fs/cgroup/*; do
	rmdir "$root/kubepods/burstable" "$root/kubepods/besteffort" "$root/kubepods" 2>/dev/null
done
# Links for log collectors that lead to orch's logs (--log-links).
find /var/log/pods /var/log/containers -maxdepth 1 -type l \( -lname "$data_dir/agent/logs/*" -o -lname "/var/log/pods/*" \) -delete 2>/dev/null
rmdir /var/log/pods /var/log/containers 2>/dev/null
rm -f "$kubeconfig" /etc/orch/orch.env /var/log/orch.log "$bin"
if [ -z "$keep" ]; then
	# By name, should the folder hold anything else.
	rm -rf "$data_dir/server" "$data_dir/agent" "$data_dir/images" "$data_dir/lock"
	rmdir "$data_dir" 2>/dev/null || [ ! -d "$data_dir" ] || say "kept, as orch did not make it: $(ls -d "$data_dir"/*)"
else
	say "the data are kept in $data_dir"
fi
rmdir /etc/orch 2>/dev/null || [ ! -d /etc/orch ] || say "kept, as orch did not write it: $(ls -d /etc/orch/*)"
rm -f "${bin%/*}/orch-killall.sh" "${bin%/*}/orch-uninstall.sh"
say "orch is removed"
UNINSTALL
	} | put "$bin_dir/orch-uninstall.sh" 755
}

# --- all together

install_archives() {
	[ -f "$tmp/archives" ] || return 0
	mkdir -p "$data_dir/images"
	while read -r archive; do
		target=$data_dir/images/${archive##*/}
		if [ ! -f "$target" ] || ! cmp -s "$archive" "$target"; then
			say "image archive ${archive##*/}"
			cp "$archive" "$target.new" # no name that is imported
			mv -f "$target.new" "$target"
		fi
	done <"$tmp/archives"
}

check_machine() {
	(with_settings "$tmp/env" "$staged" check --data-dir "$data_dir" --for "$role") >"$tmp/check" 2>&1 || {
		cat "$tmp/check" >&2
		die "this machine lacks something, see above; mend it and run this again. Nothing was changed"
	}
}

# check_settings has the new executable look at all of them, at the port and at the
# token, while the old one runs.
check_settings() {
	tried=0
	(with_settings "$tmp/env" "$staged" "$role" --dry-run) >"$tmp/check" 2>&1 </dev/null || tried=$?
	grep level=WARN "$tmp/check" | sed 's/.* msg=/[orch] warning: /' >&2 || true
	case $tried in
	0) return ;;
	75) if [ "${ORCH_SKIP_START:-}" = true ]; then
		say "$(sed -n 's/^orch: //p' "$tmp/check")"
		return
	fi ;;
	esac
	sed -n '/level=WARN/!s/^orch: /[orch] /p' "$tmp/check" >&2
	unchanged="nothing was changed"
	if running; then unchanged="$unchanged: orch goes on running as it was"; fi
	if [ "$tried" = 75 ]; then unchanged="$unchanged (ORCH_SKIP_START=true installs all the same)"; fi
	die "orch $role would not start with these settings; $unchanged"
}

# check_archives reads each of them to its end: one that is damaged would be missed
# only when its image is wanted.
check_archives() {
	[ -f "$tmp/archives" ] || return 0
	while read -r archive; do
		"$staged" images check "$archive" >"$tmp/check" 2>&1 </dev/null || die "$(sed 's/^orch: //' "$tmp/check"); nothing was changed"
	done <"$tmp/archives"
}

install_all() {
	changed=
	if [ ! -f "$bin" ] || ! cmp -s "$staged" "$bin"; then
		# A running orch keeps its old file until it starts anew.
		mv -f "$staged" "$bin"
		changed=1
		say "installed $(head -n 1 "$tmp/version") to $bin"
	fi
	put "$env_file" 600 <"$tmp/env"
	case $init in
	systemd) write_systemd ;;
	openrc) write_openrc ;;
	esac
	started=$changed # what follows needs no restart
	write_killall
	write_uninstall
	install_archives
	changed=$started
}

farewell() {
	if [ "$role" = agent ]; then
		say "orch is running; on a server, orch kubectl get nodes shows this node"
		return
	fi
	cat <<TXT

orch is running. Try:
  orch kubectl create deployment hello --image=orch.local/hello --replicas=3
  orch kubectl expose deployment hello --port=80 --target-port=8080
  orch kubectl get pods,services
The kubeconfig for other tools is $kubeconfig.
TXT
	where="$data_dir/server/agent-token"
	if [ "${ORCH_PRINT_TOKEN:-}" = true ]; then token=$(cat "$where"); else token=TOKEN; fi
	port=$(setting https-listen-port)
	line="ORCH_URL=https://$(server_address):${port:-6443} ORCH_TOKEN=$token sh"
	if [ -n "${releases:-}" ]; then line="curl -sfL $releases/install.sh | $line -"; else line="$line install.sh"; fi
	printf 'To make another machine a node of this cluster, paste there, as root:\n  %s\n' "$line"
	[ "$token" != TOKEN ] || printf 'with the text of %s for TOKEN (ORCH_PRINT_TOKEN=true prints it here).\n' "$where"
}

# server_address is where other machines reach this server.
server_address() {
	address=$(setting advertise-address)
	address=${address:-$(setting node-ip)}
	[ -n "$address" ] || address=$("$bin" kubectl --kubeconfig "$kubeconfig" get endpointslices kubernetes -o 'jsonpath={.endpoints[0].addresses[0]}' </dev/null 2>/dev/null) || address=
	printf '%s' "${address:-THIS_MACHINE}"
}

main() {
	[ "$(id -u)" = 0 ] || die "installing needs root: run it with sudo"
	umask 022
	arch=$(detect_arch)
	init=$(detect_init)
	bin_dir=${ORCH_BIN_DIR:-/usr/local/bin}
	bin=$bin_dir/orch
	staged=$bin_dir/.orch.new # beside its place: /tmp may not allow execution
	here=
	case $0 in
	*/install.sh) here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) ;;
	esac
	tmp=$(umask 077 && mktemp -d)
	trap 'rm -rf "$tmp" "$staged"' EXIT
	trap 'exit 1' INT TERM HUP
	mkdir -p "$bin_dir"
	obtain
	settle "$@"
	check_settings
	check_machine
	check_archives
	install_all
	if [ "${ORCH_SKIP_START:-}" = true ]; then
		say "installed; it is not started, as ORCH_SKIP_START says"
		return
	fi
	if [ -z "$changed" ] && running; then
		say "nothing changed: orch goes on running"
		return
	fi
	lines=$(log_lines)
	rm -f "$data_dir/agent/ready" # of the process before
	start_service
	wait_ready
	[ "$role" = agent ] || "$bin" kubectl --kubeconfig "$kubeconfig" get nodes </dev/null
	farewell
}

# All is read before anything is done: a download that breaks off does nothing.
main "$@"
