//! Following real packets of a job through the chains of one router, both ways.
//!
//! ```text
//! table ip tsimflow_RUNID {        # flags owner
//!   chain prerouting_first { hook prerouting priority -2^31; iif A ether saddr S meta nftrace set 1
//!                                                            iif B ether saddr D meta nftrace set 1 }
//!   chain output_first     { hook output     priority -2^31; ip daddr SOURCE?  meta nftrace set 1 }
//!   chain prerouting_last, input_first, input_last, forward_first, …      # empty
//! }
//! table netdev tsimflow_RUNID {
//!   chain ingress_first_0  { hook ingress device A priority -2^31; ether saddr S meta nftrace set 1 }
//!   chain ingress_last_0   …                                              # empty
//! }
//! ```
//!
//! A real packet carries no tag, and NAT rewrites what it carries. It is recognised by where it
//! comes from: the interface and the hardware address of a host that only this job uses, or of
//! another router that the job holds. What the router itself sends (ICMP errors, resets) is
//! followed, too: to the source, or all of it where the source's address may have been rewritten
//! by then, but for what routers say to their neighbours. Nothing is taken out
//! of its way: the tracer's chains are empty but for the rules that switch the trace on, and the
//! policy of an empty chain is reported like any other.

use std::{
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
};

use super::{
    EVENT_BUFFER, NftError, PacketHead, ProbeExit, Reached, StoppedBy, TraceDecision, TraceSockets,
    TraceStep, Trail,
    event::{StepKind, TraceEvent},
    head::Ip,
    read_events,
    trail::{chain_name, marker, stopped_by},
};
use crate::{
    firewall::{
        RulePlace, TableFamily,
        nft::{NftSocket, Ownership, make_tables, table_family, wire::array},
        place::HookPoint,
    },
    model::{IfName, Protocol, RunId},
    netlink::object::{self, Mac},
    sys::nftnl::{EncodeError, Encoder, Expr, Family, Header, Hook, Meta},
};

/// What to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowSpec {
    /// The job.
    pub run_id: RunId,
    /// Family of the packets.
    pub family: object::Family,
    /// Where what the router itself sends is followed to; none for anywhere.
    pub own_to: Option<IpAddr>,
    /// The hosts and routers whose packets are followed.
    pub ends: Vec<FlowEnd>,
}

/// A host or another router that is joined to one of the router's segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowEnd {
    /// The router's interface.
    pub interface: IfName,
    /// Its number.
    pub index: u32,
    /// Its hardware address.
    pub mac: Mac,
}

/// The headers of a packet at some point of its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowHead {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// What it carries.
    pub payload: Payload,
    /// TOS or traffic class, the whole octet.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Length of the IP packet in bytes.
    pub length: u32,
    /// Firewall mark.
    pub mark: u32,
    /// Number of the interface it came in by; 0 where there is none.
    pub iif: u32,
    /// Number of the interface it is to leave by; 0 where that is not known.
    pub oif: u32,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Payload {
    /// A TCP segment.
    Tcp {
        /// Source and destination port.
        ports: (u16, u16),
        /// The flags' octet, RFC 9293 section 3.1.
        flags: u8,
    },
    /// A UDP datagram.
    Udp {
        /// Source and destination port.
        ports: (u16, u16),
    },
    /// An SCTP packet.
    Sctp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Type of its first chunk, RFC 9260 section 3.2.
        chunk: u8,
    },
    /// ICMP or ICMPv6.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The identifier, where the type has one.
        id: u16,
    },
    /// Something else, by its protocol number.
    Other(u8),
}

impl Payload {
    /// Source and destination port.
    #[must_use]
    pub fn ports(self) -> Option<(u16, u16)> {
        match self {
            Self::Tcp { ports, .. } | Self::Udp { ports } | Self::Sctp { ports, .. } => Some(ports),
            Self::Icmp { .. } | Self::Other(_) => None,
        }
    }

    fn parse(protocol: u8, transport: &[u8]) -> Option<Self> {
        let port = |at| Some(u16::from_be_bytes(array(transport, at)?));
        Some(match i32::from(protocol) {
            libc::IPPROTO_TCP => Self::Tcp {
                ports: (port(0)?, port(2)?),
                flags: *transport.get(13)?,
            },
            libc::IPPROTO_UDP => Self::Udp {
                ports: (port(0)?, port(2)?),
            },
            libc::IPPROTO_SCTP => Self::Sctp {
                ports: (port(0)?, port(2)?),
                chunk: *transport.get(12)?,
            },
            libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6 => Self::Icmp {
                kind: *transport.first()?,
                code: *transport.get(1)?,
                id: port(4)?,
            },
            _ => Self::Other(protocol),
        })
    }
}

