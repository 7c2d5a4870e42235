//! Source ports that routers give packets in the place of their senders'.
//!
//! A rule that translates to a range keeps a port that is in there and free, and otherwise draws one: on
//! the real router another one than here.

use std::net::IpAddr;

use crate::{
    firewall::rule::{OpenPorts, Packet, PortChoice, Rule},
    lab::RouterState,
};

/// The ports that a packet may have been given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChosenPorts {
    /// Any of these.
    pub ports: PortChoice,
    /// Whether a packet from one and the same port may get another one each time.
    pub drawn: bool,
}

impl ChosenPorts {
    /// What a rule of this text chooses from; none where it chooses no source ports.
    pub(crate) fn by(rule: &Rule, text: &str) -> Option<Self> {
        let to = rule.translation().filter(|to| to.source)?;
        let named = to.to.iter().filter_map(|goal| goal.ports);
        let named = named.map(|(first, last)| PortChoice { first, last });
        let named = named.reduce(PortChoice::and);
        // What a map gives that is not there in full may be any port.
        let unread = to.to.is_empty() && text.contains(" map ");
        let drawn = to.random || unread;
        let ports = named.or_else(|| drawn.then_some(PortChoice::OF_ROUTERS))?;
        Some(Self { ports, drawn })
    }

    /// These, where a packet that came from `port` may have another of them; `any` where it may have come
    /// from others.
    pub(crate) fn open(self, port: u16, any: bool) -> OpenPorts {
        match any || self.drawn || !self.ports.has(port) {
            true => OpenPorts::Translated(self.ports),
            false => OpenPorts::None,
        }
    }
}

/// The rules of routers that choose source ports.
#[derive(Debug, Default)]
pub(crate) struct PortRules {
    choosing: Vec<PortRule>,
    /// Whether others translate destinations: a packet may have had another one where it was given a port.
    translate_destinations: bool,
}

#[derive(Debug)]
struct PortRule {
    rule: Rule,
    ports: ChosenPorts,
}

impl PortRules {
    /// Those of `routers`.
    pub(crate) fn of<'a>(routers: impl IntoIterator<Item = &'a RouterState>) -> Self {
        Self::of_texts(routers.into_iter().flat_map(|r| &r.translating))
    }

    /// The texts of `router` that may choose source ports, told without reading them.
    pub(crate) fn texts(router: &RouterState) -> impl Iterator<Item = &String> {
        let names = |text: &str, words: &[&str]| words.iter().any(|word| text.contains(word));
        let sources = ["MASQUERADE", "SNAT", "NETMAP", "masquerade", "snat"];
        let chooses = [":", "random", "--to-ports", " map "];
        let texts = router.translating.iter();
        texts.filter(move |text| names(text, &sources) && names(text, &chooses))
    }

    /// Those of rules with these texts.
    pub(crate) fn of_texts<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Self {
        let mut rules = Self::default();
        for text in texts {
            let rule = Rule::of(text.as_ref());
            rules.translate_destinations |= rule.translation().is_some_and(|to| !to.source);
            rules.choosing.extend(PortRule::of(rule, text.as_ref()));
        }
        rules
    }

    /// Whether no rule chooses source ports.
    pub(crate) fn is_empty(&self) -> bool {
        self.choosing.is_empty()
    }

    /// Whether a packet's destination may have been another one where it was given a port.
    pub(crate) fn translate_destinations(&self) -> bool {
        self.translate_destinations
    }

    /// What they may choose from for such a packet; none where they choose nothing for it.
    pub(crate) fn for_packet(&self, packet: &Packet) -> Option<ChosenPorts> {
        self.all(|choosing| choosing.rule.concerns(packet))
    }

    /// What `port` of a packet that such rules may have given the address `source` was chosen from; none
    /// where they choose none, or others. `packet` is what is known of it.
    pub(crate) fn about(&self, packet: &Packet, source: IpAddr, port: u16) -> Option<ChosenPorts> {
        self.all(|choosing| choosing.gives(source, port) && choosing.rule.concerns(packet))
    }

    /// What those that `may` do so choose from.
    fn all(&self, may: impl Fn(&PortRule) -> bool) -> Option<ChosenPorts> {
        let all = self.choosing.iter().filter(|choosing| may(choosing));
        let all = all.map(|choosing| choosing.ports);
        all.reduce(|a, b| ChosenPorts {
            ports: a.ports.and(b.ports),
            drawn: a.drawn || b.drawn,
        })
    }
}

impl PortRule {
    fn of(rule: Rule, text: &str) -> Option<Self> {
        let ports = ChosenPorts::by(&rule, text)?;
        Some(Self { rule, ports })
    }

    /// Whether it can have given a packet this address and port.
    fn gives(&self, source: IpAddr, port: u16) -> bool {
        let mut to = self.rule.translation().into_iter().flat_map(|to| &to.to);
        let mut nets = to.clone().filter_map(|goal| goal.net).peekable();
        let fits = nets.peek().is_none() || nets.any(|net| net.contains(&source));
        let any_net = to.any(|goal| goal.net.is_none());
        self.ports.ports.has(port) && (fits || any_net)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{firewall::rule::Field, netlink::object::Family};

    #[test]
    fn what_a_port_was_chosen_from_is_known_by_the_rules_that_may_have_given_it() {
        let tcp = Packet::of(Family::V4).with(Field::Protocol, 6u32);
        let source = "10.77.0.4".parse().unwrap();
        let masquerade = "-A POSTROUTING -p tcp -j MASQUERADE --to-ports 2000-2003";
        let udp = "-A POSTROUTING -p udp -j MASQUERADE --to-ports 1500-2500";
        let snat = "-A POSTROUTING -j SNAT --to-source 10.77.0.4:2002-2010";
        let elsewhere = "-A POSTROUTING -j SNAT --to-source 10.77.0.5:1-9000";
        let nft = "ip saddr 10.0.0.0/8 masquerade to :2000-2001 fully-random";
        for (texts, port, chosen) in [
            (&[masquerade][..], 2001, Some((2000, 2003, false))),
            (&[masquerade], 46_000, None),
            (
                &[masquerade, udp, elsewhere],
                2001,
                Some((2000, 2003, false)),
            ),
            (&[masquerade, snat], 2002, Some((2000, 2010, false))),
            (&[nft], 2001, Some((2000, 2001, true))),
            (&["-A POSTROUTING -j MASQUERADE"], 46_000, None),
            (
                &["-A POSTROUTING -j MASQUERADE --random"],
                46_000,
                Some((1024, 65_535, true)),
            ),
            (
                &["snat to ip saddr map @m"],
                46_000,
                Some((1024, 65_535, true)),
            ),
            (&["-A PREROUTING -p tcp -j DNAT --to :80-90"], 85, None),
        ] {
            let found = PortRules::of_texts(texts).about(&tcp, source, port);
            let found = found.map(|c| (c.ports.first, c.ports.last, c.drawn));
            assert_eq!(found, chosen, "{texts:?} {port}");
        }
    }
}
