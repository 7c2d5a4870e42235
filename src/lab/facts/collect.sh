#!/bin/sh
# Collects what tsim needs to rebuild this router as a network namespace.
#
#   ssh router sh -s < collect.sh > router_facts.txt
#   sh collect.sh NAME > NAME_facts.txt     where the host's name is not the router's
#
# It only reads, needs root to see firewall rules, and writes to standard output. It asks for no
# keys or passwords: wg(8) hides private keys by itself, IPsec states (which hold keys) are not
# asked for, and of the sysctls only those that decide about packets are taken.

PATH=$PATH:/sbin:/usr/sbin:/usr/local/sbin
LC_ALL=C
export PATH LC_ALL

[ "$(id -u 2>/dev/null)" = 0 ] ||
    echo 'not root: firewall rules and more cannot be read, which makes verdicts UNKNOWN; run this by sudo' >&2

# The ip(8) of busybox leaves out much of policy rules and routes: that it was this one is noted.
of='' routes=routes
case $(ip -V 2>&1) in *[Bb]usy[Bb]ox*) of=' (BusyBox)' routes=routes_of_busybox ;; esac

# section NAME COMMAND...: one section with what the command printed.
section() {
    name=$1
    shift
    printf '=== TSIM_SECTION_START:%s ===\n' "$name"
    printf 'TITLE: %s\nCOMMAND: %s%s\nTIMESTAMP: %s\n---\n' "$name" "$*" "$of" "$(date '+%Y-%m-%d %H:%M:%S')"
    "$@" 2>/dev/null
    code=$?
    printf '\nEXIT_CODE: %s\n=== TSIM_SECTION_END:%s ===\n\n' "$code" "$name"
}

# optional NAME COMMAND...: the same, where there is such a command.
optional() {
    command -v "$2" >/dev/null 2>&1 && section "$@"
}

# What sysctl(8) of procps prints, also where it is not installed: a name has dots for slashes, and slashes for
# the dots of an interface.
settings() {
    if command -v sysctl >/dev/null 2>&1; then
        sysctl -a 2>/dev/null
        return
    fi
    find /proc/sys/net/bridge /proc/sys/net/ipv4 /proc/sys/net/ipv6 /proc/sys/net/netfilter -type f 2>/dev/null |
        while IFS= read -r file; do
            read -r value <"$file" && printf '%s = %s\n' "${file#/proc/sys/}" "$value"
        done 2>/dev/null | sed -e 'h; s/ = .*//; y#./#/.#; G; s/\n[^=]*=/ =/'
}

sysctls() {
    settings | grep -E '^net\.(bridge|ipv4|ipv6|netfilter)\.' | grep -v -e secret -e _key
}

table_names() {
    cat /etc/iproute2/rt_tables /etc/iproute2/rt_tables.d/*.conf /usr/share/iproute2/rt_tables
    return 0
}

# Tables that have routes, and those that rules lead to.
tables() {
    {
        ip route show table all
        ip -6 route show table all
        ip rule show
        ip -6 rule show
    } 2>/dev/null |
        sed -n -e 's/.* table \([^ ]*\).*/\1/p' -e 's/.* lookup \([^ ]*\).*/\1/p' | sort -u
}

# What tc(8) does with the packets of each interface as they come in and leave, by its hooks and by the
# filters of its queues, and what these queues are.
tc_filters() {
    for dev in $(ip -o link show | sed -n 's/^[0-9]*: \([^:@]*\)[:@].*/\1/p'); do
        for hook in ingress egress; do
            tc filter show dev "$dev" "$hook" 2>/dev/null | sed "s/^/$dev $hook: /"
        done
        queues=$(tc qdisc show dev "$dev" 2>/dev/null)
        for queue in $(printf '%s\n' "$queues" | sed -n 's/^qdisc [^ ]* \([0-9a-f]*:\).*/\1/p'); do
            case $queue in
                0: | ffff:) ;;
                *) tc filter show dev "$dev" parent "$queue" 2>/dev/null | sed "s/^/$dev queue $queue /" ;;
            esac
        done
        printf '%s\n' "$queues" | sed -n "s/^qdisc /$dev qdisc: /p"
    done
    return 0
}

# What tells whether the kernel has a time zone of its own: who starts the machine gives it the local one,
# but for systemd, which does so only where the hardware's clock has local time.
clock() {
    (unset TZ && date '+zone %Z')
    [ -d /run/systemd/system ] && echo 'started by systemd'
    sed -n 's/^\(LOCAL\|UTC\)$/hardware clock \1/p' /etc/adjtime 2>/dev/null
    return 0
}

