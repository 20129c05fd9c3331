#!/bin/sh
# Installs what building and testing orch need: a C compiler and libseccomp for
# runc, iptables and nftables for services, and a few tools of the tests. Does nothing when
# all is there.
set -eu

missing=
need() { # COMMAND PACKAGE
	command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

if command -v apt-get >/dev/null 2>&1; then
	need gcc gcc
	need make make
	need pkg-config pkg-config
	need git git
	need curl curl
	need iptables iptables
	need nft nftables
	need ip iproute2
	need conntrack conntrack
	need shellcheck shellcheck
	need mount mount
	need dbus-daemon dbus-daemon
	[ -e /usr/include/seccomp.h ] || missing="$missing libseccomp-dev"
	[ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"
	[ -x /bin/busybox ] || missing="$missing busybox-static"
	[ -z "$missing" ] && exit 0
	run=
	[ "$(id -u)" = 0 ] || run=sudo
	echo "Installing:$missing"
	$run apt-get update -qq
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive $run apt-get install -y -qq --no-install-recommends $missing >/dev/null
elif command -v dnf >/dev/null 2>&1; then
	need gcc gcc
	need make make
	need pkg-config pkgconf-pkg-config
	need iptables iptables-nft
	need nft nftables
	need ip iproute
	[ -e /usr/include/seccomp.h ] || missing="$missing libseccomp-devel"
	[ -z "$missing" ] && exit 0
	run=
	[ "$(id -u)" = 0 ] || run=sudo
	echo "Installing:$missing"
	# shellcheck disable=SC2086
	$run dnf install -y -q $missing
else
	need gcc gcc
	need make make
	need iptables iptables
	[ -e /usr/include/seccomp.h ] || missing="$missing libseccomp-headers"
	[ -z "$missing" ] && exit 0
	echo "Please install these and try again:$missing" >&2
	exit 1
fi
