//! What chance, state, or a program that the lab has not decides on the real router: the detailed
//! job says no plain YES or NO of it, and names what decides.

use tsim::run::{detailed::result::ServiceStatus, report::Verdict};

use crate::{
    detailed_chain::{ask, lab, router, said, service},
    quick::TestLab,
};

/// A router between 10.96.1.0/24 and 10.96.2.0/24 with these rules.
fn between(nft: &str) -> (TestLab, tempfile::TempDir) {
    let interfaces: [(&str, &[&str]); 2] = [("lan", &["10.96.1.1/24"]), ("srv", &["10.96.2.1/24"])];
    lab(&[router("r", &interfaces, &[], nft)])
}

const LOTS: &str = "
table inet fw {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established accept
        tcp dport 80 numgen random mod 2 vmap { 0 : accept, 1 : drop }
        tcp dport 81 numgen random mod 10 < 5 drop
        tcp dport 81 accept
        tcp dport 82 numgen inc mod 2 0 accept
        tcp dport 83 accept
        tcp dport 84 numgen random mod 2 0 accept
        tcp dport 84 drop
        tcp dport 85 meta ipsec exists accept
        tcp dport 86 limit rate 1/day burst 1 packets accept
        tcp dport 87 numgen random mod 2 0 meta mark set 1
        tcp dport 87 meta mark 1 accept
        tcp dport 87 drop
        tcp dport 88 numgen random mod 2 0 meta mark set 1
        tcp dport 88 accept
    }
}
";

#[test]
fn what_chance_decides_is_no_plain_verdict() {
    let (lab, _dir) = between(LOTS);
    for _ in 0..3 {
        let report = ask(&lab, "10.96.1.9", "10.96.2.9", "80-88");
        for name in ["80/tcp", "81/tcp", "82/tcp", "84/tcp", "87/tcp"] {
            let words = said(&report, name);
            assert!(words.starts_with("UNKNOWN r: "), "{name}: {words}");
            assert!(
                words.contains("by chance or turn") && words.contains("numgen"),
                "{name}: {words}"
            );
            let test = &service(&report, name).tests[0];
            assert_eq!(test.status, ServiceStatus::Unknown, "{name}");
        }
        // Whatever the lot says, these end alike.
        assert_eq!(said(&report, "83/tcp"), "YES");
        assert_eq!(said(&report, "88/tcp"), "YES");
        assert_eq!(report.overall(), Verdict::Unknown);
        let words = said(&report, "85/tcp");
        assert!(!words.starts_with("YES"), "{words}");
        // The first has the burst to itself; who comes later is not said to be forbidden.
        let words = said(&report, "86/tcp");
        assert!(!words.starts_with("NO"), "{words}");
    }
}

const LOTS_FOR_ANSWERS: &str = "
table inet fw {
    chain forward {
        type filter hook forward priority filter; policy accept;
        tcp sport 80 numgen random mod 10 < 5 drop
    }
}
";

#[test]
fn lots_that_answers_draw_count_as_well() {
    let (lab, _dir) = between(LOTS_FOR_ANSWERS);
    for _ in 0..3 {
        let report = ask(&lab, "10.96.1.9", "10.96.2.9", "80,81");
        let words = said(&report, "80/tcp");
        assert!(
            words.starts_with("UNKNOWN r: decided by chance or turn"),
            "{words}"
        );
        assert_eq!(said(&report, "81/tcp"), "YES");
    }
}

#[test]
fn a_server_that_is_drawn_may_be_the_router_itself() {
    let lab = TestLab::up("reports/nat-to-the-router-itself");
    for _ in 0..6 {
        let report = ask(&lab, "10.5.0.9", "10.96.0.2", "443");
        let end = &service(&report, "443/tcp").end;
        assert_eq!(end.result, Verdict::Unknown, "{end:?}");
        let words = end.reason.as_deref().unwrap();
        assert!(words.contains("--mode random"), "{words}");
    }
}

const PROXY: &str = "
table ip p {
    chain pre {
        type filter hook prerouting priority mangle; policy accept;
        tcp dport 80 tproxy to :12345 meta mark set 1 accept
    }
}
";

#[test]
fn a_proxy_that_is_not_there_does_not_make_a_yes() {
    let (lab, _dir) = between(PROXY);
    let report = ask(&lab, "10.96.1.9", "10.96.2.9", "80,81");
    let words = said(&report, "80/tcp");
    assert!(
        // What has a socket is not forwarded, as no policy rule makes it local; without one it goes on.
        words.starts_with("UNKNOWN r: where a program listens"),
        "{words}"
    );
    assert_eq!(said(&report, "81/tcp"), "YES");
}

const BY_INTERFACE: &str = "
table inet fw {
    chain pre {
        type filter hook prerouting priority mangle; policy accept;
        tcp dport 81 drop
    }
    chain forward {
        type filter hook forward priority filter; policy accept;
        oifname \"up1\" tcp dport 80 drop
    }
}
";

#[test]
fn one_of_several_next_hops_makes_no_verdict() {
    let interfaces: [(&str, &[&str]); 3] = [
        ("lan", &["10.97.0.1/24"]),
        ("up1", &["10.97.1.1/24"]),
        ("up2", &["10.97.2.1/24"]),
    ];
    let routes = ["default nexthop via 10.97.1.2 dev up1 nexthop via 10.97.2.2 dev up2"];
    let (lab, _dir) = lab(&[router("gw", &interfaces, &routes, BY_INTERFACE)]);
    for _ in 0..3 {
        let report = ask(&lab, "10.97.0.9", "8.8.8.8", "80");
        let words = said(&report, "80/tcp");
        let each = "UNKNOWN gw: the route of gw to 8.8.8.8 has two next hops; by ";
        assert!(words.starts_with(each), "{words}");
        assert!(
            ["up1", "up2"].iter().all(|dev| words.contains(dev)),
            "{words}"
        );
        assert_eq!(report.overall(), Verdict::Unknown);
    }
}
