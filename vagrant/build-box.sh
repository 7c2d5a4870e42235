#!/bin/sh
# Builds a box of a Debian suite for Vagrant's libvirt provider, from nothing but
# packages of the mirror that apt uses here. Needs root.
#
#   vagrant/build-box.sh SUITE        makes target/vm/box/SUITE.box
#
# The Vagrantfile prefers it to a box that would have to be downloaded.
set -eu
vagrant=$(cd "$(dirname "$0")" && pwd -P)
here=$vagrant/qemu
# shellcheck source-path=SCRIPTDIR/qemu
. "$here/common.sh"

gib=4
packages='linux-image-cloud-amd64 systemd-sysv udev kmod openssh-server sudo rsync iproute2 cpio'

# The key that Vagrant knows, and replaces with one of its own at the first boot.
public_key() {
    key=$(dpkg --listfiles vagrant | sed -n '/\/keys\/vagrant\.pub$/p')
    [ -n "$key" ] || fail "the package vagrant has no public key: vagrant/provision.sh vagrant"
    cat "$key"
}

install_system() {
    tools=$(sed -n 's/^ *run) echo \(.*\) ;;$/\1/p' "$vagrant/provision.sh")
    # shellcheck disable=SC2086 # package names hold no blanks
    debootstrap --variant=minbase \
        --include="$(echo $packages $tools | tr ' ' ,)" \
        "$1" "$2" "$(mirror '')" >&2
}

set_up_users() {
    chroot "$1" useradd --create-home --shell /bin/bash vagrant
    install -d -m 700 -o 1000 -g 1000 "$1/home/vagrant/.ssh"
    public_key >"$1/home/vagrant/.ssh/authorized_keys"
    chown 1000:1000 "$1/home/vagrant/.ssh/authorized_keys"
    chmod 600 "$1/home/vagrant/.ssh/authorized_keys"
    echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$1/etc/sudoers.d/vagrant"
    chmod 440 "$1/etc/sudoers.d/vagrant"
}

set_up_system() {
    # The name that the Vagrantfile gives, so that nothing is left to be set.
    echo "$suite" >"$1/etc/hostname"
    printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$suite" >"$1/etc/hosts"
    echo 'LABEL=root / ext4 defaults 0 1' >"$1/etc/fstab"
    printf '[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n' \
        >"$1/etc/systemd/network/80-dhcp.network"
    chroot "$1" systemctl --quiet enable systemd-networkd
    # A machine of its own, not a copy: made at the first boot.
    : >"$1/etc/machine-id"
    chroot "$1" apt-get clean
    rm -rf "$1/var/lib/apt/lists"/*
}

set_up_boot() {
    mkdir -p "$1/boot/extlinux"
    for link in vmlinuz initrd.img; do
        [ -e "$1/$link" ] || fail "the system has no /$link"
    done
    cat >"$1/boot/extlinux/extlinux.conf" <<'END'
DEFAULT linux
LABEL linux
    KERNEL /vmlinuz
    INITRD /initrd.img
    APPEND root=LABEL=root ro console=tty0 console=ttyS0 net.ifnames=0
END
}

# The file system fills the disk, with no partition table: extlinux starts from its
# first sectors, which ext4 leaves alone. It cannot read ext4's newer features.
make_disk() {
    truncate --size "${gib}G" "$work/disk"
    mkfs.ext4 -q -F -L root -O '^64bit,^metadata_csum' "$work/disk"
    mkdir "$work/root"
    mount -o loop "$work/disk" "$work/root"
}

unmount() {
    ! mountpoint -q "$work/root" || umount --recursive "$work/root"
}

clean_up() {
    trap - EXIT
    unmount
    rm -rf "$work"
}

pack_box() {
    qemu-img convert -c -O qcow2 "$work/disk" "$work/box.img"
    echo "{\"provider\":\"libvirt\",\"format\":\"qcow2\",\"virtual_size\":$gib}" >"$work/metadata.json"
    echo 'Vagrant.configure("2") {}' >"$work/Vagrantfile"
    mkdir -p "$cache/box"
    tar --create --gzip --directory "$work" --file "$work/box" metadata.json Vagrantfile box.img
    mv "$work/box" "$cache/box/$suite.box"
}

main() {
    [ $# -eq 1 ] || fail "usage: build-box.sh SUITE"
    suite=$1
    [ "$(id -u)" -eq 0 ] || fail "debootstrap and mounting need root"
    "$vagrant/provision.sh" --check box || exit 125
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/box.XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT TERM HUP
    make_disk
    install_system "$suite" "$work/root"
    set_up_users "$work/root"
    set_up_system "$work/root"
    set_up_boot "$work/root"
    extlinux --install "$work/root/boot/extlinux" >&2
    unmount
    pack_box
    echo "$cache/box/$suite.box"
}

main "$@"
