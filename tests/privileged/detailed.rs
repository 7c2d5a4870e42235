//! The detailed job on real labs: statuses, the rule that decided, and nothing left behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    time::Duration,
};

use tsim::{
    model::{Protocol, RouterName, ServiceLimits, parse_services},
    registry::RegistryManager,
    run::{
        detailed::{
            self, DetailedJob,
            result::{DetailedReport, Direction, Measured, Refuser, RouterTest, ServiceStatus},
        },
        quick::{self, RouterChoice},
    },
};

use crate::{kernels::traces_stay, quick::TestLab};

pub(crate) fn job(
    lab: &TestLab,
    routers: &[&str],
    from: &str,
    to: &str,
    services: &str,
) -> DetailedJob {
    let routers = routers.iter().map(|name| RouterName::new(*name).unwrap());
    let destination: IpAddr = to.parse().unwrap();
    let services = parse_services(services, Protocol::Tcp, ServiceLimits::default()).unwrap();
    let services = services.into_iter();
    let services = services.map(|service| service.in_family(destination.is_ipv6()).unwrap());
    DetailedJob {
        lab: lab.bed.lab.clone(),
        source: from.parse().unwrap(),
        destination,
        services: services.collect(),
        routers: RouterChoice::Named(routers.collect()),
        from: None,
        source_port: None,
        size: None,
        run_id: quick::new_run_id().unwrap(),
        lock_timeout: Duration::from_secs(30),
        timeout: Duration::from_secs(1),
        patient: false,
        trust_facts: false,
        progress: None,
        out: None,
    }
}

pub(crate) fn run(lab: &TestLab, job: &DetailedJob) -> DetailedReport {
    let report = detailed::run(job, &lab.config).unwrap().report;
    nothing_is_registered(lab);
    report
}

/// Asserts that no job left a host, a lease or a lock in the registry.
pub(crate) fn nothing_is_registered(lab: &TestLab) {
    let registry = RegistryManager::open(&lab.config).unwrap();
    assert_eq!(registry.hosts().unwrap(), []);
    assert_eq!(registry.source_host_leases().unwrap(), []);
    assert_eq!(registry.neighbor_leases().unwrap(), []);
    assert_eq!(registry.locks_held().unwrap().len(), 0);
}

/// The results on the first router, by service.
fn first(report: &DetailedReport) -> BTreeMap<String, &RouterTest> {
    let services = report.services.iter();
    services
        .map(|s| (s.service.to_string(), &s.tests[0]))
        .collect()
}

/// A lab of one router with two segments, 10.91.1.0/24 and 10.91.2.0/24, and this ruleset.
fn one_router(ruleset: &serde_json::Value) -> (TestLab, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut facts = serde_json::json!({
        "version": 1,
        "name": "r",
        "interfaces": [
            {"name": "west", "mac": "02:00:00:00:09:01",
             "addresses": ["10.91.1.1/24", "2001:db8:91:1::1/64"]},
            {"name": "east", "mac": "02:00:00:00:09:02",
             "addresses": ["10.91.2.1/24", "2001:db8:91:2::1/64"]}
        ],
        "routes": [
            "10.91.3.0/24 via 10.91.2.254 dev east",
            "unreachable 10.91.7.0/24",
            "blackhole 10.91.8.0/24"
        ]
    });
    for (key, value) in ruleset.as_object().unwrap() {
        facts[key] = value.clone();
    }
    fs::write(dir.path().join("r.json"), facts.to_string()).unwrap();
    (TestLab::up(dir.path().to_str().unwrap()), dir)
}

