//! A source, a router and a far host in a row, with everything a probe needs and nothing else.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
            setsockopt, sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    },
};
use tsim::{
    firewall::{
        Backend, InstalledTaps, Reading, TagSpace, TapSite, Taps,
        iptables::{OwnerMark, Variant},
    },
    model::{Dscp, Protocol, RunId, ServiceLimits, parse_services},
    netlink::{
        LinkChange, LookupKind, LookupQuery, Netlink, NewVeth, VethEnd,
        object::{Address, Family, Mac, Neighbour, Route},
        sysctl,
    },
    netns::{NetnsFd, tool::Tools},
    registry::Owner,
    run::{
        packet::{Headers, Probe},
        probe::{Catalogue, ProbeSocket},
    },
};

use crate::support::{Bed, ifname};

pub(super) const SERVICES: &str = "22,80,443/tcp,53/udp";

/// Addresses of one family.
pub(super) struct Plan {
    pub(super) source: IpAddr,
    pub(super) near: IpAddr,
    pub(super) destination: IpAddr,
}

pub(super) fn plan(family: Family) -> Plan {
    let ip = |v4: &str, v6: &str| match family {
        Family::V4 => v4.parse().unwrap(),
        Family::V6 => v6.parse().unwrap(),
    };
    Plan {
        source: ip("10.0.0.2", "2001:db8:a::2"),
        near: ip("10.0.0.1", "2001:db8:a::1"),
        destination: ip("10.9.0.2", "2001:db8:b::2"),
    }
}

/// source eth0 — in ROUTER out — eth0 far
pub(super) struct Row {
    _bed: Bed,
    pub(super) source: NetnsFd,
    pub(super) router: Arc<NetnsFd>,
    pub(super) far: NetnsFd,
    pub(super) tools: Tools,
    pub(super) owner: OwnerMark,
}

const MACS: [Mac; 4] = [
    Mac([2, 0, 0, 0, 0, 1]),
    Mac([2, 0, 0, 0, 0, 2]),
    Mac([2, 0, 0, 0, 0, 3]),
    Mac([2, 0, 0, 0, 0, 4]),
];

impl Row {
    pub(super) fn new() -> Self {
        let bed = Bed::new();
        let (source, router, far) = (bed.netns("source"), bed.netns("router"), bed.netns("far"));
        for netns in [&source, &router, &far] {
            let quiet = [
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv6/conf/all/forwarding", "1"),
                ("net/ipv4/conf/all/rp_filter", "0"),
                ("net/ipv4/conf/default/rp_filter", "0"),
                ("net/ipv6/conf/default/accept_dad", "0"),
                ("net/ipv6/conf/default/router_solicitations", "0"),
            ];
            sysctl::write(netns, &quiet).unwrap();
        }
        join(&source, "eth0", MACS[0], &router, "in", MACS[1]);
        join(&router, "out", MACS[2], &far, "eth0", MACS[3]);
        let routes = route_events(&router);
        configure(&source, "eth0", &["10.0.0.2/24", "2001:db8:a::2/64"]);
        configure(&router, "in", &["10.0.0.1/24", "2001:db8:a::1/64"]);
        configure(&router, "out", &["10.9.0.1/24", "2001:db8:b::1/64"]);
        configure(&far, "eth0", &["10.9.0.2/24", "2001:db8:b::2/64"]);
        await_local(&router, &routes, plan(Family::V6).near);
        for family in [Family::V4, Family::V6] {
            let plan = plan(family);
            neighbour(&source, "eth0", plan.near, MACS[1]);
            neighbour(&router, "out", plan.destination, MACS[3]);
            default_route(&source, family, plan.near, "eth0");
        }
        let owner = OwnerMark::from(&Owner::current().unwrap());
        Self {
            _bed: bed,
            source,
            router: Arc::new(router),
            far,
            tools: Tools::new(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(Into::into)),
            owner,
        }
    }

