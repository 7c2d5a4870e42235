#!/bin/sh
# Runs a command with a libvirt of its own, so that `vagrant up` neither needs one on this
# machine nor changes its networks. Needs root.
#
#   vagrant/libvirt-apart.sh COMMAND [ARGUMENT…]
#
# for example, in the directory vagrant:
#
#   ./libvirt-apart.sh sh -c 'vagrant up trixie && vagrant ssh trixie -c "sudo /tsim/run"'
#
# The command sees a network namespace that nothing leads out of: boxes must be here
# already (build-box.sh). Its machines end with it; their disks and what Vagrant knows of
# them stay in target/vm/libvirt, which the next run starts from anew.
# Exit status: the command's own; 125 when libvirt did not start.
set -eu
vagrant=$(cd "$(dirname "$0")" && pwd -P)
here=$vagrant/qemu
# shellcheck source-path=SCRIPTDIR/qemu
. "$here/common.sh"
state=$cache/libvirt

# Lets files be made in $1 that this machine does not see.
cover() {
    over=$state/cover$1
    mkdir -p "$over/upper" "$over/work"
    mount -t overlay -o "lowerdir=$1,upperdir=$over/upper,workdir=$over/work" overlay "$1"
}

# No daemon for logs, no user to change to, and nothing of the machine's control groups.
configure() {
    mkdir -p /etc/libvirt /var/lib/libvirt /var/log/libvirt
    mount --bind "$state/lib" /var/lib/libvirt
    # libvirtd looks for the user that it was built for before it reads who is wanted.
    echo 'libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin' >>/etc/passwd
    printf 'libvirt-qemu:x:64055:\nkvm:x:64056:\n' >>/etc/group
    cat >/etc/libvirt/qemu.conf <<'END'
user = "root"
group = "root"
stdio_handler = "file"
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
remember_owner = 0
END
    cat >/etc/libvirt/libvirtd.conf <<'END'
auth_unix_rw = "none"
END
}

start_libvirt() {
    libvirtd --daemon >&2 || fail "libvirtd did not start"
}

# In the namespaces: what is mounted and started here goes with them.
inside() {
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    mount -t tmpfs tmpfs "$state/cover"
    for directory in /etc /run /var/lib /var/log /var/cache; do
        cover "$directory"
    done
    ip link set lo up
    configure
    start_libvirt
    export VAGRANT_HOME="$state/vagrant.d" VAGRANT_DOTFILE_PATH="$state/vagrant"
    export VAGRANT_DEFAULT_PROVIDER=libvirt
    status=0
    "$@" || status=$?
    return "$status"
}

main() {
    if [ "${1-}" = --inside ]; then
        shift
        inside "$@"
        return
    fi
    [ $# -gt 0 ] || fail "usage: libvirt-apart.sh COMMAND [ARGUMENT…]"
    [ "$(id -u)" -eq 0 ] || fail "namespaces and libvirtd need root"
    "$vagrant/provision.sh" --check vagrant libvirt || exit 125
    mkdir -p "$cache"
    # Held by everything that is started below.
    exec 8>"$cache/libvirt.lock"
    flock --nonblock 8 || fail "another one runs in this directory: its machines' disks are in $state"
    rm -rf "$state"
    mkdir -p "$state/lib" "$state/cover"
    # Here, where cargo reaches its registry.
    "$vagrant/vm-tests.sh" --build-only >/dev/null
    exec unshare --net --mount --pid --fork --kill-child --mount-proc \
        "$vagrant/libvirt-apart.sh" --inside "$@"
}

main "$@"
