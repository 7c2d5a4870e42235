//! Addresses that more than one router answers for, or one that does not have them.

use std::fs;

use serde_json::json;
use tsim::run::{
    quick::{self, QuickJob, RouterChoice},
    report::Verdict,
};

use crate::{
    detailed_chain::{ask, lab, router, said},
    quick::TestLab,
};

/// The verdict of a quick job from end to end, and why.
fn quick(lab: &TestLab, from: &str, to: &str, service: &str) -> (Verdict, String) {
    let first = lab.lab.routers[0].name.to_string();
    let asked = QuickJob {
        routers: RouterChoice::Trace,
        ..lab.job(&first, from, to, service)
    };
    let report = quick::run(&asked, &lab.config).unwrap().report;
    let end = &report.end_to_end[0];
    (
        end.result,
        end.reason.clone().unwrap_or_default().to_string(),
    )
}

const NO_WEB: &str = "\
table inet fw {
  chain forward {
    type filter hook forward priority 0;
    tcp dport 443 drop
  }
}
";

/// Calico gives every pod the gateway 169.254.1.1, which nobody has: the node answers for it.
#[test]
fn a_router_that_answers_for_others_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let pod = router(
        "pod",
        &[("eth0", &["10.65.0.2/32"]), ("lan", &["10.7.0.1/24"])],
        &[
            "169.254.1.1 dev eth0 scope link",
            "default via 169.254.1.1 dev eth0",
        ],
        "",
    );
    let mut node = router(
        "node",
        &[("cali0", &[]), ("eth1", &["10.9.0.1/24"])],
        &[
            "10.65.0.2 dev cali0 scope link",
            "10.7.0.0/24 via 10.65.0.2 dev cali0",
            // By this it answers for 169.254.1.1.
            "default via 10.9.0.254 dev eth1",
        ],
        NO_WEB,
    );
    node["sysctls"] = json!({"net/ipv4/conf/cali0/proxy_arp": "1"});
    for (name, facts) in [("pod", pod), ("node", node)] {
        fs::write(dir.path().join(format!("{name}.json")), facts.to_string()).unwrap();
    }
    let links = "[[link]]\nends = [\"pod:eth0\", \"node:cali0\"]\n";
    fs::write(dir.path().join("links.toml"), links).unwrap();
    let lab = TestLab::up(dir.path().to_str().unwrap());
    let (from, to) = ("10.7.0.50", "10.9.0.60");
    let (verdict, reason) = quick(&lab, from, to, "80");
    assert_eq!(verdict, Verdict::Yes, "{reason}");
    let (verdict, reason) = quick(&lab, from, to, "443");
    assert_eq!(verdict, Verdict::No, "{reason}");
    let report = ask(&lab, from, to, "80,443");
    assert_eq!(said(&report, "80/tcp"), "YES");
    let stopped = said(&report, "443/tcp");
    assert!(
        stopped.starts_with("NO node: no answer: dropped by rule 1 of chain forward"),
        "{stopped}"
    );
}

/// Two routers share 10.0.0.254, as VRRP has it; facts do not tell which of them is the master.
#[test]
fn both_routers_that_share_an_address_are_followed() {
    let uplink = |name: &str, own: &str, srv: &str, rules: &str| {
        router(
            name,
            &[("up", &[own, "10.0.0.254/32"]), ("srv", &[srv])],
            &["10.1.0.0/24 via 10.0.0.1 dev up"],
            rules,
        )
    };
    let (lab, _dir) = lab(&[
        router(
            "core",
            &[("lan", &["10.1.0.1/24"]), ("up", &["10.0.0.1/24"])],
            &["10.3.0.0/24 via 10.0.0.254 dev up"],
            "",
        ),
        uplink("gw1", "10.0.0.2/24", "10.3.0.2/24", ""),
        uplink("gw2", "10.0.0.3/24", "10.3.0.3/24", NO_WEB),
    ]);
    let (from, to) = ("10.1.0.50", "10.3.0.60");
    let (verdict, reason) = quick(&lab, from, to, "80");
    assert_eq!(verdict, Verdict::Yes, "{reason}");
    let (verdict, reason) = quick(&lab, from, to, "443");
    assert_eq!(verdict, Verdict::Unknown, "{reason}");
    assert!(reason.contains("gw1") && reason.contains("gw2"), "{reason}");
    let report = ask(&lab, from, to, "443");
    let words = said(&report, "443/tcp");
    assert!(words.starts_with("UNKNOWN"), "{words}");
    assert!(words.contains("gw1") && words.contains("gw2"), "{words}");
}
