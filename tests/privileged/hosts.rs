//! Hosts on the segments of routers.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use clap::Parser;
use tsim::{
    cli::{Context, Exit, Run, tsim::Tsim},
    config::Config,
    lab::hosts::{Added, HostError, HostRequest, Hosts, LabHosts},
    model::{HostId, RouterId},
    netlink::{
        Netlink,
        object::{Family, Neighbour},
        sysctl,
    },
    netns::NetnsFd,
    registry::{HostKernel, HostSpec, JobInfo, JobType, RegistryManager, Wait},
};

use crate::{
    minilab::{MiniLab, ip},
    support::ifname,
};

/// Routers a and b share segment 0; each has one more of its own.
fn lab() -> (MiniLab, NetnsFd, NetnsFd) {
    let mut lab = MiniLab::new(3);
    let a = lab.router(
        "a",
        &[
            (0, &["10.0.0.1/24", "2001:db8::1/64"]),
            (1, &["10.1.0.1/24"]),
        ],
    );
    let b = lab.router("b", &[(0, &["10.0.0.2/24"]), (2, &["10.2.0.1/24"])]);
    (lab, a, b)
}

fn request(lab: &MiniLab, host: &str, router: &str, address: &str) -> HostRequest {
    let lab = &lab.bed.lab;
    HostRequest {
        id: HostId::new(lab.clone(), host.parse().unwrap()),
        router: RouterId::new(lab.clone(), router.parse().unwrap()),
        address: ip(address),
        prefix_len: None,
        interface: None,
    }
}

fn hosts(lab: &MiniLab) -> Hosts {
    Hosts::open(&lab.bed.dir, &lab.bed.lab).unwrap()
}

fn add(lab: &MiniLab, host: &str, router: &str, address: &str) -> HostSpec {
    let mut hosts = hosts(lab);
    let plan = hosts.plan(&request(lab, host, router, address)).unwrap();
    assert_eq!(hosts.add(&plan).unwrap(), Added::Made);
    plan
}

#[test]
fn a_host_has_its_address_its_way_out_and_nothing_else() {
    let (lab, a, _b) = lab();
    let plan = add(&lab, "h", "a", "10.0.0.9");
    assert_eq!(plan.interface, ifname("eth0"));
    let netns = lab.bed.dir.open(&plan.id.netns()).unwrap();
    let mut netlink = Netlink::open(&netns).unwrap();
    let eth0 = netlink.link(&ifname("eth0")).unwrap().unwrap();
    assert_eq!(
        (eth0.mac, eth0.up, eth0.carrier),
        (Some(plan.mac), true, true)
    );
    let addresses = netlink.addresses_of(&ifname("eth0")).unwrap();
    assert_eq!(addresses.len(), 1);
    assert_eq!(addresses[0].local.to_string(), "10.0.0.9/24");
    let routes = netlink.routes(Family::V4, Some(254)).unwrap();
    let text: Vec<_> = routes.iter().map(ToString::to_string).collect();
    assert_eq!(text, ["0.0.0.0/0 via 10.0.0.1 dev eth0 onlink"]);
    let router_mac = Netlink::open(&a)
        .unwrap()
        .link(&ifname("eth0"))
        .unwrap()
        .unwrap()
        .mac
        .unwrap();
    assert_eq!(
        netlink.neighbours(Family::V4).unwrap(),
        [Neighbour::permanent(
            ifname("eth0"),
            ip("10.0.0.1"),
            router_mac
        )]
    );
    for (path, want) in [
        ("net/ipv4/conf/eth0/accept_redirects", "0"),
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv6/conf/eth0/disable_ipv6", "1"),
    ] {
        assert_eq!(sysctl::read(&netns, &[path]).unwrap(), [want], "{path}");
    }
    let state = hosts(&lab).list().unwrap();
    assert_eq!(state.len(), 1);
    assert_eq!(state[0].router.as_str(), "a");
    assert_eq!((&state[0].address, state[0].mac), (&plan.address, plan.mac));
}

#[test]
fn adding_again_is_success_and_another_of_the_name_is_refused() {
    let (lab, _a, _b) = lab();
    let plan = add(&lab, "h", "a", "10.0.0.9");
    let mut hosts = hosts(&lab);
    assert_eq!(hosts.add(&plan).unwrap(), Added::AlreadyThere);
    let other = hosts.plan(&request(&lab, "h", "b", "10.0.0.9")).unwrap();
    let error = hosts.add(&other).unwrap_err();
    assert!(matches!(error, HostError::Exists { .. }), "{error}");
    assert_eq!(hosts.add(&plan).unwrap(), Added::AlreadyThere);
}

#[test]
fn removing_leaves_nothing_and_again_is_success() {
    let (lab, _a, _b) = lab();
    let before = lab.segments().links().unwrap();
    let plan = add(&lab, "h", "a", "10.0.0.9");
    let mut hosts = hosts(&lab);
    for _ in 0..3 {
        hosts.remove(&plan.id).unwrap();
        assert!(!lab.bed.dir.exists(&plan.id.netns()).unwrap());
        assert!(hosts.list().unwrap().is_empty());
        hosts.remove(&plan.id).unwrap();
        assert_eq!(hosts.add(&plan).unwrap(), Added::Made, "the name is free");
    }
    hosts.remove(&plan.id).unwrap();
    lab.await_links(&before);
}

