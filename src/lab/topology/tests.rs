use std::path::Path;

use super::*;
use crate::lab::facts::{self, RouterFacts};

fn lab(name: &str) -> Topology {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("netns-fixtures")
        .join(name);
    build(facts::load_dir(&dir).unwrap())
}

/// A router from JSON interfaces and whatever else its facts have.
fn router(name: &str, interfaces: &str, more: &str) -> RouterFacts {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("{name}.json"));
    let text =
        format!("{{\"version\": 1, \"name\": \"{name}\",\n\"interfaces\": [{interfaces}]{more}}}");
    std::fs::write(&path, text).unwrap();
    facts::load_file(&path).unwrap()
}

fn interface(name: &str, addresses: &[&str], more: &str) -> String {
    format!("\n{{\"name\": \"{name}\", \"addresses\": {addresses:?}{more}}}")
}

/// Two routers with one interface each.
fn pair(left: &[&str], right: &[&str]) -> Topology {
    build(vec![
        router("a", &interface("e", left, ""), ""),
        router("b", &interface("e", right, ""), ""),
    ])
}

fn segments(topology: &Topology) -> Vec<String> {
    let shown = |s: &Segment| {
        let members: Vec<_> = s.members.iter().map(|(r, i)| format!("{r}:{i}")).collect();
        format!("{} = {}", s.name, members.join(" "))
    };
    topology.segments.iter().map(shown).collect()
}

fn said(topology: &Topology, severity: Severity) -> Vec<&str> {
    let wanted = topology.warnings.iter().filter(|w| w.severity == severity);
    wanted.map(|w| w.message.as_str()).collect()
}

#[test]
fn corp10_is_joined_as_it_was_cabled() {
    let topology = lab("corp10");
    let want = [
        "10.2.1.0/24 = br-core:eth0 br-gw:eth1",
        "10.2.2.0/24 = br-core:eth1 br-wifi:eth0",
        "198.51.100.0/24 = br-gw:eth0",
        "10.100.1.0/24 = br-gw:wg0 dc-gw:wg0 hq-gw:wg0",
        "10.2.5.0/24 = br-wifi:wlan0",
        "10.2.6.0/24 = br-wifi:wlan1",
        "10.3.1.0/24 = dc-core:eth0 dc-gw:eth1",
        "10.3.2.0/24 = dc-core:eth1 dc-srv:eth0",
        "192.0.2.0/24 = dc-gw:eth0",
        "10.3.10.0/24 = dc-srv:eth1",
        "10.3.20.0/24 = dc-srv:eth2",
        "10.3.21.0/24 = dc-srv:eth3",
        "10.1.1.0/24 = hq-core:eth0 hq-gw:eth1",
        "10.1.2.0/24 = hq-core:eth1 hq-dmz:eth0 hq-lab:eth0",
        "10.1.3.0/24 = hq-dmz:eth1",
        "203.0.113.0/24 = hq-gw:eth0",
        "10.1.10.0/24 = hq-lab:eth1",
        "10.1.11.0/24 = hq-lab:eth2",
    ];
    assert_eq!(segments(&topology), want);
    for router in &topology.routers {
        for interface in &router.interfaces {
            let loopback = interface.kind == InterfaceKind::Loopback;
            assert_eq!(interface.segment.is_none(), loopback, "{}", interface.name);
        }
    }
}

#[test]
fn corp10_says_what_it_cannot_have() {
    let topology = lab("corp10");
    for warning in &topology.warnings {
        assert!(
            warning.origin.line > 0 && warning.router.is_some(),
            "{warning}"
        );
    }
    let tunnels = said(&topology, Severity::Notice);
    assert_eq!(tunnels.iter().filter(|m| m.contains("tunnel")).count(), 3);
    for lost in said(&topology, Severity::Warning) {
        assert!(lost.contains("the router has no interface"), "{lost}");
    }
    assert!(!said(&topology, Severity::Warning).is_empty());
}

#[test]
fn small3_is_a_chain_without_a_word() {
    let topology = lab("small3");
    let want = [
        "10.81.1.0/24 = r1:src",
        "10.81.12.0/24 = r1:east r2:west",
        "10.81.23.0/24 = r2:east r3:west",
        "10.81.3.0/24 = r3:dst",
        "10.81.4.0/24 = r3:spare",
    ];
    assert_eq!(segments(&topology), want);
    assert_eq!(topology.warnings, []);
    let kinds = |i: usize| -> Vec<_> {
        let rulesets = topology.routers[i].rulesets.iter();
        rulesets.map(|r| (r.kind, r.origin.line)).collect()
    };
    use RulesetKind::{Ip6tables, Ipset, Iptables, Nft};
    assert_eq!(kinds(0), [(Ipset, 14), (Iptables, 18), (Ip6tables, 30)]);
    assert_eq!(kinds(1), [(Nft, 1)]);
    assert_eq!(kinds(2), []);
}

