//! Ways of packets whose protocol the kernel cannot be asked about.
//!
//! `rtm_getroute_parse_ip_proto()` takes TCP, UDP and ICMP. What the kernel says of SCTP, ESP, GRE and
//! others it says without their protocol and ports, although its policy rules see these when a packet
//! comes. Where that makes a difference, the lists of [rules and routes](Fib) say where it goes.

use std::collections::{HashMap, hash_map::Entry};

use super::{
    Fib, FibDecision, Lookup, LookupKind, LookupQuery, Netlink, NetlinkError,
    lookup::is_askable,
    object::{Family, NextHop},
};

/// What the rules and routes say of a packet, where they say something else of it than the kernel is
/// asked about.
fn otherwise(fib: &Fib, query: &LookupQuery) -> Option<Otherwise> {
    query.ip_proto.filter(|number| !is_askable(*number))?;
    let without = LookupQuery {
        ip_proto: None,
        sport: None,
        dport: None,
        ..query.clone()
    };
    let (whole, asked) = (fib.decide(query), fib.decide(&without));
    (whole != asked).then_some(Otherwise { whole, asked })
}

struct Otherwise {
    /// Of the packet as it is.
    whole: FibDecision,
    /// Of the packet that the kernel was asked about.
    asked: FibDecision,
}

impl Otherwise {
    /// Puts right what the kernel said. That it accepts no such source is not about ports, and stays.
    fn correct(self, query: &LookupQuery, answer: &mut Lookup) {
        let refused = answer.kind == LookupKind::Refused;
        if refused && self.asked.kind() != LookupKind::Blackhole {
            return;
        }
        let kind = self.whole.kind();
        *answer = match (kind.errno(), self.whole.route) {
            (Some(errno), _) => Lookup::nowhere(kind, errno),
            (None, route) => {
                let route = route.as_ref();
                let hop = route.and_then(|route| route.next_hops.first());
                Lookup {
                    kind,
                    errno: None,
                    dev: hop.and_then(|hop| hop.dev.clone()),
                    via: hop.and_then(|hop| hop.via),
                    prefsrc: route.and_then(|route| route.source),
                    table: route.map_or(0, |route| route.table),
                    matched: route
                        .filter(|_| query.fib_match)
                        .map(|route| route.destination),
                    mtu: route.and_then(|route| route.mtu),
                }
            }
        };
    }
}

/// The rules and routes of a namespace by their family, each read when it is asked for; none where no
/// policy rule looks at protocol or ports.
#[derive(Default)]
struct Tables(HashMap<Family, Option<Fib>>);

impl Tables {
    fn otherwise(
        &mut self,
        netlink: &mut Netlink,
        query: &LookupQuery,
    ) -> Result<Option<Otherwise>, NetlinkError> {
        if query.ip_proto.is_none_or(is_askable) {
            return Ok(None);
        }
        let family = Family::of(query.to);
        let fib = match self.0.entry(family) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unread) => {
                let rules = Fib::new(netlink.rules(family)?, Vec::new());
                unread.insert(match rules.looks_at_ports() {
                    true => Some(Fib::read(netlink, family)?),
                    false => None,
                })
            }
        };
        Ok(fib.as_ref().and_then(|fib| otherwise(fib, query)))
    }
}

impl Netlink {
    /// Asks for the ways of many packets at once. That a packet goes nowhere is an answer, not
    /// an error.
    ///
    /// # Errors
    /// Per query [`NetlinkError`] when the kernel does not understand it or an interface does not
    /// exist; as a whole when the socket fails.
    pub fn lookup(
        &mut self,
        queries: &[LookupQuery],
    ) -> Result<Vec<Result<Lookup, NetlinkError>>, NetlinkError> {
        let mut answers = self.ask(queries)?;
        let mut tables = Tables::default();
        for (query, answer) in queries.iter().zip(&mut answers) {
            if let Ok(answer) = answer
                && let Some(otherwise) = tables.otherwise(self, query)?
            {
                otherwise.correct(query, answer);
            }
        }
        Ok(answers)
    }

    /// Asks for the way of one packet.
    ///
    /// # Errors
    /// As [`Netlink::lookup`].
    pub fn lookup_one(&mut self, query: &LookupQuery) -> Result<Lookup, NetlinkError> {
        let what = || {
            format!(
                "for the way to {} from namespace {}",
                query.to,
                self.netns()
            )
        };
        let none = NetlinkError::NoReply { what: what() };
        self.lookup(std::slice::from_ref(query))?
            .pop()
            .unwrap_or(Err(none))
    }

