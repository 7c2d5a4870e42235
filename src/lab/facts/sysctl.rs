//! Sysctls in facts: how they are written, which of them a lab takes over, and the defaults.

/// What every router of a lab starts with, unless its facts say otherwise. The machine's own
/// settings never leak in.
///
/// `rp_filter` is off because facts without sysctls do not tell, and a filter that the real
/// router lacks would turn YES into NO.
pub(super) const DEFAULTS: [(&str, &str); 4] = [
    // First: the kernel resets other settings when these change.
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
];

/// Per-namespace settings outside of `conf/` that decide where a packet goes.
const SINGLE: [&str; 18] = [
    "net/ipv4/ip_forward",
    "net/ipv4/ip_default_ttl",
    "net/ipv4/ip_nonlocal_bind",
    "net/ipv4/ip_forward_use_pmtu",
    "net/ipv4/ip_forward_update_priority",
    "net/ipv4/fib_multipath_hash_policy",
    "net/ipv4/fib_multipath_use_neigh",
    "net/ipv4/fwmark_reflect",
    "net/ipv4/tcp_fwmark_accept",
    "net/ipv6/fib_multipath_hash_policy",
    "net/ipv6/fwmark_reflect",
    "net/ipv6/ip_nonlocal_bind",
    "net/ipv4/icmp_echo_ignore_all",
    "net/ipv6/icmp/echo_ignore_all",
    "net/netfilter/nf_conntrack_tcp_loose",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/netfilter/nf_conntrack_checksum",
    "net/netfilter/nf_conntrack_helper",
];

/// The same per interface, below `net/ipv4/conf/*/` and `net/ipv6/conf/*/`.
///
/// Not `mc_forwarding`, although `sysctl -a` prints it: it is read-only, since only the socket of
/// a multicast routing daemon sets it, and no verdict is given about multicast.
const PER_INTERFACE: [&str; 21] = [
    "forwarding",
    "force_forwarding",
    "rp_filter",
    "src_valid_mark",
    "accept_local",
    "accept_redirects",
    "accept_source_route",
    "secure_redirects",
    "send_redirects",
    "shared_media",
    "route_localnet",
    "arp_ignore",
    "arp_announce",
    "arp_filter",
    "proxy_arp",
    "proxy_arp_pvlan",
    "proxy_ndp",
    "bc_forwarding",
    "disable_policy",
    "ignore_routes_with_linkdown",
    "mtu",
];

/// These say nothing: IPv6 takes the MTU of a new interface from its link.
const MTU_OF_NONE: [&str; 2] = ["net/ipv6/conf/all/mtu", "net/ipv6/conf/default/mtu"];

/// Reads `net.ipv4.conf.eth0/100.rp_filter = 1` as sysctl(8) prints it into a path below
/// /proc/sys and a value.
pub(super) fn parse(line: &str) -> Option<(String, String)> {
    let (key, value) = line.split_once('=')?;
    let (key, value) = (key.trim(), value.trim());
    let key = key.strip_prefix("/proc/sys/").unwrap_or(key);
    if key.is_empty() || key.contains([' ', '\t']) {
        return None;
    }
    // sysctl(8) swaps `.` and `/`, so that interface names may hold dots.
    let swapped = if key.split(['.', '/']).count() > 1 && !key.starts_with("net/") {
        key.chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect()
    } else {
        key.to_owned()
    };
    Some((swapped, value.to_owned()))
}

/// Whether a lab takes the setting over: it decides what a router does with a packet, belongs to
/// a namespace, and cannot reach outside of /proc/sys/net.
pub(super) fn matters(path: &str) -> bool {
    let mut parts = path.split('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("net"), Some("ipv4" | "ipv6"), Some("conf")) => {
            let (interface, key) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
            crate::model::IfName::new(interface).is_ok()
                && PER_INTERFACE.contains(&key)
                && !MTU_OF_NONE.contains(&path)
                && parts.next().is_none()
        }
        _ => SINGLE.contains(&path),
    }
}

/// Whether a line that cannot be read is about a setting that a lab takes over.
pub(super) fn names_one(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    if MTU_OF_NONE.iter().any(|path| line.contains(path)) {
        return false;
    }
    let mut words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let single = |word: &str| {
        SINGLE
            .iter()
            .any(|path| path.rsplit('/').next() == Some(word))
    };
    words.any(|word| PER_INTERFACE.contains(&word) || single(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_paths() {
        let read = |line| parse(line).map(|(key, _)| key);
        assert_eq!(
            read("net.ipv4.conf.eth0/100.rp_filter = 1").unwrap(),
            "net/ipv4/conf/eth0.100/rp_filter"
        );
        assert_eq!(
            read("net/ipv4/ip_forward=1").unwrap(),
            "net/ipv4/ip_forward"
        );
        assert_eq!(
            read("/proc/sys/net/ipv4/conf/eth0/forwarding = 0").unwrap(),
            "net/ipv4/conf/eth0/forwarding"
        );
        assert_eq!(read("no value"), None);
        assert_eq!(read(" = 1"), None);
    }

    #[test]
    fn only_what_decides_about_packets_is_taken_over() {
        for yes in [
            "net/ipv4/ip_forward",
            "net/ipv6/conf/eth0.100/forwarding",
            "net/ipv6/conf/eth0/mtu",
        ] {
            assert!(matters(yes), "{yes}");
        }
        for no in [
            "kernel/core_pattern",
            "net/ipv4/conf/../../../kernel/core_pattern",
            "net/ipv4/conf/eth0/rp_filter/x",
            "net/ipv4/conf/all/mc_forwarding",
            "net/ipv6/conf/default/mtu",
            "net/ipv4/tcp_rmem",
            "net/core/somaxconn",
        ] {
            assert!(!matters(no), "{no}");
        }
    }
}
