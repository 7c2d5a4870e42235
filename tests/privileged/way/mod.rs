//! Verdicts from end to end: what left one router is what the next one is asked with.
//!
//! The labs are those of public bug reports; what is right there was shown with plain hosts and plain
//! connections on the labs' own segments.

mod ends;

use std::{fs, process::Command};

use serde_json::{Value, json};
use tsim::{
    model::RouterName,
    run::{
        quick::RouterChoice,
        report::{EndKind, EndToEnd, QuickReport, Verdict, VerdictScope},
    },
};

use crate::{
    detailed_chain::{ask, lab, router},
    quick::TestLab,
};

/// A question to a lab, from end to end.
struct Ask<'a> {
    lab: &'a TestLab,
    source: &'a str,
    destination: &'a str,
    services: &'a str,
    from: Option<&'a str>,
    routers: &'a [&'a str],
}

impl<'a> Ask<'a> {
    fn new(lab: &'a TestLab, source: &'a str, destination: &'a str, services: &'a str) -> Self {
        Self {
            lab,
            source,
            destination,
            services,
            from: None,
            routers: &[],
        }
    }

    fn run(&self) -> QuickReport {
        let mut job = self
            .lab
            .job("any", self.source, self.destination, self.services);
        let names = self.routers.iter().map(|name| RouterName::new(*name));
        job.routers = match self.routers {
            [] => RouterChoice::Trace,
            _ => RouterChoice::Named(names.collect::<Result<_, _>>().unwrap()),
        };
        job.from = self.from.map(|from| from.parse().unwrap());
        self.lab.run(&job)
    }
}

/// The verdicts with the router where each ends, e.g. `22/tcp YES b, 443/tcp NO c`.
fn ends(report: &QuickReport) -> String {
    let one = |end: &EndToEnd| {
        let router = end.router.as_ref().map(|router| format!(" {router}"));
        format!(
            "{} {}{}",
            end.service(),
            end.result,
            router.unwrap_or_default()
        )
    };
    let all: Vec<String> = report.end_to_end.iter().map(one).collect();
    all.join(", ")
}

fn reason(report: &QuickReport, number: usize) -> &str {
    report.end_to_end[number].reason.as_deref().unwrap_or("")
}

#[test]
fn the_next_router_is_asked_with_the_source_that_nat_made() {
    let lab = TestLab::up("reports/source-nat-before-another-router");
    let report = Ask::new(&lab, "192.168.7.9", "10.9.0.50", "22,443").run();
    assert_eq!(ends(&report), "22/tcp YES peri, 443/tcp NO peri");
    assert_eq!(report.overall(), Verdict::No);
    let way = &report.end_to_end[0].way;
    assert_eq!(way.len(), 2);
    assert_eq!(way[0].source.to_string(), "10.0.0.1");
    assert_eq!(way[0].hop.next_hop.unwrap().to_string(), "10.0.0.2");
    assert_eq!(way[1].hop.iface_in.as_ref().unwrap().as_str(), "inside");
}

#[test]
fn services_part_where_ports_and_marks_send_them() {
    let lab = TestLab::up("reports/policy-routing-to-two-routers");
    for services in ["22,443,8443", "443,8443,22"] {
        let report = Ask::new(&lab, "10.1.0.9", "10.9.0.50", services).run();
        let mut ends: Vec<String> = ends(&report).split(", ").map(str::to_owned).collect();
        ends.sort();
        assert_eq!(ends, ["22/tcp YES b", "443/tcp NO c", "8443/tcp NO c"]);
        // What nothing is sent to does not count.
        let b = report
            .routers
            .iter()
            .find(|r| r.name.as_str() == "b")
            .unwrap();
        let asked = b.services.iter().filter(|service| service.reached);
        let ports: Vec<u16> = asked.map(|service| service.port).collect();
        assert_eq!(ports, [22]);
    }
}

#[test]
fn entries_that_disagree_are_named_and_one_can_be_chosen() {
    let lab = TestLab::up("reports/two-gateways-on-one-segment");
    let mut ask = Ask::new(&lab, "10.92.1.50", "10.92.3.60", "443");
    let report = ask.run();
    assert_eq!(ends(&report), "443/tcp UNKNOWN");
    assert_eq!(report.end_to_end[0].end, EndKind::Disagree);
    for part in [
        "by aaa:lan YES",
        "by gw:lan NO at gw: dropped by the policy",
    ] {
        assert!(reason(&report, 0).contains(part), "{}", reason(&report, 0));
    }
    for (from, want) in [("aaa", "443/tcp YES core"), ("gw:lan", "443/tcp NO gw")] {
        ask.from = Some(from);
        assert_eq!(ends(&ask.run()), want);
    }
}

