//! Traces through a chain of routers.

use std::path::Path;

use clap::Parser;
use tsim::{
    cli::{Context, Exit, Run, tsim::Tsim},
    config::Config,
    lab::{
        self, Options,
        sockets::RouterSockets,
        trace::{End, Hop, Packet, Trace, TraceError, Wiring, trace},
    },
    model::{Protocol, RouterName},
    netlink::{
        Netlink,
        object::{Family, PolicyRule, PortRange, Route, RouteKind, RuleAction},
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

fn ask(lab: &MiniLab, packet: &Packet, first: Option<&str>) -> Result<Trace, TraceError> {
    let wiring = Wiring::from(&lab.topology);
    let mut sockets = RouterSockets::new(&lab.bed.dir, &lab.bed.lab);
    let first: Option<RouterName> = first.map(|name| name.parse().unwrap());
    trace(&wiring, &mut sockets, packet, first.as_ref())
}

fn way(lab: &MiniLab, from: &str, to: &str) -> Trace {
    ask(lab, &Packet::new(ip(from), ip(to)), None).unwrap()
}

/// The hops as text: `router in>out next`.
fn hops(trace: &Trace) -> Vec<String> {
    let name = |name: &Option<tsim::model::IfName>| {
        name.as_ref().map_or("-".to_owned(), ToString::to_string)
    };
    let one = |hop: &Hop| {
        let next = hop.next_hop.map_or("-".to_owned(), |ip| ip.to_string());
        let (into, out) = (name(&hop.iface_in), name(&hop.iface_out));
        format!("{} {into}>{out} {next}", hop.router)
    };
    trace.hops.iter().map(one).collect()
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
    assert!(trace.warnings.is_empty() && trace.arrives());
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
    route(&b, "192.0.2.64/28", "10.0.2.77", "eth1");
    for (to, routers, end) in [
        ("192.0.2.1", &["a", "b"][..], End::Blackhole),
        ("192.0.2.17", &["a", "b"], End::Unreachable),
        ("192.0.2.33", &["a", "b"], End::Prohibit),
        ("198.51.100.1", &["a", "b"], End::NoRoute),
        (
            "192.0.2.65",
            &["a", "b"],
            End::NextHopUnknown {
                segment: Some("2".to_owned()),
            },
        ),
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
        assert!(!trace.arrives());
    }
    sysctl::write(&b, &[("net/ipv4/conf/eth0/rp_filter", "1")]).unwrap();
    let spoofed = Packet::new(ip("10.0.3.9"), ip("10.0.3.8"));
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
    let plain = Packet::new(ip("10.0.0.9"), ip("10.0.3.9"));
    let port = |port| Packet {
        protocol: Some(Protocol::Tcp),
        destination_port: Some(port),
        ..plain.clone()
    };
    let marked = Packet {
        mark: 5,
        ..plain.clone()
    };
    let end = |packet: &Packet| ask(&lab, packet, None).unwrap().end;
    assert_eq!(end(&port(80)), delivered("3"));
    assert_eq!(end(&port(25)), End::Prohibit);
    assert_eq!(end(&marked), End::Prohibit);
}

#[test]
fn of_several_first_routers_the_one_that_leads_on_is_taken_and_said() {
    let mut lab = MiniLab::new(3);
    let idle = lab.router("idle", &[(0, &["10.0.0.1/24"])]);
    route(&idle, "0.0.0.0/0", "10.0.0.2", "eth0");
    lab.router("used", &[(0, &["10.0.0.2/24"]), (1, &["10.0.1.1/24"])]);
    let trace = way(&lab, "10.0.0.9", "10.0.1.9");
    assert_eq!(hops(&trace), ["used eth0>eth1 10.0.1.9"]);
    assert!(trace.warnings[0].contains("used, idle"), "{trace:?}");
    let named = Packet::new(ip("10.0.0.9"), ip("10.0.1.9"));
    let named = ask(&lab, &named, Some("idle")).unwrap();
    assert_eq!(
        hops(&named),
        ["idle eth0>eth0 10.0.0.2", "used eth0>eth1 10.0.1.9"]
    );
}

#[test]
fn a_source_outside_the_lab_enters_at_its_edge() {
    let (lab, [a, ..]) = chain();
    route(&a, "203.0.113.0/24", "10.0.0.254", "eth0");
    let trace = way(&lab, "203.0.113.5", "10.0.3.9");
    assert_eq!(hops(&trace)[0], "a eth0>eth1 10.0.1.2");
    assert_eq!(trace.end, delivered("3"));
    let (lab, _routers) = chain();
    let error = ask(&lab, &Packet::new(ip("203.0.113.5"), ip("10.0.3.9")), None);
    assert!(
        matches!(error, Err(TraceError::NoStart { .. })),
        "{error:?}"
    );
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
    lab::up_from(&config, &bed.lab, &facts, Options::default(), &()).unwrap();
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
    assert_eq!(run("10.81.3.9", &[]), Err(Exit::CannotRun));
}