impl FlowHead {
    /// The protocol above IP.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        match self.payload {
            Payload::Tcp { .. } => Protocol::Tcp,
            Payload::Udp { .. } => Protocol::Udp,
            Payload::Sctp { .. } => Protocol::Sctp,
            Payload::Icmp { .. } if self.source.is_ipv4() => Protocol::Icmp,
            Payload::Icmp { .. } => Protocol::Icmpv6,
            Payload::Other(number) => Protocol::of(number),
        }
    }

    /// Whether it is an ICMP error, RFC 792 and RFC 4443 section 2.1.
    #[must_use]
    pub fn is_icmp_error(&self) -> bool {
        match self.payload {
            Payload::Icmp { kind, .. } if self.source.is_ipv4() => {
                matches!(kind, 3 | 4 | 5 | 11 | 12)
            }
            Payload::Icmp { kind, .. } => kind < 128,
            _ => false,
        }
    }

    fn of(event: &TraceEvent<'_>) -> Option<Self> {
        let ip = Ip::parse(event.network?)?;
        Some(Self {
            source: ip.source,
            destination: ip.destination,
            payload: Payload::parse(ip.protocol, event.transport?)?,
            tos: ip.tos,
            ttl: ip.ttl,
            length: ip.length,
            mark: event.mark,
            iif: event.iif,
            oif: event.oif,
        })
    }
}

/// The way of one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowPacket {
    /// Its headers when it was first seen.
    pub first: FlowHead,
    /// Its headers when they were last shown.
    pub last: FlowHead,
    /// What chains did with it, in order; the tracer's own chains are left out.
    pub steps: Vec<TraceStep>,
    /// How far it came.
    pub reached: Reached,
    /// The kernel's number for the packet, reused soon.
    id: u32,
    /// Whether the last event was a step, and not one of the tracer's own.
    ends_with_step: bool,
}

impl FlowPacket {
    /// Whether this is of what nodes on a link say to each other: to groups, or multicast listener
    /// and neighbour discovery of IPv6 (RFC 2710, RFC 4861, RFC 3810). The chains of interfaces see
    /// it even where packets of IPv4 are followed.
    fn is_between_neighbours(&self) -> bool {
        let FlowHead {
            source,
            destination,
            payload,
            ..
        } = self.first;
        let discovery = match payload {
            Payload::Icmp { kind, .. } => matches!(kind, 130..=137 | 143),
            _ => false,
        };
        source.is_unspecified() || destination.is_multicast() || source.is_ipv6() && discovery
    }

    /// Whether the router itself sent it.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.first.iif == 0
    }

    /// Where its way ended, or what ended it, as far as was seen.
    #[must_use]
    pub fn stopped_by(&self) -> StoppedBy<'_> {
        match self.reached {
            reached if self.has_left() => match self.dropped_by_device() {
                Some(step) => stopped_by(Some(step), reached),
                None => StoppedBy::Nothing(ProbeExit::Out),
            },
            Reached {
                hook: HookPoint::Input,
                whole: true,
            } => StoppedBy::Nothing(ProbeExit::Local),
            reached => stopped_by(self.steps.last().filter(|_| self.ends_with_step), reached),
        }
    }

    /// Whether it came past the last chain of IP on its way out.
    fn has_left(&self) -> bool {
        self.reached.whole && self.reached.hook == HookPoint::Postrouting
    }

    /// Where a chain of a device's egress dropped it, behind all of IP.
    fn dropped_by_device(&self) -> Option<&TraceStep> {
        let last = self.steps.last().filter(|_| self.ends_with_step)?;
        let drops = last.decision == TraceDecision::Drop;
        (drops && last.place.family == TableFamily::NETDEV).then_some(last)
    }

    /// The same as the way of a probe, whose headers were `head` when they were last shown.
    #[must_use]
    pub fn trail(&self, head: PacketHead) -> Trail {
        let exit = match self.stopped_by() {
            StoppedBy::Nothing(exit) => Some(exit),
            _ => None,
        };
        Trail {
            steps: self.steps.clone(),
            reached: self.reached,
            head,
            exit,
            copies: 0,
            id: self.id,
            ends_with_step: self.ends_with_step,
        }
    }

    /// A packet that came in and left, for tests of what follows packets.
    #[cfg(test)]
    pub(crate) fn that_left(first: FlowHead, last: FlowHead) -> Self {
        let reached = Reached {
            hook: HookPoint::Postrouting,
            whole: true,
        };
        Self {
            last,
            ..Self::begin(0, first, reached)
        }
    }

    fn begin(id: u32, head: FlowHead, reached: Reached) -> Self {
        Self {
            first: head,
            last: head,
            steps: Vec::new(),
            reached,
            id,
            ends_with_step: false,
        }
    }

    fn step(&mut self, event: &TraceEvent<'_>) {
        // Some kernels report the end of a chain as a rule without a handle.
        if event.kind == StepKind::Rule && event.handle == 0 {
            return;
        }
        let hook = match event.family {
            TableFamily::NETDEV if !self.has_left() => HookPoint::Ingress,
            _ => self.hook(),
        };
        self.ends_with_step = true;
        self.steps.push(TraceStep {
            hook,
            place: RulePlace {
                family: event.family,
                table: event.table.to_owned(),
                chain: event.chain.to_owned(),
                handle: event.handle,
            },
            kind: event.kind,
            decision: event.decision.clone(),
        });
    }

    fn hook(&self) -> HookPoint {
        self.reached.hook
    }
}