    pub(super) fn site(&self) -> TapSite<'_> {
        TapSite {
            netns: &self.router,
            tools: &self.tools,
            owner: &self.owner,
            notes: None,
            patience: Duration::from_secs(20),
        }
    }

    /// Runs a tool in the router and returns what it printed.
    pub(super) fn tool(&self, tool: &str, args: &[&str], input: &str) -> String {
        let run = || self.tools.run(tool, args, input.as_bytes());
        let printed = self.router.enter(run).unwrap();
        let printed = printed.unwrap_or_else(|error| panic!("{tool}: {error}\n{input}"));
        String::from_utf8(printed.stdout).unwrap()
    }

    pub(super) fn load(&self, variant: Variant, family: Family, rules: &str) {
        self.tool(&tool(variant, family, "restore"), &["--noflush"], rules);
    }

    /// Everything that can be seen of the router's rules, without counters and dates.
    pub(super) fn ruleset(&self) -> String {
        let mut text = self.tool("nft", &["-s", "list", "ruleset"], "");
        for variant in [Variant::Nft, Variant::Legacy] {
            for family in [Family::V4, Family::V6] {
                text += &self.tool(&tool(variant, family, "save"), &[], "");
            }
        }
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let uncounted = lines.map(|line| match line.split_once(" [") {
            Some((chain, _)) if line.starts_with(':') => chain,
            _ => line,
        });
        uncounted.map(|line| format!("{line}\n")).collect()
    }

    pub(super) fn job(&self, run_id: &str, family: Family) -> Job<'_> {
        Job::new(self, run_id, family, SERVICES)
    }

    /// Packets that the far host receives from now on.
    pub(super) fn capture(&self) -> Capture {
        let kind = SockType::Datagram;
        let protocol = Some(SockProtocol::EthAll);
        let socket = self.far.socket(
            AddressFamily::Packet,
            kind,
            SockFlag::SOCK_NONBLOCK,
            protocol,
        );
        Capture(socket.unwrap())
    }
}

pub(super) fn tool(variant: Variant, family: Family, what: &str) -> String {
    let family = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    format!("{family}-{variant}-{what}")
}

pub(super) struct Capture(OwnedFd);

impl Capture {
    /// The indexes of the job's probes that came so far, sorted.
    pub(super) fn indexes(&self, tags: TagSpace) -> Vec<u32> {
        let mut found = Vec::new();
        let mut packet = [0; 2048];
        while let Ok(length) = recv(self.0.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            let packet = &packet[..length];
            let (header, protocol) = match packet[0] >> 4 {
                4 => (20, packet[9]),
                _ => (40, packet[6]),
            };
            let at = header + if protocol == 6 { 4 } else { 8 };
            let tag = packet
                .get(at..at + 4)
                .map(|b| u32::from_be_bytes(b.try_into().unwrap()));
            found.extend(tag.and_then(|tag| tags.index(tag)));
        }
        found.sort_unstable();
        found
    }
}

/// One job at one router.
pub(super) struct Job<'a> {
    row: &'a Row,
    pub(super) taps: Taps,
    pub(super) catalogue: Catalogue,
    pub(super) headers: Headers,
}

