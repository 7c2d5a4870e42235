//! Which router interface is plugged into which segment: what a trace must know beside the
//! routers' own tables.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::Entry;
use crate::{
    firewall::rule::{Field, Packet, Rule},
    lab::{
        LabState, RouterState,
        topology::{InterfaceKind, LinkFacts, Segment, Topology, Warning},
    },
    model::{IfName, RouterName},
    netlink::object::{Address, Family, Mac},
};

/// A router interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plug {
    /// The router.
    pub router: RouterName,
    /// The interface.
    pub interface: IfName,
    /// What it was on the real router.
    pub kind: InterfaceKind,
    /// Administratively up.
    pub up: bool,
    /// The segment, an index into [`Wiring::segments`]; none for loopback.
    pub segment: Option<usize>,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// The far ends of its point-to-point addresses, with their prefix lengths.
    pub peers: Vec<IpNet>,
    /// What leads to the other end of its link.
    pub link: LinkFacts,
    /// Its hardware address, where it is known.
    pub mac: Option<Mac>,
}

/// Why a packet that a router sends does not come to the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undelivered {
    /// The receiver's WireGuard does not allow the source from that peer.
    NotAllowed,
    /// The receiver does not answer ARP to who asks so (`arp_ignore` 2, `rp_filter` 1, or from an address of
    /// its own).
    Unheard,
}

impl Plug {
    pub(super) fn has(&self, address: IpAddr) -> bool {
        let is_it = |own: &IpNet| own.addr() == address || anycast(*own) == Some(address);
        self.addresses.iter().any(is_it)
    }

    /// Whether `address` is the router's own because of this interface.
    fn owns(&self, address: IpAddr) -> bool {
        self.has(address) || self.link.own.iter().any(|net| net.contains(&address))
    }

    /// As the place where a packet comes in.
    pub(super) fn entry(&self) -> Entry {
        Entry {
            router: self.router.clone(),
            iface_in: Some(self.interface.clone()),
        }
    }

    /// Whether the narrowest prefix with `one` has `other` too.
    pub(super) fn shares(&self, one: IpAddr, other: IpAddr) -> bool {
        let nets = self.addresses.iter().chain(&self.peers);
        let narrowest = nets
            .filter(|net| net.contains(&one))
            .max_by_key(|net| net.prefix_len());
        narrowest.is_some_and(|net| net.contains(&other))
    }

    /// The hardware address of a neighbour that was said by hand, unless routers share it (VRRP, RFC
    /// 9568 section 7.3).
    pub(super) fn fixed(&self, neighbour: IpAddr) -> Option<Mac> {
        let mut fixed = self.link.fixed.iter();
        let found = fixed.find(|(address, _)| *address == neighbour);
        found
            .map(|(_, mac)| *mac)
            .filter(|mac| !mac.0.starts_with(&[0, 0, 0x5e, 0]))
    }

    /// How long the narrowest prefix is by which the router leads `address` elsewhere, though it is in a subnet of
    /// this interface.
    fn leads_away(&self, address: IpAddr) -> Option<u8> {
        let nets = self.link.routed_away.iter();
        let away = nets.filter(|nets| nets.contains(address));
        away.map(|nets| nets.within.prefix_len()).max()
    }

    /// Whether `address` is the broadcast address of a subnet of this interface; /31 and /32 have none (RFC 3021).
    pub(super) fn is_broadcast(&self, address: IpAddr) -> bool {
        let mut nets = self.addresses.iter();
        nets.any(|net| matches!(net, IpNet::V4(net) if net.prefix_len() < 31 && net.broadcast() == address))
    }

    /// The length of the longest prefix on this interface that holds `address`.
    pub(super) fn prefix(&self, address: IpAddr) -> Option<u8> {
        let nets = self.addresses.iter().chain(&self.peers);
        nets.filter(|net| net.contains(&address))
            .map(IpNet::prefix_len)
            .max()
    }
}

/// The address that all routers of a subnet of IPv6 have beside their own (RFC 4291, section 2.6.1); none
/// of links between two (RFC 6164), as `addrconf_join_anycast()` has it.
#[must_use]
pub fn anycast(own: IpNet) -> Option<IpAddr> {
    let is_subnet = own.addr().is_ipv6() && own.prefix_len() < 127;
    is_subnet.then(|| own.network())
}

