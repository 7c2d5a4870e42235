//! Where ways end that do not simply arrive: loops, used-up TTLs, broadcasts, second visits, routers
//! that nobody planned, and routers without facts.

use std::fs;

use serde_json::{Value, json};
use tsim::run::report::{EndKind, Verdict};

use super::{Ask, ends, reason};
use crate::quick::TestLab;

/// Addresses of one family, by segment and number.
#[derive(Clone, Copy)]
struct Net {
    v6: bool,
}

const BOTH: [Net; 2] = [Net { v6: false }, Net { v6: true }];

impl Net {
    fn address(self, segment: u8, number: u8) -> String {
        match self.v6 {
            true => format!("2001:db8:93:{segment}::{number}"),
            false => format!("10.93.{segment}.{number}"),
        }
    }

    fn prefix(self, segment: u8) -> String {
        match self.v6 {
            true => format!("2001:db8:93:{segment}::/64"),
            false => format!("10.93.{segment}.0/24"),
        }
    }

    fn interface(self, name: &str, segment: u8, number: u8) -> Value {
        let length = if self.v6 { 64 } else { 24 };
        let address = format!("{}/{length}", self.address(segment, number));
        json!({"name": name, "addresses": [address]})
    }

    /// A route to a segment, or to everywhere.
    fn via(self, to: Option<u8>, segment: u8, number: u8) -> String {
        let everywhere = if self.v6 { "::/0" } else { "default" };
        let to = to.map_or_else(|| everywhere.to_owned(), |to| self.prefix(to));
        format!("{to} via {}", self.address(segment, number))
    }

    fn family(self) -> &'static str {
        if self.v6 { "ip6" } else { "ip" }
    }
}

/// Facts of some routers in a directory of their own.
struct Facts(tempfile::TempDir);

impl Facts {
    fn of(routers: &[(&str, Value)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, facts) in routers {
            let mut facts = facts.clone();
            facts["version"] = json!(1);
            facts["name"] = json!(name);
            fs::write(dir.path().join(format!("{name}.json")), facts.to_string()).unwrap();
        }
        Self(dir)
    }

    fn up(&self) -> TestLab {
        TestLab::up(self.0.path().to_str().unwrap())
    }
}

/// Two routers in a row: `a` from segment 1 to 2, `b` from there to 3, with these routes of `b`.
fn row(net: Net, b_routes: &[String]) -> Facts {
    Facts::of(&[
        (
            "a",
            json!({
                "interfaces": [net.interface("in", 1, 1), net.interface("out", 2, 1)],
                "routes": [net.via(None, 2, 2)],
            }),
        ),
        (
            "b",
            json!({
                "interfaces": [net.interface("in", 2, 2), net.interface("out", 3, 1)],
                "routes": b_routes,
            }),
        ),
    ])
}

#[test]
fn a_loop_is_a_no_and_says_so() {
    for net in BOTH {
        let lab = row(net, &[net.via(None, 2, 1)]).up();
        let (from, to) = (net.address(1, 9), net.address(9, 9));
        let report = Ask::new(&lab, &from, &to, "22,53/udp").run();
        assert_eq!(report.overall(), Verdict::No, "{}", ends(&report));
        assert_eq!(report.end_to_end[0].end, EndKind::Loop);
        assert!(
            reason(&report, 0).contains("a loop"),
            "{}",
            reason(&report, 0)
        );
    }
}

#[test]
fn a_ttl_that_is_used_up_is_a_no() {
    for net in BOTH {
        let lab = row(net, &[net.via(Some(1), 2, 1)]).up();
        let (from, to) = (net.address(1, 9), net.address(3, 9));
        let ask = Ask::new(&lab, &from, &to, "22,80");
        assert_eq!(ends(&ask.run()), "22/tcp YES b, 80/tcp YES b");
        let (family, ttl) = match net.v6 {
            true => ("ip6", "ip6 hoplimit"),
            false => ("ip", "ip ttl"),
        };
        lab.nft(
            "a",
            &format!(
                "add table {family} t; add chain {family} t post {{ type filter hook postrouting \
                 priority -150; }}; add rule {family} t post tcp dport 80 {ttl} set 1"
            ),
        );
        assert_eq!(ends(&ask.run()), "22/tcp YES b, 80/tcp NO b");
    }
}

