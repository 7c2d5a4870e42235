//! The detailed job over several routers: whether a service gets there and back, by the way that
//! its packets and its answers really take. What is right was found out with plain hosts.

use std::fs;

use serde_json::{Value, json};
use tsim::{
    model::RouterName,
    netlink::{
        Netlink,
        object::{Family, Neighbour},
    },
    run::{
        detailed::{
            DetailedJob,
            result::{CameBy, DetailedReport, ServiceResult, ServiceStatus},
        },
        quick::RouterChoice,
        report::Verdict,
    },
};

use crate::{
    detailed::{connections, job, run},
    kernels::traces_stay,
    quick::TestLab,
};

/// A question about the whole way.
fn whole(lab: &TestLab, from: &str, to: &str, services: &str) -> DetailedJob {
    DetailedJob {
        routers: RouterChoice::Trace,
        ..job(lab, &[], from, to, services)
    }
}

pub(crate) fn ask(lab: &TestLab, from: &str, to: &str, services: &str) -> DetailedReport {
    run(lab, &whole(lab, from, to, services))
}

pub(crate) fn service<'r>(report: &'r DetailedReport, name: &str) -> &'r ServiceResult {
    let mut services = report.services.iter();
    services.find(|s| s.service.to_string() == name).unwrap()
}

/// `YES`, or the verdict with the router and the reason.
pub(crate) fn said(report: &DetailedReport, name: &str) -> String {
    let end = &service(report, name).end;
    match (end.result, &end.router) {
        (Verdict::Yes, _) => "YES".to_owned(),
        (result, Some(router)) => {
            format!("{result} {router}: {}", end.reason.as_deref().unwrap())
        }
        (result, None) => format!("{result}: {}", end.reason.as_deref().unwrap()),
    }
}

/// The routers and addresses of the request's legs, and of the answer's.
fn ways(report: &DetailedReport, name: &str) -> (String, String) {
    let end = &service(report, name).end;
    let text = |legs: &[tsim::run::detailed::result::TakenLeg]| {
        let legs = legs.iter();
        let legs = legs.map(|leg| format!("{} {}", leg.router, leg.headers.source));
        legs.collect::<Vec<_>>().join(", ")
    };
    (text(&end.way), text(&end.answer))
}

/// A lab from facts as JSON.
pub(crate) fn lab(facts: &[Value]) -> (TestLab, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    for router in facts {
        let name = router["name"].as_str().unwrap();
        fs::write(dir.path().join(format!("{name}.json")), router.to_string()).unwrap();
    }
    (TestLab::up(dir.path().to_str().unwrap()), dir)
}

pub(crate) fn router(
    name: &str,
    interfaces: &[(&str, &[&str])],
    routes: &[&str],
    nft: &str,
) -> Value {
    let interfaces: Vec<Value> = interfaces
        .iter()
        .map(|(interface, addresses)| json!({"name": interface, "addresses": addresses}))
        .collect();
    let mut facts = json!({
        "version": 1,
        "name": name,
        "interfaces": interfaces,
        "routes": routes,
    });
    if !nft.is_empty() {
        facts["nft"] = json!(nft.lines().collect::<Vec<_>>());
    }
    facts
}

fn neighbours(lab: &TestLab, routers: &[&str]) -> Vec<Neighbour> {
    let of = |name: &&str| {
        let netns = lab.lab.router_netns(&RouterName::new(*name).unwrap());
        let mut netlink = Netlink::open(&netns.unwrap()).unwrap();
        let mut list = netlink.neighbours(Family::V4).unwrap();
        list.extend(netlink.neighbours(Family::V6).unwrap());
        // What nodes learn by themselves of routers and groups is not the job's.
        list.retain(|n| !n.address.is_multicast());
        list
    };
    routers.iter().flat_map(of).collect()
}

