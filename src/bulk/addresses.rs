//! Addresses as people write them for many questions: one, a range, a network; and the end networks of a
//! lab.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    net::IpAddr,
    str::FromStr,
};

use ipnet::{IpNet, Ipv4AddrRange, Ipv6AddrRange};
use schemars::JsonSchema;
use thiserror::Error;

use crate::{
    lab::{LabState, topology::InterfaceKind, trace::anycast},
    model::text_in_json,
};

/// More addresses than these are not meant by one entry: every one of them is asked about.
pub const MOST: usize = 65_536;

/// One entry of a list of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addresses {
    /// One address, or the first and the last of several in a row.
    Range(IpAddr, IpAddr),
    /// Every address of a network that a host may have.
    Network(IpNet),
}

/// An entry was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AddressError {
    /// It is nothing of what is allowed.
    #[error(
        "{0:?} is no address: 10.1.1.100, 10.1.1.10-10.1.1.20 and 10.1.1.0/24 are allowed, and names \
         where a policy gives them"
    )]
    Unknown(String),
    /// The ends of a range are the wrong way round, or of two families.
    #[error(
        "the range {0:?} is empty: its first address exceeds its last, or they are of two families"
    )]
    Backwards(String),
    /// There are too many.
    #[error("{0:?} is more than {MOST} addresses, the most that one entry may mean")]
    TooMany(String),
    /// All entries of a list together are too many.
    #[error("these are more than {MOST} addresses, the most that a list may mean")]
    TooManyInAll,
}

impl FromStr for Addresses {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let unknown = || AddressError::Unknown(text.to_owned());
        let found = if let Ok(address) = text.parse() {
            Self::Range(address, address)
        } else if let Some((first, last)) = text.split_once('-') {
            let part = |part: &str| part.trim().parse::<IpAddr>().map_err(|_| unknown());
            let (first, last) = (part(first)?, part(last)?);
            if first.is_ipv4() != last.is_ipv4() || first > last {
                return Err(AddressError::Backwards(text.to_owned()));
            }
            Self::Range(first, last)
        } else {
            Self::Network(text.parse::<IpNet>().map_err(|_| unknown())?.trunc())
        };
        if found.iter().nth(MOST).is_some() {
            return Err(AddressError::TooMany(text.to_owned()));
        }
        Ok(found)
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(first, last) if first == last => first.fmt(f),
            Self::Range(first, last) => write!(f, "{first}-{last}"),
            Self::Network(network) => network.fmt(f),
        }
    }
}

impl Addresses {
    /// Every one of them, in order.
    pub fn iter(&self) -> Box<dyn Iterator<Item = IpAddr>> {
        match *self {
            Self::Range(IpAddr::V4(first), IpAddr::V4(last)) => {
                Box::new(Ipv4AddrRange::new(first, last).map(IpAddr::V4))
            }
            Self::Range(IpAddr::V6(first), IpAddr::V6(last)) => {
                Box::new(Ipv6AddrRange::new(first, last).map(IpAddr::V6))
            }
            // Never of two families.
            Self::Range(first, _) => Box::new(std::iter::once(first)),
            Self::Network(IpNet::V4(network)) => Box::new(network.hosts().map(IpAddr::V4)),
            Self::Network(IpNet::V6(network)) => Box::new(network.hosts().map(IpAddr::V6)),
        }
    }
}

/// Entries by commas, as one text in files and in the API; at most [`MOST`] addresses in all.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(
    with = "String",
    description = "Addresses, ranges and networks by commas; at most 65,536 addresses in all."
)]
pub struct AskedAddresses(Vec<Addresses>);

impl AskedAddresses {
    /// Takes entries one after the other, until they are too many.
    ///
    /// # Errors
    /// [`AddressError`] of an entry, or of all of them.
    pub fn new(
        entries: impl IntoIterator<Item = Result<Addresses, AddressError>>,
    ) -> Result<Self, AddressError> {
        let (mut list, mut count) = (Vec::new(), 0);
        for entry in entries {
            let entry = entry?;
            count += entry.iter().count();
            if count > MOST {
                return Err(AddressError::TooManyInAll);
            }
            list.push(entry);
        }
        Ok(Self(list))
    }

    /// The entries.
    #[must_use]
    pub fn entries(&self) -> &[Addresses] {
        &self.0
    }

    /// The address, where it is one.
    #[must_use]
    pub fn one(&self) -> Option<IpAddr> {
        match self.0[..] {
            [Addresses::Range(first, last)] if first == last => Some(first),
            _ => None,
        }
    }
}

impl From<IpAddr> for AskedAddresses {
    fn from(address: IpAddr) -> Self {
        Self(vec![Addresses::Range(address, address)])
    }
}

text_in_json!(AskedAddresses);

impl FromStr for AskedAddresses {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::new(text.split(',').map(|entry| entry.trim().parse()))
    }
}

impl fmt::Display for AskedAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.pad(&entries.join(","))
    }
}

/// Who is asked about: sources and destinations, and what stands behind those that are networks' hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sides {
    /// Where packets come from.
    pub sources: Vec<IpAddr>,
    /// Where they go to.
    pub destinations: Vec<IpAddr>,
    /// Networks by the address that stands for them.
    pub names: BTreeMap<IpAddr, String>,
}

