//! What happens inside one router, after reports: reasons outside netfilter, and ways that fork,
//! begin or end there. Asked as a user asks, by the command line.

use std::process::Command;

use serde_json::Value;

use crate::quick::TestLab;

/// Runs a job's program on a lab and reads what it answers in JSON.
fn ask(lab: &TestLab, program: &str, args: &str) -> Value {
    let output = Command::new(program)
        .args(["--config", lab.config_file().to_str().unwrap()])
        .args(["--lab", lab.bed.lab.as_str(), "--json"])
        .args(args.split(' '))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

pub(crate) fn quick(lab: &TestLab, args: &str) -> Value {
    ask(lab, env!("CARGO_BIN_EXE_tsim-quick"), args)
}

fn detailed(lab: &TestLab, args: &str) -> Value {
    ask(lab, env!("CARGO_BIN_EXE_tsim-detailed"), args)
}

/// What a quick job says of the first router: `80/tcp NO: reason` for each service.
pub(crate) fn at_router(report: &Value) -> Vec<String> {
    let services = report["routers"][0]["services"].as_array().unwrap();
    let one = |s: &Value| {
        let text = |key: &str| s[key].as_str().unwrap_or_default().to_owned();
        let (port, protocol) = (&s["port"], text("protocol"));
        format!("{port}/{protocol} {}: {}", text("result"), text("reason"))
    };
    services.iter().map(one).collect()
}

#[test]
fn rp_filter_behind_dnat_names_the_interface_that_it_wants() {
    let lab = TestLab::up("reports/rp-filter-after-dnat");
    let want = "rp_filter on eth0: the way back to 10.0.1.77 (from 10.0.1.41) leads to eth1 \
                (policy rule 1536: from 10.0.1.41 to 10.0.0.0/16 lookup 2)";
    let question = "-s 10.0.1.77 -d 10.0.1.20 -P 30080";
    assert_eq!(
        at_router(&quick(&lab, question)),
        [format!("30080/tcp NO: dropped outside netfilter: {want}")]
    );
    let answer = detailed(&lab, question).to_string();
    assert!(answer.contains(want), "{answer}");
    assert!(!answer.contains("blackhole"), "{answer}");
}

#[test]
fn a_policy_rule_that_ends_a_packet_is_named_as_one() {
    let lab = TestLab::up("reports/policy-rule-dead-ends");
    let said = at_router(&quick(&lab, "-s 10.75.22.50 -d 8.8.8.8 -P 22,25"));
    let lost = "NO: dropped outside netfilter: policy rule";
    assert_eq!(
        said,
        [
            format!("22/tcp {lost} 2061: from all fwmark 0x3d00/0x3f00 blackhole"),
            format!("25/tcp {lost} 2062: from all fwmark 0x3e00/0x3f00 unreachable"),
        ]
    );
    let answer = detailed(&lab, "-s 10.75.22.50 -d 8.8.8.8 -P 22,25").to_string();
    assert!(answer.contains("policy rule 2061: from all fwmark 0x3d00/0x3f00 blackhole"));
    assert!(answer.contains("policy rule 2062: from all fwmark 0x3e00/0x3f00 unreachable"));
}

/// `VERDICT: reason` of a quick job's first service, from end to end.
fn end_to_end(report: &Value) -> String {
    let end = &report["end_to_end"][0];
    let text = |key: &str| end[key].as_str().unwrap_or_default().to_owned();
    format!("{}: {}", text("result"), text("reason"))
}

#[test]
fn equal_cost_routes_by_two_interfaces_are_both_measured() {
    let lab = TestLab::up("reports/equal-cost-two-uplinks");
    for _ in 0..3 {
        let report = quick(&lab, "-s 10.0.0.9 -d 8.8.8.8 -P 443,ping");
        let said = end_to_end(&report);
        let choice = "UNKNOWN: the route of gw to 8.8.8.8 has two next hops; by isp1 YES";
        assert!(said.starts_with(choice), "{said}");
        let stopped = "by isp2 NO at gw: dropped by the policy of chain FORWARD (table filter)";
        assert!(said.contains(stopped), "{said}");
        let here = &at_router(&report)[0];
        assert!(
            here.starts_with("443/tcp UNKNOWN: the route of gw to 8.8.8.8"),
            "{here}"
        );
    }
}

#[test]
fn what_a_router_sends_itself_is_judged_at_output() {
    let lab = TestLab::up("reports/from-the-router-itself");
    let report = quick(&lab, "-s 10.1.0.1 -d 10.2.0.9 -P 80,443");
    let said = at_router(&report);
    assert!(said[0].starts_with("80/tcp YES"), "{said:?}");
    assert_eq!(
        said[1],
        "443/tcp NO: dropped by the policy of chain OUTPUT (table filter)"
    );
}

#[test]
fn nat_to_the_router_itself_ends_there_and_input_decides() {
    let lab = TestLab::up("reports/nat-to-the-router-itself");
    let report = quick(&lab, "-s 10.5.0.9 -d 10.96.0.1 -P 443 --routers n");
    let said = at_router(&report);
    assert!(
        said[0].starts_with(
            "443/tcp YES: it ends on the router itself: n sends it to 192.168.10.11 port 6443"
        ),
        "{said:?}"
    );
}

#[test]
fn a_transparent_proxy_that_the_lab_lacks_is_stood_in_for() {
    let lab = TestLab::up("reports/tproxy-without-listener");
    let report = quick(&lab, "-s 10.1.0.9 -d 8.8.8.8 -P 443");
    let said = at_router(&report);
    assert!(
        said[0].starts_with("443/tcp YES: it ends on the router itself"),
        "{said:?}"
    );
    assert!(
        said[0].contains("TPROXY to port 12345/tcp by rule 1 of chain PREROUTING"),
        "{said:?}"
    );
}

/// A lab of one router `gw` with a network of its own, two uplinks of equal cost, and more facts.
fn two_uplinks(more: &Value) -> (TestLab, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut facts = serde_json::json!({
        "version": 1,
        "name": "gw",
        "interfaces": [
            {"name": "lan", "addresses": ["10.0.0.1/24", "2001:db8:a::1/64"]},
            {"name": "isp1", "addresses": ["203.0.113.2/24", "2001:db8:1::2/64"]},
            {"name": "isp2", "addresses": ["198.51.100.2/24", "2001:db8:2::2/64"]}
        ],
        "routes": [
            "default proto static nexthop via 203.0.113.1 dev isp1 weight 1 nexthop via 198.51.100.1 dev isp2 weight 1",
            "default proto static nexthop via 2001:db8:1::1 dev isp1 weight 1 nexthop via 2001:db8:2::1 dev isp2 weight 1"
        ]
    });
    for (key, value) in more.as_object().unwrap() {
        facts[key] = value.clone();
    }
    std::fs::write(dir.path().join("gw.json"), facts.to_string()).unwrap();
    (TestLab::up(dir.path().to_str().unwrap()), dir)
}

#[test]
fn next_hops_that_agree_are_one_verdict_and_those_that_do_not_are_named() {
    let ruleset = "table inet fw {
        chain forward {
            type filter hook forward priority filter; policy drop;
            tcp dport 22 accept
            oifname \"isp2\" tcp dport 443 accept
        }
    }";
    let (lab, _dir) = two_uplinks(&serde_json::json!({ "nft": ruleset }));
    for question in [
        "-s 10.0.0.9 -d 8.8.8.8",
        "-s 2001:db8:a::9 -d 2001:db8:ffff::8",
    ] {
        let report = quick(&lab, &format!("{question} -P 22,23,443"));
        let all = report["end_to_end"].as_array().unwrap();
        let results: Vec<_> = all
            .iter()
            .map(|end| end["result"].as_str().unwrap())
            .collect();
        assert_eq!(results, ["YES", "NO", "UNKNOWN"], "{report}");
        let why = all[2]["reason"].as_str().unwrap();
        assert!(why.contains("has two next hops; by isp1 NO at gw"), "{why}");
        assert!(why.contains("; by isp2 YES"), "{why}");
        let here: Vec<_> = at_router(&report)
            .iter()
            .map(|told| told.split([' ', ':']).nth(1).unwrap().to_owned())
            .collect();
        assert_eq!(here, ["YES", "NO", "UNKNOWN"], "{report}");
    }
}