const NFT: &str = "
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy accept;
        tcp dport 1001 counter drop
        tcp dport 1002 reject with tcp reset
        tcp dport 1003 reject with icmpx type admin-prohibited
        udp dport 1004 counter drop
        udp dport 1005 reject
        tcp sport 1006 drop
        udp sport 1007 drop
        tcp dport 1008 counter accept
        tcp dport 1009 jump closed
        tcp sport 2020 accept
        tcp dport 1020 counter
    }
    chain closed {
        tcp flags syn counter drop
    }
    chain pre {
        type nat hook prerouting priority dstnat; policy accept;
        ip protocol tcp tcp dport 1010 dnat ip to 10.91.2.77:2010
        ip protocol tcp tcp dport 1011 redirect to :2011
        ip protocol tcp tcp dport 1013 dnat ip to 10.91.3.5
    }
    chain post {
        type nat hook postrouting priority srcnat; policy accept;
        ip protocol tcp tcp dport 1012 snat ip to 10.91.2.1
    }
}
";

#[test]
fn each_way_of_stopping_a_service_has_its_status_and_its_rule() {
    let (lab, _dir) = one_router(&serde_json::json!({"nft": NFT.lines().collect::<Vec<_>>()}));
    let before = (lab.bed.left(), crate::quick::ruleset(&lab, "r"));
    let services = "1000,1001,1002,1003,1004/udp,1005/udp,1006,1007/udp,1008,1009";
    let report = run(
        &lab,
        &job(&lab, &["r"], "10.91.1.10", "10.91.2.10", services),
    );
    let tests = first(&report);
    let statuses: Vec<String> = tests
        .iter()
        .map(|(s, t)| format!("{s} {}", t.status))
        .collect();
    assert_eq!(
        statuses,
        [
            "1000/tcp OK",
            "1001/tcp TIMEOUT",
            "1002/tcp REJECTED",
            "1003/tcp REJECTED",
            "1004/udp TIMEOUT",
            "1005/udp REJECTED",
            "1006/tcp PARTIAL",
            "1007/udp PARTIAL",
            "1008/tcp OK",
            "1009/tcp TIMEOUT",
        ]
    );
    for (service, rule) in [
        ("1001/tcp", "tcp dport 1001 counter drop"),
        ("1002/tcp", "tcp dport 1002 reject with tcp reset"),
        (
            "1003/tcp",
            "tcp dport 1003 reject with icmpx admin-prohibited",
        ),
        ("1004/udp", "udp dport 1004 counter drop"),
        ("1005/udp", "udp dport 1005 reject"),
        ("1006/tcp", "tcp sport 1006 drop"),
        ("1007/udp", "udp sport 1007 drop"),
        ("1009/tcp", "tcp flags syn counter drop"),
    ] {
        let test = tests[service];
        let rules: Vec<&str> = test.blocking.iter().map(|r| r.rule.as_str()).collect();
        let plain = |text: &str| {
            text.replace(" type ", " ")
                .replace(" packets 0 bytes 0", "")
        };
        assert_eq!(
            plain(rules.first().unwrap()),
            rule,
            "{service}: {}",
            test.message
        );
        assert!(test.message.contains(rules[0]), "{}", test.message);
        assert_eq!(test.measured, Measured::Singly, "{service}");
    }
    let icmp = tests["1003/tcp"].icmp.unwrap();
    assert_eq!((icmp.kind, icmp.code), (3, 13));
    assert_eq!(icmp.from.to_string(), "10.91.1.1");
    for service in ["1002/tcp", "1003/tcp", "1005/udp"] {
        assert_eq!(
            tests[service].refused_by,
            Some(Refuser::Router),
            "{service}"
        );
    }
    let counted = &tests["1001/tcp"].blocking[0];
    assert_eq!(counted.packet_increase, Some(1));
    assert_eq!((counted.packets_traced, counted.unexplained), (1, 0));
    let allowed = tests["1008/tcp"].allowing.iter();
    let allowed: Vec<_> = allowed.map(|r| (r.rule.as_str(), r.position)).collect();
    assert!(allowed[0].0.contains("tcp dport 1008"), "{allowed:?}");
    // The way of the answer is there, too.
    let answers = tests["1000/tcp"].trace.iter();
    assert!(
        answers
            .filter(|w| w.direction == Direction::Answer)
            .all(|w| w.passed)
    );
    assert_eq!(report.warnings, traces_stay(&["r"]));
    let after = (lab.bed.left(), crate::quick::ruleset(&lab, "r"));
    let uncounted = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(after.0, before.0);
    assert_eq!(uncounted(&after.1), uncounted(&before.1));
}

