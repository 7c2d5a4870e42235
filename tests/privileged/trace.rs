//! Traces through a chain of routers.

use std::path::Path;

use clap::Parser;
use tsim::{
    cli::{Context, Exit, Run, tsim::Tsim},
    config::Config,
    lab::{
        self, UpOptions,
        sockets::RouterSockets,
        topology::InterfaceKind,
        trace::{End, EntryName, Hop, SharedLink, Trace, TraceError, TracePacket, Wiring, trace},
    },
    model::Protocol,
    netlink::{
        Netlink,
        object::{Family, NextHop, PolicyRule, PortRange, Route, RouteKind, RuleAction},
        sysctl,
    },
    netns::NetnsFd,
};

use crate::{
    minilab::{MiniLab, dead_end, ip, route},
    support::{Bed, ifname},
};

/// a - segment 1 - b - segment 2 - c, with segment 0 before a and 3 behind c.
fn chain() -> (MiniLab, [NetnsFd; 3]) {
    let mut lab = MiniLab::new(4);
    let a = lab.router("a", &[(0, &["10.0.0.1/24"]), (1, &["10.0.1.1/24"])]);
    let b = lab.router("b", &[(1, &["10.0.1.2/24"]), (2, &["10.0.2.1/24"])]);
    let c = lab.router("c", &[(2, &["10.0.2.2/24"]), (3, &["10.0.3.1/24"])]);
    route(&a, "0.0.0.0/0", "10.0.1.2", "eth1");
    route(&b, "10.0.0.0/24", "10.0.1.1", "eth0");
    route(&b, "10.0.3.0/24", "10.0.2.2", "eth1");
    route(&c, "0.0.0.0/0", "10.0.2.1", "eth0");
    (lab, [a, b, c])
}

fn ask(lab: &MiniLab, packet: &TracePacket, first: Option<&str>) -> Result<Trace, TraceError> {
    let wiring = Wiring::from(&lab.topology);
    let mut sockets = RouterSockets::new(&lab.bed.dir, &lab.bed.lab);
    let first: Option<EntryName> = first.map(|name| name.parse().unwrap());
    trace(&wiring, &mut sockets, packet, first.as_ref())
}

fn way(lab: &MiniLab, from: &str, to: &str) -> Trace {
    ask(lab, &TracePacket::new(ip(from), ip(to)), None).unwrap()
}

/// The hops of the first way as text: `router in>out next`.
fn hops(trace: &Trace) -> Vec<String> {
    texts(&trace.hops)
}

fn texts(hops: &[Hop]) -> Vec<String> {
    let name = |name: &Option<tsim::model::IfName>| {
        name.as_ref().map_or("-".to_owned(), ToString::to_string)
    };
    let one = |hop: &Hop| {
        let next = hop.next_hop.map_or("-".to_owned(), |ip| ip.to_string());
        let (into, out) = (name(&hop.iface_in), name(&hop.iface_out));
        format!("{} {into}>{out} {next}", hop.router)
    };
    hops.iter().map(one).collect()
}

fn delivered(segment: &str) -> End {
    End::Delivered {
        segment: segment.to_owned(),
    }
}

#[test]
fn a_way_is_found_hop_by_hop_to_the_segment_of_the_destination() {
    let (lab, _routers) = chain();
    let trace = way(&lab, "10.0.0.9", "10.0.3.9");
    assert_eq!(
        hops(&trace),
        [
            "a eth0>eth1 10.0.1.2",
            "b eth0>eth1 10.0.2.2",
            "c eth0>eth1 10.0.3.9"
        ]
    );
    assert_eq!(trace.end, delivered("3"));
    assert!(trace.warnings.is_empty());
    assert_eq!(trace.arrives(), Some(true));
}

#[test]
fn routers_are_sources_and_destinations_too() {
    let (lab, _routers) = chain();
    let trace = way(&lab, "10.0.0.1", "10.0.3.1");
    assert_eq!(
        hops(&trace),
        ["a ->eth1 10.0.1.2", "b eth0>eth1 10.0.2.2", "c eth0>- -"]
    );
    assert_eq!(trace.end, End::Local);
}