/// Follows the packets of one job through one router.
#[derive(Debug)]
pub struct FlowTracer {
    sockets: TraceSockets,
    ownership: Ownership,
    packets: Packets,
    family: Family,
    ingress: bool,
    buffer: Vec<u8>,
}

impl FlowTracer {
    /// Begins.
    ///
    /// # Errors
    /// [`NftError`]; nothing was changed then.
    pub fn start(mut sockets: TraceSockets, spec: &FlowSpec) -> Result<Self, NftError> {
        let table = table_name(&spec.run_id);
        let family = table_family(spec.family);
        let render = |batch, flags| render(batch, spec, family, &table, flags);
        let ownership = make_tables(&mut sockets.control, render, "installing a trace")?;
        Ok(Self {
            sockets,
            ownership,
            packets: Packets {
                table,
                list: Vec::new(),
                overrun: false,
            },
            family,
            ingress: !spec.ends.is_empty(),
            buffer: Vec::with_capacity(EVENT_BUFFER),
        })
    }

    /// Whether the kernel ends the trace if this process dies.
    #[must_use]
    pub fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// Reads the events that wait.
    ///
    /// # Errors
    /// [`NftError::Receive`].
    pub fn read(&mut self) -> Result<(), NftError> {
        let packets = &mut self.packets;
        let add = |event: &TraceEvent<'_>| packets.add(event);
        let overrun = read_events(&self.sockets.events, &mut self.buffer, add)?;
        self.packets.overrun |= overrun;
        Ok(())
    }

    /// The packets that were read so far, in the order in which they came in.
    pub fn packets(&self) -> impl Iterator<Item = &FlowPacket> {
        let list = self.packets.list.iter();
        list.filter(|packet| !packet.is_between_neighbours())
    }

    /// Gives away the packets that were read, and says whether the kernel had to leave out events
    /// since this was last asked, so that they are not to be trusted.
    pub fn take(&mut self) -> (Vec<FlowPacket>, bool) {
        let overrun = std::mem::take(&mut self.packets.overrun);
        let mut packets = std::mem::take(&mut self.packets.list);
        packets.retain(|packet| !packet.is_between_neighbours());
        (packets, overrun)
    }

    /// The control socket, to ask about the ruleset.
    pub fn control(&mut self) -> &mut NftSocket {
        &mut self.sockets.control
    }

    /// Ends the trace. The sockets are returned, to be closed when nobody waits any more.
    ///
    /// # Errors
    /// [`NftError`]; closing the sockets removes owned tables even then.
    pub fn stop(mut self) -> (TraceSockets, Result<(), NftError>) {
        self.sockets.leave();
        let result = self.delete_tables();
        (self.sockets, result)
    }

    fn delete_tables(&mut self) -> Result<(), NftError> {
        let control = &mut self.sockets.control;
        let mut batch = control.encoder();
        batch.begin();
        batch.delete_table(self.family, &self.packets.table)?;
        if self.ingress {
            batch.delete_table(Family::Netdev, &self.packets.table)?;
        }
        batch.end();
        match control.transact(&batch, "removing a trace") {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }
}

impl AsFd for FlowTracer {
    /// Readable when events wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sockets.events.as_fd()
    }
}

/// The packets that were seen, put together from events.
#[derive(Debug)]
struct Packets {
    table: String,
    list: Vec<FlowPacket>,
    overrun: bool,
}

impl Packets {
    fn add(&mut self, event: &TraceEvent<'_>) {
        let own = event.table == self.table;
        let head = FlowHead::of(event);
        let reached = if own { marker(event.chain) } else { None };
        if let (Some(reached), Some(head)) = (reached, head)
            && self.begins(event.id, reached)
        {
            self.list.push(FlowPacket::begin(event.id, head, reached));
            return;
        }
        // Numbers are reused: the latest packet of this number is meant.
        let Some(packet) = self.list.iter_mut().rfind(|p| p.id == event.id) else {
            return;
        };
        if let Some(head) = head {
            packet.last = head;
        }
        match reached {
            Some(reached) => {
                packet.reached = reached;
                packet.ends_with_step = false;
            }
            None if own => {}
            None => packet.step(event),
        }
    }