#[test]
fn a_service_that_is_sent_elsewhere_is_followed_there() {
    let (lab, _dir) = one_router(&serde_json::json!({"nft": NFT.lines().collect::<Vec<_>>()}));
    let services = "1010,1011,1012,1013";
    let report = run(
        &lab,
        &job(&lab, &["r"], "10.91.1.10", "10.91.2.10", services),
    );
    let tests = first(&report);
    for (service, to) in [
        ("1010/tcp", "10.91.2.77:2010"),
        ("1011/tcp", "10.91.1.1:2011"),
        ("1013/tcp", "10.91.3.5:1013"),
    ] {
        let test = tests[service];
        assert_eq!(
            test.status,
            ServiceStatus::Ok,
            "{service}: {}",
            test.message
        );
        assert!(test.message.contains(to), "{}", test.message);
        let nat = test
            .nat
            .iter()
            .find(|n| n.direction == Direction::Request)
            .unwrap();
        assert!(nat.after.to_string().ends_with(to), "{}", nat.after);
    }
    let snat = tests["1012/tcp"];
    assert_eq!(snat.status, ServiceStatus::Ok, "{}", snat.message);
    let nat = snat
        .nat
        .iter()
        .find(|n| n.direction == Direction::Request)
        .unwrap();
    assert_eq!(nat.after.source.to_string(), "10.91.2.1");
}

#[test]
fn a_destination_without_a_way_is_unreachable_with_the_reason() {
    let (lab, _dir) = one_router(&serde_json::json!({}));
    for (to, status, words) in [
        ("10.91.7.1", ServiceStatus::Unreachable, "unreachable"),
        ("10.91.8.1", ServiceStatus::Unreachable, "blackhole"),
        ("10.99.9.9", ServiceStatus::Unreachable, "no route"),
        ("10.91.3.9", ServiceStatus::Ok, "answered"),
        ("10.91.2.1", ServiceStatus::Ok, "answered"),
    ] {
        let report = run(&lab, &job(&lab, &["r"], "10.91.1.10", to, "80,53/udp"));
        for (service, test) in first(&report) {
            assert_eq!(test.status, status, "{to} {service}: {}", test.message);
            assert!(
                test.message.contains(words),
                "{to} {service}: {}",
                test.message
            );
        }
    }
}

#[test]
fn ipv6_is_judged_alike() {
    let (lab, _dir) = one_router(&serde_json::json!({"nft": NFT.lines().collect::<Vec<_>>()}));
    let services = "1000,1001,1002,1003,1005/udp,1006,1007/udp";
    let job = job(
        &lab,
        &["r"],
        "2001:db8:91:1::10",
        "2001:db8:91:2::10",
        services,
    );
    let report = run(&lab, &job);
    let statuses: Vec<String> = first(&report)
        .iter()
        .map(|(s, t)| format!("{s} {}", t.status))
        .collect();
    assert_eq!(
        statuses,
        [
            "1000/tcp OK",
            "1001/tcp TIMEOUT",
            "1002/tcp REJECTED",
            "1003/tcp REJECTED",
            "1005/udp REJECTED",
            "1006/tcp PARTIAL",
            "1007/udp PARTIAL",
        ]
    );
    let tests = first(&report);
    let icmp = tests["1003/tcp"].icmp.unwrap();
    assert_eq!((icmp.kind, icmp.code), (1, 1));
}

#[test]
fn a_fixed_source_port_is_used_and_never_answered_by_an_old_connection() {
    let (lab, _dir) = one_router(&serde_json::json!({"nft": [
        "table inet filter {",
        "  chain forward {",
        "    type filter hook forward priority filter; policy drop;",
        "    ct state established,related accept",
        "    tcp sport 4444 tcp dport 80 counter accept",
        "  }",
        "}",
    ]}));
    let mut asked = job(&lab, &["r"], "10.91.1.10", "10.91.2.10", "80");
    asked.source_port = Some(4444);
    let report = run(&lab, &asked);
    assert_eq!(first(&report)["80/tcp"].status, ServiceStatus::Ok);
    // The rule is gone; a connection that is still known must not let the next one through.
    lab.nft("r", "flush chain inet filter forward");
    asked.run_id = quick::new_run_id().unwrap();
    let report = run(&lab, &asked);
    let test = first(&report)["80/tcp"];
    assert_eq!(test.status, ServiceStatus::Timeout, "{}", test.message);
    assert!(test.message.contains("policy"), "{}", test.message);
}