# An ip(8) without details, such as that of busybox, tells less.
links() {
    ip -d link show 2>/dev/null || ip link show
}

# routes FAMILY TABLE: says so where the family has no such table.
routes() {
    ip "$1" -o route show table "$2" 2>&1
}

# The same where ip(8) is that of busybox, which prints no TOS of routes, and those of all tables of IPv6 as
# routes of main, unless it is asked for all tables.
routes_of_busybox() {
    case $1$2 in
        -6main) ip -6 route show table all 2>&1 | sed '/ table /d' ;;
        -6*) ip -6 route show table all 2>&1 | sed -n "s/ table $2 / /p" ;;
        *)
            ip "$1" -o route show table "$2" 2>&1
            grep -q ' tos=' /proc/net/fib_trie 2>/dev/null && echo '# some routes have a TOS'
            ;;
    esac
    return 0
}

printf '# Traceroute Simulator Facts Collection\n# Hostname: %s\n# Ends with TSIM_FACTS_COLLECTION_COMPLETE\n\n' \
    "${1:-$(uname -n)}"

section interfaces ip addr show
section links links
section rt_tables table_names
section policy_rules ip rule show
section ipv6_policy_rules ip -6 rule show
section routing_table_main "$routes" -4 main
section ipv6_routing_table_main "$routes" -6 main
for table in $(tables); do
    case $table in
        main | *[!A-Za-z0-9_.-]*) ;;
        *)
            section "routing_table_$table" "$routes" -4 "$table"
            section "ipv6_routing_table_$table" "$routes" -6 "$table"
            ;;
    esac
done
# Next hops that routes have by number; an older ip(8) has no such word.
ip nexthop show >/dev/null 2>&1 && section nexthops ip nexthop show
section ip_forwarding cat /proc/sys/net/ipv4/ip_forward
[ -r /proc/sys/net/ipv6/conf/all/forwarding ] &&
    section ipv6_forwarding cat /proc/sys/net/ipv6/conf/all/forwarding
section sysctl sysctls

# iptables-save of nf_tables says on standard error that there are tables of the other variant, too:
# that is kept, for where these cannot be listed.
with_errors() {
    "$@" 2>&1
}

for six in '' 6; do
    save=ip${six}tables-save
    command -v "$save" >/dev/null 2>&1 && section "ip${six}tables_save" with_errors "$save"
    # Files of /proc have no size.
    if grep -q . "/proc/net/ip${six}_tables_names" 2>/dev/null; then
        case $("$save" --version 2>/dev/null) in
            *nf_tables*) optional "ip${six}tables_legacy_save" "ip${six}tables-legacy-save" ;;
        esac
    fi
done
optional ipset_save ipset save
# nft(8) prints hours and dates in the time zone of who asks. With -s it tells not when elements of sets expire,
# which would happen in a lab, and not how much of a quota is used, which decides.
case $(nft -s list ruleset 2>/dev/null) in
    *quota*) section nft_ruleset env TZ=UTC0 nft list ruleset ;;
    *) command -v nft >/dev/null 2>&1 && section nft_ruleset env TZ=UTC0 nft -s list ruleset ;;
esac
section clock clock
# Whether nf_tables is there at all, for where no nft(8) is.
[ -s /proc/modules ] && section loaded_modules cut -d ' ' -f 1 /proc/modules
optional bridge_vlan bridge vlan show
optional bridge_fdb bridge fdb show
optional ebtables_save ebtables-save
command -v tc >/dev/null 2>&1 && section tc_filters tc_filters
# Programs that hang on interfaces and hooks by links of BPF, of which tc(8) and nft(8) show nothing.
bpftool net show >/dev/null 2>&1 && section bpftool_net bpftool net show
optional ipvs ipvsadm -Sn
# The ip(8) of busybox knows nothing of IPsec.
ip xfrm policy >/dev/null 2>&1 && section xfrm_policy ip xfrm policy
ip xfrm policy getdefault >/dev/null 2>&1 && section xfrm_default ip xfrm policy getdefault
optional wireguard wg show
section neighbours ip neigh show
# Without its daemon lldpctl(8) tells nothing.
lldpctl >/dev/null 2>&1 && section lldp lldpctl -f keyvalue
ip neigh show proxy >/dev/null 2>&1 && section neighbour_proxies ip neigh show proxy

printf '=== TSIM_FACTS_COLLECTION_COMPLETE ===\n'
