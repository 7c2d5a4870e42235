#!/bin/sh
# Makes a kernel ready to boot and prints the directory that holds it.
#
#   kernel.sh KERNEL        5.10, 6.1, 6.12, newest, host, or the name of a Debian suite
#   kernel.sh --list        the kernels that this machine can run, one a line
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
# shellcheck source-path=SCRIPTDIR
. "$here/common.sh"

# Debian's "cloud" kernels: the same sources and the same network configuration
# as the general ones, without the drivers, at a third of the size.
meta=linux-image-cloud-amd64

# One directory per kernel, with all that its machine needs of it.
kernels=$cache/kernels

suite_of() {
    case $1 in
        5.10) echo bullseye ;;
        6.1) echo bookworm ;;
        6.12) echo trixie ;;
        newest) echo sid ;;
        [a-z]*) echo "$1" ;;
        *) fail "no Debian suite is known for kernel $1: give the suite's name instead" ;;
    esac
}

# The packages that the meta package stands for today: one up to 6.12; from 7.x
# on the image and its modules are apart.
packages_of() {
    suite_apt "$1" apt-cache depends --recurse --important "$meta" |
        sed -n 's/^\(linux-\(image\|base\|binary\|modules\)-[0-9][^ ]*\)$/\1/p' | sort -u
}

unpack_suite() {
    suite_update "$1"
    packages=$(packages_of "$1")
    [ -n "$packages" ] || fail "the suite $1 has no $meta"
    # shellcheck disable=SC2086 # package names hold no blanks
    suite_unpack "$1" "$2/root" $packages
}

host_image() {
    echo "/boot/vmlinuz-$(uname -r)"
}

host_available() {
    [ -r "$(host_image)" ] && [ -d "/lib/modules/$(uname -r)/kernel" ]
}

unpack_host() {
    host_available || fail "this machine's kernel has no readable $(host_image) with modules"
    mkdir -p "$1/root/boot" "$1/root/lib/modules"
    cp "$(host_image)" "$1/root/boot/"
    cp -r "/lib/modules/$(uname -r)" "$1/root/lib/modules/"
}

# Network, the crypto it asks for, and the ports to the guest. All of a cloud
# kernel would do as well; this is a third of it, and memory of the guest.
wanted_modules() {
    for part in net lib crypto arch drivers/virtio drivers/char \
        drivers/net/bonding drivers/net/vxlan drivers/net/wireguard; do
        [ ! -d "kernel/$part" ] || find "kernel/$part" -name '*.ko*'
    done
    find kernel/drivers/net -maxdepth 1 -name '*.ko*'
}

# The guest computes three to four times slower: what it would decompress at
# every boot is decompressed here, once.
take_modules() {
    (
        cd "$1"
        wanted_modules | cpio --quiet --pass-through --make-directories "$2"
        cp modules.order modules.builtin modules.builtin.modinfo "$2"
    )
    find "$2" -name '*.ko.xz' -exec xz --decompress {} +
    find "$2" -name '*.ko.zst' -exec zstd --quiet --decompress --rm {} +
    find "$2" -name '*.ko.gz' -exec gunzip {} +
}

make() {
    work=$(mktemp -d "$cache/kernel.XXXXXX")
    # shellcheck disable=SC2064 # the value of now
    trap "rm -rf '$work'" EXIT
    cd "$work"
    case $1 in
        host) unpack_host "$work" ;;
        *) unpack_suite "$(suite_of "$1")" "$work" ;;
    esac
    # In /boot, and from 7.x on beside its modules.
    image=$(find root -type f -name 'vmlinuz*' | head -n 1)
    tree=$(find root -type d -path '*lib/modules/*/kernel' | head -n 1)
    [ -n "$image" ] || fail "the packages of kernel $1 hold no image"
    [ -n "$tree" ] || fail "the packages of kernel $1 hold no modules"
    tree=${tree%/kernel}
    release=${tree##*/}
    mkdir -p ready "guest/usr/lib/modules/$release"
    take_modules "$work/$tree" "$work/guest/usr/lib/modules/$release"
    # depmod warns about modules that were left behind; none of the rest needs them.
    depmod --basedir "$work/guest/usr" "$release" 2>"$work/depmod" ||
        fail "depmod: $(tail -n 5 "$work/depmod")"
    # Which says what this kernel cannot have.
    mkdir -p guest/boot
    config=$(find root -type f -name "config-$release" | head -n 1)
    [ -z "$config" ] || cp "$config" guest/boot/
    (cd guest && find . | pack) >ready/modules.cpio
    cp "$image" ready/vmlinuz
    echo "$release" >ready/release
    mkdir -p "$kernels"
    mv ready "$kernels/$1"
}

list() {
    printf '%s\n' 5.10 6.1 6.12 newest
    ! host_available || echo host
}

main() {
    [ $# -eq 1 ] || fail "usage: kernel.sh KERNEL | --list"
    case $1 in
        --list) list && return ;;
        -* | */*) fail "'$1' is not the name of a kernel" ;;
    esac
    if [ ! -d "$kernels/$1" ]; then
        lock
        # Not `[ … ] || (make)`: that would switch `set -e` off inside.
        if [ ! -d "$kernels/$1" ]; then
            (make "$1")
        fi
        unlock
    fi
    echo "$kernels/$1"
}

main "$@"