/// All router interfaces of a lab.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wiring {
    /// The interfaces, those of one router together, routers by name.
    pub plugs: Vec<Plug>,
    /// The segments' names.
    pub segments: Vec<String>,
    /// The routers that hosts of a segment use, where that was said.
    pub gateways: Vec<(usize, RouterName)>,
    /// Ends of segments at routers that the facts do not have.
    pub absent: Vec<(usize, String)>,
    /// Routers whose facts cannot be read: it is not known which segments they are on.
    pub missing: Vec<RouterName>,
    /// Routers of which some interfaces cannot be read: they may have addresses that nobody knows.
    pub partly_seen: Vec<RouterName>,
    /// The rules that translate addresses, as text; of labs only.
    pub translating: Vec<(RouterName, Vec<String>)>,
}

impl From<&Topology> for Wiring {
    fn from(topology: &Topology) -> Self {
        let plugs = topology.routers.iter().flat_map(|router| {
            let interfaces = router.interfaces.iter();
            interfaces.map(|i| Plug {
                up: i.up,
                segment: i.segment,
                mac: i.mac,
                ..plug(&router.name, &i.name, i.kind, &i.addresses, &i.link)
            })
        });
        Self::new(plugs, &topology.segments, &topology.warnings)
    }
}

impl From<&LabState> for Wiring {
    fn from(lab: &LabState) -> Self {
        let plugs = lab.routers.iter().flat_map(|router| {
            let interfaces = router.interfaces.iter();
            interfaces.map(|i| Plug {
                up: i.up,
                segment: i.segment,
                mac: i.mac,
                ..plug(&router.name, &i.name, i.kind, &i.addresses, &i.link)
            })
        });
        let translating = lab.routers.iter();
        let translating = translating.filter(|router| !router.translating.is_empty());
        let texts = |router: &RouterState| (router.name.clone(), router.translating.clone());
        Self {
            translating: translating.map(texts).collect(),
            ..Self::new(plugs, &lab.segments, &lab.warnings)
        }
    }
}

/// A plug that is up and on no segment.
fn plug(
    router: &RouterName,
    interface: &IfName,
    kind: InterfaceKind,
    addresses: &[Address],
    link: &LinkFacts,
) -> Plug {
    Plug {
        router: router.clone(),
        interface: interface.clone(),
        kind,
        up: true,
        segment: None,
        addresses: addresses.iter().map(|a| a.local).collect(),
        peers: addresses.iter().filter_map(|a| a.peer).collect(),
        link: link.clone(),
        mac: None,
    }
}

impl Wiring {
    fn new(plugs: impl Iterator<Item = Plug>, segments: &[Segment], warnings: &[Warning]) -> Self {
        let routers_with = |what: fn(&Warning) -> bool| {
            let mut routers: Vec<RouterName> = warnings
                .iter()
                .filter(|warning| what(warning))
                .filter_map(|warning| warning.router.clone())
                .collect();
            routers.dedup();
            routers
        };
        let numbered = || segments.iter().enumerate();
        let gateways = numbered().flat_map(|(number, segment)| {
            let routers = segment.gateways.iter().cloned();
            routers.map(move |router| (number, router))
        });
        let absent = numbered().flat_map(|(number, segment)| {
            let ends = segment.absent.iter().cloned();
            ends.map(move |end| (number, end))
        });
        Self {
            // A port of a bridge or bond has no say on the link: its master has.
            plugs: plugs
                .filter(|plug| plug.link.spoken_for_by().is_none())
                .collect(),
            segments: segments
                .iter()
                .map(|segment| segment.name.clone())
                .collect(),
            gateways: gateways.collect(),
            absent: absent.collect(),
            missing: routers_with(Warning::is_of_router),
            partly_seen: routers_with(Warning::hides_addresses),
            translating: Vec::new(),
        }
    }
}

impl Wiring {
    /// The routers, each once.
    #[must_use]
    pub fn routers(&self) -> Vec<&RouterName> {
        let mut routers: Vec<&RouterName> = self.plugs.iter().map(|plug| &plug.router).collect();
        routers.dedup();
        routers
    }

    /// The interface `interface` of `router`.
    pub(super) fn plug(&self, router: &RouterName, interface: &IfName) -> Option<&Plug> {
        let is_it = |plug: &&Plug| plug.router == *router && plug.interface == *interface;
        self.plugs.iter().find(is_it)
    }

    /// Whether routers have `address` only as the one of all routers of a subnet.
    #[must_use]
    pub fn is_anycast(&self, address: IpAddr) -> bool {
        let own = || self.plugs.iter().flat_map(|plug| &plug.addresses);
        own().any(|own| anycast(*own) == Some(address)) && own().all(|own| own.addr() != address)
    }

