//! The sweep, which asks many pairs at once, against the quick job, which asks one.

use tsim::{
    bulk::{addresses::end_networks, answers::Cell},
    model::{Protocol, Service, ServiceLimits, parse_services},
    run::{
        quick::{self, DscpChoice, Pair, QuickJob, RouterChoice, Terms, sweep::Sweep},
        report::{EndToEnd, Verdict},
    },
};

use crate::quick::TestLab;

fn terms(job: &QuickJob) -> Terms {
    Terms {
        lab: job.lab.clone(),
        routers: RouterChoice::Trace,
        from: None,
        dscp: DscpChoice::Auto,
        run_id: quick::new_run_id().unwrap(),
        probe_dscp: job.probe_dscp,
        size: None,
        source_port: None,
        lock_timeout: job.lock_timeout,
        explain: quick::ExplainMode::Always,
        backend: job.backend,
        trust_facts: false,
        use_registry: true,
        pass_on: None,
    }
}

fn services(list: &str) -> Vec<Service> {
    parse_services(list, Protocol::Tcp, ServiceLimits::default()).unwrap()
}

fn sweep(lab: &TestLab, pairs: Vec<Pair>) -> Vec<Cell> {
    let job = lab.job("r", "10.0.0.1", "10.0.0.2", "1");
    let mut sweep = Sweep::open(terms(&job), &lab.config).unwrap();
    let mut cells = Vec::new();
    let mut keep = |answer: quick::sweep::AnsweredQuestion<'_>| {
        cells.push(Cell::from(answer));
        Ok(())
    };
    sweep.ask(pairs, &mut keep, &mut |_| {}).unwrap();
    let swept = sweep.close();
    assert_eq!(swept.questions, cells.len() as u64);
    cells
}

/// What a reader acts on: verdict, where, why, and by which routers.
fn gist(end: &EndToEnd) -> (Service, Verdict, String, Vec<String>) {
    // Rates and counters say their own numbers each time.
    let why = format!("{:?} {:?}", end.router, end.end);
    let way = end.way.iter().map(|leg| leg.hop.router.to_string());
    (end.service(), end.result, why, way.collect())
}

#[test]
fn a_sweep_says_of_corp10_what_quick_jobs_say_one_by_one() {
    let lab = TestLab::up("corp10");
    let list = "22,80,443,53/udp,123/udp,3389,33434/udp,ping";
    let addresses = [
        ("10.3.10.50", "10.2.1.60"),
        ("10.1.1.100", "10.2.1.50"),
        ("10.1.1.100", "10.3.10.50"),
        ("10.2.1.60", "10.1.1.100"),
        ("10.1.11.50", "8.8.8.8"),
        ("10.1.2.10", "10.2.6.7"),
        ("203.0.113.5", "10.2.1.60"),
        // Where no interface of the lab leads.
        ("10.1.1.100", "10.1.1.101"),
    ];
    let pair = |(source, destination): &(&str, &str)| Pair {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        services: services(list),
    };
    let cells = sweep(&lab, addresses.iter().map(pair).collect());
    assert_eq!(cells.len(), addresses.len() * services(list).len());
    for ((source, destination), cells) in addresses.iter().zip(cells.chunks(8)) {
        let job = QuickJob {
            routers: RouterChoice::Trace,
            dscp: DscpChoice::Auto,
            run_id: quick::new_run_id().unwrap(),
            ..lab.job("r", source, destination, list)
        };
        let report = lab.run(&job);
        let one_by_one: Vec<_> = report.end_to_end.iter().map(gist).collect();
        let swept: Vec<_> = cells.iter().map(|cell| gist(&cell.end)).collect();
        assert_eq!(swept, one_by_one, "{source} -> {destination}");
    }
}

#[test]
fn a_source_that_enters_nowhere_is_unknown_and_its_neighbours_are_answered() {
    let lab = TestLab::up("small3");
    let pair = |source: &str, destination: &str| Pair {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        services: services("80,81"),
    };
    let cells = sweep(
        &lab,
        vec![
            pair("10.81.1.10", "10.81.3.10"),
            pair("fd00:dead::1", "fd00:dead::2"),
            pair("10.81.1.10", "224.0.0.5"),
            pair("10.81.1.11", "10.81.3.10"),
        ],
    );
    let verdicts: Vec<Verdict> = cells.iter().map(|cell| cell.end.result).collect();
    assert_eq!(&verdicts[2..6], [Verdict::Unknown; 4]);
    // The first and the last ask the same of two hosts side by side.
    assert_eq!(verdicts[..2], verdicts[6..]);
    assert_ne!(verdicts[0], Verdict::Unknown);
}

#[test]
fn rules_that_change_between_bursts_are_said() {
    let lab = TestLab::up("small3");
    let job = lab.job("r1", "10.81.1.10", "10.81.3.10", "1");
    let mut sweep = Sweep::open(terms(&job), &lab.config).unwrap();
    let pair = || Pair {
        source: job.source,
        destination: job.destination,
        services: services("2000-2009"),
    };
    sweep.ask([pair()], &mut |_| Ok(()), &mut |_| {}).unwrap();
    lab.nft("r1", "add table inet later");
    sweep.ask([pair()], &mut |_| Ok(()), &mut |_| {}).unwrap();
    let warnings = sweep.close().warnings;
    let said = |warning: &String| warning.starts_with("r1: table later changed during the sweep");
    assert!(warnings.iter().any(said), "{warnings:?}");
}

#[test]
fn what_stands_for_a_network_of_ipv6_is_a_hosts_address() {
    let lab = TestLab::up("small3");
    let hosts = end_networks(&lab.lab).into_iter().map(|end| end.host);
    let hosts: Vec<String> = hosts.map(|host| host.to_string()).collect();
    let want = [
        "10.81.1.2",
        "10.81.3.2",
        "2001:db8:81:1::2",
        "2001:db8:81:3::2",
    ];
    assert_eq!(hosts, want);
}
