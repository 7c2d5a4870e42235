//! `ip route show`, with or without `-o`: one route per line, next hops on lines of their own or
//! behind `\`.

use std::{borrow::Cow, net::Ipv4Addr};

use ipnet::IpNet;

use super::words::{TableNames, Words, address_with_len, prefix, route_protocol, scope, tos};
use crate::{
    model::IfName,
    netlink::object::{Family, NextHop, Route, RouteKind},
};

/// RTPROT_BOOT, linux/rtnetlink.h; the one protocol that ip(8) does not print.
const BOOT: u8 = 3;

/// Why a route whose next hops are all dead is left out: the kernel does not use it either.
pub(super) const DEAD: &str = "all its next hops were dead";

/// Why a route of IPv6 whose lifetime is over is left out: the kernel shows it until it collects garbage,
/// and does not use it (`rt6_check_expired()`).
pub(super) const EXPIRED: &str = "its lifetime was over";

/// A route, and what its line says that a lab has no use for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ParsedRoute {
    pub(super) route: Route,
    /// Attributes left out, as text; but for realms they concern the router's own TCP connections only.
    pub(super) ignored: Vec<String>,
    /// Whether a realm is among them, which rules can ask for.
    pub(super) has_realm: bool,
    /// Interfaces of its next hops that had no carrier.
    pub(super) no_carrier: Vec<IfName>,
}

/// A route that cannot be read or represented.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RefusedRoute {
    /// What in the line cannot.
    pub(super) reason: String,
    /// Destination and table, where they could be read.
    pub(super) known: Option<Box<Route>>,
}

/// Reads one route.
///
/// `family` is that of the section; without one, addresses tell, and `default` without a gateway
/// is IPv4. `table` is that of the section; a `table` in the line wins.
///
/// # Errors
/// What in the line cannot be read or represented.
pub(super) fn parse(
    line: &str,
    family: Option<Family>,
    table: u32,
    tables: &TableNames,
) -> Result<ParsedRoute, RefusedRoute> {
    let line = &with_named_type(line);
    if is_merged(line) {
        return Err(RefusedRoute {
            reason: "two routes in one line".to_owned(),
            known: None,
        });
    }
    let mut words = Words::new(line);
    let read = |words: &mut Words<'_>| {
        let kind = kind(words)?;
        let destination = words.value("the type of the route")?;
        let mut parser = Parser::new(table, tables);
        while let Some(word) = words.next() {
            parser.attribute(word, words)?;
        }
        parser.finish(kind, destination, family)
    };
    read(&mut words).map_err(|reason| RefusedRoute {
        reason,
        known: known(line, family, table, tables).map(Box::new),
    })
}

/// What may stand in front of a destination.
const TYPES: [&str; 10] = [
    "unicast",
    "local",
    "broadcast",
    "blackhole",
    "unreachable",
    "prohibit",
    "throw",
    "multicast",
    "anycast",
    "nat",
];

/// A route as `ip -N` prints it, with the name of its type in the place of the number (`RTN_*`,
/// linux/rtnetlink.h).
fn with_named_type(line: &str) -> Cow<'_, str> {
    const NAMES: [&str; 11] = [
        "unicast",
        "local",
        "broadcast",
        "anycast",
        "multicast",
        "blackhole",
        "unreachable",
        "prohibit",
        "throw",
        "nat",
        "xresolve",
    ];
    let (first, rest) = line.trim_start().split_once(' ').unwrap_or_default();
    let is_destination = |word: &str| word == "default" || address_with_len(word).is_some();
    let typed = rest.split(' ').next().is_some_and(is_destination);
    let number = first.parse::<usize>().ok().filter(|_| typed);
    let name = number.and_then(|number| NAMES.get(number.checked_sub(1)?));
    match name {
        Some(name) => Cow::Owned(format!("{name} {rest}")),
        None => Cow::Borrowed(line),
    }
}

