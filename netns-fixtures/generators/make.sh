#!/bin/sh
# Makes rulesets with the generators that people use, and prints what is then in the kernel.
#
#   make.sh ferm | ufw | shorewall | firehol
#
# Needs root, and apt-get for Debian's packages. Nothing is installed: the packages are unpacked into
# a temporary directory, and what must load rules does so in a network namespace of its own, which
# goes with this script.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
case $1 in
    shorewall) packages="shorewall shorewall-core" ;;
    firehol) packages="firehol firehol-common" ;;
    *) packages=$1 ;;
esac
# shellcheck disable=SC2086
apt-get -qq download $packages 2>/dev/null
for package in ./*.deb; do
    dpkg -x "$package" root
done

ferm() {
    perl -I root/usr/share/perl5 root/usr/sbin/ferm --noexec --lines --remote "$here/office.ferm"
}

# ufw's own templates and functions, with the rules of `ufw route allow` in between.
ufw() {
    mkdir -p root/etc/ufw root/etc/default
    cp root/usr/share/ufw/iptables/*.rules root/etc/ufw/
    cp root/usr/share/ufw/ufw.conf root/etc/ufw/
    cat > root/etc/default/ufw <<'EOF'
IPV6=yes
DEFAULT_INPUT_POLICY="DROP"
DEFAULT_OUTPUT_POLICY="ACCEPT"
DEFAULT_FORWARD_POLICY="DROP"
DEFAULT_APPLICATION_POLICY="SKIP"
MANAGE_BUILTINS=no
IPT_SYSCTL=
IPT_MODULES=""
EOF
    PYTHONPATH="$work/root/usr/lib/python3/dist-packages"
    export PYTHONPATH work
    unshare --net sh -eu <<'EOF'
for rule in "route allow proto tcp to any port 80,443" "route allow to any port 53" \
    "route reject proto tcp to any port 25" "route deny from any to any port 23" \
    "limit 22/tcp" "allow 53/udp"; do
    python3 "$work/root/usr/sbin/ufw" --rootdir="$work/root" --datadir="$work/root" $rule >&2
done
set +eu
ip link set lo up
DATA_DIR="$work/root" ROOT_DIR="$work/root"
. "$work/root/lib/ufw/ufw-init-functions"
ENABLED=yes MANAGE_BUILTINS=no IPV6=yes IPT_MODULES= IPT_SYSCTL= DEFAULT_INPUT_POLICY=DROP
DEFAULT_OUTPUT_POLICY=ACCEPT DEFAULT_FORWARD_POLICY=DROP LOGLEVEL=low
RULES_PATH="$work/root/etc/ufw" USER_PATH="$work/root/etc/ufw"
ufw_start >&2
iptables-save
ip6tables-save
EOF
}

# Runs a command on a router of the case table's shape that sees the packages as if they were
# installed: they lie over the machine's own files, in a mount namespace of its own.
installed() {
    for old in lib sbin bin; do
        if [ -d "root/$old" ]; then
            mkdir -p "root/usr/$old"
            cp -a "root/$old/." "root/usr/$old/"
            rm -r "root/$old"
        fi
    done
    export work
    # shellcheck disable=SC2016
    unshare --net --mount sh -eu -c '
        mount -t tmpfs tmpfs /mnt
        mkdir /mnt/up /mnt/work /mnt/all
        cp -a "$work/root" /mnt/root
        mount -t overlay overlay -o lowerdir=/mnt/root:/,upperdir=/mnt/up,workdir=/mnt/work /mnt/all
        mount --bind /proc /mnt/all/proc
        mount --bind /dev /mnt/all/dev
        mount -t sysfs sysfs /mnt/all/sys
        ip link set lo up
        for name in in out alt; do
            ip link add "$name" type veth peer name "$name-far"
            ip link set "$name" up
            ip link set "$name-far" up
        done
        ip addr add 10.0.0.1/24 dev in
        ip addr add 10.9.0.1/24 dev out
        ip addr add 10.8.0.1/24 dev alt
        chroot /mnt/all sh -c "$1"' sh "$1"
}

shorewall() {
    mkdir -p root/etc/shorewall
    cp root/usr/share/shorewall/configfiles/shorewall.conf "$here"/shorewall/* root/etc/shorewall/
    installed 'mkdir -p /var/lib/shorewall && shorewall start >&2 && iptables-save'
}

# It takes the legacy variant where there is a choice, and asks whether the rules shall stay.
firehol() {
    cp "$here/office.firehol" root/etc/firehol/firehol.conf
    echo 'ENABLE_IPV6="0"' > root/etc/firehol/firehol-defaults.conf
    echo 'START_FIREHOL=YES' > root/etc/default/firehol
    installed 'cd / && echo commit | firehol start >&2 && iptables-legacy-save'
}

"$1"