#[test]
fn named_routers_are_asked_where_packets_come_in() {
    let lab = TestLab::up("reports/handed-over-at-another-interface");
    let mut ask = Ask::new(&lab, "10.91.1.50", "10.91.3.60", "443,22");
    let whole = ask.run();
    assert_eq!(ends(&whole), "443/tcp YES r2, 22/tcp NO r2");
    ask.routers = &["r1", "r2"];
    let named = ask.run();
    assert_eq!(ends(&named), ends(&whole));
    assert_eq!(
        (whole.scope, named.scope),
        (VerdictScope::Whole, VerdictScope::Named)
    );
    ask.routers = &["r1"];
    let first = ask.run();
    assert_eq!(ends(&first), "443/tcp YES r1, 22/tcp YES r1");
    assert_eq!(first.end_to_end[0].end, EndKind::HandedOver);
}

#[test]
fn a_source_outside_comes_in_by_the_uplink_whose_address_it_calls() {
    let lab = TestLab::up("reports/source-behind-two-uplinks");
    let mut ask = Ask::new(&lab, "8.8.8.8", "198.51.100.2", "80");
    assert_eq!(ends(&ask.run()), "80/tcp YES gw");
    ask.from = Some("gw:isp2");
    assert_eq!(ends(&ask.run()), "80/tcp YES gw");
    ask.from = Some("gw:isp1");
    assert_eq!(ask.run().overall(), Verdict::No);
}

#[test]
fn an_answer_that_misses_who_translated_the_request_makes_no_yes() {
    let lab = TestLab::up("reports/hairpin-without-masquerade");
    let report = Ask::new(&lab, "192.168.0.55", "198.51.100.34", "22").run();
    assert_eq!(report.overall(), Verdict::Unknown, "{}", ends(&report));
    assert!(
        reason(&report, 0).contains("misses r7"),
        "{}",
        reason(&report, 0)
    );
}

#[test]
fn an_answer_by_a_router_that_was_not_asked_is_said() {
    let lab = TestLab::up("reports/answer-by-another-router");
    let report = Ask::new(&lab, "192.168.1.120", "10.50.0.2", "22").run();
    assert_eq!(ends(&report), "22/tcp YES srv");
    let want = "the answer takes fw, which was not asked";
    assert!(reason(&report, 0).contains(want), "{}", reason(&report, 0));
}

const MARKS_ANSWERS: &str = "
table ip mangle {
    chain pre {
        type filter hook prerouting priority mangle; policy accept;
        tcp sport 443 meta mark set 0x4d
    }
}
";

