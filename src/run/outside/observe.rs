//! Gathers what [`judge`](super::judge) weighs.

use std::{collections::HashMap, io, net::IpAddr};

use super::{Back, Counters, LostPacket, Settings};
use crate::{
    firewall::{nft::trace::PacketHead, place::HookPoint, rule::OpenPorts},
    model::IfName,
    netlink::{
        Fib, FibDecision, KernelLink, Lookup, LookupKind, LookupQuery, Netlink, NetlinkError,
        object::{Address, Family, NextHop},
        sysctl,
    },
    netns::NetnsFd,
    run::source_port,
};

/// Looks into one router.
#[derive(Debug)]
pub(crate) struct Observer<'a> {
    netns: &'a NetnsFd,
    netlink: Netlink,
    links: Vec<KernelLink>,
    addresses: Vec<(IfName, Address)>,
    settings: HashMap<(Option<IfName>, bool), Settings>,
    fibs: HashMap<Family, Fib>,
}

impl<'a> Observer<'a> {
    /// Opens a socket in the router and reads its interfaces and addresses.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub(crate) fn new(netns: &'a NetnsFd) -> Result<Self, NetlinkError> {
        let mut netlink = Netlink::open(netns)?;
        let links = netlink.links()?;
        let addresses = netlink.addresses()?;
        Ok(Self {
            netns,
            netlink,
            links,
            addresses,
            settings: HashMap::new(),
            fibs: HashMap::new(),
        })
    }

    /// The name of an interface.
    #[must_use]
    pub(crate) fn name(&self, index: u32) -> Option<&IfName> {
        self.link(index).map(|link| &link.name)
    }

    /// The number of an interface.
    #[must_use]
    pub(crate) fn index(&self, name: &IfName) -> Option<u32> {
        let link = self.links.iter().find(|link| link.name == *name);
        link.map(|link| link.index)
    }

    /// The router's addresses.
    #[must_use]
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.addresses.iter().map(|(_, a)| a.local.addr()).collect()
    }

    /// The router's counters of discarded packets.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn counters(&self) -> io::Result<Counters> {
        self.netns
            .enter(Counters::read_here)
            .map_err(io::Error::other)?
    }

    /// Asks for the ways of many packets at once; none where the kernel did not understand.
    ///
    /// # Errors
    /// [`NetlinkError`] of the socket.
    pub(crate) fn ways(
        &mut self,
        heads: &[PacketHead],
    ) -> Result<Vec<Option<Lookup>>, NetlinkError> {
        let queries: Vec<LookupQuery> = heads.iter().map(|head| self.forwarded(head)).collect();
        let answers = self.netlink.lookup(&queries)?;
        Ok(answers.into_iter().map(Result::ok).collect())
    }

    /// Observes a lost packet of which the way is known, and what rose when it was sent alone.
    ///
    /// # Errors
    /// [`NetlinkError`] of the socket.
    pub(crate) fn observe(
        &mut self,
        after: Option<HookPoint>,
        head: PacketHead,
        way: Option<&Lookup>,
        rose: Counters,
    ) -> Result<LostPacket, NetlinkError> {
        let out = way.and_then(|way| way.dev.as_ref());
        let out = out.and_then(|dev| self.links.iter().find(|link| link.name == *dev));
        let v6 = head.destination.is_ipv6();
        let out = out.map(|link| {
            let of_v6 = v6.then(|| mtu_of_v6(self.netns, &link.name)).flatten();
            (link.name.clone(), of_v6.unwrap_or(link.mtu))
        });
        let iif = self.link(head.iif).cloned();
        let settings = self.settings(iif.as_ref().map(|link| &link.name), head);
        let nowhere = way.is_some_and(|way| way.errno.is_some());
        let filtered = rose.get("TcpExt.IPReversePathFilter") > 0;
        let (decision, back) = if nowhere || filtered {
            self.look_through(head, way, settings)?
        } else {
            (None, None)
        };
        Ok(LostPacket {
            after,
            head,
            way: way.map(|way| way.kind),
            out,
            route_mtu: way.and_then(|way| way.mtu),
            decision,
            back,
            settings,
            down: self.down_network(head),
            iif_up: iif.as_ref().is_none_or(|link| link.up),
            iif_addressed: iif.as_ref().is_some_and(|link| self.has_v4(&link.name)),
            iif: iif.map(|link| link.name),
            rose,
        })
    }

    /// What the lists of policy rules and routes say of a packet that the kernel sends nowhere,
    /// where both agree, and of the way back to its source.
    fn look_through(
        &mut self,
        head: PacketHead,
        way: Option<&Lookup>,
        settings: Settings,
    ) -> Result<(Option<FibDecision>, Option<Back>), NetlinkError> {
        let packet = self.forwarded(&head);
        let Some(fib) = self.fib(Family::of(head.destination))? else {
            return Ok((None, None));
        };
        let decision = fib.decide(&packet);
        // Refused is a blackhole, or comes behind the look-up.
        let agrees = |way: &Lookup| way.kind == LookupKind::Refused || decision.kind() == way.kind;
        let agrees = way.is_some_and(agrees);
        let back = Back {
            from: head.destination,
            decision: fib.decide(&reversed(&packet, fib, settings)),
        };
        Ok((agrees.then_some(decision), Some(back)))
    }

    fn has_v4(&self, name: &IfName) -> bool {
        let mut all = self.addresses.iter();
        all.any(|(dev, address)| dev == name && address.local.addr().is_ipv4())
    }

    fn link(&self, index: u32) -> Option<&KernelLink> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The next hops of the route that a packet to be forwarded takes; none where it goes nowhere.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel cannot be asked.
    pub(crate) fn next_hops(&mut self, head: &PacketHead) -> Result<Vec<NextHop>, NetlinkError> {
        let query = self.forwarded(head);
        self.netlink.next_hops(&query)
    }

    /// By which interface a packet to be forwarded is to leave, and its mark, where that mark leads it
    /// another way than it would go without.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel cannot be asked.
    pub(crate) fn led_by_mark(
        &mut self,
        head: &PacketHead,
    ) -> Result<Option<(IfName, u32)>, NetlinkError> {
        let Some(out) = self.name(head.oif).cloned().filter(|_| head.mark != 0) else {
            return Ok(None);
        };
        let without = LookupQuery {
            mark: 0,
            ..self.forwarded(head)
        };
        let plain = self.netlink.lookup_one(&without)?;
        Ok((plain.dev.as_ref() != Some(&out)).then_some((out, head.mark)))
    }

    /// Which policy rule sends a packet to be forwarded another way if it has another of the `open`
    /// ports, in words; none where they all fare alike.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel cannot be asked.
    pub(in crate::run) fn by_open_port(
        &mut self,
        head: &PacketHead,
        open: OpenPorts,
    ) -> Result<Option<String>, NetlinkError> {
        let query = self.forwarded(head);
        let family = Family::of(head.destination);
        if !source_port::matters(&self.netlink.rules(family)?) {
            return Ok(None);
        }
        let fib = self.fib(family)?;
        Ok(fib.and_then(|fib| source_port::doubt(fib, &query, open)))
    }

    /// The rules and tables of a family, read once.
    fn fib(&mut self, family: Family) -> Result<Option<&Fib>, NetlinkError> {
        if !self.fibs.contains_key(&family) {
            let fib = Fib::read(&mut self.netlink, family)?;
            self.fibs.insert(family, fib);
        }
        Ok(self.fibs.get(&family))
    }

    fn forwarded(&self, head: &PacketHead) -> LookupQuery {
        LookupQuery {
            from: Some(head.source),
            iif: self.name(head.iif).cloned(),
            mark: head.mark,
            tos: head.tos,
            ip_proto: Some(head.protocol.number()),
            sport: Some(head.source_port),
            dport: Some(head.destination_port),
            ..LookupQuery::to(head.destination)
        }
    }

    /// An interface that is down, in whose network the destination is.
    fn down_network(&self, head: PacketHead) -> Option<IfName> {
        let down = |name: &IfName| self.links.iter().any(|l| l.name == *name && !l.up);
        let holds = |(name, address): &&(IfName, Address)| {
            address.local.contains(&head.destination) && down(name)
        };
        let found = self.addresses.iter().find(holds);
        found.map(|(name, _)| name.clone())
    }

    fn settings(&mut self, iif: Option<&IfName>, head: PacketHead) -> Settings {
        let v4 = head.destination.is_ipv4();
        let key = (iif.cloned(), v4);
        if let Some(known) = self.settings.get(&key) {
            return *known;
        }
        let read = read_settings(self.netns, iif, v4);
        self.settings.insert(key, read);
        read
    }
}

