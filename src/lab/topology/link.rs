//! What an interface's link is beneath its addresses: what it hangs on, and what leads to its
//! other end.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    lab::omission::{Nets, RuleExtent},
    model::{IfName, RouterName},
    netlink::object::{Family, Mac},
};

/// What the facts tell about an interface's link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkFacts {
    /// The type as ip-link(8) has it: `wireguard`, `gre`, `vrf`, `bridge`, `vlan` …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The interface that it is a port of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master: Option<Master>,
    /// The local address of a tunnel's outer packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<IpAddr>,
    /// The address that a tunnel's outer packets go to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<IpAddr>,
    /// What tells tunnels between the same addresses apart: a VXLAN network identifier or a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<u32>,
    /// The key that a tunnel sends, where its facts tell both (`ikey 0.0.0.1 okey 0.0.0.2`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_key: Option<u32>,
    /// The UDP port that a VXLAN or GENEVE sends to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outer_port: Option<u16>,
    /// The routing table of a VRF, of the device itself and of its ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vrf_table: Option<u32>,
    /// The peers of a WireGuard interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<WireGuard>,
    /// Who was heard on the link.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<(IpAddr, Mac)>,
    /// Who says by LLDP to be at the other end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub heard: Vec<Heard>,
    /// Whether it is a bridge and what it bridges meets rules of its router.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub filters_bridged: bool,
    /// Whether it is a bridge and connections over it are tracked as routed ones are (br_netfilter): what is
    /// translated in one direction is translated back in the other.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tracks_bridged: bool,
    /// The rules that what it bridges meets between its ports.
    #[serde(skip_serializing_if = "FrameRules::is_empty")]
    pub frame_rules: FrameRules,
    /// Whether it asks for no neighbours and answers none (`ip link set arp off`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_arp: bool,
    /// Whether a program sees what comes in before anything else does (XDP), and may stop it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub xdp: bool,
    /// Whom it answers in ARP, and what it asks with.
    #[serde(skip_serializing_if = "Arp::is_default")]
    pub arp: Arp,
    /// Who may ask it in ARP, where `rp_filter` is 1 and its addresses have no subnet: the kernel asks
    /// for the way back to them (`arp_process()`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hears_from: Option<Vec<IpNet>>,
    /// Neighbours whose hardware addresses were said by hand (`nud permanent`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fixed: Vec<(IpAddr, Mac)>,
    /// Whether it is a port of a bridge that hands nothing on to other such ports (`isolated on`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub isolated: bool,
    /// By what a port of a bridge keeps frames back, as bridge(8) has it: those that are for hosts of
    /// whom it was not told, or all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holds_back: Option<String>,
    /// Whether it is a bridge that blocks ports by itself, where hosts are reached by others (STP).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub spans: bool,
    /// Whether it is a bridge, and several of its ports are isolated, or one holds frames back.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub isolates: bool,
    /// The interface below it, which it is a VLAN of, or a macvlan that shares its link (`NAME@BELOW`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over: Option<IfName>,
    /// Whether it is a bridge whose ports are in VLANs (`vlan_filtering 1`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub heeds_vlans: bool,
    /// The VLAN of frames without a tag, of such a bridge and its ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pvid: Option<u16>,
    /// Who speaks for it where frames have no tag, if it is a port of such a bridge; itself where
    /// nobody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_vlan: Option<IfName>,
    /// The ends of other routers of the lab that are behind this port of a bridge.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<(RouterName, IfName)>,
    /// Whom a bridge or a VXLAN has learned to be behind this port (`bridge fdb`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub behind: Vec<Behind>,
    /// Addresses that are the router's own by a route of table local to this interface alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub own: Vec<IpNet>,
    /// What of its subnets the router has narrower routes for that lead elsewhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routed_away: Vec<Nets>,
    /// For which other addresses the router answers who looks for a neighbour there.
    #[serde(skip_serializing_if = "ProxyAddresses::is_none")]
    pub proxy: ProxyAddresses,
}

/// Who says by LLDP to be at the other end of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// The router.
    pub router: String,
    /// Its interface by name; or the description of it, which is the name unless somebody gave it another.
    pub interface: Option<String>,
    /// The interface's hardware address, which lldpd(8) says in the place of the name unless it was told
    /// otherwise.
    pub mac: Option<Mac>,
}

/// Rules that what a bridge hands on meets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FrameRules {
    /// Those that may stop or change it.
    pub extents: Vec<RuleExtent>,
    /// Whether these are all, and the router's rulesets have them.
    pub whole: bool,
    /// Whether rules of IP are among them.
    pub of_ip: bool,
    /// The families of whose rules of IP that is sure (`bridge-nf-call-iptables`).
    pub surely_of_ip: Vec<Family>,
}

impl FrameRules {
    /// Whether none may do so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }
}

/// Whom a bridge or a VXLAN has learned to be behind a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// Its hardware address.
    pub mac: Mac,
    /// The VLAN of its frames, of a bridge that heeds VLANs.
    pub vlan: Option<u16>,
    /// Who speaks for the port in that VLAN, where somebody does.
    pub speaker: Option<IfName>,
}

