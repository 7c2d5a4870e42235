//! What a router sends itself, and what it takes for itself: detailed jobs with sockets in the
//! router, beside quick jobs that say the same.

use tsim::run::{detailed::result::ServiceStatus, report::EndKind};

use crate::{
    detailed::connections,
    detailed_chain::{ask, lab, router, said, service},
    quick::TestLab,
};

const OUTPUT: &str = "\
table inet fw {
  chain output {
    type filter hook output priority 0; policy accept;
    tcp dport 81 drop
    udp dport 81 drop
    tcp dport 82 reject with tcp reset
    icmp type timestamp-request drop
  }
  chain input {
    type filter hook input priority 0; policy accept;
    tcp sport 83 drop
  }
}
";
const FORWARD: &str = "\
table inet fw {
  chain forward {
    type filter hook forward priority 0; policy accept;
    tcp dport 84 drop
  }
}
";

/// `fw` sends from its own address, over another router.
#[test]
fn what_a_router_sends_itself_is_sent_by_its_own_sockets() {
    let (lab, _dir) = lab(&[
        router(
            "fw",
            &[("wan", &["10.2.0.2/24"]), ("lan", &["10.1.0.1/24"])],
            &["10.3.0.0/24 via 10.2.0.1 dev wan"],
            OUTPUT,
        ),
        router(
            "core",
            &[("wan", &["10.2.0.1/24"]), ("srv", &["10.3.0.1/24"])],
            &["10.1.0.0/24 via 10.2.0.2 dev wan"],
            FORWARD,
        ),
    ]);
    for from in ["10.2.0.2", "10.1.0.1"] {
        let asked = "80,81,81/udp,82,83,84,53/udp,ping,timestamp/icmp";
        let report = ask(&lab, from, "10.3.0.60", asked);
        for name in ["80/tcp", "53/udp", "ping"] {
            assert_eq!(said(&report, name), "YES", "{from} {name}");
            let end = &service(&report, name).end;
            let came = end.way.iter().map(|leg| leg.iface_in.is_some());
            assert_eq!(came.collect::<Vec<_>>(), [false, true], "{name}");
            assert_eq!(end.answer.len(), 2, "{name}");
        }
        for (name, words) in [
            (
                "81/tcp",
                "NO fw: no answer: dropped by rule 1 of chain output",
            ),
            (
                "81/udp",
                "NO fw: no answer: dropped by rule 2 of chain output",
            ),
            (
                "82/tcp",
                "NO fw: rejected with a TCP reset by rule 3 of chain output",
            ),
            (
                "83/tcp",
                "NO fw: the request arrived; the answer was stopped by rule 1 of chain input",
            ),
            (
                "84/tcp",
                "NO core: no answer: dropped by rule 1 of chain forward",
            ),
            (
                "timestamp/icmp",
                "NO fw: no answer: dropped by rule 4 of chain output",
            ),
        ] {
            let said = said(&report, name);
            assert!(said.starts_with(words), "{from} {name}: {said}");
        }
    }
    let report = ask(&lab, "10.1.0.1", "192.0.2.1", "80");
    let end = &service(&report, "80/tcp").end;
    assert_eq!(end.status, ServiceStatus::Unreachable, "{end:?}");
    for name in ["fw", "core"] {
        assert_eq!(connections(&lab, name).trim(), "0", "{name}");
    }
}

#[test]
fn what_a_router_redirects_to_itself_names_the_rule() {
    let redirect = "\
table ip nat {
  chain pre {
    type nat hook prerouting priority dstnat;
    tcp dport 80 redirect to :3128
    udp dport 53 dnat to 10.2.0.1
  }
}
";
    let interfaces: [(&str, &[&str]); 2] = [("lan", &["10.1.0.1/24"]), ("wan", &["10.2.0.1/24"])];
    let (lab, _dir) = lab(&[router("gw", &interfaces, &[], redirect)]);
    let report = ask(&lab, "10.1.0.9", "10.2.0.9", "80,53/udp,443");
    for (name, words) in [
        (
            "80/tcp",
            "at 10.1.0.1:3128, taken by rule 1 of chain pre (table ip nat): tcp dport 80",
        ),
        (
            "53/udp",
            "at 10.2.0.1:53, taken by rule 2 of chain pre (table ip nat): udp dport 53",
        ),
    ] {
        let end = &service(&report, name).end;
        assert_eq!(said(&report, name), "YES", "{end:?}");
        assert_eq!(end.kind, EndKind::Itself, "{name}");
        let note = end.note.as_deref().unwrap();
        assert!(note.starts_with("it ends on the router itself, "), "{note}");
        assert!(note.contains(words), "{note}");
    }
    assert_eq!(service(&report, "443/tcp").end.note, None);
}

#[test]
fn a_socket_takes_the_place_of_a_transparent_proxy() {
    let lab = TestLab::up("reports/tproxy-without-listener");
    let report = ask(&lab, "10.1.0.9", "8.8.8.8", "443");
    let end = &service(&report, "443/tcp").end;
    assert_eq!(said(&report, "443/tcp"), "YES", "{end:?}");
    assert_eq!(end.kind, EndKind::Itself);
    let reason = end.reason.as_deref().unwrap();
    assert!(
        reason.contains("taken by TPROXY to port 12345/tcp by rule 1 of chain PREROUTING"),
        "{reason}"
    );
    assert_eq!(connections(&lab, "gw").trim(), "0");
}