/// Whether a line break was lost in the line: behind its own destination stands another, or another type,
/// or something for the second time that only next hops have more than once.
fn is_merged(line: &str) -> bool {
    const ONCE: [&str; 6] = ["via", "dev", "proto", "scope", "src", "metric"];
    const BEFORE: [&str; 7] = ["via", "inet", "inet6", "src", "from", "table", "proto"];
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let is_destination =
        |word: &str| word == "default" || TYPES.contains(&word) || address_with_len(word).is_some();
    let typed = words.first().is_some_and(|word| TYPES.contains(word));
    let behind = words.windows(2).skip(usize::from(typed));
    let mut others = behind.filter(|pair| !BEFORE.contains(&pair[0]) && is_destination(pair[1]));
    let twice = |key: &&str| words.iter().filter(|word| *word == key).count() > 1;
    // What stands behind `encap` has addresses of its own.
    let several = words.contains(&"nexthop");
    !words.contains(&"encap") && (others.next().is_some() || !several && ONCE.iter().any(twice))
}

/// Destination, table and metric of a route that cannot be read as a whole.
fn known(line: &str, family: Option<Family>, table: u32, tables: &TableNames) -> Option<Route> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    // Any other address of the line is a gateway's or a source's.
    let typed = words.first().is_some_and(|word| TYPES.contains(word));
    let word = words.get(usize::from(typed))?;
    let own = address_with_len(word).or_else(|| everything(word, family));
    if !word.contains('/') && own.is_some() && has_mask(&words) {
        return None;
    }
    let behind = |key: &str| {
        let at = words.iter().position(|word| *word == key)?;
        words.get(at + 1).copied()
    };
    let mut route = Parser::new(table, tables).route;
    route.destination = own?.trunc();
    // Nor do packets come from addresses of the types that no lab has.
    route.kind = kind(&mut Words::new(line)).unwrap_or(RouteKind::Broadcast);
    route.metric = behind("metric").and_then(|metric| metric.parse().ok());
    if let Some(named) = behind("table") {
        route.table = tables.id(named)?;
    }
    Some(route)
}

/// Whether a prefix length or a netmask stands by itself, as other tools than ip(8) print them.
fn has_mask(words: &[&str]) -> bool {
    let is_mask = |word: &&str| {
        let netmask = word
            .parse::<Ipv4Addr>()
            .is_ok_and(|mask| mask.octets()[0] == 255);
        netmask || word.starts_with('/') || matches!(*word, "netmask" | "mask")
    };
    words.iter().any(is_mask)
}

/// What `default` means.
fn everything(word: &str, family: Option<Family>) -> Option<IpNet> {
    let default = word == "default" && family.is_some();
    default.then(|| prefix(word, family).ok()).flatten()
}

fn kind(words: &mut Words<'_>) -> Result<RouteKind, String> {
    let kind = match words.peek() {
        Some("unicast") => RouteKind::Unicast,
        Some("local") => RouteKind::Local,
        Some("broadcast") => RouteKind::Broadcast,
        Some("blackhole") => RouteKind::Blackhole,
        Some("unreachable") => RouteKind::Unreachable,
        Some("prohibit") => RouteKind::Prohibit,
        Some("throw") => RouteKind::Throw,
        Some(word @ ("multicast" | "anycast" | "nat")) => {
            return Err(format!("routes of type `{word}` are not supported"));
        }
        _ => return Ok(RouteKind::Unicast),
    };
    words.next();
    Ok(kind)
}

struct Parser<'a> {
    tables: &'a TableNames,
    route: Route,
    /// The hop that `via`, `dev`, `weight` and `onlink` belong to.
    hop: NextHop,
    /// Hops of a multipath route that are complete.
    hops: Vec<NextHop>,
    multipath: bool,
    /// Whether the kernel does not use the hop: its link is down, or it is told to mind the
    /// carrier (`ignore_routes_with_linkdown`).
    dead: bool,
    /// Whether a hop was left out for that.
    buried: bool,
    /// Whether its lifetime was over.
    expired: bool,
    /// Whether the hop's link had no carrier.
    linkdown: bool,
    /// Interfaces of such hops.
    no_carrier: Vec<IfName>,
    ignored: Vec<String>,
}

