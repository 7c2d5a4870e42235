//! What corp10 lacks of its facts makes few verdicts UNKNOWN.

use std::net::IpAddr;

use tsim::{
    lab::topology::Segment,
    run::{
        quick::{ExplainMode, RouterChoice},
        report::Verdict,
    },
};

use crate::quick::TestLab;

const SERVICES: &str = "21,22,23,25,53,80,110,111,123,135,139,143,161,389,443,445,3306,3389,5432,8080,8443,\
                        53/udp,67/udp,69/udp,123/udp,161/udp,500/udp,514/udp,1194/udp,4500/udp";

/// Most of a hundred verdicts that may be UNKNOWN because of what the lab lacks.
const MOST_PERCENT: usize = 2;

/// A host of a network that only one router has.
fn host_of(segment: &Segment) -> Option<IpAddr> {
    let net: ipnet::Ipv4Net = segment.name.parse().ok()?;
    let end = segment.members.len() == 1 && net.prefix_len() <= 24;
    end.then(|| net.hosts().nth(60).map(IpAddr::from))?
}

#[test]
fn corp10s_end_networks_have_few_verdicts_that_are_not_known() {
    let lab = TestLab::up("corp10");
    let hosts: Vec<IpAddr> = lab.lab.segments.iter().filter_map(host_of).collect();
    assert!(hosts.len() > 8, "{hosts:?}");
    let (mut verdicts, mut lacking) = (0, 0);
    for from in &hosts {
        for to in hosts.iter().filter(|to| *to != from) {
            let mut job = lab.job("hq-gw", &from.to_string(), &to.to_string(), SERVICES);
            job.routers = RouterChoice::Trace;
            job.explain = ExplainMode::Never;
            let report = lab.run(&job);
            for end in &report.end_to_end {
                let reason = end.reason.as_deref().unwrap_or_default();
                verdicts += 1;
                let lacks = end.result == Verdict::Unknown && reason.contains("the lab lacks");
                lacking += usize::from(lacks);
            }
        }
    }
    println!("{lacking} of {verdicts} verdicts lack something");
    assert_eq!(verdicts, hosts.len() * (hosts.len() - 1) * 30);
    assert!(
        lacking * 100 <= verdicts * MOST_PERCENT,
        "{lacking} of {verdicts}"
    );
}
