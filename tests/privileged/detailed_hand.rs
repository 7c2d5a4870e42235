//! The detailed job against a trace made by hand: `nft monitor trace`, a rule that switches the
//! trace on, and a packet that the test sends itself.

use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, sendto, socket,
};
use tsim::{
    lab::hosts::{HostRequest, LabHosts},
    model::{HostId, HostName, Protocol, RouterId, RouterName, Service},
    netns::NetnsFd,
    registry::HostSpec,
    run::{
        detailed::{
            DetailedJob,
            result::{Direction, RouterTest, ServiceStatus, Step},
        },
        quick::{QuickJob, RouterChoice},
        report::{ServiceReport, Verdict},
    },
};

use crate::{
    detailed::{job, run},
    quick::TestLab,
};

/// What the user's tool said of one packet.
#[derive(Debug, PartialEq)]
struct HandTrace {
    /// Family, table, chain and verdict of every rule and policy, in order.
    way: Vec<String>,
    /// Family, table, chain and handle of the rule that ended it, or that it was a policy.
    dropped_by: Option<String>,
}

/// A trace of what comes from one source host of a router.
struct Hand {
    hosts: LabHosts,
    spec: HostSpec,
    source: NetnsFd,
    monitor: Monitor,
    lines: Receiver<String>,
}

/// `nft monitor trace`, ended when this is dropped.
struct Monitor(Child);

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The first and the last chain that a packet from the source meets switch the trace on, and tell
/// that it went through.
const TABLE: &str = "
    add table ip hand
    add chain ip hand first { type filter hook prerouting priority -2147483648; }
    add rule ip hand first ip saddr SOURCE meta nftrace set 1
    add chain ip hand last { type filter hook postrouting priority 2147483647; }
    add rule ip hand last accept
";

impl Hand {
    fn new(lab: &TestLab, test: &RouterTest, source: IpAddr) -> Self {
        let id = HostName::new("hand").unwrap();
        let request = HostRequest {
            id: HostId::new(lab.bed.lab.clone(), id),
            router: RouterId::new(lab.bed.lab.clone(), test.router.clone()),
            address: source,
            prefix_len: None,
            interface: test.iface_in.clone(),
        };
        let mut hosts = LabHosts::new(&lab.bed.dir);
        let in_lab = hosts.lab(&lab.bed.lab).unwrap();
        let spec = in_lab.plan(&request).unwrap();
        in_lab.add(&spec).unwrap();
        let table = TABLE.replace("SOURCE", &source.to_string());
        lab.nft(test.router.as_str(), &table);
        let monitor = || {
            let mut nft = Command::new("/usr/sbin/nft");
            nft.args(["-a", "monitor", "trace"]);
            nft.stdout(Stdio::piped()).spawn().unwrap()
        };
        let router = lab.lab.router_netns(&test.router).unwrap();
        let mut monitor = Monitor(router.enter(monitor).unwrap());
        let (sender, lines) = channel();
        let output = BufReader::new(monitor.0.stdout.take().unwrap());
        std::thread::spawn(move || {
            let mut lines = output.lines().map_while(Result::ok);
            lines.all(|line| sender.send(line).is_ok())
        });
        Self {
            source: lab.bed.dir.open(&spec.id.netns()).unwrap(),
            hosts,
            spec,
            monitor,
            lines,
        }
    }

    /// Returns when the monitor reports: it does not say when it begins to listen.
    fn ready(&self, to: IpAddr) {
        const KNOCK: Service = Service {
            port: 65_000,
            protocol: Protocol::Udp,
        };
        loop {
            self.send(to, KNOCK);
            if self.lines.recv_timeout(Duration::from_millis(20)).is_ok() {
                break;
            }
        }
        self.trace(to, KNOCK);
    }

    /// Sends a packet of `service`; the socket is to be kept until it has gone its way.
    fn send(&self, to: IpAddr, service: Service) -> OwnedFd {
        let kind = match service.protocol {
            Protocol::Tcp => SockType::Stream,
            _ => SockType::Datagram,
        };
        let address = SockaddrStorage::from(SocketAddr::new(to, service.port));
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let open = || socket(AddressFamily::Inet, kind, flags, None).unwrap();
        let socket = self.source.enter(open).unwrap();
        // That nobody answers yet, or that it was rejected already, is what is to be seen.
        let _ = match service.protocol {
            Protocol::Tcp => connect(socket.as_raw_fd(), &address),
            _ => sendto(socket.as_raw_fd(), b"hand", &address, MsgFlags::empty()).map(drop),
        };
        socket
    }

    /// What the monitor says of a packet of `service`.
    fn trace(&self, to: IpAddr, service: Service) -> HandTrace {
        let _socket = self.send(to, service);
        let port = format!("{} dport {} ", service.protocol, service.port);
        let mut id = None;
        let mut trace = HandTrace {
            way: Vec::new(),
            dropped_by: None,
        };
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(20));
            let line = line.unwrap_or_else(|_| panic!("{service}: no end of {id:?}: {trace:?}"));
            let words: Vec<&str> = line.split(' ').collect();
            let &["trace", "id", this, family, table, chain, what, ..] = words.as_slice() else {
                continue;
            };
            if id.is_none() && what == "packet:" && line.contains(&port) {
                id = Some(this.to_owned());
            }
            let verdict = match what {
                "rule" => line
                    .rsplit_once("(verdict ")
                    .unwrap()
                    .1
                    .trim_end_matches(')'),
                "policy" => words[7],
                _ => continue,
            };
            match id.as_deref() {
                Some(id) if id == this => {}
                _ => continue,
            }
            let place = format!("{family} {table} {chain}");
            if (table, chain) == ("hand", "last") {
                return trace;
            }
            if table != "hand" {
                trace.way.push(format!("{place}: {verdict}"));
            }
            if verdict == "drop" {
                let handle = line.split(" # handle ").nth(1);
                let handle = handle.map_or("policy", |rest| rest.split(' ').next().unwrap());
                trace.dropped_by = Some(format!("{place} {handle}"));
                return trace;
            }
        }
    }

    fn end(mut self, lab: &TestLab, router: &str) {
        drop(self.monitor);
        lab.nft(router, "delete table ip hand");
        let hosts = self.hosts.lab(&lab.bed.lab).unwrap();
        hosts.remove(&self.spec.id).unwrap();
    }
}

