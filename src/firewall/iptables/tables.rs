//! What ip_tables and ip6_tables hold, as bytes that are the same as long as their rules are.

use std::{fs, io};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::{firewall::nft::wire::array, netlink::object::Family, sys::xtables};

/// Where things are in `struct ipt_entry` and `struct ip6t_entry`: behind what a rule asks of
/// addresses, interfaces and protocol. Counters are two numbers of 64 bits.
struct Layout {
    next: usize,
    counters: usize,
}

const V4: Layout = Layout {
    next: 90,
    counters: 96,
};
const V6: Layout = Layout {
    next: 142,
    counters: 152,
};

/// The entries of every table that the calling thread's namespace has, without counters; none where
/// one changed meanwhile, or is not understood. A table that nobody used is not made by asking.
///
/// # Errors
/// When a table cannot be read.
pub(in crate::firewall) fn held_here(family: Family) -> io::Result<Option<Vec<u8>>> {
    let mut held = Vec::new();
    let whole = pieces_here(family, |piece| held.extend_from_slice(piece))?;
    Ok(whole.then_some(held))
}

/// The same piece by piece, since a large table has megabytes; false where it is none.
///
/// # Errors
/// As [`held_here`].
pub(in crate::firewall) fn pieces_here(
    family: Family,
    mut take: impl FnMut(&[u8]),
) -> io::Result<bool> {
    let (names, domain, layout) = match family {
        Family::V4 => (
            "/proc/thread-self/net/ip_tables_names",
            AddressFamily::Inet,
            V4,
        ),
        Family::V6 => (
            "/proc/thread-self/net/ip6_tables_names",
            AddressFamily::Inet6,
            V6,
        ),
    };
    let names = fs::read_to_string(names)?;
    let raw = socket(
        domain,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Raw,
    )?;
    for name in names.lines() {
        let Some(mut entries) = xtables::entries(&raw, family == Family::V6, name)? else {
            return Ok(false);
        };
        let entries = entries.bytes();
        if !clear_counters(entries, &layout) {
            return Ok(false);
        }
        take(name.as_bytes());
        take(&[0]);
        take(&(entries.len() as u64).to_ne_bytes());
        take(entries);
    }
    Ok(true)
}

/// Sets the counters of all entries to 0; false where the entries do not follow each other.
fn clear_counters(entries: &mut [u8], layout: &Layout) -> bool {
    let mut at = 0;
    while at < entries.len() {
        let Some(next) = array(entries, at + layout.next).map(u16::from_ne_bytes) else {
            return false;
        };
        let Some(counters) = entries.get_mut(at + layout.counters..at + layout.counters + 16)
        else {
            return false;
        };
        counters.fill(0);
        if usize::from(next) < layout.counters + 16 {
            return false;
        }
        at += usize::from(next);
    }
    at == entries.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(next: u16, counter: u8) -> Vec<u8> {
        let mut entry = vec![7; usize::from(next)];
        entry[90..92].copy_from_slice(&next.to_ne_bytes());
        entry[96..112].fill(counter);
        entry
    }

    #[test]
    fn only_counters_are_cleared_and_torn_entries_refused() {
        let mut entries = [entry(152, 9), entry(112, 8)].concat();
        assert!(clear_counters(&mut entries, &V4));
        assert_eq!(entries, [entry(152, 0), entry(112, 0)].concat());
        for mut torn in [
            entry(152, 9)[..150].to_vec(),
            [entry(152, 1), vec![7; 8]].concat(),
        ] {
            assert!(!clear_counters(&mut torn, &V4));
        }
        let mut endless = entry(152, 9);
        endless[90..92].fill(0);
        assert!(!clear_counters(&mut endless, &V4));
    }
}
