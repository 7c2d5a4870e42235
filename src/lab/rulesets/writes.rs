//! What rules of nft(8) write into IP's header and this machine's kernel lets no rule write.
//!
//! On Linux 7.2 `ip6 flowlabel set 0` loads as on every other kernel, and for each packet the rule ends there as
//! if it did not match: so do writes of `ip6 ecn`, `ip6 length`, `ip6 nexthdr`, `ip length` and `ip frag-off`.
//! The kernel of the router that the facts are of may let it, and nothing but a packet shows whether this one
//! does. So one is sent for each such part of a header, in a namespace of its own.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    sync::{Mutex, PoisonError},
};

use super::{Loaders, Trial, shut_in};
use crate::{
    lab::topology::RulesetKind,
    model::IfName,
    netlink::{LinkChange, Netlink, object::Family},
    netns,
};

/// What every kernel lets rules write.
const ALWAYS: [&str; 5] = ["saddr", "daddr", "ttl", "hoplimit", "dscp"];
/// The discard service: nobody has to listen, since the packet is never sent.
const PORT: u16 = 9;

/// What was found out, by the words of nft(8): no kernel changes.
static KNOWN: Mutex<BTreeMap<String, bool>> = Mutex::new(BTreeMap::new());

/// The part of IP's header that a rule writes and this kernel does not let it; none where it lets all of them.
pub(super) fn refused_write(rule: &str, loaders: &Loaders) -> Option<String> {
    written(rule).find(|part| !is_let(part, loaders))
}

/// The parts of IP's header that a rule writes, as far as not every kernel lets it: `ip6 flowlabel`.
fn written(rule: &str) -> impl Iterator<Item = String> {
    let outside = rule.split('"').step_by(2);
    let words: Vec<&str> = match rule.contains(" set ") {
        true => outside.flat_map(str::split_whitespace).collect(),
        false => Vec::new(),
    };
    let sets = (0..words.len()).filter(|at| words.get(*at) == Some(&"set"));
    let parts = sets.filter_map(|at| match *words.get(..at)? {
        [.., raw] if raw.starts_with("@nh,") => Some(raw.to_owned()),
        [.., header @ ("ip" | "ip6"), field] if !ALWAYS.contains(&field) => {
            Some(format!("{header} {field}"))
        }
        _ => None,
    });
    // These words come from facts, and go into a rule.
    let plain = |c: char| c.is_ascii_alphanumeric() || "@,- ".contains(c);
    let parts: Vec<String> = parts.filter(|part| part.chars().all(plain)).collect();
    parts.into_iter()
}

/// Whether this kernel lets rules write `part`, in all families that have it. What cannot be tried counts as let.
fn is_let(part: &str, loaders: &Loaders) -> bool {
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = known().get(part) {
        return *found;
    }
    let families = match part.split(' ').next() {
        Some("ip") => &[Family::V4][..],
        Some("ip6") => &[Family::V6],
        _ => &[Family::V4, Family::V6],
    };
    let found = families
        .iter()
        .all(|family| try_out(part, *family, loaders) != Some(false));
    known().insert(part.to_owned(), found);
    found
}

/// Whether a rule that writes `part` goes on behind that; none where that could not be seen.
fn try_out(part: &str, family: Family, loaders: &Loaders) -> Option<bool> {
    let sent = || shut_in(loaders.dirs(), || send_one(part, family, loaders));
    netns::in_scratch(sent).ok()?.ok()?
}

/// Sends a packet that such a rule drops, which `sendto` is told of, unless the rule ends before.
fn send_one(part: &str, family: Family, loaders: &Loaders) -> Option<bool> {
    let (table, itself): (_, IpAddr) = match family {
        Family::V4 => ("ip", Ipv4Addr::LOCALHOST.into()),
        Family::V6 => ("ip6", Ipv6Addr::LOCALHOST.into()),
    };
    let mut netlink = Netlink::open_here("of the trial").ok()?;
    let mut batch = netlink.batch("trial");
    batch.set_link(&IfName::new("lo").ok()?, &LinkChange::up());
    batch.send().ok()?;
    let rules = format!(
        "table {table} trial {{\n\tchain trial {{\n\t\ttype filter hook output priority 0;\n\
         \t\tudp dport {PORT} {part} set 0 drop\n\t}}\n}}\n"
    );
    let loaded = loaders.run(RulesetKind::Nft, &rules, Trial::Load).ok()?;
    loaded.ok()?;
    let socket = UdpSocket::bind((itself, 0)).ok()?;
    match socket.send_to(&[0], (itself, PORT)) {
        Ok(_) => Some(false),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Some(true),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_headers_that_rules_write_are_found() {
        for (rule, parts) in [
            ("tcp dport 80 ip6 flowlabel set 0", &["ip6 flowlabel"][..]),
            (
                "ip frag-off set 0 ip ecn set ce accept",
                &["ip frag-off", "ip ecn"],
            ),
            ("@nh,12,20 set 5 drop", &["@nh,12,20"]),
            ("ip dscp set ef ip ttl set 9 ip6 hoplimit set 3", &[]),
            ("ip saddr set 10.0.0.1 meta mark set 1", &[]),
            ("log prefix \"ip6 flowlabel set \" accept", &[]),
            ("ip6 flow;label set 0", &[]),
            ("ip6 flowlabel 0 drop", &[]),
        ] {
            assert_eq!(written(rule).collect::<Vec<_>>(), parts, "{rule}");
        }
    }
}