#[test]
fn every_bad_end_is_named_with_its_router() {
    let (lab, [a, b, _c]) = chain();
    dead_end(&b, "192.0.2.0/28", RouteKind::Blackhole);
    dead_end(&b, "192.0.2.16/28", RouteKind::Unreachable);
    dead_end(&b, "192.0.2.32/28", RouteKind::Prohibit);
    route(&b, "192.0.2.48/28", "10.0.1.1", "eth0");
    for (to, routers, end) in [
        ("192.0.2.1", &["a", "b"][..], End::Blackhole),
        ("192.0.2.17", &["a", "b"], End::Unreachable),
        ("192.0.2.33", &["a", "b"], End::Prohibit),
        ("198.51.100.1", &["a", "b"], End::NoRoute),
        (
            "192.0.2.49",
            &["a", "b", "a"],
            End::Loop {
                to: "b".parse().unwrap(),
            },
        ),
    ] {
        let trace = way(&lab, "10.0.0.9", to);
        let names: Vec<_> = trace.hops.iter().map(|hop| hop.router.as_str()).collect();
        assert_eq!((names.as_slice(), &trace.end), (routers, &end), "{to}");
        assert_eq!(trace.arrives(), Some(false));
    }
    sysctl::write(&b, &[("net/ipv4/conf/eth0/rp_filter", "1")]).unwrap();
    let spoofed = TracePacket::new(ip("10.0.3.9"), ip("10.0.3.8"));
    let trace = ask(&lab, &spoofed, Some("a")).unwrap();
    assert_eq!(hops(&trace)[0], "a eth1>eth1 10.0.1.2");
    assert_eq!(trace.end, End::Refused);
    sysctl::write(&a, &[("net/ipv4/ip_forward", "0")]).unwrap();
    let trace = way(&lab, "10.0.0.9", "10.0.3.9");
    assert_eq!((trace.hops.len(), trace.end), (1, End::NotForwarding));
}

#[test]
fn policy_rules_by_port_and_mark_choose_the_way() {
    let (lab, [a, _b, _c]) = chain();
    let mut netlink = Netlink::open(&a).unwrap();
    let mut batch = netlink.batch("router a");
    let dead = Route::without_hops("10.0.3.0/24".parse().unwrap(), RouteKind::Prohibit);
    let table = RuleAction::Table(7);
    let by_port = PolicyRule {
        ip_proto: Some(6),
        dport: Some(PortRange {
            first: 25,
            last: 25,
        }),
        ..PolicyRule::new(Family::V4, 100, table.clone())
    };
    let by_mark = PolicyRule {
        fwmark: Some((5, 0xff)),
        iif: Some(ifname("eth0")),
        ..PolicyRule::new(Family::V4, 101, table)
    };
    batch
        .add_route(&Route { table: 7, ..dead })
        .add_rule(&by_port)
        .add_rule(&by_mark);
    batch.send().unwrap();
    let plain = TracePacket::new(ip("10.0.0.9"), ip("10.0.3.9"));
    let port = |port| TracePacket {
        protocol: Some(Protocol::Tcp),
        destination_port: Some(port),
        ..plain.clone()
    };
    let marked = TracePacket {
        mark: 5,
        ..plain.clone()
    };
    let end = |packet: &TracePacket| ask(&lab, packet, None).unwrap().end;
    assert_eq!(end(&port(80)), delivered("3"));
    assert_eq!(end(&port(25)), End::Prohibit);
    assert_eq!(end(&marked), End::Prohibit);
}

/// Every way as its hops in one line, with its end.
fn ways(trace: &Trace) -> Vec<(String, End)> {
    let line = |(hops, end): (&[Hop], &End)| (texts(hops).join(", "), end.clone());
    trace.ways().map(line).collect()
}

fn leaves(segment: &str) -> End {
    End::Leaves {
        segment: segment.to_owned(),
    }
}