#[test]
fn interfaces_join_by_either_family_and_not_by_link_local_addresses() {
    let joined = pair(&["10.0.0.1/24"], &["10.0.0.2/24"]);
    assert_eq!(segments(&joined), ["10.0.0.0/24 = a:e b:e"]);
    let joined = pair(&["10.0.0.1/24", "2001:db8::1/64"], &["2001:db8::2/64"]);
    assert_eq!(segments(&joined), ["10.0.0.0/24 = a:e b:e"]);
    let apart = pair(&["fe80::1/64"], &["fe80::2/64"]);
    assert_eq!(segments(&apart), ["a:e = a:e", "b:e = b:e"]);
    let apart = pair(&[], &[]);
    assert_eq!(apart.segments.len(), 2);
}

#[test]
fn point_to_point_addresses_join_with_their_peers() {
    let joined = pair(
        &["10.0.0.1 peer 10.9.9.2/32"],
        &["10.9.9.2 peer 10.0.0.1/32"],
    );
    assert_eq!(joined.segments.len(), 1);
    let apart = pair(
        &["10.0.0.1 peer 10.9.9.2/32"],
        &["10.9.9.3 peer 10.0.0.1/32"],
    );
    assert_eq!(apart.segments.len(), 2);
}

#[test]
fn different_prefix_lengths_join_only_where_both_ends_see_each_other() {
    let joined = pair(&["10.0.0.1/24"], &["10.0.0.2/16"]);
    assert_eq!(joined.segments.len(), 1);
    let message = said(&joined, Severity::Warning).join("");
    assert!(
        message.contains("10.0.0.1/24") && message.contains("10.0.0.2/16"),
        "{message}"
    );
    let apart = pair(&["10.0.0.1/24"], &["10.0.9.2/16"]);
    assert_eq!(apart.segments.len(), 2);
    assert_eq!(apart.warnings, []);
}

#[test]
fn a_duplicate_address_splits_the_networks_unless_the_router_has_one_of_its_own() {
    let split = pair(&["192.168.1.1/24"], &["192.168.1.1/24"]);
    assert_eq!(segments(&split), ["192.168.1.0/24 = a:e", "b:e = b:e"]);
    assert_eq!(said(&split, Severity::Warning).len(), 1);
    let shared = pair(
        &["10.0.0.2/24", "10.0.0.1/24"],
        &["10.0.0.3/24", "10.0.0.1/24"],
    );
    assert_eq!(segments(&shared), ["10.0.0.0/24 = a:e b:e"]);
    assert!(said(&shared, Severity::Warning)[0].contains("both answer"));
}

#[test]
fn a_named_segment_wins_over_subnets() {
    let named = |name| format!(", \"segment\": \"{name}\"");
    let topology = build(vec![
        router("a", &interface("e", &["10.0.0.1/24"], &named("x")), ""),
        router("b", &interface("e", &["10.0.0.2/24"], &named("y")), ""),
        router("c", &interface("e", &["10.9.0.1/24"], &named("x")), ""),
    ]);
    assert_eq!(segments(&topology), ["x = a:e c:e", "y = b:e"]);
}

#[test]
fn a_mac_is_a_problem_only_twice_in_a_segment() {
    let mac = ", \"mac\": \"02:00:00:00:00:01\"";
    let two = |right: &str| {
        build(vec![
            router("a", &interface("e", &["10.0.0.1/24"], mac), ""),
            router("b", &interface("e", &[right], mac), ""),
        ])
    };
    let same = two("10.0.0.2/24");
    assert!(said(&same, Severity::Warning)[0].contains("a:e in the same segment"));
    assert_eq!(same.routers[1].interfaces[1].mac, None);
    assert_eq!(two("10.0.1.2/24").warnings, []);
}

#[test]
fn what_the_router_cannot_have_is_left_out_with_the_line() {
    let interfaces = interface("e", &["10.0.0.1/24"], "")
        + ","
        + &interface(
            "down",
            &[],
            ", \"up\": false, \"mac\": \"01:00:00:00:00:01\"",
        )
        + ","
        + &interface("e", &[], "");
    let more = ",\n\"routes\": [\"10.1.0.0/16 dev nosuch\",\n\"10.2.0.0/16 dev down\"],\n\
        \"rules\": [\"9: iif gone lookup 7\"]";
    let topology = build(vec![router("a", &interfaces, more)]);
    let found: Vec<_> = topology
        .warnings
        .iter()
        .map(|w| (w.severity, w.origin.line))
        .collect();
    use Severity::{Notice, Warning};
    let want = [
        (Warning, 4),
        (Warning, 3),
        (Warning, 8),
        (Notice, 8),
        (Warning, 6),
        (Warning, 7),
    ];
    assert_eq!(found, want, "{:#?}", topology.warnings);
    assert_eq!(topology.routers[0].routes, []);
    assert_eq!(topology.routers[0].rules.len(), 6);
    assert_eq!(topology.routers[0].interfaces.len(), 3);
}