#[test]
fn chance_about_where_to_is_told_from_chance_about_whether() {
    let ruleset = "table ip fw {
        chain pre {
            type nat hook prerouting priority dstnat;
            tcp dport 443 dnat to numgen random mod 2 map { 0 : 203.0.113.10, 1 : 203.0.113.11 }
            tcp dport 444 dnat to numgen random mod 2 map { 0 : 203.0.113.10, 1 : 203.0.113.12 }
        }
        chain forward {
            type filter hook forward priority filter;
            ip daddr 203.0.113.12 drop
        }
    }";
    let (lab, _dir) = two_uplinks(&serde_json::json!({ "nft": ruleset }));
    let said = at_router(&quick(&lab, "-s 10.0.0.9 -d 203.0.113.9 -P 443,444"));
    assert!(said[0].starts_with("443/tcp YES"), "{said:?}");
    assert!(
        said[1].starts_with("444/tcp UNKNOWN: chance decides: "),
        "{said:?}"
    );
    assert!(said[1].contains(" of 32 packets got through"), "{said:?}");
}

#[test]
fn a_routers_own_packets_that_a_policy_rule_tells_apart_by_port_are_unknown() {
    let (lab, _dir) = two_uplinks(&serde_json::json!({
        "rules": ["1000: from all ipproto tcp dport 25 prohibit"]
    }));
    let said = at_router(&quick(&lab, "-s 10.0.0.1 -d 203.0.113.9 -P 25,80"));
    assert!(
        said[0]
            .starts_with("25/tcp UNKNOWN: policy rule 1000: from all ipproto 6 dport 25 prohibit"),
        "{said:?}"
    );
    assert!(said[1].starts_with("80/tcp YES"), "{said:?}");
}
