//! A packet as far as it is known.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::netlink::object::Family;

/// Something about a packet that rules read or change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// Source address.
    Source,
    /// Destination address.
    Destination,
    /// Protocol above IP, by its number.
    Protocol,
    /// Source port.
    SourcePort,
    /// Destination port.
    DestinationPort,
    /// ICMP's type.
    IcmpType,
    /// ICMPv6's type.
    Icmpv6Type,
    /// TCP's flags, the octet of RFC 9293 section 3.1.
    TcpFlags,
    /// What connection tracking says of it, as a [`TrackingState`].
    State,
    /// Mark.
    Mark,
    /// Its connection's mark.
    ConnectionMark,
    /// TOS or traffic class, the whole octet; DSCP is its upper six bits.
    Tos,
    /// TTL or hop limit.
    Ttl,
    /// Length of the IP packet in bytes.
    Length,
    /// The interface it came in by.
    Incoming,
    /// The interface it leaves by.
    Outgoing,
    /// Options of TCP, the maximum segment size above all.
    TcpOptions,
    /// Queueing priority.
    Priority,
    /// Whether, how and in which zone its connection is tracked.
    Tracking,
    /// The link layer's header.
    Link,
    /// Which sets and lists hold its addresses.
    Sets,
    /// Anything else.
    Other,
}

impl Field {
    /// Whether who receives the packet sees it.
    #[must_use]
    pub fn is_sent(self) -> bool {
        !matches!(
            self,
            Self::State
                | Self::Mark
                | Self::ConnectionMark
                | Self::Incoming
                | Self::Outgoing
                | Self::Priority
                | Self::Tracking
                | Self::Sets
        )
    }
}

/// What connection tracking says of a packet, with the numbers of `IP_CT_*` as bits, nft(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum TrackingState {
    /// It belongs to no connection and opens none.
    Invalid = 1,
    /// It belongs to a connection.
    Established = 2,
    /// It opens a connection that another one announced, or is an error of one.
    Related = 4,
    /// It opens a connection.
    New = 8,
    /// It is not tracked.
    Untracked = 64,
}

/// A packet as far as it is known. Each thing is not known, or one of several: a packet that is
/// translated has two destinations on its way, and a set of packets has many.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Packet {
    /// IPv4 or IPv6.
    pub family: Option<Family>,
    addresses: BTreeMap<Field, Vec<IpNet>>,
    devices: BTreeMap<Field, Vec<String>>,
    numbers: BTreeMap<Field, Vec<(u32, u32)>>,
}

/// Whether something holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Truth {
    /// It does not.
    No,
    /// For some packets that are like that, or by something that is not known.
    CannotTell,
    /// It does.
    Yes,
}

impl Truth {
    /// Whether all of `answers` hold.
    pub(super) fn all(answers: impl Iterator<Item = Self>) -> Self {
        answers.min().unwrap_or(Self::Yes)
    }

    pub(super) fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::CannotTell => Self::CannotTell,
            Self::Yes => Self::No,
        }
    }

    /// How many of several possible values fit.
    pub(super) fn of_each(answers: impl Iterator<Item = Self>) -> Self {
        let (mut least, mut most) = (Self::Yes, Self::No);
        let mut some = false;
        for answer in answers {
            some = true;
            least = least.min(answer);
            most = most.max(answer);
        }
        match (least == most, some) {
            (true, true) => least,
            _ => Self::CannotTell,
        }
    }
}

impl Packet {
    /// A packet of which only the family is known.
    #[must_use]
    pub fn of(family: Family) -> Self {
        Self {
            family: Some(family),
            ..Self::default()
        }
    }

    /// Its source or destination may (also) be this.
    #[must_use]
    pub fn with_address(mut self, field: Field, net: impl Into<IpNet>) -> Self {
        self.addresses.entry(field).or_default().push(net.into());
        self
    }

    /// It may (also) come in or leave by this interface.
    #[must_use]
    pub fn with_device(mut self, field: Field, name: impl Into<String>) -> Self {
        self.devices.entry(field).or_default().push(name.into());
        self
    }

    /// A number that it (also) may have.
    #[must_use]
    pub fn with(self, field: Field, number: impl Into<u32>) -> Self {
        let number = number.into();
        self.within(field, number, number)
    }

    /// A number that it may have, from `first` to `last`.
    #[must_use]
    pub fn within(mut self, field: Field, first: u32, last: u32) -> Self {
        self.numbers.entry(field).or_default().push((first, last));
        self
    }

    /// What connection tracking (also) may say of it.
    #[must_use]
    pub fn with_state(self, state: TrackingState) -> Self {
        self.with(Field::State, state as u32)
    }

    /// It goes on to another router: its TTL is one less.
    pub fn pass_on(&mut self) {
        for (first, last) in self.numbers.get_mut(&Field::Ttl).into_iter().flatten() {
            (*first, *last) = (first.saturating_sub(1), last.saturating_sub(1));
        }
    }

    /// A rule makes a number of it `(old & !mask) ^ value`; to what, is not known without a value.
    pub(crate) fn rewrite(&mut self, field: Field, mask: u32, value: Option<u32>) {
        let old = match mask {
            u32::MAX => Some(0),
            _ => self.number(field),
        };
        self.forget(field);
        if let Some(new) = value.zip(old).map(|(value, old)| (old & !mask) ^ value) {
            self.numbers.insert(field, vec![(new, new)]);
        }
    }

    /// Nothing is known of `field` any more.
    pub fn forget(&mut self, field: Field) {
        self.addresses.remove(&field);
        self.devices.remove(&field);
        self.numbers.remove(&field);
    }

    /// What its source or destination may be; none where that is not known.
    #[must_use]
    pub fn addresses(&self, field: Field) -> Option<&[IpNet]> {
        self.addresses.get(&field).map(Vec::as_slice)
    }

    /// The interfaces that it may come in or leave by; none where that is not known.
    #[must_use]
    pub fn devices(&self, field: Field) -> Option<&[String]> {
        self.devices.get(&field).map(Vec::as_slice)
    }

    /// The numbers that it may have, as ranges; none where that is not known.
    #[must_use]
    pub fn numbers(&self, field: Field) -> Option<&[(u32, u32)]> {
        self.numbers.get(&field).map(Vec::as_slice)
    }

    /// The one number that it has, where that is known.
    #[must_use]
    pub fn number(&self, field: Field) -> Option<u32> {
        match self.numbers(field)? {
            [(first, last)] if first == last => Some(*first),
            _ => None,
        }
    }
}