#[test]
fn a_tunnel_without_gateway_leads_to_its_other_end() {
    let lab = TestLab::up("reports/gateway-less-tunnel");
    let report = ask(&lab, "10.1.0.50", "10.2.0.60", "22,443");
    let stopped = said(&report, "22/tcp");
    assert!(
        stopped.starts_with("NO gw2: no answer: dropped by the policy of chain FORWARD"),
        "{stopped}"
    );
    assert_eq!(said(&report, "443/tcp"), "YES");
    let (there, back) = ways(&report, "443/tcp");
    assert_eq!(there, "gw1 10.1.0.50, gw2 10.1.0.50");
    assert_eq!(back, "gw2 10.2.0.60, gw1 10.2.0.60");
    assert_eq!(report.overall(), Verdict::No);
}

#[test]
fn a_server_that_answers_its_client_directly_is_not_reached() {
    let lab = TestLab::up("reports/hairpin-without-masquerade");
    let report = ask(&lab, "192.168.0.55", "198.51.100.34", "22");
    let end = &service(&report, "22/tcp").end;
    assert_eq!(
        (end.result, end.status),
        (Verdict::No, ServiceStatus::Partial)
    );
    let words = said(&report, "22/tcp");
    assert!(
        words.contains(
            "the server answers the client directly, from 192.168.0.100, an address that the \
             client did not call"
        ),
        "{words}"
    );
    // The server itself calls its public address.
    let report = ask(&lab, "192.168.0.100", "198.51.100.34", "22");
    let words = said(&report, "22/tcp");
    assert!(
        words.starts_with("NO r7") && words.contains("comes back to the client itself"),
        "{words}"
    );
    lab.nft(
        "r7",
        "add chain ip nat masq { type nat hook postrouting priority 101; }; \
         add rule ip nat masq ip saddr 192.168.0.0/24 ip daddr 192.168.0.100 masquerade",
    );
    for from in ["192.168.0.55", "192.168.0.100"] {
        let report = ask(&lab, from, "198.51.100.34", "22");
        assert_eq!(said(&report, "22/tcp"), "YES", "{from}");
    }
}

#[test]
fn hosts_of_one_link_pass_no_router() {
    let lab = TestLab::up("reports/both-on-one-link");
    let report = ask(&lab, "10.0.0.50", "10.0.0.77", "22");
    let end = &service(&report, "22/tcp").end;
    assert_ne!(end.result, Verdict::No);
    assert!(
        end.reason.as_deref().unwrap().contains("both on segment"),
        "{end:?}"
    );
    assert_eq!(report.routers, []);
}

#[test]
fn an_answer_is_judged_by_the_routers_that_it_passes() {
    let lab = TestLab::up("reports/triangle-with-invalid");
    let before = neighbours(&lab, &["ap", "srv", "fw"]);
    let report = ask(&lab, "192.168.1.120", "10.50.0.2", "22,80,443,53/udp");
    for name in ["22/tcp", "80/tcp", "443/tcp"] {
        let words = said(&report, name);
        assert!(
            words.starts_with("NO fw: the request arrived; the answer was stopped by rule 1 of"),
            "{words}"
        );
        assert!(words.contains("INVALID"), "{words}");
        let (there, back) = ways(&report, name);
        assert_eq!(there, "ap 192.168.1.120, srv 192.168.1.120");
        assert_eq!(back, "srv 10.50.0.2, fw 10.50.0.2");
        let result = service(&report, name);
        let fw = result.at(&RouterName::new("fw").unwrap()).unwrap();
        assert_eq!(
            (fw.reach, fw.status),
            (CameBy::ByAnswer, ServiceStatus::Partial)
        );
        assert!(fw.blocking[0].rule.contains("INVALID"), "{:?}", fw.blocking);
    }
    // A datagram belongs to no connection that fw would have to know.
    assert_eq!(said(&report, "53/udp"), "YES");
    for router in ["ap", "srv", "fw"] {
        assert_eq!(connections(&lab, router).trim(), "0", "{router}");
    }
    assert_eq!(neighbours(&lab, &["ap", "srv", "fw"]), before);
    assert_eq!(report.warnings, traces_stay(&["ap", "srv", "fw"]));
}

