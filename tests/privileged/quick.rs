//! The quick job against packet captures: a verdict is what a capture on the router's far side
//! would have shown.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use tsim::{
    config::Config,
    firewall::{TagSpace, backend::BackendChoice},
    lab::{
        self, Lab,
        hosts::{HostRequest, LabHosts},
    },
    model::{
        Dscp, HostId, HostName, IfName, Protocol, RouterId, RouterName, ServiceLimits,
        parse_services,
    },
    netlink::{
        self, Netlink,
        object::{Mac, Neighbour},
    },
    run::{
        probe::Catalogue,
        quick::{self, DscpChoice, ExplainMode, QuickJob, RouterChoice},
        report::{QuickReport, RouterReport, Verdict},
    },
};

use crate::{capture::Capture, support::Bed};

/// Nobody has this hardware address: what is sent to it is seen by the capture and by no router.
const NOBODY: Mac = Mac([0x02, 0, 0, 0, 0xff, 0xff]);
const DSCP: u8 = 40;

/// A lab with a registry of its own.
pub(crate) struct TestLab {
    pub(crate) bed: Bed,
    pub(crate) config: Config,
    pub(crate) lab: Lab,
    _dir: tempfile::TempDir,
}

impl TestLab {
    pub(crate) fn up(facts: &str) -> Self {
        Self::up_with(facts, lab::UpOptions::default())
    }

    pub(crate) fn up_with(facts: &str, options: lab::UpOptions) -> Self {
        let bed = Bed::new();
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            registry_dir: dir.path().join("registry"),
            labs_dir: dir.path().join("labs"),
            ..Config::default()
        };
        let facts = Path::new("netns-fixtures").join(facts);
        let up = lab::up_from(&config, &bed.lab, &facts, options, &());
        Self {
            lab: up.unwrap().lab,
            bed,
            config,
            _dir: dir,
        }
    }

    pub(crate) fn job(
        &self,
        router: &str,
        source: &str,
        destination: &str,
        services: &str,
    ) -> QuickJob {
        let limits = ServiceLimits::default();
        QuickJob {
            lab: self.bed.lab.clone(),
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            services: parse_services(services, Protocol::Tcp, limits).unwrap(),
            routers: RouterChoice::Named(vec![RouterName::new(router).unwrap()]),
            dscp: DscpChoice::Value(Dscp::new(DSCP).unwrap()),
            run_id: quick::new_run_id().unwrap(),
            probe_dscp: Dscp::DEFAULT,
            source_port: None,
            size: None,
            lock_timeout: Duration::from_secs(30),
            explain: ExplainMode::Auto,
            backend: BackendChoice::Auto,
            trust_facts: false,
            use_registry: true,
            progress: None,
            from: None,
            pass_on: None,
        }
    }

    /// A configuration file that leads to this lab.
    pub(crate) fn config_file(&self) -> PathBuf {
        let file = self.config.registry_dir.with_file_name("tsim.toml");
        let text = format!(
            "registry_dir = {:?}\nlabs_dir = {:?}\n",
            self.config.registry_dir, self.config.labs_dir
        );
        std::fs::write(&file, text).unwrap();
        file
    }

    /// Runs an nft command in a router.
    pub(crate) fn nft(&self, router: &str, command: &str) {
        let netns = self.lab.router_netns(&RouterName::new(router).unwrap());
        let run = || {
            let nft = std::process::Command::new("/usr/sbin/nft")
                .arg(command)
                .output();
            nft.unwrap()
        };
        let output = netns.unwrap().enter(run).unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
    }

    pub(crate) fn run(&self, job: &QuickJob) -> QuickReport {
        quick::run(job, &self.config).unwrap().report
    }

    /// Runs the job with probes that go on behind the taps, and returns the report and which of
    /// the services a capture saw leave the router.
    fn captured(&self, mut job: QuickJob) -> (QuickReport, BTreeSet<u32>) {
        let first = self.run(&job);
        let router = &first.routers[0];
        let Some(iface) = router.iface_out.clone().filter(|i| i.as_str() != "lo") else {
            return (first, BTreeSet::new());
        };
        let gateway = router.next_hop.unwrap_or(job.destination);
        self.answer_for(router, &iface, gateway);
        let state = self.lab.router(&router.name).unwrap();
        let port = state.interface(&iface).unwrap().port.clone().unwrap();
        let capture = Capture::start(&self.lab.segments_netns().unwrap(), &port);
        let seed = 0x5eed_0123_4567_89ab;
        job.pass_on = Some(seed);
        job.run_id = quick::new_run_id().unwrap();
        let report = self.run(&job);
        let tags = TagSpace::new(Dscp::new(DSCP).unwrap(), seed);
        let seen = capture
            .probes(tags)
            .into_iter()
            .map(|probe| probe.index)
            .collect();
        (report, seen)
    }

    fn answer_for(&self, router: &RouterReport, iface: &IfName, gateway: IpAddr) {
        let netns = self.lab.router_netns(&router.name).unwrap();
        let mut netlink = Netlink::open(&netns).unwrap();
        let entry = Neighbour::permanent(iface.clone(), gateway, NOBODY);
        let mut batch = netlink.batch("test");
        batch.replace_neighbour(&entry);
        // An interface that is down takes no entry, and lets nothing out either.
        let _ = batch.send();
    }

    /// Asserts that every verdict is what the capture showed; returns how many pairs were seen.
    pub(crate) fn verdicts_equal_capture(
        &self,
        router: &str,
        source: &str,
        destination: &str,
        services: &str,
    ) -> usize {
        let job = self.job(router, source, destination, services);
        let catalogue = Catalogue::new(&job.services);
        let (report, seen) = self.captured(job);
        let answers = &report.routers[0].services;
        for (answer, index) in answers.iter().zip(catalogue.in_order_asked()) {
            let expected = if seen.contains(index) {
                Verdict::Yes
            } else {
                Verdict::No
            };
            assert_eq!(
                answer.result,
                expected,
                "{router} {source}->{destination} {} ({:?})",
                answer.service(),
                answer.reason
            );
        }
        answers.len()
    }
}

