//! What a host is to be: derived from its request and from its router, without making anything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::{
    model::{HostId, HostName, IfName, NameError, RouterId, RouterName, fnv1a},
    netlink::object::{Address, Mac, Scope},
    registry::HostSpec,
};

/// Points a host's default route where the router's interface has no address of the host's
/// family. Any address does: the route is onlink and the neighbour entry is permanent, so that
/// nobody is ever asked who has it. These are of the link-local ranges (RFC 3927, RFC 4291).
const STAND_IN_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
const STAND_IN_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// A host that somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRequest {
    /// Its name.
    pub id: HostId,
    /// The router whose segment it joins; of the same lab.
    pub router: RouterId,
    /// Its address.
    pub address: IpAddr,
    /// Its prefix length; absent means that of the interface's subnet, or a host prefix.
    pub prefix_len: Option<u8>,
    /// The router's interface; absent means the one that the router routes the address to.
    pub interface: Option<IfName>,
}

/// Completes `request` for `interface`, which has `addresses`.
pub(super) fn spec(request: &HostRequest, interface: IfName, addresses: &[Address]) -> HostSpec {
    let subnet = subnet(addresses, request.address);
    let prefix_len = request.prefix_len.or(subnet.map(|a| a.local.prefix_len()));
    let address = prefix_len
        .and_then(|length| IpNet::new(request.address, length).ok())
        .unwrap_or_else(|| request.address.into());
    HostSpec {
        id: request.id.clone(),
        router: request.router.clone(),
        interface,
        address,
        gateway: Some(gateway(addresses, request.address)),
        mac: mac(&request.id, &request.router),
        stands_in: false,
    }
}

/// The address in whose subnet `host` lies; the longest prefix, where there are several.
fn subnet(addresses: &[Address], host: IpAddr) -> Option<&Address> {
    addresses
        .iter()
        .filter(|a| a.peer.is_none() && a.local.contains(&host))
        .max_by_key(|a| a.local.prefix_len())
}

/// The router's address that a host on the link sends to.
pub(super) fn gateway(addresses: &[Address], host: IpAddr) -> IpAddr {
    let same_family = |a: &&Address| a.local.addr().is_ipv4() == host.is_ipv4();
    let global = || {
        addresses
            .iter()
            .filter(same_family)
            .find(|a| a.scope == Scope::Global)
    };
    let any = || addresses.iter().find(same_family);
    let own = subnet(addresses, host).or_else(global).or_else(any);
    match (own, host) {
        (Some(own), _) => own.local.addr(),
        (None, IpAddr::V4(_)) => STAND_IN_V4.into(),
        (None, IpAddr::V6(_)) => STAND_IN_V6.into(),
    }
}

/// The hardware address of a host: locally administered, unicast (IEEE 802), the same each time.
fn mac(host: &HostId, router: &RouterId) -> Mac {
    let [a, b, c, d, e, ..] = hash(&format!("{host} {router}")).to_be_bytes();
    Mac([0x02, a, b, c, d, e])
}

/// The bridge port of a host, in the namespace of its lab's segments.
pub(super) fn port_name(host: &HostId) -> Result<IfName, NameError> {
    let number = hash(&host.to_string()) >> 8;
    IfName::new(format!("h{number:014x}"))
}

/// FNV-1a with the finish of MurmurHash3, because names that differ in their last letter shall differ
/// in every part.
fn hash(text: &str) -> u64 {
    let mut hash = fnv1a(text.as_bytes());
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
    }
    hash ^ (hash >> 33)
}

/// A host as it exists: what its port says about it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct HostState {
    /// The host within the lab.
    pub host: HostName,
    /// The router whose segment it joins.
    pub router: RouterName,
    /// That router's interface.
    pub interface: IfName,
    /// The host's address.
    pub address: IpNet,
    /// Its hardware address.
    pub mac: Mac,
}

/// Begins the text that is kept with a host's port.
const MARK: &str = "tsim-host";

impl HostState {
    pub(super) fn of(plan: &HostSpec) -> Self {
        Self {
            host: plan.id.host.clone(),
            router: plan.router.router.clone(),
            interface: plan.interface.clone(),
            address: plan.address,
            mac: plan.mac,
        }
    }

    /// As the text that is kept with the port: at most 217 bytes, of 255 that the kernel takes.
    pub(super) fn to_alias(&self) -> String {
        let Self {
            host,
            router,
            interface,
            address,
            mac,
        } = self;
        format!("{MARK} {host} {router} {interface} {address} {mac}")
    }

