#!/bin/sh
# From nothing to a verdict, as README.md and docs/facts.md tell: a router made by hand in a network
# namespace, with a firewall of nft alone; its facts; a lab; a question.
#
#   netns-fixtures/new-user.sh [options of tsim, such as --config FILE]
#
# Needs root, ip(8), nft(8), and tsim in PATH. Removes what it made.
set -eu

dir=$(mktemp -d)
clean() {
    tsim "$@" lab down by-hand >/dev/null 2>&1 || true
    ip netns delete by-hand-fw 2>/dev/null || true
    rm -r "$dir"
}
trap 'clean "$@"' EXIT

echo "== a router"
ip netns add by-hand-fw
ip -n by-hand-fw link set lo up
ip -n by-hand-fw link add lan type veth peer name lan-far
ip -n by-hand-fw link add wan type veth peer name wan-far
ip -n by-hand-fw address add 192.0.2.1/24 dev lan
ip -n by-hand-fw address add 198.51.100.1/24 dev wan
for link in lan lan-far wan wan-far; do
    ip -n by-hand-fw link set "$link" up
done
ip -n by-hand-fw route add default via 198.51.100.254
ip netns exec by-hand-fw sysctl -q -w net.ipv4.ip_forward=1
ip netns exec by-hand-fw nft -f - <<'END'
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "lan" oifname "wan" tcp dport { 80, 443 } accept
    }
}
END

echo "== its facts"
mkdir "$dir/facts"
tsim "$@" facts collect --netns by-hand-fw >"$dir/facts/fw_facts.txt"
tsim "$@" facts check "$dir/facts"

echo "== a lab"
tsim "$@" lab up by-hand --facts "$dir/facts"

echo "== a question"
code=0
tsim-quick "$@" --lab by-hand -s 192.0.2.10 -d 203.0.113.5 -P https,ssh || code=$?
# 1: at least one NO.
[ "$code" -eq 1 ]
