//! One thing that a rule asks of a packet.

use ipnet::IpNet;

use super::{
    Field, Packet, Truth,
    caveat::{Alone, Caveat},
};
use crate::netlink::object::Family;

/// A test, or its opposite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// The test.
    pub test: Test,
    /// Whether a packet has to fail it.
    pub negated: bool,
}

/// Something that a packet is like or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// It is IPv4, or IPv6.
    Family(Family),
    /// Its source or destination is in one of these.
    Address {
        /// Which.
        of: Field,
        /// Where.
        nets: Vec<IpNet>,
    },
    /// It comes in or leaves by one of these interfaces; `*` at the end stands for anything.
    Device {
        /// Which.
        of: Field,
        /// Names.
        names: Vec<String>,
    },
    /// A number of it, cut down to `mask`, is in one of these ranges.
    Number {
        /// Which.
        of: Field,
        /// The bits that count.
        mask: u32,
        /// First and last of each range.
        ranges: Vec<(u32, u32)>,
    },
    /// Something beyond the packet.
    Varies(Varying),
    /// Something that is not understood further.
    Other {
        /// As the rule says it.
        text: String,
        /// What it reads.
        reads: Vec<Field>,
    },
}

/// A test that depends on more than the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Varying {
    /// On what.
    pub caveat: Caveat,
    /// What it says of a packet that comes alone.
    pub alone: Alone,
    /// The list of `recent` by which it says the opposite, once another rule has put the packet
    /// itself there.
    pub list: Option<String>,
    /// The test itself, which may have one answer for whatever senders there are.
    pub within: Option<Box<Test>>,
}

impl Caveat {
    pub(super) fn alone(self, alone: Alone) -> Varying {
        Varying {
            caveat: self,
            alone,
            list: None,
            within: None,
        }
    }
}

impl Match {
    pub(super) fn varying(&self) -> Option<&Varying> {
        match &self.test {
            Test::Varies(varying) => Some(varying),
            _ => None,
        }
    }

    /// Whether `packet` fits.
    #[must_use]
    pub fn answer(&self, packet: &Packet) -> Truth {
        let answer = self.test.answer(packet);
        if self.negated { answer.not() } else { answer }
    }
}

impl Test {
    /// One that is not understood further.
    pub(super) fn other(text: &str, reads: &[Field]) -> Self {
        Self::Other {
            text: text.to_owned(),
            reads: reads.to_vec(),
        }
    }

    /// The test, apart from that it depends on more than the packet, where it is one of the packet.
    #[must_use]
    pub fn itself(&self) -> &Self {
        match self {
            Self::Varies(varying) => varying.within.as_deref().unwrap_or(self),
            _ => self,
        }
    }

    /// Whether `packet` is like that.
    #[must_use]
    pub fn answer(&self, packet: &Packet) -> Truth {
        match self {
            Self::Family(family) => match packet.family {
                Some(known) if known == *family => Truth::Yes,
                Some(_) => Truth::No,
                None => Truth::CannotTell,
            },
            Self::Address { of, nets } => one_of(packet.addresses(*of), |net| within(net, nets)),
            Self::Device { of, names } => one_of(packet.devices(*of), |device| {
                if names.iter().any(|name| is_named(device, name)) {
                    Truth::Yes
                } else {
                    Truth::No
                }
            }),
            Self::Number { of, mask, ranges } => {
                one_of(packet.numbers(*of), |known| inside(*known, *mask, ranges))
            }
            Self::Varies(varying) => {
                let within = varying.within.as_ref();
                within.map_or(Truth::CannotTell, |test| test.answer(packet))
            }
            Self::Other { .. } => Truth::CannotTell,
        }
    }

    /// What of a packet it reads.
    #[must_use]
    pub fn reads(&self) -> &[Field] {
        match self {
            Self::Address { of, .. } | Self::Device { of, .. } | Self::Number { of, .. } => {
                std::slice::from_ref(of)
            }
            Self::Varies(varying) => varying.within.as_ref().map_or(&[], |test| test.reads()),
            Self::Family(_) => &[],
            Self::Other { reads, .. } => reads,
        }
    }
}

fn one_of<T>(known: Option<&[T]>, answer: impl FnMut(&T) -> Truth) -> Truth {
    known.map_or(Truth::CannotTell, |known| {
        Truth::of_each(known.iter().map(answer))
    })
}

/// Whether all of `net` is in one of `nets`, or nothing of it in any.
fn within(net: &IpNet, nets: &[IpNet]) -> Truth {
    if nets.iter().any(|wide| wide.contains(net)) {
        Truth::Yes
    } else if nets.iter().any(|narrow| net.contains(narrow)) {
        Truth::CannotTell
    } else {
        Truth::No
    }
}

fn is_named(device: &str, name: &str) -> bool {
    match name.strip_suffix('*') {
        Some(beginning) => device.starts_with(beginning),
        None => device == name,
    }
}

/// Whether all numbers of a range fit, or none. A mask can only be applied to a single number.
fn inside((first, last): (u32, u32), mask: u32, ranges: &[(u32, u32)]) -> Truth {
    let fits = |number: u32| ranges.iter().any(|(a, b)| (*a..=*b).contains(&number));
    if first == last {
        return if fits(first & mask) {
            Truth::Yes
        } else {
            Truth::No
        };
    }
    if mask != u32::MAX {
        return Truth::CannotTell;
    }
    if ranges.iter().any(|(a, b)| *a <= first && last <= *b) {
        Truth::Yes
    } else if ranges.iter().any(|(a, b)| *a <= last && first <= *b) {
        Truth::CannotTell
    } else {
        Truth::No
    }
}
