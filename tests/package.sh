#!/usr/bin/env bash
# Installs, uses and removes the Debian package in fresh roots, and starts its unit under systemd there.
#
#   tests/package.sh PACKAGE [SUITE…]
#
# The suites are bookworm and trixie unless named. The roots are made by debootstrap once and kept in
# target/package (TSIM_ROOTS names another directory); each test works on a copy. Needs root and, for
# what the package depends on, Debian's archive.
set -euo pipefail
cd "$(dirname "$0")/.."

package=$(realpath "$1")
shift
[ $# -gt 0 ] || set -- bookworm trixie
roots=${TSIM_ROOTS:-target/package}
mkdir -p "$roots"
roots=$(realpath "$roots")

work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT

# in_root DIRECTORY COMMAND…: as if the directory were the machine: with processes, mounts and a /run of
# its own. Not by chroot(8), in which the kernel gives nobody a user namespace.
in_root() {
    local root=$1
    shift
    # shellcheck disable=SC2016 # the inner shell expands these
    unshare --mount --pid --fork --propagation private bash -euc '
        root=$1
        shift
        mount --bind "$root" "$root"
        cd "$root"
        mount -t proc proc proc
        mount --rbind /dev dev
        mount -t sysfs sysfs sys
        mount -t tmpfs -o mode=755 tmpfs run
        mkdir -p old
        pivot_root . old
        umount -l /old
        exec env -i HOME=/root TERM=dumb PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
    ' bash "$root" "$@"
}

# in_new_network DIRECTORY SCRIPT: a shell script in the root, in a network namespace of its own.
in_new_network() { in_root "$1" unshare --net sh -euxc "$2"; }

# shellcheck disable=SC2016 # the shell in the root expands these
use='
    tsim --version
    tsim doctor >/dev/null
    tsim config check
    facts=/usr/share/doc/tsim/examples
    tsim lab up small3 --facts $facts/small3
    tsim lab up corp10 --facts $facts/corp10
    code=0; tsim-quick --lab corp10 -s 10.3.10.50 -d 10.2.1.60 -P ssh,33434/udp || code=$?
    test $code -eq 1
    code=0; tsim-detailed --lab corp10 -s 10.3.10.50 -d 10.2.1.60 -P ssh --routers dc-gw || code=$?
    test $code -eq 1
    tsim submit quick --lab small3 -s 10.81.1.10 -d 10.81.3.10 -P 80 --run-id first
    tsimd & scheduler=$!
    code=0; tsim watch first || code=$?
    test $code -le 1
    kill $scheduler; wait $scheduler
    test "$(TSIM_COMPLETE=fish tsim -- tsim lab status c)" = corp10
    tsim lab down corp10
    tsim lab down small3
    test -z "$(ip netns list)"
'
# shellcheck disable=SC2016
as_user='
    su nobody -s /bin/sh -c "
        set -eux
        export HOME=/tmp/nobody XDG_RUNTIME_DIR=/tmp/nobody/run
        mkdir -p -m 700 \$HOME \$XDG_RUNTIME_DIR
        tsim lab up mine --facts /usr/share/doc/tsim/examples/small3
        code=0; tsim quick --lab mine -s 10.81.1.10 -d 10.81.3.10 -P 80 || code=\$?
        test \$code -le 1
        tsim lab down mine
    "
'

for suite; do
    printf '== %s\n' "$suite"
    if [ ! -e "$roots/$suite/etc/os-release" ]; then
        rm -rf "$roots/$suite.new"
        debootstrap --variant=minbase "$suite" "$roots/$suite.new" http://deb.debian.org/debian >/dev/null
        mv "$roots/$suite.new" "$roots/$suite"
    fi
    root=$work/$suite
    cp -a "$roots/$suite" "$root"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    cp "$package" "$root/tsim.deb"
    printf 'deb http://deb.debian.org/debian %s main\n' "$suite" >"$root/etc/apt/sources.list"

    in_root "$root" apt-get -qq update
    in_root "$root" apt-get -qq install -y --no-install-recommends /tsim.deb iproute2 ipset >/dev/null
    in_root "$root" dpkg --verify tsim
    in_new_network "$root" "$use"
    in_new_network "$root" "$as_user"

    in_root "$root" apt-get -qq install -y --no-install-recommends systemd systemd-sysv dbus >/dev/null
    ./tests/systemd.sh "$root"

    in_root "$root" apt-get -qq purge -y tsim >/dev/null
    left=$(find "$root" -xdev -name '*tsim*' -not -path "$root/tsim.deb" -not -path "$root/var/*" \
        -not -path "$root/tmp/*" -not -path "$root/old*")
    if [ -n "$left" ] || grep -q tsim "$root/etc/passwd"; then
        printf 'tests/package.sh: purging left on %s:\n%s\n' "$suite" "$left" >&2
        exit 1
    fi
done
echo "tests/package.sh: installed, used and removed on: $*"
