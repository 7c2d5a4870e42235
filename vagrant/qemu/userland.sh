#!/bin/sh
# Makes the programs of a guest and prints the archive that holds them.
#
#   userland.sh host       made of this machine's own files
#   userland.sh SUITE      made of the packages of a Debian suite (trixie, sid)
#
# Both are the same small system: dash as /bin/sh (busybox's shell prefers its
# own applets to the programs under test), bash, the tools that the tests drive, and
# busybox for the rest.
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
# shellcheck source-path=SCRIPTDIR
. "$here/common.sh"

programs='dash bash busybox kmod modprobe ip tc ss bridge nft ipset setpriv flock unshare wg'
packages='dash bash busybox-static kmod iproute2 nftables ipset iptables netbase
    libc6 libgcc-s1 libmnl0 libnftnl11 libtinfo6 util-linux wireguard-tools'

from_host() {
    for name in $programs; do
        add "$(PATH=$PATH:/usr/sbin:/sbin command -v "$name")" ||
            fail "this machine has no $name: vagrant/provision.sh run vm"
    done
    # Every name of iptables: both families, both flavours.
    for file in /usr/sbin/iptables* /usr/sbin/ip6tables*; do
        add "$file"
    done
    plugins=$(dpkg-query --listfiles iptables | sed -n 's/\/libxt_[a-z]*\.so$//p' | head -n 1)
    [ -n "$plugins" ] || fail "the package iptables has no plugins: vagrant/provision.sh run"
    for file in "$plugins"/*.so; do
        add "$file"
    done
    # What a test puts in the place of a loader.
    for file in $(dpkg-query --listfiles perl-base); do
        case $file in */doc/* | */man/*) ;; *) [ ! -f "$file" ] || add "$file" ;; esac
    done
    # shellcheck disable=SC2046 # library paths hold no blanks
    for library in $(libraries_of $(find "$tree/usr" -type f)); do
        add "$library"
    done
    for data in /etc/protocols /etc/services /etc/iproute2 /usr/share/iproute2; do
        [ ! -e "$data" ] || cp --recursive --dereference --parents "$data" "$tree"
    done
}

from_suite() {
    suite_update "$1"
    # shellcheck disable=SC2086 # package names hold no blanks
    suite_apt "$1" apt-get install --download-only --yes --no-install-recommends \
        --option Debug::NoLocking=true $packages >/dev/null ||
        fail "the suite $1 does not have all of: $packages"
    for package in "$cache/apt/$1/cache/archives"/*.deb; do
        dpkg-deb --extract "$package" "$tree"
        rm "$package"
    done
    for dir in doc info locale man perl zoneinfo; do
        rm -rf "${tree:?}/usr/share/$dir"
    done
    # No maintainer script has run: the choice that Debian makes by default.
    for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
        ln -sf xtables-nft-multi "$tree/usr/sbin/$name"
    done
}

furnish() {
    ln -sf dash "$tree/usr/bin/sh"
    for applet in $("$tree/usr/bin/busybox" --list); do
        [ -e "$tree/usr/bin/$applet" ] || [ -e "$tree/usr/sbin/$applet" ] ||
            ln -s busybox "$tree/usr/bin/$applet"
    done
    mkdir -p "$tree/dev" "$tree/proc" "$tree/sys" "$tree/run" "$tree/tmp" "$tree/root" "$tree/etc"
    chmod 1777 "$tree/tmp"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
    echo 'root:x:0:' >"$tree/etc/group"
    echo '127.0.0.1 localhost' >"$tree/etc/hosts"
}

# Changes when what goes into the archive does.
key_of() {
    {
        cat "$here/userland.sh"
        # shellcheck disable=SC2086
        [ "$1" != host ] || dpkg-query --show $packages 2>/dev/null || true
    } | sha256sum | cut -c 1-12
}

make() {
    work=$(mktemp -d "$cache/userland.XXXXXX")
    # shellcheck disable=SC2064 # the value of now
    trap "rm -rf '$work'" EXIT
    tree=$work/tree
    mkdir -p "$tree/usr/bin" "$tree/usr/sbin" "$tree/usr/lib" "$tree/usr/lib64"
    for dir in bin sbin lib lib64; do
        ln -s "usr/$dir" "$tree/$dir"
    done
    case $1 in
        host) from_host ;;
        *) from_suite "$1" ;;
    esac
    furnish
    (cd "$tree" && find . | pack) >"$work/userland.cpio"
    mkdir -p "$cache/userland"
    rm -f "$cache/userland/$1-"*.cpio
    mv "$work/userland.cpio" "$2"
}

main() {
    [ $# -eq 1 ] || fail "usage: userland.sh host | SUITE"
    case $1 in
        -* | */*) fail "'$1' is not the name of a userland" ;;
    esac
    archive=$cache/userland/$1-$(key_of "$1").cpio
    if [ ! -e "$archive" ]; then
        lock
        if [ ! -e "$archive" ]; then
            (make "$1" "$archive")
        fi
        unlock
    fi
    echo "$archive"
}

main "$@"