    /// Reads such a text; none when it is another one.
    pub(super) fn from_alias(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        if words.next() != Some(MARK) {
            return None;
        }
        Some(Self {
            host: words.next()?.parse().ok()?,
            router: words.next()?.parse().ok()?,
            interface: words.next()?.parse().ok()?,
            address: words.next()?.parse().ok()?,
            mac: words.next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(address: &str) -> HostRequest {
        HostRequest {
            id: "lab@h1".parse().unwrap(),
            router: "lab.r1".parse().unwrap(),
            address: address.parse().unwrap(),
            prefix_len: None,
            interface: None,
        }
    }

    fn plan(address: &str, interface: &[&str]) -> HostSpec {
        let parse = |text: &&str| {
            let local: IpNet = text.parse().unwrap();
            let link = text.starts_with("fe80");
            Address {
                scope: if link { Scope::Link } else { Scope::Global },
                ..Address::new(local)
            }
        };
        let addresses: Vec<Address> = interface.iter().map(parse).collect();
        spec(&request(address), "eth0".parse().unwrap(), &addresses)
    }

    #[test]
    fn a_host_takes_prefix_and_gateway_from_the_subnet_it_lies_in() {
        for (address, interface, want, gateway) in [
            (
                "10.0.0.9",
                &["192.0.2.1/24", "10.0.0.1/24"][..],
                "10.0.0.9/24",
                "10.0.0.1",
            ),
            (
                "10.0.0.9",
                &["10.0.0.1/8", "10.0.0.2/24"],
                "10.0.0.9/24",
                "10.0.0.2",
            ),
            ("8.8.8.8", &["192.0.2.1/24"], "8.8.8.8/32", "192.0.2.1"),
            ("8.8.8.8", &["2001:db8::1/64"], "8.8.8.8/32", "169.254.0.1"),
            (
                "2001:db8::9",
                &["fe80::5/64", "2001:db8::1/64"],
                "2001:db8::9/64",
                "2001:db8::1",
            ),
            (
                "2001:dead::9",
                &["fe80::5/64"],
                "2001:dead::9/128",
                "fe80::5",
            ),
            (
                "2001:dead::9",
                &["10.0.0.1/8"],
                "2001:dead::9/128",
                "fe80::1",
            ),
        ] {
            let plan = plan(address, interface);
            assert_eq!(plan.address.to_string(), want, "{address} {interface:?}");
            assert_eq!(
                plan.gateway.unwrap().to_string(),
                gateway,
                "{address} {interface:?}"
            );
        }
    }

    #[test]
    fn names_and_addresses_differ_per_host_and_router_and_stay_the_same() {
        let id = |text: &str| text.parse::<HostId>().unwrap();
        let router = |text: &str| text.parse::<RouterId>().unwrap();
        let one = mac(&id("lab@h1"), &router("lab.r1"));
        assert_eq!(one.to_string(), "02:6c:68:bf:70:2c");
        assert_eq!(port_name(&id("lab@h1")).unwrap().as_str().len(), 15);
        let mut macs = std::collections::HashSet::new();
        let mut ports = std::collections::HashSet::new();
        for host in 0..1000 {
            let host = id(&format!("lab@h{host}"));
            assert!(ports.insert(port_name(&host).unwrap()));
            for number in 0..10 {
                let mac = mac(&host, &router(&format!("lab.r{number}")));
                assert_eq!(mac.0[0] & 3, 2, "local and unicast");
                assert!(macs.insert(mac));
            }
        }
    }

    #[test]
    fn the_text_at_the_port_reads_back_and_fits() {
        let long = "x".repeat(64);
        let state = HostState {
            host: long.parse().unwrap(),
            router: long.parse().unwrap(),
            interface: "y".repeat(15).parse().unwrap(),
            address: "1111:2222:3333:4444:5555:6666:7777:8888/128"
                .parse()
                .unwrap(),
            mac: Mac([2; 6]),
        };
        let text = state.to_alias();
        assert!(text.len() <= 217, "{}", text.len());
        assert_eq!(HostState::from_alias(&text), Some(state));
        for other in [
            "",
            "uplink",
            "tsim-host",
            "tsim-host a b c d e",
            "other a b c",
        ] {
            assert_eq!(HostState::from_alias(other), None, "{other:?}");
        }
    }
}
