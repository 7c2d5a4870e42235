//! What the ip(8) of BusyBox does not print of routes. The collector notes that it was that one.
//!
//! It prints no TOS, and no gateway of the other family. Asked for one table of IPv6 it prints the routes of
//! all of them as those of main, and none of any other; the collector asks for all tables therefore, and
//! says so by the name of its function.

use super::section::{Section, routing_table};
use crate::{
    lab::omission::{Omission, OmissionKind},
    netlink::object::Family,
};

/// What the collector adds where `/proc/net/fib_trie` has routes with a TOS.
pub(super) const TOS: &str = "# some routes have a TOS";

/// Why a route cannot be made.
pub(super) const NO_GATEWAY: &str = "ip(8) of BusyBox prints no gateway of IPv6";

fn is_of_busybox(section: &Section<'_>) -> bool {
    section.command.contains("BusyBox")
}

/// Whether a route of IPv4 has a gateway that is not printed: who is on the link itself is reached by a route
/// of scope link.
pub(super) fn hides_gateway(section: &Section<'_>, route: &str) -> bool {
    let words: Vec<&str> = route.split_whitespace().collect();
    let has = |word: &str| words.contains(&word);
    let begins_with_net = words
        .first()
        .is_some_and(|word| *word == "default" || word.starts_with(|c: char| c.is_ascii_digit()));
    is_of_busybox(section) && begins_with_net && has("dev") && !has("via") && !has("scope")
}

/// What cannot be told of the routes, with the line and the packets that it can concern.
pub(super) fn doubts(sections: &[Section<'_>]) -> Vec<(usize, String, Omission)> {
    let mut found = Vec::new();
    let tables = || {
        sections
            .iter()
            .filter_map(|s| Some((s, routing_table(s.name)?)))
    };
    for (section, (family, table)) in tables() {
        let tos = section.body.iter().find(|(_, line)| *line == TOS);
        if let Some((line, _)) = tos.filter(|_| table == "main") {
            let message = "there are routes by TOS, which ip(8) of BusyBox prints like others";
            let omission = Omission::of_family(OmissionKind::Route, family);
            found.push((*line, message.to_owned(), omission));
        }
        let usual = ["main", "local", "default", "254", "255", "253"];
        let others = || tables().any(|(_, (of, name))| of == Family::V6 && !usual.contains(&name));
        let told_apart = section.command.starts_with("routes_of_busybox");
        if (family, table) == (Family::V6, "main")
            && is_of_busybox(section)
            && !told_apart
            && others()
        {
            let message = "ip(8) of BusyBox prints routes of all tables of IPv6 here";
            let omission = Omission::of_family(OmissionKind::Route, family);
            found.push((section.line, message.to_owned(), omission));
        }
    }
    found
}