#[test]
fn a_path_of_small_routers_is_measured_router_by_router() {
    let lab = TestLab::up("small3");
    let mut asked = job(
        &lab,
        &[],
        "10.81.1.10",
        "10.81.3.10",
        "22,23,25,80,53/udp,54/udp",
    );
    asked.routers = RouterChoice::Trace;
    let report = run(&lab, &asked);
    let row = |service: &str| {
        let found = report
            .services
            .iter()
            .find(|s| s.service.to_string() == service);
        let tests = found.unwrap().tests.iter();
        tests
            .map(|t| t.status.to_string())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(row("22/tcp"), "OK OK OK");
    assert_eq!(row("23/tcp"), "TIMEOUT TIMEOUT OK");
    assert_eq!(row("25/tcp"), "REJECTED REJECTED OK");
    assert_eq!(row("53/udp"), "OK OK OK");
    assert_eq!(row("54/udp"), "TIMEOUT TIMEOUT OK");
    // A router may be locked once more for a service that had to be asked again.
    let locked: BTreeSet<String> = report.locks.iter().map(|l| l.router.to_string()).collect();
    assert_eq!(locked.len(), 3, "{locked:?}");
}

/// The connections of a router in all zones, by the kernel's own count (nf_conntrack-sysctl).
pub(crate) fn connections(lab: &TestLab, router: &str) -> String {
    let netns = lab.lab.router_netns(&RouterName::new(router).unwrap());
    let count = || fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    netns.unwrap().enter(count).unwrap().unwrap()
}

/// Answers get their zone by the interface that they come in by, as between two networks with the
/// same addresses.
const ZONES: &str = "
table inet zones {
    chain pre {
        type filter hook prerouting priority raw; policy accept;
        tcp dport 1100 ct zone set 7
        udp dport 1101 ct zone set 7
        udp dport 1102 ct original zone set 8
        tcp dport 1103 ct reply zone set 9
    }
    chain forward {
        type filter hook forward priority filter; policy accept;
        ct state established accept
    }
}
";

#[test]
fn no_connection_stays_in_any_zone() {
    let (lab, _dir) = one_router(&serde_json::json!({"nft": ZONES.lines().collect::<Vec<_>>()}));
    let services = "1099,1099/udp,1100,1101/udp,1102/udp,1103";
    for (from, to) in [
        ("10.91.1.10", "10.91.2.10"),
        ("2001:db8:91:1::10", "2001:db8:91:2::10"),
    ] {
        let report = run(&lab, &job(&lab, &["r"], from, to, services));
        assert_eq!(report.warnings, traces_stay(&["r"]));
        assert_eq!(connections(&lab, "r").trim(), "0", "{from}");
    }
}

#[test]
fn a_ruleset_that_somebody_changes_meanwhile_is_noticed() {
    let (lab, _dir) = one_router(&serde_json::json!({"nft": NFT.lines().collect::<Vec<_>>()}));
    let done = std::sync::atomic::AtomicBool::new(false);
    let asked = job(&lab, &["r"], "10.91.1.10", "10.91.2.10", "1000,1001,1008");
    let report = std::thread::scope(|scope| {
        let changing = scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                lab.nft("r", "add rule inet filter closed counter");
            }
        });
        let report = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&lab, &asked)));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        changing.join().unwrap();
        report.unwrap()
    });
    let said = |text: &String| text.contains("router r: table filter changed during");
    assert!(report.warnings.iter().any(said), "{:?}", report.warnings);
    let report = run(&lab, &asked);
    assert_eq!(report.warnings, traces_stay(&["r"]));
}