impl Sides {
    /// Every address of the entries; on a side without any the end networks of `lab`, where there is one.
    #[must_use]
    pub fn of(sources: &[Addresses], destinations: &[Addresses], lab: Option<&LabState>) -> Self {
        let every = |list: &[Addresses]| -> Vec<IpAddr> {
            let mut seen = HashSet::new();
            let all = list.iter().flat_map(Addresses::iter);
            // Who is named twice is asked about once.
            all.filter(|address| seen.insert(*address)).collect()
        };
        let networks = lab.map(end_networks).unwrap_or_default();
        let hosts = || networks.iter().map(|end| end.host).collect();
        let or_hosts = |given: Vec<IpAddr>| if given.is_empty() { hosts() } else { given };
        Self {
            sources: or_hosts(every(sources)),
            destinations: or_hosts(every(destinations)),
            names: networks
                .iter()
                .map(|end| (end.host, end.network.to_string()))
                .collect(),
        }
    }
}

/// A network at the end of a lab: hosts live there, and one router alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndNetwork {
    /// The network.
    pub network: IpNet,
    /// The address that stands for its hosts: the lowest that no router has.
    pub host: IpAddr,
}

/// The networks of a lab in which one router alone has an interface, other than links between two
/// addresses and tunnels; in the order of their addresses.
#[must_use]
pub fn end_networks(lab: &LabState) -> Vec<EndNetwork> {
    let all = lab.routers.iter().flat_map(|router| {
        let interfaces = router.interfaces.iter();
        interfaces.map(move |interface| (&router.name, interface))
    });
    let own: Vec<IpAddr> = all
        .clone()
        .flat_map(|(_, interface)| &interface.addresses)
        // Of a subnet of IPv6 the lowest is an address of its routers: no host has it.
        .flat_map(|address| [Some(address.local.addr()), anycast(address.local)])
        .flatten()
        .collect();
    let mut routers_at: BTreeMap<usize, usize> = BTreeMap::new();
    for (_, interface) in all.clone() {
        if let Some(segment) = interface.segment {
            *routers_at.entry(segment).or_default() += 1;
        }
    }
    let mut found = Vec::new();
    for (_, interface) in all {
        let alone = interface
            .segment
            .is_some_and(|at| routers_at.get(&at) == Some(&1));
        if !alone || !interface.up || interface.kind != InterfaceKind::Ethernet {
            continue;
        }
        for address in &interface.addresses {
            let network = address.local.trunc();
            let link_local = match network {
                IpNet::V4(network) => network.addr().is_link_local(),
                IpNet::V6(network) => network.addr().is_unicast_link_local(),
            };
            let small = network.max_prefix_len() - network.prefix_len() < 2;
            let free = |host: &IpAddr| !own.contains(host);
            let host = Addresses::Network(network).iter().find(free);
            if let Some(host) = host.filter(|_| !link_local && !small) {
                found.push(EndNetwork { network, host });
            }
        }
    }
    found.sort_by_key(|end| end.network);
    found.dedup_by_key(|end| end.network);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Result<Vec<String>, AddressError> {
        let addresses: Addresses = text.parse()?;
        assert_eq!(addresses.to_string().parse(), Ok(addresses));
        Ok(addresses.iter().map(|a| a.to_string()).collect())
    }

    #[test]
    fn addresses_ranges_and_networks_are_every_address() {
        assert_eq!(all("10.0.0.1").unwrap(), ["10.0.0.1"]);
        let range = all("10.0.0.254-10.0.1.1").unwrap();
        assert_eq!(range, ["10.0.0.254", "10.0.0.255", "10.0.1.0", "10.0.1.1"]);
        // Neither the network nor its broadcast address is a host's.
        assert_eq!(all("10.0.0.6/30").unwrap(), ["10.0.0.5", "10.0.0.6"]);
        assert_eq!(all("2001:db8::1-2001:db8::2").unwrap().len(), 2);
        assert_eq!(all("10.0.0.0/16").unwrap().len(), 65_534);
    }

    #[test]
    fn a_list_reads_back_as_it_was_written_and_has_an_end() {
        let list = |text: &str| text.parse::<AskedAddresses>();
        let some = list("10.0.0.1, 10.0.0.4-10.0.0.6,10.1.0.0/30").unwrap();
        assert_eq!(some.to_string(), "10.0.0.1,10.0.0.4-10.0.0.6,10.1.0.0/30");
        assert_eq!(list(&some.to_string()), Ok(some.clone()));
        assert_eq!(Sides::of(some.entries(), &[], None).sources.len(), 6);
        let again = list("10.0.0.2,10.0.0.1-10.0.0.3").unwrap();
        let again = Sides::of(again.entries(), &[], None).sources;
        assert_eq!(
            again,
            ["10.0.0.2", "10.0.0.1", "10.0.0.3"].map(|a| a.parse::<IpAddr>().unwrap())
        );
        assert_eq!(some.one(), None);
        assert_eq!(list("10.0.0.1").unwrap().one(), "10.0.0.1".parse().ok());
        assert_eq!(list("10.0.0.0/32").unwrap().one(), None);
        assert!(list("").is_err());
        assert_eq!(
            list("10.0.0.0/16,10.1.0.0/16"),
            Err(AddressError::TooManyInAll)
        );
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, want) in [
            ("office", "is no address"),
            ("10.0.0.2-10.0.0.1", "is empty"),
            ("10.0.0.2-2001:db8::1", "two families"),
            ("10.0.0.0/8", "more than 65536"),
            ("2001:db8::/64", "more than 65536"),
            ("10.0.0.0/33", "is no address"),
        ] {
            let error = all(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