/// The question that the check of a packet's source asks, __fib_validate_source().
fn reversed(packet: &LookupQuery, fib: &Fib, settings: Settings) -> LookupQuery {
    let ports = |port: Option<u16>| port.filter(|_| fib.looks_at_ports());
    LookupQuery {
        from: Some(packet.to),
        mark: if settings.src_valid_mark {
            packet.mark
        } else {
            0
        },
        tos: packet.tos,
        ip_proto: packet.ip_proto.filter(|_| fib.looks_at_ports()),
        sport: ports(packet.dport),
        dport: ports(packet.sport),
        ..LookupQuery::to(packet.from.unwrap_or(packet.to))
    }
}

/// The MTU that IPv6 takes the interface to have, which may be less than its link's
/// (`net.ipv6.conf.*.mtu`, ip-sysctl.rst).
fn mtu_of_v6(netns: &NetnsFd, dev: &IfName) -> Option<u32> {
    let path = format!("net/ipv6/conf/{dev}/mtu");
    sysctl::read(netns, &[path]).ok()?.pop()?.parse().ok()
}

/// A sysctl that cannot be read is one that this kernel does not have: it is off.
fn read_settings(netns: &NetnsFd, iif: Option<&IfName>, v4: bool) -> Settings {
    let dev = iif.map_or("default", IfName::as_str);
    let (version, name) = if v4 { ("ipv4", dev) } else { ("ipv6", "all") };
    let number = |path: String| -> u8 {
        let read = sysctl::read(netns, &[path]).ok();
        let text = read.and_then(|mut values| values.pop());
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    let of = |name: &str, key: &str| number(format!("net/{version}/conf/{name}/{key}"));
    // ip-sysctl.rst: the larger of both counts for rp_filter, either for the others.
    Settings {
        forwarding: of(name, "forwarding") > 0 || !v4 && of(dev, "force_forwarding") > 0,
        rp_filter: of("all", "rp_filter").max(of(dev, "rp_filter")),
        accept_local: of("all", "accept_local") > 0 || of(dev, "accept_local") > 0,
        src_valid_mark: v4 && (of("all", "src_valid_mark") > 0 || of(dev, "src_valid_mark") > 0),
        route_localnet: of("all", "route_localnet") > 0 || of(dev, "route_localnet") > 0,
        disable_ipv6: !v4 && (of("all", "disable_ipv6") > 0 || of(dev, "disable_ipv6") > 0),
    }
}