/// The same of a detailed result.
fn of(test: &RouterTest) -> HandTrace {
    let request = test
        .trace
        .iter()
        .find(|w| w.direction == Direction::Request);
    let step = |s: &Step| {
        // For nft a rule that rejects drops.
        let rejects = s.verdict.starts_with("reject");
        let verdict = if rejects { "drop" } else { &s.verdict };
        format!("{} {} {}: {verdict}", s.family, s.table, s.chain)
    };
    let stopped = test.blocking.first().map(|rule| {
        let handle = rule.handle.map_or("policy".to_owned(), |h| h.to_string());
        format!("{} {} {} {handle}", rule.family, rule.table, rule.chain)
    });
    // Kernels up to 6.1 tell of the end of each chain, too, which is not a rule.
    let steps = request.unwrap().steps.iter();
    let steps = steps.filter(|s| s.rule != "end of chain");
    HandTrace {
        way: steps.map(step).collect(),
        dropped_by: stopped.filter(|_| test.status != ServiceStatus::Partial),
    }
}

/// Asserts that a quick job's answer says the same, and names the same rule.
fn agree(asked: &str, test: &RouterTest, answer: &ServiceReport) {
    let asked = format!("{asked}: {} / {:?}", test.message, answer.reason);
    match test.status {
        // Quick does not look at the way back.
        ServiceStatus::Partial => assert_eq!(answer.result, Verdict::Yes, "{asked}"),
        status => assert_eq!(status.verdict(), answer.result, "{asked}"),
    }
    if answer.result == Verdict::No {
        let reason = answer.reason.as_ref().expect(&asked);
        let rule = &test.blocking.first().expect(&asked).rule;
        assert!(
            reason.contains(rule.trim_start_matches("policy ")),
            "{asked}"
        );
    }
}

/// A quick job that asks the same.
fn same(lab: &TestLab, asked: &DetailedJob, router: &str) -> QuickJob {
    let services: Vec<String> = asked.services.iter().map(ToString::to_string).collect();
    let (source, destination) = (asked.source.to_string(), asked.destination.to_string());
    lab.job(router, &source, &destination, &services.join(","))
}

/// Rules of many kinds beside those from the facts, so that services are stopped in many ways.
const MORE: &str = "
    add table inet more
    add set inet more closed { type inet_service; elements = { 110, 143, 993 }; }
    add chain inet more web
    add rule inet more web tcp dport 8080 counter drop
    add rule inet more web counter return
    add chain inet more forward { type filter hook forward priority -10; policy accept; }
    add rule inet more forward tcp dport { 80, 8000, 8080 } jump web
    add rule inet more forward tcp dport @closed drop
    add rule inet more forward tcp dport 445 reject with tcp reset
    add rule inet more forward udp dport 161 reject
    add rule inet more forward udp sport 33440 drop
    add chain inet more early { type filter hook prerouting priority -310; policy accept; }
    add rule inet more early udp dport 514 counter drop
";

#[test]
fn on_real_rulesets_the_rule_named_is_the_one_that_a_trace_by_hand_shows() {
    let lab = TestLab::up("corp10");
    // The way that the lab's own routes lead.
    let routers = ["br-gw", "dc-gw", "dc-core", "dc-srv"];
    lab.nft("dc-gw", MORE);
    let services = "1,7,20-25,53,67,80,110,123,143,443,445,993,3306,3389,5432,8000,8080,\
                    53/udp,67/udp,123/udp,161/udp,500/udp,514/udp,33434/udp,33440/udp";
    let mut asked = job(&lab, &[], "10.2.1.50", "10.3.10.60", services);
    asked.routers = RouterChoice::Trace;
    // Hosts there may use br-core, too.
    asked.from = Some("br-gw".parse().unwrap());
    assert_eq!(asked.services.len(), 30);
    let report = run(&lab, &asked);
    let way: Vec<&str> = report.routers.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(way, routers);
    let mut statuses = std::collections::BTreeSet::new();
    for router in routers {
        let name = RouterName::new(router).unwrap();
        // Policy rules lead some services past the last router.
        let services = report.services.iter().enumerate();
        let tests = services.filter_map(|(at, s)| Some((at, s.service, s.at(&name)?)));
        let tests: Vec<(usize, Service, &RouterTest)> = tests.collect();
        assert!(tests.len() >= 15, "{router}: {}", tests.len());
        let hand = Hand::new(&lab, tests[0].2, asked.source);
        hand.ready(asked.destination);
        for (_, service, test) in &tests {
            let by_hand = hand.trace(asked.destination, *service);
            assert_eq!(of(test), by_hand, "{router} {service}: {}", test.message);
            statuses.insert(test.status);
        }
        hand.end(&lab, router);
        let quick = lab.run(&same(&lab, &asked, router));
        for (at, service, test) in tests {
            let answer = &quick.routers[0].services[at];
            agree(&format!("{router} {service}"), test, answer);
        }
    }
    let want = [
        ServiceStatus::Ok,
        ServiceStatus::Timeout,
        ServiceStatus::Rejected,
        ServiceStatus::Partial,
    ];
    assert_eq!(statuses, want.into());
}