    /// All next hops of the route that the packet matches: the kernel takes one of them for each
    /// packet. None where the packet goes nowhere.
    ///
    /// # Errors
    /// As [`Netlink::lookup`].
    pub fn next_hops(&mut self, query: &LookupQuery) -> Result<Vec<NextHop>, NetlinkError> {
        let hops = self.all_next_hops(std::slice::from_ref(query))?.pop();
        Ok(hops.unwrap_or_default())
    }

    /// The same for many packets at once.
    ///
    /// # Errors
    /// As [`Netlink::lookup`].
    pub fn all_next_hops(
        &mut self,
        queries: &[LookupQuery],
    ) -> Result<Vec<Vec<NextHop>>, NetlinkError> {
        let mut tables = Tables::default();
        let mut otherwise = Vec::with_capacity(queries.len());
        let mut asked = Vec::with_capacity(queries.len());
        for query in queries {
            otherwise.push(tables.otherwise(self, query)?);
            if let Some(None) = otherwise.last() {
                asked.push(query.clone());
            }
        }
        let mut answers = self.ask_next_hops(&asked)?.into_iter();
        let hops = otherwise.into_iter().map(|otherwise| match otherwise {
            None => answers.next().unwrap_or_default(),
            Some(Otherwise { whole, .. }) if whole.kind() == LookupKind::Unicast => {
                whole.route.map(|route| route.next_hops).unwrap_or_default()
            }
            Some(_) => Vec::new(),
        });
        Ok(hops.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::object::{PolicyRule, PortRange, Route, RuleAction};

    /// SCTP to port 2905 goes by table 7, ESP nowhere, and all else by table main.
    fn fib() -> Fib {
        let mut rules = PolicyRule::kernel_defaults(Family::V4);
        let sctp = PolicyRule {
            ip_proto: Some(132),
            dport: Some(PortRange {
                first: 2905,
                last: 2905,
            }),
            ..PolicyRule::new(Family::V4, 10, RuleAction::Table(7))
        };
        let esp = PolicyRule {
            ip_proto: Some(50),
            ..PolicyRule::new(Family::V4, 20, RuleAction::Prohibit)
        };
        rules.splice(1..1, [sctp, esp]);
        let via = |table, gateway: &str, dev: &str| Route {
            table,
            ..Route::via(
                "0.0.0.0/0".parse().unwrap(),
                gateway.parse().unwrap(),
                dev.parse().unwrap(),
            )
        };
        let routes = vec![via(Route::MAIN, "192.0.2.1", "a"), via(7, "192.0.2.9", "b")];
        Fib::new(rules, routes)
    }

    fn query(number: u8, dport: u16) -> LookupQuery {
        LookupQuery {
            from: Some("10.0.0.9".parse().unwrap()),
            iif: Some("in".parse().unwrap()),
            ip_proto: Some(number),
            sport: Some(40_000),
            dport: Some(dport),
            ..LookupQuery::to("198.51.100.7".parse().unwrap())
        }
    }

    fn kernels(kind: LookupKind) -> Lookup {
        Lookup {
            kind,
            errno: None,
            dev: Some("a".parse().unwrap()),
            via: Some("192.0.2.1".parse().unwrap()),
            prefsrc: None,
            table: Route::MAIN,
            matched: None,
            mtu: None,
        }
    }

    fn corrected(number: u8, dport: u16, kind: LookupKind) -> Lookup {
        let (query, mut answer) = (query(number, dport), kernels(kind));
        if let Some(otherwise) = otherwise(&fib(), &query) {
            otherwise.correct(&query, &mut answer);
        }
        answer
    }

    #[test]
    fn rules_on_protocols_that_the_kernel_is_not_told_of_count() {
        let way = |number, dport| corrected(number, dport, LookupKind::Unicast);
        let sctp = way(132, 2905);
        assert_eq!(sctp.dev, Some("b".parse().unwrap()));
        assert_eq!(sctp.via, Some("192.0.2.9".parse().unwrap()));
        assert_eq!(sctp.table, 7);
        assert_eq!(way(132, 80).dev, Some("a".parse().unwrap()));
        assert_eq!(way(50, 0).kind, LookupKind::Prohibit);
        // What has no ports, has none that fit; and of TCP the kernel knows.
        assert_eq!(way(47, 2905), kernels(LookupKind::Unicast));
        assert_eq!(way(6, 2905), kernels(LookupKind::Unicast));
    }

    #[test]
    fn a_source_that_is_not_accepted_stays_so() {
        let refused = corrected(132, 2905, LookupKind::Refused);
        assert_eq!(refused.kind, LookupKind::Refused);
    }
}
