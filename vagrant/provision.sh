#!/bin/sh
# Installs the Debian packages that building and testing need.
#
#   vagrant/provision.sh [--check] SET…
#
# Sets: build  compile the crate (Rust itself is not among them)
#       run    what the tests drive and compare with
#       vm     virtual machines of vagrant/vm-tests.sh
#       box    vagrant/build-box.sh and the trixie userland
#       vagrant  Vagrant with its libvirt provider
#       libvirt  what vagrant/libvirt-apart.sh starts
#       lint   checks of the shell scripts
#       browser  headless Chromium for tests/browser
#       deb    tests/package.sh
#       node   Node.js and npm, where another source has not installed them
#
# --check installs nothing; it names what is missing and fails if there is any.
# Nothing missing is the usual case: one dpkg-query, no network, no root.
set -eu

packages_of() {
    case $1 in
        build) echo gcc libc6-dev pkg-config libmnl-dev libnftnl-dev ;;
        run) echo busybox-static dash fish iproute2 ipset iptables libxml2-utils lldpd mandoc nftables systemd zsh ;;
        vm) echo busybox-static cpio dash kmod qemu-system-x86 wireguard-tools xz-utils zstd ;;
        box) echo debootstrap e2fsprogs extlinux qemu-utils ;;
        vagrant) echo vagrant vagrant-libvirt ;;
        libvirt) echo dnsmasq-base libvirt-daemon libvirt-daemon-driver-qemu ;;
        lint) echo shellcheck ;;
        deb) echo binutils debootstrap git ;;
        node) echo nodejs npm ;;
        browser) echo chromium fonts-dejavu-core ;;
        *)
            echo "provision.sh: no set is named '$1': build, run, vm, box, vagrant, libvirt, lint, browser, deb, node" >&2
            return 2
            ;;
    esac
}

installed() {
    # dpkg-query fails for each unknown name; what it does know it still prints.
    dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' "$@" 2>/dev/null |
        sed -n 's/^installed //p' || true
}

missing_of() {
    present=" $(installed "$@" | tr '\n' ' ') "
    for package in "$@"; do
        case $present in
            *" $package "*) ;;
            *) echo "$package" ;;
        esac
    done
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get --quiet=2 --option DPkg::Lock::Timeout=300 "$@" >&2
}

# A package from elsewhere (backports, say) may stand in the way; apt then
# removes it. That is said before it happens.
announce_removals() {
    apt-get --simulate install --no-install-recommends "$@" 2>/dev/null |
        sed -n 's/^Remv \([^ ]*\).*/provision.sh: apt removes \1, which conflicts/p' >&2
}

install() {
    # The lists may be older than what the mirror still carries: fetch them first.
    apt update
    announce_removals "$@"
    apt install --no-install-recommends --yes "$@"
}

main() {
    check=false
    if [ "${1-}" = --check ]; then
        check=true
        shift
    fi
    if [ $# -eq 0 ]; then
        echo "usage: provision.sh [--check] SET…   (build, run, vm, box, vagrant, libvirt, lint, browser, node)" >&2
        return 2
    fi
    wanted=
    for set in "$@"; do
        packages=$(packages_of "$set")
        wanted="$wanted $packages"
    done
    # shellcheck disable=SC2086 # package names hold no blanks
    missing=$(missing_of $wanted | sort -u)
    if [ -z "$missing" ]; then
        return 0
    fi
    if $check; then
        echo "provision.sh: missing packages: $(echo "$missing" | tr "\n" " ")" >&2
        return 1
    fi
    # shellcheck disable=SC2086
    install $missing
}

main "$@"
