#!/bin/sh
# Makes rulesets with the generators that people use, and prints what is then in the kernel.
#
#   make.sh ferm | ufw        (Debian's packages; needs root, and apt-get for the packages)
#
# Nothing is installed: the packages are unpacked into a temporary directory, and what must load
# rules does so in a network namespace of its own, which goes with this script.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download "$1" 2>/dev/null
dpkg -x ./*.deb root

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

"$1"