const NO_HOP: NextHop = NextHop {
    via: None,
    dev: None,
    weight: 1,
    onlink: false,
};

impl<'a> Parser<'a> {
    fn new(table: u32, tables: &'a TableNames) -> Self {
        Self {
            tables,
            route: Route {
                destination: IpNet::default(),
                from: None,
                kind: RouteKind::Unicast,
                table,
                next_hops: Vec::new(),
                metric: None,
                source: None,
                scope: None,
                protocol: Some(BOOT),
                tos: 0,
                mtu: None,
            },
            hop: NO_HOP,
            hops: Vec::new(),
            multipath: false,
            dead: false,
            buried: false,
            expired: false,
            linkdown: false,
            no_carrier: Vec::new(),
            ignored: Vec::new(),
        }
    }

    fn attribute(&mut self, word: &str, words: &mut Words<'_>) -> Result<(), String> {
        let unknown = |value: &str| format!("`{word} {value}` is not known");
        match word {
            "via" => {
                if !words.take("inet6") {
                    words.take("inet");
                }
                self.hop.via = Some(words.parse(word)?);
            }
            "dev" | "oif" => self.hop.dev = Some(words.interface(word)?),
            "weight" => self.hop.weight = words.parse(word)?,
            "onlink" => self.hop.onlink = true,
            "nexthop" => self.next_hop(),
            "metric" | "preference" | "priority" => self.route.metric = Some(words.parse(word)?),
            "from" => {
                let value = words.value(word)?;
                let from = prefix(value, None)?;
                self.route.from = Some(from).filter(|from| from.prefix_len() > 0);
            }
            "src" => self.route.source = Some(words.parse(word)?),
            "scope" => {
                let value = words.value(word)?;
                self.route.scope = Some(scope(value).ok_or_else(|| unknown(value))?);
            }
            "proto" | "protocol" => {
                // A name that is not known is one of the router's own; none decides anything.
                let value = words.value(word)?;
                self.route.protocol = Some(route_protocol(value).unwrap_or(BOOT));
            }
            "tos" | "dsfield" => {
                let value = words.value(word)?;
                self.route.tos = tos(value).ok_or_else(|| unknown(value))?;
            }
            "table" => {
                let value = words.value(word)?;
                self.route.table = self.tables.id(value).ok_or_else(|| unknown(value))?;
            }
            "mtu" => {
                words.take("lock");
                self.route.mtu = Some(words.parse(word)?);
            }
            other => self.without_effect(other, words)?,
        }
        Ok(())
    }

    fn next_hop(&mut self) {
        let done = std::mem::replace(&mut self.hop, NO_HOP);
        if self.multipath {
            self.keep(done);
        }
        self.multipath = true;
    }

    /// Keeps a hop unless the kernel does not use it.
    fn keep(&mut self, hop: NextHop) {
        if std::mem::take(&mut self.linkdown) {
            self.no_carrier.extend(hop.dev.clone());
        }
        match std::mem::take(&mut self.dead) {
            true => self.buried = true,
            false => self.hops.push(hop),
        }
    }

    fn without_effect(&mut self, word: &str, words: &mut Words<'_>) -> Result<(), String> {
        match word {
            // How the route fared when it was shown, and the line break of `ip -o`.
            "dead" => self.dead = true,
            "linkdown" => self.linkdown = true,
            "pervasive" | "offload" | "rt_offload" | "rt_trap" | "trap" | "notify"
            | "unresolved" | "offload_failed" | "rt_offload_failed" | "\\" => {}
            // Seconds, negative since when it is over.
            "expires" => {
                let left = words.value(word)?;
                self.expired = left.starts_with('-') || left.trim_end_matches("sec") == "0";
            }
            "nhid" | "pref" | "error" | "age" | "users" => {
                words.value(word)?;
            }
            "advmss" | "hoplimit" | "rtt" | "rttvar" | "window" | "cwnd" | "initcwnd"
            | "initrwnd" | "ssthresh" | "reordering" | "rto_min" | "quickack" | "congctl"
            | "features" | "fastopen_no_cookie" | "realm" | "realms" => {
                words.take("lock");
                let value = words.value(word)?;
                self.ignored.push(format!("{word} {value}"));
            }
            other => return Err(format!("`{other}` is not known")),
        }
        Ok(())
    }