impl<'a> Job<'a> {
    pub(super) fn new(row: &'a Row, run_id: &str, family: Family, services: &str) -> Self {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let nth = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let services = parse_services(services, Protocol::Tcp, ServiceLimits::default()).unwrap();
        let catalogue = Catalogue::new(&services);
        let dscp = Dscp::new(32 + (nth % 32) as u8).unwrap();
        let tags = TagSpace::new(dscp, nth.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let Plan {
            source,
            destination,
            ..
        } = plan(family);
        Self {
            row,
            taps: Taps::new(
                RunId::new(run_id).unwrap(),
                family,
                tags,
                (catalogue.len(), catalogue.runs().clone()),
            ),
            catalogue,
            headers: Headers {
                source,
                destination,
                protocol: Protocol::Tcp,
                source_port: 40_000 + (nth % 20_000) as u16,
                destination_port: 0,
                tos: 0,
                ttl: 64,
                size: None,
                options_open: false,
                chosen: None,
            },
        }
    }

    pub(super) fn to(mut self, destination: IpAddr) -> Self {
        self.headers.destination = destination;
        self
    }

    pub(super) fn install(&self, backend: Backend) -> InstalledTaps {
        let taps = self.taps.clone();
        InstalledTaps::install(backend, self.row.site(), taps)
            .unwrap_or_else(|error| panic!("{backend}: {error}"))
    }

    /// Sends every probe once.
    pub(super) fn send(&self) {
        self.send_all(&self.probes());
    }

    /// Sends every probe once, as many at a time as `taps` has room to note.
    pub(super) fn send_collecting(&self, taps: &mut InstalledTaps) {
        let at_once = taps.probes_at_once().unwrap_or(usize::MAX);
        for batch in self.probes().chunks(at_once) {
            self.send_all(batch);
            taps.collect().unwrap();
        }
    }

    fn send_all(&self, probes: &[Probe]) {
        let open = || ProbeSocket::open_here(self.taps.family);
        let socket = self.row.source.enter(open).unwrap().unwrap();
        let refused = socket.send(self.taps.tags, probes);
        assert!(refused.is_empty(), "{refused:?}");
    }

    /// Installs, sends, reads and removes.
    pub(super) fn measure(&self, backend: Backend) -> Reading {
        let mut taps = self.install(backend);
        assert_eq!(taps.backend(), backend);
        self.send();
        let reading = taps.read().unwrap();
        taps.remove().1.unwrap();
        reading
    }

    /// A probe for each service.
    pub(super) fn probes(&self) -> Vec<Probe> {
        let one = |index| {
            let service = self.catalogue.service(index).unwrap();
            let headers = Headers {
                protocol: service.protocol,
                destination_port: service.port,
                ..self.headers
            };
            Probe { index, headers }
        };
        self.catalogue.all().into_iter().map(one).collect()
    }

    /// The services with these indexes, in the order of [`SERVICES`].
    pub(super) fn ports(&self, indexes: impl Iterator<Item = u32>) -> String {
        let names: Vec<_> = indexes
            .map(|index| self.catalogue.service(index).unwrap().port.to_string())
            .collect();
        names.join(",")
    }
}

fn join(near: &NetnsFd, name: &str, mac: Mac, far: &NetnsFd, far_name: &str, far_mac: Mac) {
    let end = |netns, name, mac| VethEnd {
        netns,
        mac: Some(mac),
        ..VethEnd::new(ifname(name))
    };
    let mut netlink = Netlink::open(near).unwrap();
    let mut batch = netlink.batch("near");
    batch.add_veth(&NewVeth {
        near: end(None, name, mac),
        near_up: true,
        master: None,
        far: end(Some(far), far_name, far_mac),
    });
    batch.send().unwrap();
}

fn configure(netns: &NetnsFd, dev: &str, addresses: &[&str]) {
    let mut netlink = Netlink::open(netns).unwrap();
    let mut batch = netlink.batch("row");
    batch
        .set_link(&ifname("lo"), &LinkChange::up())
        .set_link(&ifname(dev), &LinkChange::up());
    for address in addresses {
        batch.add_address(&ifname(dev), &Address::new(address.parse().unwrap()));
    }
    batch.send().unwrap();
}

fn neighbour(netns: &NetnsFd, dev: &str, address: IpAddr, mac: Mac) {
    let mut netlink = Netlink::open(netns).unwrap();
    let mut batch = netlink.batch("row");
    batch.replace_neighbour(&Neighbour::permanent(ifname(dev), address, mac));
    batch.send().unwrap();
}

fn default_route(netns: &NetnsFd, family: Family, via: IpAddr, dev: &str) {
    let to = match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    };
    let mut netlink = Netlink::open(netns).unwrap();
    let mut batch = netlink.batch("row");
    batch.add_route(&Route::via(to.parse().unwrap(), via, ifname(dev)));
    batch.send().unwrap();
}

/// A socket that hears of changes to IPv6 routes.
fn route_events(netns: &NetnsFd) -> OwnedFd {
    let (kind, flags) = (SockType::Raw, SockFlag::empty());
    let events = netns.socket(AddressFamily::Netlink, kind, flags, None);
    let events = events.unwrap();
    let groups = u32::try_from(libc::RTMGRP_IPV6_ROUTE).unwrap();
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, groups)).unwrap();
    setsockopt(&events, ReceiveTimeout, &TimeVal::new(10, 0)).unwrap();
    events
}

/// Waits until `address` leads to the namespace itself: the kernel adds that route some time after
/// the address (addrconf_dad_work()).
fn await_local(netns: &NetnsFd, events: &OwnedFd, address: IpAddr) {
    let mut netlink = Netlink::open(netns).unwrap();
    let query = LookupQuery::to(address);
    while netlink.lookup_one(&query).unwrap().kind != LookupKind::Local {
        let event = recv(events.as_raw_fd(), &mut [0; 8192], MsgFlags::empty());
        // A signal to the process may have come to this thread.
        assert!(event.is_ok() || event == Err(Errno::EINTR), "{event:?}");
    }
}