#[test]
fn from_every_router_of_the_sources_segment_a_way_is_followed_unless_one_is_named() {
    let mut lab = MiniLab::new(3);
    let idle = lab.router("idle", &[(0, &["10.0.0.1/24"])]);
    route(&idle, "0.0.0.0/0", "10.0.0.2", "eth0");
    lab.router("used", &[(0, &["10.0.0.2/24"]), (1, &["10.0.1.1/24"])]);
    let shut = lab.router("shut", &[(0, &["10.0.0.3/16"]), (2, &["10.9.0.1/24"])]);
    dead_end(&shut, "10.0.1.0/24", RouteKind::Prohibit);
    let trace = way(&lab, "10.0.0.9", "10.0.1.9");
    let want = [
        ("shut eth0>- -".to_owned(), End::Prohibit),
        ("used eth0>eth1 10.0.1.9".to_owned(), delivered("1")),
        (
            "idle eth0>eth0 10.0.0.2, used eth0>eth1 10.0.1.9".to_owned(),
            delivered("1"),
        ),
    ];
    assert_eq!(ways(&trace), want);
    assert_eq!(trace.arrives(), None, "they disagree");
    let note = &trace.warnings[0];
    assert!(note.contains("shut:eth0, used:eth0, idle:eth0"), "{note}");
    let packet = TracePacket::new(ip("10.0.0.9"), ip("10.0.1.9"));
    let named = ask(&lab, &packet, Some("idle")).unwrap();
    assert_eq!(ways(&named), want[2..]);
    assert!(named.warnings.is_empty());
    let named = ask(&lab, &packet, Some("used:eth1")).unwrap();
    assert_eq!(hops(&named), ["used eth1>eth1 10.0.1.9"]);
    let error = ask(&lab, &packet, Some("used:eth7")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "router used has no interface eth7 on a segment: eth0, eth1 are allowed"
    );
}

#[test]
fn a_host_sends_to_a_router_of_its_own_subnet_directly_and_to_other_hosts_without_any() {
    let mut lab = MiniLab::new(2);
    lab.router("a", &[(0, &["10.0.0.1/24"]), (1, &["10.0.1.1/24"])]);
    lab.router("b", &[(0, &["10.0.0.2/24"])]);
    assert_eq!(
        ways(&way(&lab, "10.0.0.9", "10.0.0.2")),
        [("b eth0>- -".to_owned(), End::Local)]
    );
    let link = SharedLink {
        segment: "0".to_owned(),
        tracked_by: Vec::new(),
        filtered_by: Vec::new(),
        proxied_by: Vec::new(),
        isolated_by: Vec::new(),
        silent: Vec::new(),
        between: Vec::new(),
        translated_by: Vec::new(),
        to_all: false,
        or_on: Vec::new(),
    };
    let trace = way(&lab, "10.0.0.9", "10.0.0.8");
    assert_eq!(ways(&trace), [(String::new(), End::SameLink(link))]);
    assert_eq!(trace.arrives(), Some(true));
    // Of a tunnel's far ends each hears only the router.
    lab.topology.routers[0].interfaces[0].kind = InterfaceKind::Tunnel;
    lab.topology.routers[1].interfaces[0].up = false;
    let trace = way(&lab, "10.0.0.9", "10.0.0.8");
    assert_eq!(
        ways(&trace),
        [("a eth0>eth0 10.0.0.8".to_owned(), delivered("0"))]
    );
}

#[test]
fn a_source_outside_the_lab_enters_wherever_its_answers_would_leave() {
    let (lab, [a, _b, c]) = chain();
    route(&a, "203.0.113.0/24", "10.0.0.254", "eth0");
    let trace = way(&lab, "203.0.113.5", "10.0.3.9");
    assert_eq!(hops(&trace)[0], "a eth0>eth1 10.0.1.2");
    assert_eq!((&trace.end, trace.other_ways.len()), (&delivered("3"), 0));
    // A second uplink that only marked packets are led to, and one without a gateway.
    let mut netlink = Netlink::open(&c).unwrap();
    let mut batch = netlink.batch("router c");
    let uplink = Route::via(
        "0.0.0.0/0".parse().unwrap(),
        ip("10.0.3.254"),
        ifname("eth1"),
    );
    let link = Route {
        next_hops: vec![NextHop {
            via: None,
            dev: Some(ifname("eth1")),
            weight: 1,
            onlink: false,
        }],
        ..Route::without_hops("198.51.100.0/24".parse().unwrap(), RouteKind::Unicast)
    };
    let rule = PolicyRule {
        fwmark: Some((1, 1)),
        ..PolicyRule::new(Family::V4, 100, RuleAction::Table(7))
    };
    batch
        .add_route(&Route { table: 7, ..uplink })
        .add_route(&link)
        .add_rule(&rule);
    batch.send().unwrap();
    let firsts = |from: &str| -> Vec<String> {
        let trace = way(&lab, from, "10.0.2.1");
        trace
            .ways()
            .map(|(hops, _)| texts(hops)[0].clone())
            .collect()
    };
    assert_eq!(
        firsts("203.0.113.5"),
        ["a eth0>eth1 10.0.1.2", "c eth1>eth0 10.0.2.1"]
    );
    assert_eq!(firsts("198.51.100.7"), ["c eth1>eth0 10.0.2.1"]);
    let (lab, _routers) = chain();
    let error = ask(
        &lab,
        &TracePacket::new(ip("203.0.113.5"), ip("10.0.3.9")),
        None,
    );
    assert!(
        matches!(error, Err(TraceError::NoStart { .. })),
        "{error:?}"
    );
}