/// Settings of ARP, of `all` or of the interface, whichever is more (`IN_DEV_MAXCONF`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Arp {
    /// `arp_ignore`: with 1 and 2 the router answers for addresses of this interface only, with 2
    /// only who asks from their subnet.
    pub ignore: u8,
    /// `arp_announce`: with 0 the router asks with the source of the packet that waits, where that
    /// is its own.
    pub announce: u8,
    /// `accept_local`: the router hears who asks from an address of its own, which is martian otherwise.
    pub accept_local: bool,
}

impl Arp {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the router answers for addresses of this interface only.
    #[must_use]
    pub fn is_strict(self) -> bool {
        matches!(self.ignore, 1 | 2)
    }
}

/// Addresses for which a router answers in the place of who has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyAddresses {
    /// What it reaches by another interface, if it answers for that (`proxy_arp`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub elsewhere: Vec<IpNet>,
    /// What it reaches by this interface, or not at all; the longer prefix counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub here: Vec<IpNet>,
    /// Single addresses (`ip neigh add proxy`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub single: Vec<IpAddr>,
    /// Whether it answers for hosts of this very link (`proxy_arp_pvlan`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub same_link: bool,
}

impl ProxyAddresses {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it answers for `address`, which packets then reach by way of the router.
    #[must_use]
    pub fn answers_for(&self, address: IpAddr) -> bool {
        let longest = |nets: &[IpNet]| {
            let all = nets.iter().filter(|net| net.contains(&address));
            all.map(IpNet::prefix_len).max()
        };
        self.single.contains(&address) || longest(&self.elsewhere) > longest(&self.here)
    }

    /// The networks inside `subnet` for which it answers, and those inside them for which it does not; the
    /// longer prefix counts.
    pub fn inside(&self, subnet: IpNet) -> impl Iterator<Item = (IpNet, bool)> {
        let single = self
            .single
            .iter()
            .map(|address| (IpNet::from(*address), true));
        let elsewhere = self.elsewhere.iter();
        let elsewhere = elsewhere.filter(|net| !self.here.contains(net));
        let elsewhere = elsewhere.map(|net| (*net, true));
        let here = self.here.iter().map(|net| (*net, false));
        let all = single.chain(elsewhere).chain(here);
        all.filter(move |(net, _)| subnet.contains(net) && *net != subnet)
    }
}

/// What an interface is a port of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Master {
    /// The interface.
    pub name: IfName,
    /// What it is.
    pub kind: MasterKind,
}

/// What has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MasterKind {
    /// A bridge: its ports and itself are one link.
    Bridge,
    /// A bond or team: its ports are one link.
    Bond,
    /// A VRF: its ports keep their own links and addresses.
    Vrf,
}

/// A WireGuard interface, wg(8).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireGuard {
    /// Its own public key.
    pub public_key: Option<String>,
    /// Its peers.
    pub peers: Vec<WireGuardPeer>,
}

/// A peer of a WireGuard interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireGuardPeer {
    /// Its public key.
    pub public_key: String,
    /// Where its packets come from and go to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Destinations that are sent to it, and sources that are taken from it.
    pub allowed_ips: Vec<IpNet>,
}

impl LinkFacts {
    /// The keys that this tunnel sends and the other one takes, and the other way round.
    pub(super) fn keys_between(&self, other: &Self) -> [(Option<u32>, Option<u32>); 2] {
        let ways = [(self, other), (other, self)];
        ways.map(|(from, to)| (from.sent_key.or(from.key), to.key))
    }

    /// Whether packets of one tunnel are the other's by their keys and ports.
    pub(super) fn has_keys_of(&self, other: &Self) -> bool {
        let ports = self.outer_port.zip(other.outer_port);
        let keys = self.keys_between(other);
        keys.iter().all(|(sent, taken)| sent == taken)
            && ports.is_none_or(|(own, others)| own == others)
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }

    /// The interface that speaks for this one on its link: the bridge or bond that it is a port of.
    #[must_use]
    pub fn spoken_for_by(&self) -> Option<&IfName> {
        if self.in_vlan.is_some() {
            return self.in_vlan.as_ref();
        }
        let master = self.master.as_ref();
        let port = master.filter(|master| master.kind != MasterKind::Vrf);
        port.map(|master| &master.name)
    }
}

impl WireGuard {
    /// The peer that a packet to `destination` is encrypted for: the one with the longest allowed
    /// prefix (`wg_allowedips_lookup_dst()`).
    #[must_use]
    pub fn peer_of(&self, destination: IpAddr) -> Option<&WireGuardPeer> {
        let longest = |peer: &WireGuardPeer| {
            let nets = peer.allowed_ips.iter();
            let nets = nets.filter(|net| net.contains(&destination));
            nets.map(IpNet::prefix_len).max()
        };
        let having = self.peers.iter().filter(|peer| longest(peer).is_some());
        having.max_by_key(|peer| longest(peer))
    }
}