    /// The routers that have `address` themselves.
    #[must_use]
    pub fn owners(&self, address: IpAddr) -> Vec<&RouterName> {
        let own = self.plugs.iter().filter(|plug| plug.owns(address));
        let mut routers: Vec<&RouterName> = own.map(|plug| &plug.router).collect();
        routers.dedup();
        routers
    }

    /// Whether a router has `address`, or a link of the lab a subnet with it.
    #[must_use]
    pub fn is_within(&self, address: IpAddr) -> bool {
        !self.owners(address).is_empty() || !self.neighbours(address).is_empty()
    }

    /// Routers without facts, any of which may be where packets from `source` come in, beside those of
    /// the lab; none where it is a router's own address, or the gateways of its segment were said.
    #[must_use]
    pub fn unheard(&self, source: IpAddr) -> &[RouterName] {
        let said = |plug: &&Plug| {
            let mut gateways = self.gateways.iter();
            gateways.any(|(at, _)| plug.segment == Some(*at))
        };
        if !self.owners(source).is_empty() || self.neighbours(source).iter().any(said) {
            return &[];
        }
        &self.missing
    }

    /// The routers by which `server` may send to `client`: those that were said, or else all of its
    /// subnet; none where it needs no gateway, or is a router itself.
    #[must_use]
    pub fn gateways_of(&self, server: IpAddr, client: IpAddr) -> Vec<Entry> {
        let near = self.neighbours(server);
        if !self.owners(server).is_empty() || near.iter().any(|plug| plug.shares(server, client)) {
            return Vec::new();
        }
        let said: Vec<&Plug> = near.iter().filter(|p| self.is_said(p)).copied().collect();
        let all = if said.is_empty() { near } else { said };
        let links = all.into_iter();
        let links = links.filter(|plug| plug.kind == InterfaceKind::Ethernet);
        links.map(Plug::entry).collect()
    }

    /// The gateway of `server` for what it sends to `client`, where one was said and no other.
    #[must_use]
    pub fn gateway_said(&self, server: IpAddr, client: IpAddr) -> Option<Entry> {
        let all = self.gateways_of(server, client);
        let plug = |entry: &Entry| self.plug(&entry.router, entry.iface_in.as_ref()?);
        let [only] = <[Entry; 1]>::try_from(all).ok()?;
        plug(&only)
            .is_some_and(|plug| self.is_said(plug))
            .then_some(only)
    }

    /// Whether the router of an interface was said to be the gateway of its segment.
    fn is_said(&self, plug: &Plug) -> bool {
        let mut said = self.gateways.iter();
        said.any(|(at, router)| plug.segment == Some(*at) && plug.router == *router)
    }

    /// The interfaces that are up, in a subnet with `address`, and on a segment that has it by as
    /// narrow a subnet as there is.
    pub(super) fn neighbours(&self, address: IpAddr) -> Vec<&Plug> {
        let plugs: Vec<(&Plug, u8)> = self
            .plugs
            .iter()
            .filter(|plug| plug.up && plug.segment.is_some())
            .filter_map(|plug| Some((plug, self.subnet(plug, address)?)))
            .collect();
        let longest = plugs.iter().map(|(_, length)| *length).max();
        let narrow = plugs.iter().filter(|(_, length)| Some(*length) == longest);
        let segments: Vec<Option<usize>> = narrow.map(|(plug, _)| plug.segment).collect();
        plugs
            .into_iter()
            .filter(|(plug, _)| segments.contains(&plug.segment))
            .map(|(plug, _)| plug)
            .collect()
    }

    /// The length of the longest prefix by which `address` is on the link of `plug`: none where a router of that
    /// link has a narrower route that leads elsewhere.
    pub(super) fn subnet(&self, plug: &Plug, address: IpAddr) -> Option<u8> {
        let length = plug.prefix(address)?;
        let away = self.away(plug, address);
        away.is_none_or(|(_, narrower)| narrower <= length)
            .then_some(length)
    }

    /// The router on the segment of `plug` that leads `address` elsewhere by the narrowest route, and how long its
    /// prefix is.
    pub(super) fn away(&self, plug: &Plug, address: IpAddr) -> Option<(&RouterName, u8)> {
        let on_segment = |other: &&Plug| other.up && other.segment == plug.segment;
        let others = self.plugs.iter().filter(on_segment);
        let away = others.filter_map(|other| Some((&other.router, other.leads_away(address)?)));
        away.max_by_key(|(_, length)| *length)
    }

