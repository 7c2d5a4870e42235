//! `ip nexthop show`: next hops that routes refer to by number (`nhid 7`).
//!
//! ip(8) shows them with the routes, too, unless the kernel's `nexthop_compat_mode` is off: then a
//! route is `10.8.0.0/16 nhid 7` and no more.

use std::collections::BTreeMap;

use super::section::Section;

/// What stands for a next hop in a route, by its number.
#[derive(Debug, Default)]
pub(super) struct NextHops(BTreeMap<u32, Hop>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hop {
    /// `via 10.0.0.2 dev eth0`
    One(String),
    /// Numbers with their weights.
    Group(Vec<(u32, u32)>),
    /// Packets are dropped.
    Blackhole,
}

/// The section's name.
pub(super) const SECTION: &str = "nexthops";

/// Reads `id 7 via 10.0.0.2 dev eth0 scope link`, `id 9 group 7,3/8`, `id 5 blackhole`. What is not
/// understood is not there, and routes that need it are left out.
pub(super) fn read(sections: &[Section<'_>]) -> NextHops {
    let usable = |s: &&Section<'_>| s.name == SECTION && s.exit_code.unwrap_or(0) == 0;
    let bodies = sections
        .iter()
        .filter(usable)
        .flat_map(|section| &section.body);
    NextHops(bodies.filter_map(|(_, line)| hop(line)).collect())
}

fn hop(line: &str) -> Option<(u32, Hop)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let behind = |key: &str| {
        let at = words.iter().position(|word| *word == key)?;
        words.get(at + 1).copied()
    };
    let id = behind("id")?.parse().ok()?;
    if words.contains(&"encap") || words.contains(&"fdb") {
        return None;
    }
    if words.contains(&"blackhole") {
        return Some((id, Hop::Blackhole));
    }
    if let Some(group) = behind("group") {
        let member = |text: &str| {
            let (id, weight) = text.split_once(',').unwrap_or((text, "1"));
            Some((id.parse().ok()?, weight.parse().ok()?))
        };
        let members: Option<Vec<_>> = group.split('/').map(member).collect();
        return Some((id, Hop::Group(members?)));
    }
    let mut text = Vec::new();
    if let Some(via) = behind("via") {
        let (family, via) = match via {
            "inet6" | "inet" => (Some(via), behind(via)?),
            _ => (None, via),
        };
        text.push("via");
        text.extend(family);
        text.push(via);
    }
    text.extend(["dev", behind("dev")?]);
    let flags = ["onlink", "dead", "linkdown"];
    text.extend(flags.iter().filter(|flag| words.contains(flag)));
    Some((id, Hop::One(text.join(" "))))
}

impl NextHops {
    /// The route with the next hops that its number stands for; as it is where it has its own, or the
    /// number stands for nothing that is known.
    pub(super) fn filled(&self, route: &str) -> String {
        self.fill(route).unwrap_or_else(|| route.to_owned())
    }

    fn fill(&self, route: &str) -> Option<String> {
        let words: Vec<&str> = route.split_whitespace().collect();
        let own = ["via", "dev", "nexthop"];
        if words.iter().any(|word| own.contains(word)) {
            return None;
        }
        let at = words.iter().position(|word| *word == "nhid")?;
        let number = words.get(at + 1)?.parse().ok()?;
        let rest = [&words[..at], &words[at + 2..]].concat().join(" ");
        Some(match self.0.get(&number)? {
            Hop::One(hop) => format!("{rest} {hop}"),
            Hop::Blackhole => format!("blackhole {rest}"),
            Hop::Group(members) => {
                let mut text = rest;
                for (id, weight) in members {
                    let Hop::One(hop) = self.0.get(id)? else {
                        return None;
                    };
                    text += &format!(" nexthop {hop} weight {weight}");
                }
                text
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_for_its_next_hops() {
        let hops = [
            "id 7 via 10.0.0.2 dev e0 scope link proto zebra",
            "id 8 via inet6 fe80::1 dev e1 onlink",
            "id 9 group 7,3/8 proto zebra",
            "id 5 blackhole",
            "id 6 encap mpls 16 via 10.0.0.2 dev e0",
        ];
        let hops = NextHops(hops.iter().filter_map(|line| hop(line)).collect());
        for (route, want) in [
            (
                "10.8.0.0/16 nhid 7 proto static",
                "10.8.0.0/16 proto static via 10.0.0.2 dev e0",
            ),
            (
                "default nhid 9 metric 20",
                "default metric 20 nexthop via 10.0.0.2 dev e0 weight 3 nexthop via inet6 fe80::1 dev \
                 e1 onlink weight 1",
            ),
            ("10.1.0.0/16 nhid 5", "blackhole 10.1.0.0/16"),
            ("10.1.0.0/16 nhid 6", "10.1.0.0/16 nhid 6"),
            ("10.1.0.0/16 nhid 4", "10.1.0.0/16 nhid 4"),
            (
                "10.1.0.0/16 nhid 7 via 10.9.0.1 dev x",
                "10.1.0.0/16 nhid 7 via 10.9.0.1 dev x",
            ),
        ] {
            assert_eq!(hops.filled(route), want);
        }
    }
}
