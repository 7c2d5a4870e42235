//! What `ip route show table all` printed, as a section for each table.

use std::net::Ipv6Addr;

use super::{
    ip_json,
    route::is_more,
    section::{Section, routing_table},
};
use crate::netlink::object::Family;

/// The routes of one table in a section that shows those of all.
pub(super) struct OneTable<'a> {
    /// Which section it is of.
    of: usize,
    /// As the collector calls such a section, e.g. `ipv6_routing_table_100`.
    name: String,
    body: Vec<(usize, &'a str)>,
}

/// The tables of sections that show more than their own, but for those that have a section to themselves.
pub(super) fn parts<'a>(sections: &[Section<'a>]) -> Vec<OneTable<'a>> {
    let shows_all = |section: &Section<'_>| {
        section.divided
            && routing_table(section.name).is_some()
            && !ip_json::is_json(&section.body)
            && section
                .body
                .iter()
                .any(|(_, line)| table_of(line).is_some())
    };
    let has_own = |name: &str| {
        let mut others = sections.iter().filter(|other| !shows_all(other));
        others.any(|other| routing_table(other.name) == routing_table(name))
    };
    let all = sections.iter().enumerate();
    let all = all.filter(|(_, section)| shows_all(section));
    let mut parts: Vec<OneTable<'a>> = all.flat_map(|(of, section)| split(of, section)).collect();
    parts.retain(|part| !has_own(&part.name));
    parts
}

/// The sections, with parts in the place of those that show all tables.
pub(super) fn in_parts<'p>(
    sections: Vec<Section<'p>>,
    parts: &'p [OneTable<'p>],
) -> Vec<Section<'p>> {
    let all = sections.into_iter().enumerate();
    let divided = all.flat_map(|(at, section)| {
        let mut own = parts.iter().filter(|part| part.of == at).peekable();
        if own.peek().is_none() {
            return vec![section];
        }
        let mut behind = section.behind;
        let one = |part: &'p OneTable<'p>| Section {
            name: &part.name,
            // Sections are told apart by their lines.
            line: part.body.first().map_or(section.line, |(line, _)| *line),
            body: part.body.clone(),
            behind: behind.take(),
            ..section.clone()
        };
        own.map(one).collect()
    });
    divided.collect()
}

fn split<'a>(of: usize, section: &Section<'a>) -> Vec<OneTable<'a>> {
    let mut family = routing_table(section.name).map_or(Family::V4, |(family, _)| family);
    let name = |family: Family, table: &str| match family {
        Family::V4 => format!("routing_table_{table}"),
        Family::V6 => format!("ipv6_routing_table_{table}"),
    };
    let table = |name: String| OneTable {
        of,
        name,
        body: Vec::new(),
    };
    // Table main is needed, even where it is empty.
    let mut parts = vec![table(name(family, "main"))];
    let mut at = 0;
    for (line, text) in &section.body {
        // Next hops of a route stand on lines of their own.
        if !(text.starts_with([' ', '\t']) && is_more(text)) {
            // The kernel lists the families one after the other.
            if is_ipv6(text) {
                family = Family::V6;
            }
            let name = name(family, table_of(text).unwrap_or("main"));
            let known = parts.iter().position(|part| part.name == name);
            at = known.unwrap_or(parts.len());
            if known.is_none() {
                parts.push(table(name));
            }
        }
        if let Some(part) = parts.get_mut(at) {
            part.body.push((*line, text));
        }
    }
    parts
}

/// The table that a route is said to be of, which ip(8) does where it shows several.
fn table_of(line: &str) -> Option<&str> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let at = words
        .windows(2)
        .position(|pair| pair[1] == "table" && !["dev", "FIB"].contains(&pair[0]))?;
    words.get(at + 2).copied()
}

/// Whether a route is surely one of IPv6: `default` may be either.
fn is_ipv6(line: &str) -> bool {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let mut begin = words.iter().take(2);
    let address = |word: &str| {
        word.split('/')
            .next()
            .unwrap_or_default()
            .parse::<Ipv6Addr>()
    };
    let by_ipv6 = |pair: &[&str]| pair[0] == "via" && address(pair[1]).is_ok();
    begin.any(|word| address(word).is_ok())
        || words.contains(&"pref")
        || words.windows(2).any(by_ipv6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::facts::section::{sections, written};

    #[test]
    fn a_table_that_is_not_there_is_none_of_several() {
        let said = "Error: ipv4: FIB table does not exist.\nDump terminated\n";
        let text = written("routing_table_7", "ip route show table 7", said);
        assert!(parts(&sections("f", &text).unwrap()).is_empty());
    }

    #[test]
    fn tables_become_sections_of_their_own() {
        let listing = "default via 10.1.0.2 dev eth0 table 100 proto static\n\
            10.9.0.0/16 table isp \n\tnexthop via 10.1.0.2 dev eth0 weight 1\n\
            default dev table metric 5\n\
            10.8.0.0/16 via inet6 fe80::1 dev eth0\n\
            local 10.1.0.1 dev eth0 table local proto kernel scope host src 10.1.0.1\n\
            default dev wg0 table 100 metric 1024 pref medium\n\
            2001:db8::/64 dev eth0 proto kernel metric 256\n";
        let text = written("routing_table", "ip route show table all", listing)
            + &written("ipv6_routing_table_100", "ip -6 route show table 100", "");
        let whole = sections("f", &text).unwrap();
        let parts = parts(&whole);
        let found = in_parts(whole, &parts);
        let found: Vec<(&str, usize)> = found.iter().map(|s| (s.name, s.body.len())).collect();
        let want = [
            ("routing_table_main", 2),
            ("routing_table_100", 1),
            ("routing_table_isp", 2),
            ("routing_table_local", 1),
            ("ipv6_routing_table_main", 1),
            ("ipv6_routing_table_100", 0),
        ];
        assert_eq!(found, want);
    }
}