    /// The routers with an interface on the segment of `plug` and a rule for packets to `address` alone which gives them
    /// another destination: who says so means to get them, and nobody else is likely to have that address.
    pub(super) fn translators(&self, plug: &Plug, address: IpAddr) -> BTreeSet<&RouterName> {
        let name = address.to_string();
        let named = |text: &&String| text.contains(&name);
        let on_segment = |other: &&Plug| other.up && other.segment == plug.segment;
        let translates = |other: &&Plug| {
            let mut all = self.translating.iter();
            let texts = all.find(|(router, _)| *router == other.router);
            let mut texts = texts
                .into_iter()
                .flat_map(|(_, texts)| texts.iter().filter(named));
            texts.any(|text| is_translated_alone(text, &other.interface, address))
        };
        let found = self.plugs.iter().filter(on_segment).filter(translates);
        found.map(|other| &other.router).collect()
    }

    /// Other interfaces of routers that are `near` an address, on the same segment and with a whole address
    /// in a subnet that has it: what hosts have for a gateway there (VRRP on a macvlan) comes in by these.
    pub(super) fn addressed_within(&self, near: &[&Plug], address: IpAddr) -> Vec<&Plug> {
        let whole = |net: &&IpNet| net.prefix_len() == net.max_prefix_len();
        let within = |plug: &Plug, other: &Plug| {
            let mut own = plug.addresses.iter().filter(whole);
            plug.segment == other.segment
                && plug.router == other.router
                && own.any(|own| other.shares(address, own.addr()))
        };
        let others = self.plugs.iter();
        let others = others.filter(|plug| plug.up && plug.prefix(address).is_none());
        others
            .filter(|plug| near.iter().any(|other| within(plug, other)))
            .collect()
    }

    /// The interfaces on the segment of `from` by which `address` is reached, other than `from`:
    /// those that have it, or else for IPv4 those of routers that have it elsewhere, since a router
    /// answers ARP on any interface for any address that it has, unless `arp_ignore` is set. Neighbour
    /// discovery is answered only where the address is (`ndisc_recv_ns()`).
    pub(super) fn reached(&self, from: &Plug, address: IpAddr) -> Vec<&Plug> {
        let on_segment = |plug: &&Plug| plug.segment == from.segment && plug.router != from.router;
        let others = || self.plugs.iter().filter(on_segment);
        let direct: Vec<&Plug> = others().filter(|plug| plug.has(address)).collect();
        if !direct.is_empty() || address.is_ipv6() {
            return direct;
        }
        others()
            .filter(|plug| self.answers_arp(plug, address))
            .collect()
    }

    /// Whether a router answers ARP for `address` on this interface.
    pub(super) fn answers_arp(&self, plug: &Plug, address: IpAddr) -> bool {
        let elsewhere =
            || !plug.link.arp.is_strict() && self.owners(address).contains(&&plug.router);
        address.is_ipv4() && (plug.has(address) || elsewhere())
    }

    /// Whether `receiver` hears `router` ask for `address`, which is its own, before a packet from
    /// `source` leaves by `out`. What it is asked with is told by `arp_solicit()` of the kernel.
    fn hears(
        &self,
        router: &RouterName,
        out: &Plug,
        receiver: &Plug,
        (address, source): (IpAddr, IpAddr),
    ) -> bool {
        let from_subnet = receiver.link.arp.ignore == 2;
        let from_nets = receiver.link.hears_from.as_ref();
        if address.is_ipv6() {
            return true;
        }
        let near = |net: &&IpNet| net.contains(&address) && net.addr().is_ipv4();
        let on_link = |asks: IpAddr| {
            let mut nets = out.addresses.iter().filter(near);
            nets.any(|net| net.contains(&asks))
        };
        let with_source = match out.link.arp.announce {
            0 => true,
            1 => on_link(source),
            _ => false,
        };
        let of_out = || {
            let mut v4 = out.addresses.iter().filter(|net| net.addr().is_ipv4());
            let all = v4.clone().find(near);
            all.or_else(|| v4.next()).map(IpNet::addr)
        };
        let own = self.owners(source).contains(&router);
        let hears = |asks: IpAddr| {
            // The kernel takes a question from an address of its own for a martian one.
            if self.owners(asks).contains(&&receiver.router) {
                return receiver.link.arp.accept_local;
            }
            let mut nets = receiver.addresses.iter();
            let of_subnet = nets.any(|net| net.addr() == address && net.contains(&asks));
            let comes_back = from_nets.is_none_or(|nets| nets.iter().any(|n| n.contains(&asks)));
            (of_subnet || !from_subnet) && comes_back
        };
        match (own && with_source).then_some(source).or_else(of_out) {
            Some(asks) => hears(asks),
            // The first address of any other interface (`inet_select_addr()`), in an order that the facts
            // do not tell.
            None => {
                let mut others = self.addresses_elsewhere(router).peekable();
                others.peek().is_none() || others.any(hears)
            }
        }
    }