#[test]
fn who_sends_to_no_router_of_the_lab_sends_it_out_of_the_lab_unless_the_lab_has_the_destination() {
    let (lab, [_a, b, _c]) = chain();
    route(&b, "192.0.2.64/28", "10.0.2.77", "eth1");
    let trace = way(&lab, "10.0.0.9", "192.0.2.65");
    assert_eq!(
        ways(&trace),
        [(
            "a eth0>eth1 10.0.1.2, b eth0>eth1 10.0.2.77".to_owned(),
            leaves("2")
        )]
    );
    assert_eq!(trace.arrives(), Some(true));
    assert_eq!(trace.end_text(), "it leaves the lab at b towards 10.0.2.77");
    route(&b, "10.0.3.0/25", "10.0.2.77", "eth1");
    let trace = way(&lab, "10.0.0.9", "10.0.3.9");
    assert_eq!(trace.arrives(), None);
    assert_eq!(
        trace.end_text(),
        "10.0.3.9 is behind c, but b sends it to 10.0.2.77, which no router has on segment 2"
    );
}

/// A route to `to` out of `dev`, without a gateway.
fn link_route(to: &str, devs: &[&str]) -> Route {
    let hop = |dev: &&str| NextHop {
        via: None,
        dev: Some(ifname(dev)),
        weight: 1,
        onlink: false,
    };
    Route {
        next_hops: devs.iter().map(hop).collect(),
        ..Route::without_hops(to.parse().unwrap(), RouteKind::Unicast)
    }
}

#[test]
fn what_goes_into_a_tunnel_comes_out_at_its_other_end() {
    for v6 in [false, true] {
        let (near, far, to, nets) = if v6 {
            let nets = ["2001:db8:1::1/64", "2001:db8:9::1/126", "2001:db8:9::2/126"];
            ("2001:db8:1::9", "2001:db8:2::9", "2001:db8:2::/64", nets)
        } else {
            let nets = ["10.0.0.1/24", "10.9.0.1/30", "10.9.0.2/30"];
            ("10.0.0.9", "10.0.2.9", "10.0.2.0/24", nets)
        };
        let behind = if v6 {
            "2001:db8:2::1/64"
        } else {
            "10.0.2.1/24"
        };
        let mut lab = MiniLab::new(3);
        let a = lab.router("a", &[(0, &nets[..1]), (1, &nets[1..2])]);
        lab.router("b", &[(1, &nets[2..]), (2, &[behind])]);
        let mut netlink = Netlink::open(&a).unwrap();
        let mut batch = netlink.batch("router a");
        batch.add_route(&link_route(to, &["eth1"]));
        batch.send().unwrap();
        // On Ethernet somebody would have to answer for the destination.
        let trace = way(&lab, near, far);
        assert_eq!(hops(&trace), [format!("a eth0>eth1 {far}")]);
        assert_eq!(trace.arrives(), None);
        assert!(trace.end_text().contains("is behind b,"), "{trace:?}");
        for router in 0..2 {
            lab.topology.routers[router].interfaces[1 - router].kind = InterfaceKind::Tunnel;
        }
        let trace = way(&lab, near, far);
        assert_eq!(
            hops(&trace),
            [format!("a eth0>eth1 {far}"), format!("b eth0>eth1 {far}")]
        );
        assert_eq!(trace.end, delivered("2"));
    }
}

