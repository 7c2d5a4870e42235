//! A ruleset that was found plain is not read again, until anybody changes it.

use std::{fs, net::UdpSocket};

use tsim::{
    firewall::nft::{NftSocket, plain::PlainRulesets, watch::RulesetWatch},
    lab,
    model::RouterId,
    netlink::object::Family,
    run::{quick, report::Verdict},
    sys::socket_option::netns_cookie,
};

use crate::quick::TestLab;

/// A rule that decides by chance, of a table of its own.
const CHANCE: &str = "add table inet dice; \
    add chain inet dice f { type filter hook forward priority 20; }; \
    add rule inet dice f tcp dport 22 numgen random mod 2 0 drop";

/// What is said of 22/tcp at r1, once and over again.
fn verdicts(lab: &TestLab) -> Vec<Verdict> {
    let job = lab.job("r1", "10.81.1.10", "10.81.3.10", "22");
    let verdict = || quick::run(&job, &lab.config).unwrap().report.routers[0].services[0].result;
    (0..3).map(|_| verdict()).collect()
}

fn entries(lab: &TestLab) -> Vec<u8> {
    fs::read(lab.config.labs_dir.join(lab.bed.lab.as_str()).join("plain")).unwrap()
}

/// Whether the kernel numbers namespaces, which it does since Linux 5.14; without, all rules are read.
fn are_remembered() -> bool {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    netns_cookie(&socket).is_ok()
}

#[test]
fn a_rule_that_comes_behind_a_census_is_found_by_the_next_job() {
    let lab = TestLab::up("small3");
    assert_eq!(verdicts(&lab), [Verdict::Yes; 3]);
    let plain = entries(&lab);
    lab.nft("r1", CHANCE);
    assert_eq!(verdicts(&lab), [Verdict::Unknown; 3]);
    assert_eq!(entries(&lab), plain, "rules with chance are remembered");
    lab.nft("r1", "delete table inet dice");
    assert_eq!(verdicts(&lab), [Verdict::Yes; 3]);
    assert_eq!(entries(&lab) != plain, are_remembered());
    // A file that anybody damaged costs a census.
    let file = lab.config.labs_dir.join(lab.bed.lab.as_str()).join("plain");
    fs::write(&file, vec![0xff; plain.len()]).unwrap();
    assert_eq!(verdicts(&lab), [Verdict::Yes; 3]);
}

/// Sockets of a job at r1.
fn sockets(lab: &TestLab) -> (NftSocket, RulesetWatch) {
    let router = RouterId::new(lab.bed.lab.clone(), "r1".parse().unwrap());
    let netns = lab.bed.dir.open(&router.netns()).unwrap();
    let open = || {
        (
            NftSocket::open_here().unwrap(),
            RulesetWatch::open_here().unwrap(),
        )
    };
    netns.enter(open).unwrap()
}

#[test]
fn what_changes_while_a_job_measures_is_not_remembered() {
    let lab = TestLab::up("small3");
    let rulesets = PlainRulesets::beside(&lab::shelf(&lab.config, &lab.bed.lab).unwrap()).unwrap();
    let census = |socket: &mut NftSocket| rulesets.census(socket, Family::V4).unwrap();
    let (mut socket, mut watch) = sockets(&lab);
    let plain = census(&mut socket);
    assert!(plain.is_plain(), "{plain:?}");
    lab.nft("r1", CHANCE);
    rulesets.remember(&plain, Family::V4, (&mut socket, &mut watch));
    assert!(!census(&mut socket).is_plain());
    // Not even rules that are plain before and after, and others.
    lab.nft("r1", "delete table inet dice");
    rulesets.remember(&plain, Family::V4, (&mut socket, &mut watch));
    assert!(entries(&lab).is_empty());

    if !are_remembered() {
        return;
    }
    // Whoever lies to the file is believed: the rules are not read.
    lab.nft("r1", CHANCE);
    let (mut socket, mut watch) = sockets(&lab);
    rulesets.remember(&plain, Family::V4, (&mut socket, &mut watch));
    assert_eq!(census(&mut socket), plain);
    assert_ne!(rulesets.census(&mut socket, Family::V6).unwrap(), plain);
}
