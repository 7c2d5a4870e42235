//! Rules that draw lots about where a packet goes: each target is seen and followed, or the verdict
//! is UNKNOWN with the count.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    inside::{at_router, quick},
    quick::TestLab,
};

/// Router `gw` with a ruleset, behind it `b`, which lets nothing through to 10.3.0.12, and servers
/// behind that.
fn two_routers(ruleset: &Value) -> (TestLab, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut gw = json!({
        "version": 1,
        "name": "gw",
        "interfaces": [
            {"name": "lan", "addresses": ["10.0.0.1/24"]},
            {"name": "mid", "addresses": ["10.2.0.1/24"]},
        ],
        "routes": ["default via 10.2.0.2 dev mid"],
    });
    for (key, value) in ruleset.as_object().unwrap() {
        gw[key] = value.clone();
    }
    let b = json!({
        "version": 1,
        "name": "b",
        "interfaces": [
            {"name": "mid", "addresses": ["10.2.0.2/24"]},
            {"name": "srv", "addresses": ["10.3.0.1/24"]},
        ],
        "routes": ["10.0.0.0/24 via 10.2.0.1 dev mid"],
        "nft": "table ip fw {
            chain f {
                type filter hook forward priority filter;
                ip daddr 10.3.0.12 drop
            }
        }",
    });
    for (name, facts) in [("gw.json", gw), ("b.json", b)] {
        std::fs::write(dir.path().join(name), facts.to_string()).unwrap();
    }
    (TestLab::up(dir.path().to_str().unwrap()), dir)
}

/// `PORT VERDICT: reason` from end to end.
fn ends(report: &Value) -> Vec<String> {
    let ends = report["end_to_end"].as_array().unwrap();
    let one = |end: &Value| {
        let text = |key: &str| end[key].as_str().unwrap_or_default().to_owned();
        format!("{} {}: {}", end["port"], text("result"), text("reason"))
    };
    ends.iter().map(one).collect()
}

/// `0 : 10.3.0.101, 1 : …` with so many.
fn servers(count: usize) -> String {
    let one = |n: usize| format!("{n} : 10.3.0.{}", 101 + n);
    (0..count).map(one).collect::<Vec<_>>().join(", ")
}

#[test]
fn each_target_of_a_lot_is_followed_behind_the_router() {
    let ruleset = "table ip fw {
        chain pre {
            type nat hook prerouting priority dstnat;
            tcp dport 80 dnat to numgen random mod 2 map { 0 : 10.3.0.10, 1 : 10.3.0.11 }
            tcp dport 81 dnat to numgen random mod 2 map { 0 : 10.3.0.11, 1 : 10.3.0.12 }
            tcp dport 82 numgen random mod 2 vmap { 0 : goto one, 1 : goto two }
            tcp dport 83 dnat to numgen inc mod 3 map { 0 : 10.3.0.10, 1 : 10.3.0.11, 2 : 10.3.0.13 }
            tcp dport 84 dnat to jhash ip saddr . tcp sport mod 2 seed 0x1 map { 0 : 10.3.0.11, 1 : 10.3.0.12 }
            tcp dport 85 dnat to symhash mod 2 map { 0 : 10.3.0.11, 1 : 10.3.0.12 }
            tcp dport 86 dnat to jhash ip saddr mod 1 seed 0x1 map { 0 : 10.3.0.11 }
        }
        chain one { meta l4proto tcp dnat to 10.3.0.11:8080; }
        chain two { meta l4proto tcp dnat to 10.3.0.12:8080; }
    }";
    let (lab, _dir) = two_routers(&json!({ "nft": ruleset }));
    let said = ends(&quick(&lab, "-s 10.0.0.9 -d 10.9.9.9 -P 80-86"));
    for (number, verdict) in [(0, "80 YES"), (3, "83 YES"), (6, "86 YES")] {
        assert!(said[number].starts_with(verdict), "{said:?}");
    }
    for number in [1, 2, 4, 5] {
        let chance = "UNKNOWN: chance at gw decides where it goes; ";
        assert!(said[number].contains(chance), "{said:?}");
        assert!(said[number].contains("by 10.3.0.11 port "), "{said:?}");
        assert!(said[number].contains("by 10.3.0.12 port "), "{said:?}");
        assert!(
            said[number].contains("NO at b: dropped by rule 1"),
            "{said:?}"
        );
    }
}