#[test]
fn behind_source_nat_routers_see_the_translated_address() {
    let lab = TestLab::up("reports/source-nat-before-a-router");
    let report = ask(&lab, "192.168.7.9", "10.9.0.50", "22,443");
    assert_eq!(said(&report, "22/tcp"), "YES");
    let words = said(&report, "443/tcp");
    assert!(
        words.starts_with("NO peri: no answer: dropped by the policy of chain FORWARD"),
        "{words}"
    );
    let (there, back) = ways(&report, "22/tcp");
    assert_eq!(there, "nat 10.0.0.1, peri 10.0.0.1");
    assert_eq!(back, "peri 10.9.0.50, nat 10.9.0.50");
    // The same through the two by name, and the second by itself.
    let named = run(
        &lab,
        &job(&lab, &["nat", "peri"], "192.168.7.9", "10.9.0.50", "22,443"),
    );
    assert_eq!(said(&named, "22/tcp"), "YES");
    assert!(said(&named, "443/tcp").starts_with("NO peri"));
}

#[test]
fn each_service_is_judged_on_its_own_way() {
    let lab = TestLab::up("reports/routed-by-port-and-mark");
    for services in ["22,443,8443", "8443,443,22"] {
        let report = ask(&lab, "10.1.0.9", "10.9.0.50", services);
        assert_eq!(said(&report, "22/tcp"), "YES", "{services}");
        for name in ["443/tcp", "8443/tcp"] {
            let words = said(&report, name);
            assert!(
                words.starts_with("NO c: no answer: dropped by rule 1 of chain FORWARD"),
                "{services}: {words}"
            );
            let b = RouterName::new("b").unwrap();
            assert_eq!(service(&report, name).at(&b), None, "{services}");
        }
    }
}

/// `a` has two routers behind it, and leads to `c` by port, which a plan knows, and by mark.
#[test]
fn named_routers_that_are_on_no_way_are_measured_beside_it() {
    let lab = TestLab::up("reports/routed-by-port-and-mark");
    let asked = |services: &str| {
        let routers = ["a", "b", "c"];
        run(
            &lab,
            &job(&lab, &routers, "10.1.0.9", "10.9.0.50", services),
        )
    };
    let reach = |report: &DetailedReport, name: &str, router: &str| {
        let router = RouterName::new(router).unwrap();
        let test = service(report, name).at(&router);
        test.map(|test| (test.reach, test.status.verdict()))
    };
    let there = |verdict| Some((CameBy::Reached, verdict));
    let report = asked("22,443");
    assert_eq!(said(&report, "22/tcp"), "YES");
    assert!(said(&report, "443/tcp").starts_with("NO c: no answer: dropped by rule 1"));
    assert_eq!(reach(&report, "443/tcp", "c"), there(Verdict::No));
    assert_eq!(reach(&report, "22/tcp", "c"), None);
    let report = asked("22");
    assert_eq!(said(&report, "22/tcp"), "YES");
    assert_eq!(reach(&report, "22/tcp", "b"), there(Verdict::Yes));
    let apart = Some((CameBy::NotOnTheWay, Verdict::No));
    assert_eq!(reach(&report, "22/tcp", "c"), apart);
}

#[test]
fn where_packets_come_in_can_be_said() {
    let lab = TestLab::up("reports/two-uplinks");
    // By the uplink whose address is called, unless another is named.
    let report = ask(&lab, "8.8.8.8", "198.51.100.2", "80");
    assert_eq!(said(&report, "80/tcp"), "YES");
    for (from, verdict) in [("gw:isp2", Verdict::Yes), ("gw:isp1", Verdict::No)] {
        let asked = DetailedJob {
            from: Some(from.parse().unwrap()),
            ..whole(&lab, "8.8.8.8", "198.51.100.2", "80")
        };
        let report = run(&lab, &asked);
        assert_eq!(service(&report, "80/tcp").end.result, verdict, "{from}");
    }
}

const DROP_ANSWERS: &str = "
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy accept;
        tcp sport 8081 counter drop
    }
}
";