    /// Whether a packet seen at `reached` is a new one.
    fn begins(&self, id: u32, reached: Reached) -> bool {
        let goes_on = || {
            let known = self.list.iter().rfind(|p| p.id == id);
            known.is_some_and(|p| p.hook() == HookPoint::Ingress)
        };
        match reached {
            Reached { whole: true, .. } => false,
            Reached {
                hook: HookPoint::Ingress | HookPoint::Output,
                ..
            } => true,
            Reached {
                hook: HookPoint::Prerouting,
                ..
            } => !goes_on(),
            _ => false,
        }
    }
}

/// The name of the tables that a trace makes. A run id cannot make it another trace's.
fn table_name(run_id: &RunId) -> String {
    format!("tsimflow_{run_id}")
}

const HOOKS: [(HookPoint, Hook); 5] = [
    (HookPoint::Prerouting, Hook::Prerouting),
    (HookPoint::Input, Hook::Input),
    (HookPoint::Forward, Hook::Forward),
    (HookPoint::Output, Hook::Output),
    (HookPoint::Postrouting, Hook::Postrouting),
];

fn render(
    mut batch: Encoder,
    spec: &FlowSpec,
    family: Family,
    table: &str,
    flags: u32,
) -> Result<Encoder, EncodeError> {
    batch.begin();
    batch.table(family, table, flags)?;
    for (point, hook) in HOOKS {
        for (whole, priority) in [(false, i32::MIN), (true, i32::MAX)] {
            let name = chain_name(Reached { hook: point, whole });
            batch.base_chain(family, table, &name, hook, priority)?;
        }
    }
    follow_hosts(&mut batch, spec, family, table)?;
    follow_own(&mut batch, spec.own_to, family, table)?;
    if !spec.ends.is_empty() {
        batch.table(Family::Netdev, table, flags)?;
    }
    let mut devices: Vec<&IfName> = spec.ends.iter().map(|end| &end.interface).collect();
    devices.sort();
    devices.dedup();
    for (number, device) in devices.into_iter().enumerate() {
        ingress(&mut batch, spec, (number, device), table)?;
    }
    batch.end();
    Ok(batch)
}

/// Switches the trace on. A rule that does that is reported itself only if it does not decide.
const TRACE: [Expr<'static>; 2] = [Expr::LoadData(&[1]), Expr::SetMeta(Meta::NfTrace)];

/// Loads the Ethernet source address.
const LOAD_SENDER: Expr<'static> = Expr::LoadPayload {
    header: Header::Link,
    offset: 6,
    len: 6,
};

fn follow_hosts(
    batch: &mut Encoder,
    spec: &FlowSpec,
    family: Family,
    table: &str,
) -> Result<(), EncodeError> {
    let chain = chain_name(Reached {
        hook: HookPoint::Prerouting,
        whole: false,
    });
    for end in &spec.ends {
        let index = end.index.to_ne_bytes();
        let mut exprs = vec![Expr::LoadMeta(Meta::Iif), Expr::Equal(&index)];
        exprs.extend([LOAD_SENDER, Expr::Equal(&end.mac.0)]);
        exprs.extend(TRACE);
        batch.rule(family, table, &chain, &exprs)?;
    }
    Ok(())
}

fn follow_own(
    batch: &mut Encoder,
    to: Option<IpAddr>,
    family: Family,
    table: &str,
) -> Result<(), EncodeError> {
    let address = to.map(|to| match to {
        IpAddr::V4(address) => (16, address.octets().to_vec()),
        IpAddr::V6(address) => (24, address.octets().to_vec()),
    });
    let mut exprs = Vec::new();
    if let Some((offset, octets)) = &address {
        exprs.push(Expr::LoadPayload {
            header: Header::Network,
            offset: *offset,
            len: octets.len() as u32,
        });
        exprs.push(Expr::Equal(octets));
    }
    exprs.extend(TRACE);
    let chain = chain_name(Reached {
        hook: HookPoint::Output,
        whole: false,
    });
    batch.rule(family, table, &chain, &exprs)
}

/// The chains of one interface, with a rule for each of the ends there.
fn ingress(
    batch: &mut Encoder,
    spec: &FlowSpec,
    (number, device): (usize, &IfName),
    table: &str,
) -> Result<(), EncodeError> {
    for (whole, priority) in [(false, i32::MIN), (true, i32::MAX)] {
        let hook = HookPoint::Ingress;
        let chain = format!("{}_{number}", chain_name(Reached { hook, whole }));
        batch.ingress_chain(table, &chain, device.as_str(), priority)?;
        if whole {
            continue;
        }
        for end in spec.ends.iter().filter(|end| end.interface == *device) {
            let mut exprs = vec![LOAD_SENDER, Expr::Equal(&end.mac.0)];
            exprs.extend(TRACE);
            batch.rule(Family::Netdev, table, &chain, &exprs)?;
        }
    }
    Ok(())
}
