#!/bin/sh
# Runs a test program as an ordinary user who is root of a user namespace and of nothing else, which
# is how tsim works without root:
#
#   tests/as-user.sh [--load] PROGRAM [ARGUMENT…]
#
#   --load   load the modules of iptables-legacy before, as root; tsim's package has them loaded at boot,
#            and some kernels do not load them for an ordinary user
#
# Started by root, it becomes a user without a name and without groups of anybody else's, with a home
# of its own that is removed afterwards. Started by anybody else, that is the user. cargo can run tests
# by it:
#
#   CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=tests/as-user.sh cargo test --test privileged
set -eu
user=48213

if [ "${1-}" = --load ]; then
    shift
    modprobe -a iptable_raw iptable_mangle iptable_nat iptable_filter iptable_security \
        ip6table_raw ip6table_mangle ip6table_nat ip6table_filter ip6table_security
fi

# Programs may lie where only root may look (a checkout below /root). Then they are shown at the
# same path in a mount namespace that nobody else sees.
if [ "${1-}" = --show ]; then
    shift
    checkout=$(cd "$(dirname "$0")/.." && pwd -P)
    top=/$(echo "$checkout" | cut -d / -f 2)
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir /run/checkout
    mount --bind "$checkout" /run/checkout
    mount -t tmpfs -o mode=755 tmpfs "$top"
    mkdir -p "$checkout"
    mount --bind /run/checkout "$checkout"
    cd "$checkout"
fi

as_user() {
    if [ "$(id -u)" -ne 0 ]; then
        "$@"
        return
    fi
    setpriv --reuid "$user" --regid "$user" --clear-groups -- "$@"
}

if ! as_user test -x "$1"; then
    if [ "${shown-}" ] || [ "$(id -u)" -ne 0 ]; then
        echo "tests/as-user.sh: a user other than root cannot run $1" >&2
        exit 125
    fi
    shown=1 exec unshare --mount --propagation private -- "$0" --show "$@"
fi

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
[ "$(id -u)" -ne 0 ] || chown "$user:$user" "$home"
# shellcheck disable=SC2016 # the inner shell expands these
HOME=$home TMPDIR=$home as_user unshare --user --map-root-user --mount --net --propagation private \
    sh -euc '
        mount -t tmpfs -o mode=755 tmpfs /run
        mkdir /run/lock /run/netns
        ip link set lo up
        exec "$@"
    ' sh "$@"
