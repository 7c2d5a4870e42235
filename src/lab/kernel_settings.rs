//! The settings that every namespace of a lab starts with. A new namespace inherits some from the
//! machine (`net.core.devconf_inherit_init_net`), and none of them may leak into a verdict.

/// For routers, below the facts' own: what Linux has by default, written out, and what a lab
/// needs. `all` and `default` come before any interface, which takes its values from `default`.
pub(super) const ROUTER: [(&str, &str); 39] = [
    // Linux' own defaults, Documentation/networking/ip-sysctl.rst.
    ("net/ipv4/conf/all/accept_local", "0"),
    ("net/ipv4/conf/default/accept_local", "0"),
    ("net/ipv4/conf/all/accept_source_route", "0"),
    ("net/ipv4/conf/default/accept_source_route", "0"),
    ("net/ipv4/conf/all/arp_announce", "0"),
    ("net/ipv4/conf/default/arp_announce", "0"),
    ("net/ipv4/conf/all/arp_filter", "0"),
    ("net/ipv4/conf/default/arp_filter", "0"),
    ("net/ipv4/conf/all/arp_ignore", "0"),
    ("net/ipv4/conf/default/arp_ignore", "0"),
    ("net/ipv4/conf/all/log_martians", "0"),
    ("net/ipv4/conf/default/log_martians", "0"),
    ("net/ipv4/conf/all/proxy_arp", "0"),
    ("net/ipv4/conf/default/proxy_arp", "0"),
    ("net/ipv4/conf/all/route_localnet", "0"),
    ("net/ipv4/conf/default/route_localnet", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "1"),
    ("net/ipv4/conf/default/send_redirects", "1"),
    ("net/ipv4/conf/all/src_valid_mark", "0"),
    ("net/ipv4/conf/default/src_valid_mark", "0"),
    ("net/ipv4/conf/all/ignore_routes_with_linkdown", "0"),
    ("net/ipv4/conf/default/ignore_routes_with_linkdown", "0"),
    ("net/ipv6/conf/default/force_forwarding", "0"),
    // A router believes its routing tables, not its neighbours.
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/default/accept_redirects", "0"),
    ("net/ipv6/conf/all/accept_redirects", "0"),
    ("net/ipv6/conf/default/accept_redirects", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    // IPv6 is on, and has the addresses of the facts, at once, and no others.
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/autoconf", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    // IN6_ADDR_GEN_MODE_NONE, linux/if_link.h.
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ("net/ipv6/conf/default/keep_addr_on_down", "0"),
];

/// Whether the setting is forwarding itself: the kernel resets others when it changes.
pub(super) fn comes_first(key: &str) -> bool {
    key.ends_with("/ip_forward") || key.ends_with("/forwarding")
}

/// For the namespace of segments: it switches frames and has no addresses.
pub(super) const SEGMENTS: [(&str, &str); 3] = [
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    ("net/ipv4/ip_forward", "0"),
];

/// There only where the module br_netfilter is loaded: frames on a bridge pass no ruleset.
pub(super) const BRIDGE_NETFILTER: [(&str, &str); 3] = [
    ("net/bridge/bridge-nf-call-iptables", "0"),
    ("net/bridge/bridge-nf-call-ip6tables", "0"),
    ("net/bridge/bridge-nf-call-arptables", "0"),
];