    /// The addresses of IPv4 of a router that another machine may have for its neighbour's.
    fn addresses_elsewhere(&self, router: &RouterName) -> impl Iterator<Item = IpAddr> {
        let plugs = self.plugs.iter().filter(move |plug| plug.router == *router);
        let all = plugs.flat_map(|plug| plug.addresses.iter().map(IpNet::addr));
        all.filter(|address| matches!(address, IpAddr::V4(v4) if !v4.is_loopback()))
    }

    /// Why a packet from `source` that `router` sends out of `out` to `next_hop` does not come to the
    /// interface `to`; none where it does.
    #[must_use]
    pub fn kept_from(
        &self,
        (router, out): (&RouterName, &IfName),
        next_hop: Option<IpAddr>,
        to: &Entry,
        source: IpAddr,
    ) -> Option<Undelivered> {
        if !self.takes(router, out, to, source) {
            return Some(Undelivered::NotAllowed);
        }
        let sender = self.plug(router, out)?;
        let receiver = self.plug(&to.router, to.iface_in.as_ref()?)?;
        let fixed = next_hop.is_some_and(|hop| sender.fixed(hop).is_some());
        let heard = next_hop.is_none_or(|hop| {
            fixed || !receiver.has(hop) || self.hears(router, sender, receiver, (hop, source))
        });
        (!heard).then_some(Undelivered::Unheard)
    }

    /// Who else may send what comes in at `at` from `source`: the other routers' interfaces on that link, where
    /// the source is in a subnet of the lab and not on the link itself. None where others may, too.
    pub(crate) fn senders(
        &self,
        at: &Entry,
        source: IpAddr,
    ) -> Option<Vec<(&RouterName, &IfName)>> {
        let plug = self.plug(&at.router, at.iface_in.as_ref()?)?;
        let near = self.neighbours(source);
        let on_link = near.iter().any(|other| other.segment == plug.segment);
        let absent = self.absent.iter().any(|(at, _)| plug.segment == Some(*at));
        if near.is_empty() || on_link || absent || !self.missing.is_empty() {
            return None;
        }
        let same_link = |other: &&Plug| {
            other.up && other.segment == plug.segment && other.router != plug.router
        };
        let others = self.plugs.iter().filter(same_link);
        Some(
            others
                .map(|other| (&other.router, &other.interface))
                .collect(),
        )
    }

    /// The names of the interfaces of `router` that are on a segment.
    pub(super) fn wired(&self, router: &RouterName) -> Vec<&str> {
        let wired = |plug: &&Plug| plug.router == *router && plug.segment.is_some();
        let plugs = self.plugs.iter().filter(wired);
        plugs.map(|plug| plug.interface.as_str()).collect()
    }

    /// The name of the segment of `plug`.
    pub(super) fn segment(&self, plug: &Plug) -> Option<&str> {
        Some(self.segments.get(plug.segment?)?.as_str())
    }
}

/// Whether the rule `text` gives packets that come in by `interface` another destination if they are for `address`,
/// and not if they are for the address beside it.
fn is_translated_alone(text: &str, interface: &IfName, address: IpAddr) -> bool {
    let rule = Rule::of(text);
    let beside = match address {
        IpAddr::V4(v4) => IpAddr::from(Ipv4Addr::from_bits(v4.to_bits() ^ 1)),
        IpAddr::V6(v6) => IpAddr::from(Ipv6Addr::from_bits(v6.to_bits() ^ 1)),
    };
    let matches = |to: IpAddr| {
        let packet = Packet::of(Family::of(to))
            .with_device(Field::Incoming, interface.as_str())
            .with_address(Field::Destination, to);
        rule.concerns(&packet)
    };
    rule.translation().is_some_and(|to| !to.source) && matches(address) && !matches(beside)
}