#[test]
fn a_part_of_a_host_is_named_and_can_be_removed() {
    let (lab, _a, _b) = lab();
    let mut hosts = hosts(&lab);
    let plan = hosts.plan(&request(&lab, "h", "a", "10.0.0.9")).unwrap();
    drop(lab.bed.dir.create(&plan.id.netns()).unwrap());
    let error = hosts.add(&plan).unwrap_err();
    assert!(matches!(error, HostError::InPart { .. }), "{error}");
    assert_eq!(
        hosts.names().unwrap().as_slice(),
        std::slice::from_ref(&plan.id.host)
    );
    hosts.remove(&plan.id).unwrap();
    assert_eq!(hosts.add(&plan).unwrap(), Added::Made);
}

#[test]
fn what_fails_half_way_is_undone_and_what_was_there_stays() {
    let (lab, _a, _b) = lab();
    let kept = add(&lab, "kept", "a", "10.0.0.8");
    let mut hosts = hosts(&lab);
    let before = lab.segments().links().unwrap();
    let good = hosts.plan(&request(&lab, "good", "b", "10.0.0.9")).unwrap();
    let mut bad = hosts.plan(&request(&lab, "bad", "a", "10.0.0.9")).unwrap();
    // The bridge knows this address already.
    bad.mac = kept.mac;
    let error = hosts.add_all(&[&good, &kept, &bad]).unwrap_err();
    assert!(
        matches!(&error, HostError::Make { undo, .. } if undo.is_empty()),
        "{error}"
    );
    lab.await_links(&before);
    let names: Vec<_> = hosts.names().unwrap();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn the_same_address_serves_one_host_per_router_and_each_reaches_its_own() {
    let (lab, a, b) = lab();
    let mut hosts = hosts(&lab);
    let plans: Vec<HostSpec> = ["a", "b"]
        .iter()
        .map(|router| hosts.plan(&request(&lab, &format!("src-{router}"), router, "10.0.0.9")))
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        hosts.add_all(&[&plans[0], &plans[1]]).unwrap(),
        [Added::Made; 2]
    );
    // Each sends to an address that only its own router has; it comes in there, and nowhere else.
    for (plan, near, far, to) in [
        (&plans[0], &a, &b, "10.1.0.1"),
        (&plans[1], &b, &a, "10.2.0.1"),
    ] {
        let host = lab.bed.dir.open(&plan.id.netns()).unwrap();
        // /proc/net shows the namespace of the thread that reads.
        let received = |netns: &NetnsFd| {
            let read = || std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
            netns.enter(read).unwrap()
        };
        let (near_before, far_before) = (received(near), received(far));
        host.enter(|| {
            let udp = std::net::UdpSocket::bind("10.0.0.9:0").unwrap();
            udp.send_to(b"x", (ip(to), 9)).unwrap();
        })
        .unwrap();
        assert_ne!(received(near), near_before);
        assert_eq!(received(far), far_before);
    }
}

#[test]
fn hosts_talk_through_a_router_in_both_families() {
    let mut lab = MiniLab::new(2);
    lab.router(
        "r",
        &[
            (0, &["10.0.0.1/24", "2001:db8:0::1/64"]),
            (1, &["10.1.0.1/24", "2001:db8:1::1/64"]),
        ],
    );
    for (near, far) in [("10.0.0.9", "10.1.0.9"), ("2001:db8::9", "2001:db8:1::9")] {
        let left = add(&lab, &format!("l-{near}").replace(':', "-"), "r", near);
        let right = add(&lab, &format!("r-{far}").replace(':', "-"), "r", far);
        let open = |plan: &HostSpec| lab.bed.dir.open(&plan.id.netns()).unwrap();
        let (left, right) = (open(&left), open(&right));
        let listener = right
            .enter(|| TcpListener::bind(SocketAddr::new(ip(far), 80)).unwrap())
            .unwrap();
        let serve = std::thread::spawn(move || {
            let (mut stream, peer) = listener.accept().unwrap();
            stream.write_all(peer.ip().to_string().as_bytes()).unwrap();
        });
        let seen = left
            .enter(|| {
                let to = SocketAddr::new(ip(far), 80);
                let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10)).unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                text
            })
            .unwrap();
        serve.join().unwrap();
        assert_eq!(seen, near);
    }
}