/// A server's router sends answers by a mark over a third router. The mark is looked at by a policy
/// rule, and is set by a rule that the request does not meet.
#[test]
fn an_answer_that_a_mark_leads_by_another_router_is_said() {
    let near = router(
        "near",
        &[
            ("lan", &["10.97.1.1/24"]),
            ("mid", &["10.97.2.1/24"]),
            ("alt", &["10.97.5.2/24"]),
        ],
        &["10.97.3.0/24 via 10.97.2.2 dev mid"],
        "",
    );
    let mut far = router(
        "far",
        &[
            ("mid", &["10.97.2.2/24"]),
            ("alt", &["10.97.4.2/24"]),
            ("srv", &["10.97.3.1/24"]),
        ],
        &["10.97.1.0/24 via 10.97.2.1 dev mid"],
        MARKS_ANSWERS,
    );
    far["rules"] = json!(["900: from all fwmark 0x4d lookup 99"]);
    let by_mark = json!("default via 10.97.4.1 dev alt table 99");
    far["routes"].as_array_mut().unwrap().push(by_mark);
    let aside = router(
        "aside",
        &[("a", &["10.97.4.1/24"]), ("b", &["10.97.5.1/24"])],
        &["10.97.1.0/24 via 10.97.5.2 dev b"],
        "",
    );
    let (lab, _facts) = lab(&[near, far, aside]);
    let report = Ask::new(&lab, "10.97.1.9", "10.97.3.9", "443").run();
    assert_eq!(ends(&report), "443/tcp YES far");
    let want = "where rules of far give it mark 0x4d, the answer takes aside, which was not asked";
    assert!(reason(&report, 0).contains(want), "{}", reason(&report, 0));
    // A detailed job shows which one it takes.
    let report = ask(&lab, "10.97.1.9", "10.97.3.9", "443,80");
    let by = |number: usize| {
        let legs = report.services[number].end.answer.iter();
        legs.map(|leg| leg.router.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(by(0), ["far", "aside", "near"]);
    assert_eq!(by(1), ["far", "near"]);
}

#[test]
fn nat_to_the_router_itself_arrives_there() {
    let lab = TestLab::up("reports/nat-to-the-router-itself");
    let report = Ask::new(&lab, "10.5.0.9", "10.96.0.1", "443").run();
    assert_eq!(ends(&report), "443/tcp YES n");
    assert_eq!(report.end_to_end[0].end, EndKind::Itself);
}

#[test]
fn hosts_of_one_link_pass_no_router_and_multicast_is_not_known() {
    let lab = TestLab::up("small3");
    let report = Ask::new(&lab, "10.81.1.10", "10.81.1.11", "22").run();
    assert_eq!(ends(&report), "22/tcp YES");
    assert_eq!(report.end_to_end[0].end, EndKind::SameLink);
    assert!(report.routers.is_empty());
    let report = Ask::new(&lab, "10.81.1.10", "239.1.2.3", "22").run();
    assert_eq!(report.end_to_end[0].end, EndKind::Multicast);
    assert_eq!(report.overall(), Verdict::Unknown);
}

/// Has r1 change packets of port 443 in some way, and r2 drop what was changed.
fn changed_and_dropped(lab: &TestLab, family: &str, change: &str, dropped: &str) {
    lab.nft(
        "r1",
        &format!(
            "add table {family} change; add chain {family} change post {{ type filter hook \
             postrouting priority -150; }}; add chain {family} change nat {{ type nat hook \
             postrouting priority 100; }}; add rule {family} change {change}"
        ),
    );
    lab.nft(
        "r2",
        &format!(
            "add table {family} fw; add chain {family} fw forward {{ type filter hook forward \
             priority 10; }}; add rule {family} fw forward {dropped} drop"
        ),
    );
}

#[test]
fn what_a_router_changes_is_carried_on_for_both_families() {
    let (v4, v6) = (
        ("10.81.1.10", "10.81.3.10"),
        ("2001:db8:81:1::10", "2001:db8:81:3::10"),
    );
    for (family, (source, destination), change, dropped) in [
        (
            "ip",
            v4,
            "nat tcp dport 443 masquerade",
            "ip saddr != 10.81.1.0/24",
        ),
        (
            "ip6",
            v6,
            "nat tcp dport 443 masquerade",
            "ip6 saddr != 2001:db8:81:1::/64",
        ),
        (
            "ip",
            v4,
            "post tcp dport 443 ip dscp set af21",
            "ip dscp af21",
        ),
        (
            "ip6",
            v6,
            "post tcp dport 443 ip6 dscp set af21",
            "ip6 dscp af21",
        ),
        ("ip", v4, "post tcp dport 443 ip ttl set 7", "ip ttl < 10"),
    ] {
        let lab = TestLab::up("small3");
        let ask = Ask::new(&lab, source, destination, "443,53/udp");
        assert_eq!(
            ends(&ask.run()),
            "443/tcp YES r3, 53/udp YES r3",
            "{family}"
        );
        changed_and_dropped(&lab, family, change, dropped);
        assert_eq!(ends(&ask.run()), "443/tcp NO r2, 53/udp YES r3", "{change}");
    }
}

/// How many steps a job takes that finds every service let through: what it sets up and takes away at
/// each router is among them.
fn steps(facts: &str) -> u64 {
    let lab = TestLab::up(facts);
    let ask = Ask::new(&lab, "10.81.1.10", "10.81.3.10", "443,53/udp");
    assert_eq!(ends(&ask.run()), "443/tcp YES r3, 53/udp YES r3");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tsim-quick"));
    command.arg("--config").arg(lab.config_file());
    command.args(["--lab", lab.bed.lab.as_str(), "--fault", "count"]);
    command.args(["-s", ask.source, "-d", ask.destination, "-P", ask.services]);
    let said = String::from_utf8(command.output().unwrap().stderr).unwrap();
    let count = said.split("fault: ").nth(1).unwrap();
    count.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn routers_behind_one_that_translates_are_measured_once() {
    let facts = tempfile::tempdir().unwrap();
    for file in fs::read_dir("netns-fixtures/small3").unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), facts.path().join(file.file_name())).unwrap();
    }
    let r1 = facts.path().join("r1.json");
    let mut router: Value = serde_json::from_str(&fs::read_to_string(&r1).unwrap()).unwrap();
    let nat = [
        "*nat",
        ":POSTROUTING ACCEPT [0:0]",
        "-A POSTROUTING -o east -j MASQUERADE",
        "COMMIT",
    ];
    let rules = router["iptables"].as_array_mut().unwrap();
    rules.extend(nat.map(Value::from));
    fs::write(&r1, router.to_string()).unwrap();
    let plain = steps("small3");
    let translated = steps(facts.path().to_str().unwrap());
    // A measurement of one router takes more steps than that.
    assert!(
        translated < plain + 5,
        "{translated} steps instead of {plain}"
    );
}