const TO_SERVERS: &str = "
table inet nat {
    chain pre {
        type nat hook prerouting priority dstnat; policy accept;
        tcp dport 80 dnat ip to 10.93.3.80:8080
        tcp dport 81 dnat ip to 10.93.3.81:8081
        tcp dport 82 dnat ip to 10.93.3.82:8082
    }
}
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy accept;
        tcp dport 83 drop
    }
}
";

/// Servers behind the second router have other addresses and ports than those that are called.
#[test]
fn translated_services_are_followed_to_their_servers_behind_the_next_router() {
    let edge = router(
        "edge",
        &[("wan", &["10.93.1.1/24"]), ("mid", &["10.93.2.1/24"])],
        &["10.93.3.0/24 via 10.93.2.2 dev mid"],
        TO_SERVERS,
    );
    let core = router(
        "core",
        &[("mid", &["10.93.2.2/24"]), ("srv", &["10.93.3.1/24"])],
        &["10.93.1.0/24 via 10.93.2.1 dev mid"],
        DROP_ANSWERS,
    );
    let (lab, _dir) = lab(&[edge, core]);
    let before = neighbours(&lab, &["edge", "core"]);
    let report = ask(&lab, "10.93.1.9", "10.93.3.5", "80,81,82,83,84");
    assert_eq!(said(&report, "80/tcp"), "YES");
    assert_eq!(said(&report, "82/tcp"), "YES");
    assert_eq!(said(&report, "84/tcp"), "YES");
    let words = said(&report, "81/tcp");
    assert!(
        words.starts_with("NO core: the request arrived; the answer was stopped by rule 1 of"),
        "{words}"
    );
    let words = said(&report, "83/tcp");
    assert!(
        words.starts_with("NO edge: no answer: dropped by rule 1"),
        "{words}"
    );
    let behind = service(&report, "83/tcp").at(&RouterName::new("core").unwrap());
    let behind = behind.unwrap();
    assert_eq!(
        (behind.reach, behind.status),
        (CameBy::NotReached, ServiceStatus::Ok)
    );
    for router in ["edge", "core"] {
        assert_eq!(connections(&lab, router).trim(), "0", "{router}");
    }
    assert_eq!(neighbours(&lab, &["edge", "core"]), before);
}

const INVALID_V6: &str = "
table ip6 filter {
    chain forward {
        type filter hook forward priority filter; policy accept;
        ct state invalid drop
    }
}
";

#[test]
fn a_triangle_of_ipv6_routers_is_judged_alike() {
    let client = router(
        "client-gw",
        &[
            ("lan", &["2001:db8:a::1/64"]),
            ("up", &["2001:db8:b::4/64"]),
        ],
        &["default via 2001:db8:b::1 dev up"],
        "",
    );
    let fw = router(
        "fw",
        &[("br0", &["2001:db8:b::1/64"])],
        &["2001:db8:a::/64 via 2001:db8:b::4 dev br0"],
        INVALID_V6,
    );
    let server = router(
        "server-gw",
        &[
            ("up", &["2001:db8:b::2/64"]),
            ("srv", &["2001:db8:c::1/64"]),
        ],
        &["default via 2001:db8:b::1 dev up"],
        "",
    );
    let mut direct = client.clone();
    direct["routes"] = json!([
        "default via 2001:db8:b::1 dev up",
        "2001:db8:c::/64 via 2001:db8:b::2 dev up"
    ]);
    let (lab, _dir) = lab(&[direct, fw, server]);
    let report = ask(&lab, "2001:db8:a::9", "2001:db8:c::9", "443,53/udp");
    let words = said(&report, "443/tcp");
    assert!(
        words.starts_with("NO fw: the request arrived; the answer was stopped by rule 1"),
        "{words}"
    );
    assert_eq!(said(&report, "53/udp"), "YES");
}