    fn finish(
        mut self,
        kind: RouteKind,
        destination: &str,
        family: Option<Family>,
    ) -> Result<ParsedRoute, String> {
        if self.multipath || self.hop != NO_HOP {
            let last = std::mem::replace(&mut self.hop, NO_HOP);
            self.keep(last);
        }
        // ip(8) prints the interface of each: a line without it was cut.
        if self.multipath && self.hops.iter().any(|hop| hop.dev.is_none()) {
            return Err("a `nexthop` has no `dev`".to_owned());
        }
        if self.expired {
            return Err(EXPIRED.to_owned());
        }
        if self.buried && self.hops.is_empty() {
            return Err(DEAD.to_owned());
        }
        let hint = self.hops.iter().find_map(|hop| hop.via).map(Family::of);
        let own = address_with_len(destination).map(|net| Family::of(net.addr()));
        self.route.destination = prefix(destination, family.or(own).or(hint))?;
        self.route.kind = kind;
        match kind {
            RouteKind::Unicast if self.hops.is_empty() => {
                return Err("neither a gateway nor an interface is given".to_owned());
            }
            // IPv6 shows `dev lo` with routes that lead nowhere.
            RouteKind::Blackhole
            | RouteKind::Unreachable
            | RouteKind::Prohibit
            | RouteKind::Throw => self.hops.clear(),
            RouteKind::Unicast | RouteKind::Local | RouteKind::Broadcast => {}
        }
        self.route.next_hops = self.hops;
        Ok(ParsedRoute {
            route: self.route,
            has_realm: self.ignored.iter().any(|word| word.starts_with("realm")),
            ignored: self.ignored,
            no_carrier: self.no_carrier,
        })
    }
}

