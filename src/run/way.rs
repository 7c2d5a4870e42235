//! A packet's way through one router by the kernel's own look-ups, in words.

use nix::errno::Errno;

use crate::netlink::{Lookup, LookupKind};

/// Why a way leads nowhere, in words; none when it leads somewhere.
#[must_use]
pub(crate) fn nowhere(lookup: &Lookup) -> Option<String> {
    let words = match lookup.kind {
        LookupKind::Unicast | LookupKind::Local => return None,
        LookupKind::Broadcast => "the destination is a broadcast address of the router",
        LookupKind::Multicast => "the destination is a multicast address",
        LookupKind::Blackhole => "a blackhole route or rule discards it",
        LookupKind::Unreachable => "an unreachable route or rule rejects it, or forwarding is off",
        LookupKind::Prohibit => "a prohibit route or rule rejects it",
        LookupKind::NoRoute => "no route to the destination",
        LookupKind::Refused => {
            "the source address is not accepted on the incoming interface (rp_filter, martian), \
             or a blackhole route discards it"
        }
    };
    Some(match lookup.errno {
        Some(errno) if errno != Errno::UnknownErrno => format!("{words} ({errno:?})"),
        _ => words.to_owned(),
    })
}