#[test]
fn every_next_hop_and_every_owner_of_one_is_followed() {
    let mut lab = MiniLab::new(4);
    let a = lab.router(
        "a",
        &[
            (0, &["10.0.0.1/24"]),
            (1, &["10.0.1.1/24"]),
            (2, &["10.0.2.1/24"]),
        ],
    );
    lab.router(
        "b",
        &[
            (1, &["10.0.1.2/24", "10.0.1.254/32"]),
            (3, &["10.0.3.1/24"]),
        ],
    );
    lab.router(
        "c",
        &[
            (1, &["10.0.1.3/24", "10.0.1.254/32"]),
            (3, &["10.0.3.2/24"]),
        ],
    );
    let d = lab.router("d", &[(2, &["10.0.2.2/24"])]);
    dead_end(&d, "10.0.3.0/24", RouteKind::Unreachable);
    let hop = |via: &str, dev: &str| NextHop {
        via: Some(ip(via)),
        dev: Some(ifname(dev)),
        weight: 1,
        onlink: false,
    };
    let route = Route {
        next_hops: vec![hop("10.0.1.254", "eth1"), hop("10.0.2.2", "eth2")],
        ..Route::without_hops("10.0.3.0/24".parse().unwrap(), RouteKind::Unicast)
    };
    let mut netlink = Netlink::open(&a).unwrap();
    let mut batch = netlink.batch("router a");
    batch.add_route(&route);
    batch.send().unwrap();
    let trace = way(&lab, "10.0.0.9", "10.0.3.9");
    assert_eq!(
        ways(&trace),
        [
            (
                "a eth0>eth1 10.0.1.254, b eth0>eth1 10.0.3.9".to_owned(),
                delivered("3")
            ),
            (
                "a eth0>eth1 10.0.1.254, c eth0>eth1 10.0.3.9".to_owned(),
                delivered("3")
            ),
            (
                "a eth0>eth2 10.0.2.2, d eth0>- -".to_owned(),
                End::Unreachable
            ),
        ]
    );
    assert_eq!(trace.arrives(), None);
}

#[test]
fn ipv6_is_traced_too() {
    let mut lab = MiniLab::new(3);
    let a = lab.router(
        "a",
        &[(0, &["2001:db8:0::1/64"]), (1, &["2001:db8:1::1/64"])],
    );
    let b = lab.router(
        "b",
        &[(1, &["2001:db8:1::2/64"]), (2, &["2001:db8:2::1/64"])],
    );
    route(&a, "2001:db8:2::/64", "2001:db8:1::2", "eth1");
    dead_end(&b, "2001:db8:3::/64", RouteKind::Blackhole);
    route(&a, "2001:db8:3::/64", "2001:db8:1::2", "eth1");
    let trace = way(&lab, "2001:db8::9", "2001:db8:2::9");
    assert_eq!(
        hops(&trace),
        ["a eth0>eth1 2001:db8:1::2", "b eth0>eth1 2001:db8:2::9"]
    );
    assert_eq!(trace.end, delivered("2"));
    assert_eq!(
        way(&lab, "2001:db8::9", "2001:db8:3::9").end,
        End::Blackhole
    );
}

#[test]
fn the_command_traces_a_lab_made_from_facts_and_says_by_its_exit_code_whether_it_arrives() {
    let bed = Bed::new();
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        registry_dir: dir.path().join("registry"),
        labs_dir: dir.path().join("labs"),
        ..Config::default()
    };
    let facts = Path::new(env!("CARGO_MANIFEST_DIR")).join("netns-fixtures/small3");
    lab::up_from(&config, &bed.lab, &facts, UpOptions::default(), &()).unwrap();
    let context = Context::new(config.clone(), true);
    let run = |to: &str, more: &[&str]| {
        let lab = bed.lab.as_str();
        let args = ["tsim", "trace", "--lab", lab, "-s", "10.81.1.9", "-d", to];
        let command = Tsim::try_parse_from(args.iter().chain(more)).unwrap();
        command.run(&context).map_err(|failure| failure.exit)
    };
    assert_eq!(
        run("10.81.3.9", &["--proto", "tcp", "--dport", "80"]),
        Ok(Exit::Ok)
    );
    assert_eq!(run("10.81.9.9", &[]), Ok(Exit::SomeNo));
    assert_eq!(run("10.81.3.9", &["--from", "none"]), Err(Exit::Usage));
    assert_eq!(run("2001:db8::1", &[]), Err(Exit::Usage));
    lab::down(&config, &bed.lab).unwrap();
    assert_eq!(run("10.81.3.9", &[]), Err(Exit::Usage));
}