fn verdicts(report: &QuickReport) -> String {
    let result = |s: &tsim::run::report::ServiceReport| format!("{}={}", s.service(), s.result);
    report.routers[0]
        .services
        .iter()
        .map(result)
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn verdicts_on_small_routers_are_what_a_capture_shows() {
    let lab = TestLab::up("small3");
    let services = "22,23,25,80,443,53/udp,54/udp,8000-8010";
    let mut pairs = 0;
    for router in ["r1", "r2", "r3"] {
        pairs += lab.verdicts_equal_capture(router, "10.81.1.10", "10.81.3.10", services);
        pairs +=
            lab.verdicts_equal_capture(router, "2001:db8:81:1::10", "2001:db8:81:3::10", services);
    }
    // An address in the ipset, and a blackhole route.
    pairs += lab.verdicts_equal_capture("r1", "10.81.1.10", "10.81.3.66", services);
    pairs += lab.verdicts_equal_capture("r2", "10.81.1.10", "10.81.9.1", services);
    // No route at all.
    pairs += lab.verdicts_equal_capture("r2", "10.81.1.10", "192.0.2.1", services);
    // Behind an interface that is down.
    pairs += lab.verdicts_equal_capture("r3", "10.81.1.10", "10.81.4.10", services);
    assert_eq!(pairs, 10 * 18);
}

#[test]
fn a_source_that_rp_filter_refuses_gets_nowhere() {
    let lab = TestLab::up("small3");
    let r3 = lab
        .lab
        .router_netns(&RouterName::new("r3").unwrap())
        .unwrap();
    let strict = [("net/ipv4/conf/all/rp_filter", "1")];
    netlink::sysctl::write(&r3, &strict).unwrap();
    // Its way back is `west`, but it sits behind `dst`.
    let source = "10.81.1.77";
    let facing = HostRequest {
        id: HostId::new(lab.bed.lab.clone(), HostName::new("astray").unwrap()),
        router: RouterId::new(lab.bed.lab.clone(), RouterName::new("r3").unwrap()),
        address: source.parse().unwrap(),
        prefix_len: None,
        interface: Some(IfName::new("dst").unwrap()),
    };
    let mut hosts = LabHosts::new(&lab.bed.dir);
    let hosts = hosts.lab(&lab.bed.lab).unwrap();
    let spec = hosts.plan(&facing).unwrap();
    hosts.add(&spec).unwrap();
    let mut job = lab.job("r3", source, "10.81.23.2", "80,53/udp");
    job.use_registry = false;
    let report = lab.run(&job);
    hosts.remove(&spec.id).unwrap();
    assert_eq!(report.routers[0].iface_in.as_ref().unwrap().as_str(), "dst");
    for service in &report.routers[0].services {
        assert_eq!(service.result, Verdict::No);
        let reason = service.reason.clone().unwrap();
        assert!(reason.contains("rp_filter"), "{reason}");
    }
}

#[test]
fn verdicts_on_routers_from_real_facts_are_what_a_capture_shows() {
    let lab = TestLab::up("corp10");
    let services = "1-40,80,443,3306,5432,8080,53/udp,123/udp,161/udp,33434-33440/udp";
    let mut pairs = 0;
    for (router, source, destination) in [
        ("hq-gw", "10.1.1.100", "10.2.1.50"),
        ("br-gw", "10.1.1.100", "10.2.1.50"),
        ("hq-core", "10.1.1.100", "10.1.2.50"),
        ("hq-gw", "10.1.1.100", "8.8.8.8"),
    ] {
        pairs += lab.verdicts_equal_capture(router, source, destination, services);
    }
    assert!(pairs >= 200, "{pairs}");
}

#[test]
fn every_port_of_a_router_is_answered_rightly() {
    let lab = TestLab::up("small3");
    let report = lab.run(&lab.job("r1", "10.81.1.10", "10.81.3.10", "all/tcp"));
    let services = &report.routers[0].services;
    assert_eq!(services.len(), 65_535);
    for service in services {
        let open = [22, 80, 443].contains(&service.port);
        let expected = if open { Verdict::Yes } else { Verdict::No };
        assert_eq!(service.result, expected, "{}", service.service());
    }
    let report = lab.run(&lab.job("r3", "10.81.1.10", "10.81.3.10", "1-1000"));
    assert!(
        report.routers[0]
            .services
            .iter()
            .all(|s| s.result == Verdict::Yes)
    );
    assert_eq!(report.warnings, crate::kernels::taps_stay(&["r3"]));
}

#[test]
fn a_destination_on_the_router_itself_is_judged_at_the_end_of_input() {
    let lab = TestLab::up("small3");
    let report = lab.run(&lab.job("r1", "10.81.1.10", "10.81.12.1", "22,23"));
    assert_eq!(verdicts(&report), "22/tcp=YES 23/tcp=YES");
    let reason = report.routers[0].services[0].reason.clone().unwrap();
    assert!(reason.contains("router itself"), "{reason}");
}

#[test]
fn nothing_is_left_behind_and_rulesets_are_untouched() {
    let lab = TestLab::up("small3");
    let before = lab.bed.left();
    let rulesets = || -> Vec<String> {
        ["r1", "r2", "r3"]
            .iter()
            .map(|router| ruleset(&lab, router))
            .collect()
    };
    let saved = rulesets();
    let mut job = lab.job("r1", "10.81.1.10", "10.81.3.10", "1-100");
    job.routers = RouterChoice::Trace;
    let report = lab.run(&job);
    assert_eq!(report.routers.len(), 3);
    assert_eq!(rulesets(), saved);
    assert_eq!(lab.bed.left(), before);
}

/// The router's whole ruleset as nft prints it.
pub(crate) fn ruleset(lab: &TestLab, router: &str) -> String {
    let netns = lab
        .lab
        .router_netns(&RouterName::new(router).unwrap())
        .unwrap();
    let list = || {
        std::process::Command::new("/usr/sbin/nft")
            .args(["-s", "list", "ruleset"])
            .output()
    };
    let output = netns.enter(list).unwrap().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}