#[test]
fn requests_that_cannot_be_met_say_why() {
    let (lab, _a, _b) = lab();
    let mut hosts = hosts(&lab);
    let mut refuse = |request: HostRequest, want: &str| {
        let error = hosts.plan(&request).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    };
    refuse(request(&lab, "h", "a", "10.0.0.1"), "router");
    refuse(request(&lab, "h", "a", "10.0.0.255"), "router");
    refuse(request(&lab, "h", "a", "192.0.2.1"), "NoRoute");
    refuse(request(&lab, "h", "none", "10.0.0.9"), "router none");
    let on = |interface: &str| HostRequest {
        interface: Some(ifname(interface)),
        ..request(&lab, "h", "a", "192.0.2.1")
    };
    refuse(on("eth9"), "no interface eth9");
    refuse(on("lo"), "no segment");
    refuse(
        HostRequest {
            prefix_len: Some(33),
            ..request(&lab, "h", "a", "10.0.0.9")
        },
        "33",
    );
    let plan = hosts.plan(&on("eth1")).unwrap();
    assert_eq!(plan.address.to_string(), "192.0.2.1/32");
    assert_eq!(plan.gateway, Some(ip("10.1.0.1")));
    assert_eq!(hosts.add(&plan).unwrap(), Added::Made);
    let none = Hosts::open(&lab.bed.dir, &"no-such-lab".parse().unwrap()).unwrap_err();
    assert!(none.to_string().contains("not up"), "{none}");
}

/// A registry of its own, in a directory that goes with the first value.
fn registry() -> (tempfile::TempDir, Config) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        registry_dir: dir.path().join("registry"),
        labs_dir: dir.path().join("labs"),
        ..Config::default()
    };
    (dir, config)
}

#[test]
fn the_registry_makes_leases_and_removes_hosts() {
    let (lab, _a, _b) = lab();
    let (_dir, config) = registry();
    let registry = RegistryManager::open(&config).unwrap();
    let mut kernel = LabHosts::new(&lab.bed.dir);
    let spec = hosts(&lab)
        .plan(&request(&lab, "src", "a", "10.0.0.9"))
        .unwrap();
    let job = |name: &str| {
        registry.job(JobInfo {
            run_id: name.parse().unwrap(),
            job_type: JobType::Quick,
            dscp: None,
        })
    };
    let wait = Wait::at_most(Duration::from_secs(10));
    let (mut one, mut two) = (job("one"), job("two"));
    one.ensure_host_and_lease(&spec, &mut kernel, &wait)
        .unwrap();
    two.ensure_host_and_lease(&spec, &mut kernel, &wait)
        .unwrap();
    assert_eq!(
        kernel
            .list_hosts()
            .unwrap()
            .iter()
            .filter(|h| h.lab == lab.bed.lab)
            .count(),
        1
    );
    one.release_and_remove(&spec.id, &mut kernel, &wait)
        .unwrap();
    assert!(kernel.host_exists(&spec.id).unwrap());
    two.release_and_remove(&spec.id, &mut kernel, &wait)
        .unwrap();
    assert!(!kernel.host_exists(&spec.id).unwrap());
    assert!(registry.hosts().unwrap().is_empty());
}

#[test]
fn a_host_of_a_lab_that_is_gone_can_be_removed() {
    let (lab, _a, _b) = lab();
    let plan = add(&lab, "h", "a", "10.0.0.9");
    let segments = tsim::model::NetnsName::segments(&lab.bed.lab);
    lab.bed.dir.delete(&segments).unwrap();
    let mut kernel = LabHosts::new(&lab.bed.dir);
    kernel.remove_host(&plan.id).unwrap();
    assert!(!kernel.host_exists(&plan.id).unwrap());
}

#[test]
fn the_command_adds_lists_and_removes() {
    let (lab, _a, _b) = lab();
    let (_dir, config) = registry();
    let context = Context::new(config.clone(), true);
    let name = lab.bed.lab.as_str();
    let run = |args: &[&str]| {
        let args = ["tsim", "host"].iter().chain(args);
        Tsim::try_parse_from(args).unwrap().run(&context)
    };
    let new = [
        "add",
        "--lab",
        name,
        "--router",
        "a",
        "--address",
        "10.0.0.9",
        "--name",
        "h",
    ];
    for _ in 0..2 {
        assert_eq!(run(&new).unwrap(), Exit::Ok);
    }
    let registry = RegistryManager::open(&config).unwrap();
    let hosts = registry.hosts().unwrap();
    assert_eq!(hosts.len(), 1);
    assert_eq!(hosts[0].1.primary_ip.to_string(), "10.0.0.9/24");
    let same_address = [
        "add",
        "--lab",
        name,
        "--router",
        "a",
        "--address",
        "10.0.0.9",
    ];
    let error = run(&same_address).unwrap_err();
    assert_eq!(error.exit, Exit::CannotRun);
    assert!(error.to_string().contains("10.0.0.9"), "{error}");
    let own = [
        "add",
        "--lab",
        name,
        "--router",
        "a",
        "--address",
        "10.0.0.1",
    ];
    assert_eq!(run(&own).unwrap_err().exit, Exit::Usage);
    assert_eq!(run(&["list", "--lab", name]).unwrap(), Exit::Ok);
    for _ in 0..2 {
        assert_eq!(run(&["remove", "--lab", name, "h"]).unwrap(), Exit::Ok);
    }
    assert!(registry.hosts().unwrap().is_empty());
    assert_eq!(
        lab.bed
            .left()
            .iter()
            .filter(|n| n.as_str().contains('@'))
            .count(),
        0
    );
}