#[test]
fn a_topology_reads_back_from_json() {
    let topology = lab("corp10");
    let text = serde_json::to_string(&topology).unwrap();
    assert_eq!(serde_json::from_str::<Topology>(&text).unwrap(), topology);
}

/// What is missing of a router with these policy rules and routes, as message and packets.
fn missing(rules: &str, routes: &str) -> Vec<(String, serde_json::Value)> {
    let interfaces = [
        interface("lan", &["10.1.0.1/24"], ""),
        interface("up", &["10.0.0.1/24"], ""),
    ];
    let more = format!(",\n\"rules\": [{rules}],\n\"routes\": [{routes}]");
    let topology = build(vec![router("a", &interfaces.join(","), &more)]);
    let omissions = topology.warnings.iter().filter(|w| w.matters());
    let shown = omissions.map(|warning| {
        let concern = warning.omission.as_ref().map(|o| &o.concern);
        (
            warning.message.clone(),
            serde_json::to_value(concern).unwrap(),
        )
    });
    shown.collect()
}

#[test]
fn a_rule_into_a_table_without_routes_concerns_what_it_selects() {
    let rules = r#""0: from all lookup local",
        "100: from 10.1.0.0/24 ipproto tcp dport 443 lookup 77",
        "32766: from all lookup main""#;
    let found = missing(rules, r#""10.2.0.0/24 via 10.0.0.2 dev up""#);
    let [(message, concern)] = &found[..] else {
        panic!("{found:?}");
    };
    assert!(message.contains("no routes of table 77"), "{message}");
    let packets = &concern[0]["packets"];
    assert_eq!(packets["from"]["within"], "10.1.0.0/24");
    assert_eq!(packets["protocol"], 6);
    assert_eq!(packets["dport"]["first"], 443);
    assert!(
        concern.get(1).is_none(),
        "no source is looked up: {concern}"
    );
    assert_eq!(
        missing(&rules.replace("from 10.1.0.0/24", "fwmark 5"), ""),
        [],
        "no rule sets that mark"
    );
}

#[test]
fn a_table_behind_main_is_not_asked_for_what_main_has() {
    let rules = r#""0: from all lookup local", "100: from all lookup main",
        "200: from all lookup 77""#;
    let found = missing(rules, r#""10.2.0.0/24 via 10.0.0.2 dev up""#);
    let except = &found[0].1[0]["packets"]["to"]["except"];
    assert_eq!(*except, serde_json::json!(["10.2.0.0/24"]));
}

#[test]
fn a_route_left_out_concerns_what_a_rule_leads_to_its_table() {
    let rules = r#""0: from all lookup local",
        "100: from 10.1.0.0/24 to 10.2.0.0/16 lookup 77",
        "101: to 10.9.0.0/16 lookup 77",
        "32766: from all lookup main""#;
    let routes = r#""10.2.0.0/24 via 10.0.0.3 dev gone table 77",
        "10.2.0.128/25 via 10.0.0.3 dev up table 77""#;
    let found = missing(rules, routes);
    let [(message, concern)] = &found[..] else {
        panic!("{found:?}");
    };
    assert!(message.contains("no interface gone"), "{message}");
    assert_eq!(
        *concern,
        serde_json::json!([{"packets": {
            "family": "v4",
            "from": {"within": "10.1.0.0/24"},
            "to": {"within": "10.2.0.0/24", "except": ["10.2.0.128/25"]},
            "passed_only": true,
        }}]),
    );
}

#[test]
fn what_ip_shows_of_each_family_by_itself_is_one_interface() {
    let both = |first: &[&str], second: &[&str]| {
        let interfaces = [interface("e", first, ""), interface("e", second, "")].join(",");
        build(vec![router("a", &interfaces, "")])
    };
    let built = both(&["10.0.0.1/24"], &["fd00::1/64"]);
    let interfaces = &built.routers[0].interfaces;
    let own = interfaces.iter().filter(|i| i.name.as_str() == "e");
    // The third is the link-local one, which is made up for facts in JSON.
    assert_eq!(own.map(|i| i.addresses.len()).collect::<Vec<_>>(), [3]);
    assert!(said(&built, Severity::Warning).is_empty());
    let twice = both(&["10.0.0.1/24"], &["10.0.0.2/24"]);
    assert_eq!(
        said(&twice, Severity::Warning),
        ["a second interface e; left out"]
    );
}