#[test]
fn a_target_that_is_rarely_drawn_makes_no_yes() {
    let ruleset = format!(
        "table ip fw {{
            map whole {{ type inet_service : verdict; elements = {{ 84 : goto lucky }} }}
            map some {{ typeof numgen random mod 2 : ip daddr; elements = {{ 0 : 10.3.0.10, 1 : 10.3.0.11 }} }}
            chain pre {{
                type nat hook prerouting priority dstnat;
                tcp dport 80 numgen random mod 100000 0 dnat to 10.3.0.12
                tcp dport 80 dnat to 10.3.0.10
                tcp dport 81 dnat to numgen random mod 64 map {{ {} }}
                tcp dport 82 dnat to numgen random mod 65 map {{ {} }}
                tcp dport 83 dnat to numgen random mod 2 map @some
                tcp dport 84-85 dnat to 10.3.0.10
            }}
            chain forward {{
                type filter hook forward priority filter;
                tcp dport vmap @whole
            }}
            chain lucky {{ numgen random mod 100000 0 drop; }}
        }}",
        servers(64),
        servers(65)
    );
    let (lab, _dir) = two_routers(&json!({ "nft": ruleset }));
    let said = ends(&quick(&lab, "-s 10.0.0.9 -d 10.9.9.9 -P 80-85"));
    let unseen = "80 UNKNOWN: chance sends it to one of 2 targets, 1 of which were not seen with";
    assert!(said[0].starts_with(unseen), "{said:?}");
    assert!(said[1].starts_with("81 YES"), "{said:?}");
    let many = "82 UNKNOWN: chance sends it to one of 65 targets, and more than 64";
    assert!(said[2].starts_with(many), "{said:?}");
    let unknown = "83 UNKNOWN: chance decides where it goes, and not all targets are known";
    assert!(said[3].starts_with(unknown), "{said:?}");
    assert!(
        said[4].starts_with("84 UNKNOWN: decided by chance"),
        "{said:?}"
    );
    assert!(said[5].starts_with("85 YES"), "{said:?}");
}

#[test]
fn chains_that_share_out_connections_by_probability_are_followed() {
    let saved = "*nat\n:PREROUTING ACCEPT\n:A - [0:0]\n:B - [0:0]\n:C - [0:0]\n:D - [0:0]\n\
        -A PREROUTING -p tcp --dport 80 -m statistic --mode random --probability 0.33 -j A\n\
        -A PREROUTING -p tcp --dport 80 -m statistic --mode random --probability 0.5 -j B\n\
        -A PREROUTING -p tcp --dport 80 -j C\n\
        -A PREROUTING -p tcp --dport 81 -m statistic --mode nth --every 2 --packet 0 -j A\n\
        -A PREROUTING -p tcp --dport 81 -j D\n\
        -A A -p tcp -j DNAT --to-destination 10.3.0.10:8080\n\
        -A B -p tcp -j DNAT --to-destination 10.3.0.11:8080\n\
        -A C -p tcp -j DNAT --to-destination 10.3.0.13:8080\n\
        -A D -p tcp -j DNAT --to-destination 10.3.0.12:8080\nCOMMIT\n\
        *filter\n:FORWARD DROP\n-A FORWARD -d 10.3.0.0/24 -p tcp --dport 8080 -j ACCEPT\nCOMMIT\n";
    let (lab, _dir) = two_routers(&json!({ "iptables": saved }));
    for backend in ["nft", "iptables-nft"] {
        let question = format!("-s 10.0.0.9 -d 10.9.9.9 -P 80,81 --backend {backend}");
        let report = quick(&lab, &question);
        let said = ends(&report);
        assert!(said[0].starts_with("80 YES"), "{said:?}");
        let chance = "81 UNKNOWN: chance at gw decides where it goes; ";
        assert!(said[1].starts_with(chance), "{said:?}");
        assert!(
            said[1].contains("by 10.3.0.12 port 8080 NO at b"),
            "{said:?}"
        );
        let here = at_router(&report);
        assert!(here[0].starts_with("80/tcp YES"), "{here:?}");
    }
}