#[test]
fn a_broadcast_address_is_a_no() {
    let net = Net { v6: false };
    let lab = row(net, &[net.via(Some(1), 2, 1)]).up();
    for (to, at) in [("10.93.3.255", "b"), ("10.93.2.255", "a")] {
        let report = Ask::new(&lab, "10.93.1.9", to, "22").run();
        assert_eq!(ends(&report), format!("22/tcp NO {at}"), "{to}");
        let end = &report.end_to_end[0];
        assert_eq!(end.end, EndKind::Broadcast, "{:?}", end.reason);
    }
}

/// `a` sends what comes in by `in` to `b`, which sends it back to `a` by another segment, from where
/// `a` sends it on to segment 3.
fn twice(net: Net) -> Facts {
    let rules = json!(["100: from all iif back lookup 100"]);
    let mut a = json!({
        "interfaces": [
            net.interface("in", 1, 1),
            net.interface("out", 2, 1),
            net.interface("back", 4, 1),
            net.interface("far", 5, 1),
        ],
        "routes": [
            net.via(Some(3), 2, 2),
            format!("{} table 100", net.via(Some(3), 5, 2)),
        ],
    });
    a[if net.v6 { "ipv6_rules" } else { "rules" }] = rules;
    Facts::of(&[
        ("a", a),
        (
            "b",
            json!({
                "interfaces": [net.interface("in", 2, 2), net.interface("out", 4, 2)],
                "routes": [net.via(None, 4, 1)],
            }),
        ),
        (
            "c",
            json!({
                "interfaces": [net.interface("in", 5, 2), net.interface("out", 3, 1)],
                "routes": [net.via(None, 5, 1)],
            }),
        ),
    ])
}

#[test]
fn a_second_visit_is_not_known_where_the_router_remembers_the_first() {
    for net in BOTH {
        let lab = twice(net).up();
        let (from, to) = (net.address(1, 9), net.address(3, 9));
        let ask = Ask::new(&lab, &from, &to, "22");
        let report = ask.run();
        assert_eq!(ends(&report), "22/tcp YES c");
        let way = report.end_to_end[0].way.iter();
        let way: Vec<&str> = way.map(|leg| leg.hop.router.as_str()).collect();
        assert_eq!(way, ["a", "b", "a", "c"]);
        let family = net.family();
        lab.nft(
            "a",
            &format!(
                "add table {family} t; add chain {family} t passing {{ type filter hook forward \
                 priority 0; }}; add rule {family} t passing ct state invalid drop"
            ),
        );
        let report = ask.run();
        assert_eq!(ends(&report), "22/tcp UNKNOWN a");
        assert_eq!(report.end_to_end[0].end, EndKind::SecondVisit);
    }
}