/// Whether a line goes on with the route before it.
pub(super) fn is_more(line: &str) -> bool {
    let first = line.split_ascii_whitespace().next().unwrap_or_default();
    ["nexthop", "cache"].contains(&first.trim_start_matches('\\'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::object::Scope;

    fn route(line: &str, family: Option<Family>) -> Result<Route, String> {
        parse(line, family, Route::MAIN, &TableNames::default())
            .map(|p| p.route)
            .map_err(|refused| refused.reason)
    }

    fn v4(line: &str) -> Route {
        route(line, Some(Family::V4)).unwrap()
    }

    #[test]
    fn unicast_routes_with_every_attribute() {
        let r = v4(
            "10.2.0.0/16 tos 0x10 via 10.100.1.2 dev wg0 proto bird scope site src 10.100.1.1 \
             metric 10 mtu lock 1400 onlink",
        );
        assert_eq!(r.destination.to_string(), "10.2.0.0/16");
        assert_eq!((r.tos, r.metric, r.mtu), (0x10, Some(10), Some(1400)));
        assert_eq!((r.protocol, r.scope), (Some(12), Some(Scope::Site)));
        assert_eq!(r.source.unwrap().to_string(), "10.100.1.1");
        let hop = &r.next_hops[0];
        assert_eq!(hop.via.unwrap().to_string(), "10.100.1.2");
        assert_eq!(hop.dev.as_ref().unwrap().as_str(), "wg0");
        assert!(hop.onlink);
    }

    #[test]
    fn a_route_without_protocol_is_one_of_boot() {
        assert_eq!(v4("default via 10.0.0.1 dev eth0").protocol, Some(BOOT));
    }

    #[test]
    fn routes_that_lead_nowhere_have_no_next_hop() {
        for (word, kind) in [
            ("blackhole", RouteKind::Blackhole),
            ("unreachable", RouteKind::Unreachable),
            ("prohibit", RouteKind::Prohibit),
            ("throw", RouteKind::Throw),
        ] {
            assert_eq!(v4(&format!("{word} 10.0.0.0/8 metric 3")).kind, kind);
            let line = format!("{word} 2001:db8::/32 dev lo metric 1024 error -101 pref medium");
            let six = route(&line, Some(Family::V6)).unwrap();
            assert_eq!((six.kind, six.next_hops), (kind, vec![]));
        }
    }

    #[test]
    fn multipath_is_read_from_one_line_and_from_several() {
        for line in [
            "default proto static nexthop via 10.0.0.1 dev eth0 weight 3 nexthop dev wg0 weight 1",
            "default proto static \\\tnexthop via 10.0.0.1 dev eth0 weight 3 \\\tnexthop dev wg0",
        ] {
            let hops = v4(line).next_hops;
            assert_eq!(hops.len(), 2, "{line}");
            assert_eq!((hops[0].weight, hops[1].weight), (3, 1));
            assert_eq!(hops[1].via, None);
        }
    }

    #[test]
    fn the_family_comes_from_the_section_or_else_from_the_addresses() {
        let six = route("default via fe80::1 dev eth0", None).unwrap();
        assert_eq!(six.destination.to_string(), "::/0");
        assert_eq!(
            route("default dev eth0", None)
                .unwrap()
                .destination
                .to_string(),
            "0.0.0.0/0"
        );
        let six = route("default dev eth0", Some(Family::V6)).unwrap();
        assert_eq!(six.destination.to_string(), "::/0");
        let six = route("10.0.0.0/8 via inet6 fe80::1 dev eth0", None).unwrap();
        assert_eq!(six.destination.to_string(), "10.0.0.0/8");
        assert!(route("10.0.0.0/8 dev eth0", Some(Family::V6)).is_err());
    }

    #[test]
    fn what_concerns_local_tcp_only_is_left_out_and_named() {
        let parsed = parse(
            "10.0.0.0/8 via 10.0.0.1 nhid 7 advmss 1400 linkdown",
            None,
            7,
            &TableNames::default(),
        )
        .unwrap();
        assert_eq!(parsed.ignored, ["advmss 1400"]);
        assert_eq!(parsed.route.table, 7);
    }

    #[test]
    fn what_cannot_be_represented_is_refused_with_the_word() {
        for (line, word) in [
            ("10.0.0.0/8 encap mpls 16 via 10.0.0.1 dev eth0", "encap"),
            ("multicast 224.0.0.0/4 dev eth0", "multicast"),
            ("10.0.0.0/8", "neither"),
            ("10.0.0.0/8 via", "via"),
            (
                "10.0.0.0/8 nexthop via 10.0.0.1 dev eth0 weight 1 nexthop via 10.0.0.2",
                "no `dev`",
            ),
            ("10.0.0.0/8 via nonsense", "nonsense"),
            ("10.0.0.0/8 dev a/b", "a/b"),
            ("10.0.0.0/33 dev eth0", "10.0.0.0/33"),
            ("10.0.0.0/8 dev eth0 table nosuch", "nosuch"),
            ("", "type of the route"),
            (
                "10.0.0.0/8 dev eth0 src 10.0.0.1 blackhole 10.9.0.0/16",
                "two",
            ),
            ("blackhole 10.8.0.0/16 blackhole 10.9.0.0/16", "two"),
            ("10.0.0.0/8 dev eth010.9.0.0/16 dev eth1", "two"),
            ("default via 10.0.0.1 dev eth0 10.9.0.0/16 dev eth1", "two"),
        ] {
            let error = route(line, Some(Family::V4)).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