/// Router `b` masquerades to an address of the server's own link and is not the one that delivers:
/// the answer goes to it directly, past the router that the request came by.
#[test]
fn an_answer_to_another_router_of_the_link_goes_there() {
    let snat = "
table ip nat {
    chain post {
        type nat hook postrouting priority srcnat; policy accept;
        tcp dport 80 snat to 10.94.2.77
    }
}
";
    let edge = router(
        "edge",
        &[("lan", &["10.94.1.1/24"]), ("srv", &["10.94.2.1/24"])],
        &[],
        snat,
    );
    let (lab, _dir) = lab(&[edge]);
    let report = ask(&lab, "10.94.1.9", "10.94.2.9", "80,81");
    let words = said(&report, "80/tcp");
    assert!(
        words.contains("the server's answer is for 10.94.2.77 on its own link, and nobody there"),
        "{words}"
    );
    assert_eq!(service(&report, "80/tcp").end.result, Verdict::No);
    assert_eq!(said(&report, "81/tcp"), "YES");
}

/// Drops one service on one of two links, and the answers of another one that came by the other.
const BY_LINK: &str = "
table ip filter {
    chain forward {
        type filter hook forward priority filter; policy accept;
        iifname \"two\" tcp dport 81 drop
        tcp dport 82 drop
        ct direction reply oifname \"two\" tcp sport 83 drop
    }
}
";

/// Two links between two routers, and a hash that decides which of them a packet takes, both ways.
#[test]
fn next_hops_over_several_links_are_each_measured_on_copies() {
    let near = router(
        "near",
        &[
            ("lan", &["10.95.1.1/24"]),
            ("one", &["10.95.11.1/24"]),
            ("two", &["10.95.12.1/24"]),
        ],
        &["10.95.3.0/24 nexthop via 10.95.11.2 dev one nexthop via 10.95.12.2 dev two"],
        "",
    );
    let far = router(
        "far",
        &[
            ("srv", &["10.95.3.1/24"]),
            ("one", &["10.95.11.2/24"]),
            ("two", &["10.95.12.2/24"]),
        ],
        &["10.95.1.0/24 nexthop via 10.95.11.1 dev one nexthop via 10.95.12.1 dev two"],
        BY_LINK,
    );
    let (lab, _dir) = lab(&[near, far]);
    let routers = ["near", "far"];
    let routes = || {
        let of = |name: &&str| {
            let netns = lab.lab.router_netns(&RouterName::new(*name).unwrap());
            let mut netlink = Netlink::open(&netns.unwrap()).unwrap();
            netlink.routes(Family::V4, None).unwrap()
        };
        routers.iter().flat_map(of).collect::<Vec<_>>()
    };
    let before = (routes(), neighbours(&lab, &routers), lab.bed.left());
    let report = ask(&lab, "10.95.1.9", "10.95.3.9", "80,81,82,83,53/udp");
    assert_eq!(said(&report, "80/tcp"), "YES");
    assert_eq!(said(&report, "53/udp"), "YES");
    let note = service(&report, "80/tcp").end.note.as_deref().unwrap();
    let choice = "the route of near to 10.95.3.9 has two next hops, the route of far to 10.95.1.9 has \
                  two next hops";
    assert!(
        note.contains(&format!("{choice}, and each was measured")),
        "{note}"
    );
    let words = said(&report, "82/tcp");
    assert!(
        words.starts_with("NO far: no answer: dropped by rule 2"),
        "{words}"
    );
    let words = said(&report, "81/tcp");
    assert!(
        words.starts_with(&format!(
            "UNKNOWN: {choice}; by one of near, one of far YES; by one of near, two of far YES;"
        )) && words.contains("by two of near, one of far NO: no answer: dropped by rule 1"),
        "{words}"
    );
    let words = said(&report, "83/tcp");
    assert!(
        words
            .contains("by one of near, two of far NO: the request arrived; the answer was stopped")
            && words.contains("by two of near, one of far YES"),
        "{words}"
    );
    assert_eq!(
        (routes(), neighbours(&lab, &routers), lab.bed.left()),
        before
    );
    assert_eq!(connections(&lab, "far").trim(), "0");
    assert_eq!(report.warnings, traces_stay(&routers));
}