/// `a` translates an address that nobody has to a host behind `c`, to which no route of the
/// question's own destination leads.
#[test]
fn a_way_to_a_router_that_nobody_planned_is_followed_with_more_locks() {
    for net in BOTH {
        let facts = Facts::of(&[
            (
                "a",
                json!({
                    "interfaces": [
                        net.interface("in", 1, 1),
                        net.interface("out", 2, 1),
                        net.interface("side", 4, 1),
                    ],
                    "routes": [net.via(None, 2, 2), net.via(Some(5), 4, 2)],
                }),
            ),
            (
                "b",
                json!({
                    "interfaces": [net.interface("in", 2, 2), net.interface("out", 3, 1)],
                    "routes": [net.via(Some(1), 2, 1)],
                }),
            ),
            (
                "c",
                json!({
                    "interfaces": [net.interface("in", 4, 2), net.interface("out", 5, 1)],
                    "routes": [net.via(None, 4, 1)],
                }),
            ),
        ]);
        let lab = facts.up();
        let (family, target) = (net.family(), net.address(5, 9));
        lab.nft(
            "a",
            &format!(
                "add table {family} t; add chain {family} t pre {{ type nat hook prerouting \
                 priority -100; }}; add rule {family} t pre tcp dport {{ 80, 443 }} dnat to {target}"
            ),
        );
        lab.nft(
            "c",
            &format!(
                "add table {family} t; add chain {family} t passing {{ type filter hook forward \
                 priority 0; }}; add rule {family} t passing tcp dport 443 drop"
            ),
        );
        let (from, to) = (net.address(1, 9), net.address(9, 9));
        let report = Ask::new(&lab, &from, &to, "80,443").run();
        assert_eq!(ends(&report), "80/tcp YES c, 443/tcp NO c");
        let way = &report.end_to_end[0].way;
        assert_eq!(way[1].destination.to_string(), target);
        // The planned router is measured, and no packet comes there.
        let b = report.routers.iter().find(|r| r.name.as_str() == "b");
        assert!(b.unwrap().services.iter().all(|service| !service.reached));
    }
}

#[test]
fn a_router_without_facts_may_be_a_gateway_too() {
    let net = Net { v6: false };
    let facts = row(net, &[net.via(Some(1), 2, 1)]);
    fs::write(facts.0.path().join("gone_facts.txt"), "no facts at all").unwrap();
    let lab = facts.up();
    let mut ask = Ask::new(&lab, "10.93.1.9", "10.93.3.9", "22");
    let report = ask.run();
    assert_eq!(ends(&report), "22/tcp UNKNOWN");
    assert_eq!(report.end_to_end[0].end, EndKind::Disagree);
    for part in [
        "by a:in YES",
        "by gone UNKNOWN",
        "no facts of gone",
        "--from",
    ] {
        assert!(reason(&report, 0).contains(part), "{}", reason(&report, 0));
    }
    ask.from = Some("a");
    assert_eq!(ends(&ask.run()), "22/tcp YES b");
    // What a router sends itself enters nowhere else.
    assert_eq!(
        ends(&Ask::new(&lab, "10.93.1.1", "10.93.3.9", "22").run()),
        "22/tcp YES b"
    );
}

#[test]
fn a_router_with_lost_addresses_may_be_where_a_packet_leaves_the_lab_to() {
    const PART: &str = "# Hostname: part\n\
        === TSIM_SECTION_START:interfaces ===\nCOMMAND: ip addr show\n---\n\
        2: eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500\n\
        \x20   inet 10.77.0.1/24 scope global eth0\n\
        \x20   inet 10.93.3.\n\
        EXIT_CODE: 0\n=== TSIM_SECTION_END:interfaces ===\n\
        === TSIM_SECTION_START:routing_table ===\nCOMMAND: ip route show\n---\n\
        10.77.0.0/24 dev eth0 proto kernel scope link src 10.77.0.1\n\
        EXIT_CODE: 0\n=== TSIM_SECTION_END:routing_table ===\n";
    let net = Net { v6: false };
    let facts = row(net, &[net.via(Some(1), 2, 1), net.via(None, 3, 254)]);
    let out = ("10.93.1.9", "203.0.113.5");
    let whole = facts.up();
    assert_eq!(
        ends(&Ask::new(&whole, out.0, out.1, "22").run()),
        "22/tcp YES b"
    );
    fs::write(facts.0.path().join("part_facts.txt"), PART).unwrap();
    let lab = facts.up();
    let report = Ask::new(&lab, out.0, out.1, "22").run();
    assert_eq!(ends(&report), "22/tcp UNKNOWN b");
    assert_eq!(report.end_to_end[0].end, EndKind::Absent);
    assert!(
        reason(&report, 0).contains("to part,"),
        "{}",
        reason(&report, 0)
    );
    // What comes from there comes in where it went out.
    assert_eq!(
        ends(&Ask::new(&lab, out.1, out.0, "22").run()),
        "22/tcp YES a"
    );
}
