//! What the kernel side costs: namespaces, routes, look-ups, hosts. Needs root.
//!
//! `cargo bench --bench netns`
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    net::Ipv4Addr,
    process, thread,
    time::{Duration, Instant},
};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ipnet::Ipv4Net;
use tsim::{
    lab::hosts::{HostRequest, Hosts},
    model::{HostId, IfName, LabName, NetnsName},
    netlink::{
        BridgeOptions, LinkChange, LookupQuery, Netlink, NewVeth, VethEnd,
        object::{Address, Route},
        sysctl,
    },
    netns::{NetnsDir, NetnsFd},
    registry::HostSpec,
};

fn name(text: &str) -> NetnsName {
    NetnsName::new(format!("b{}.{text}", process::id())).unwrap()
}

fn ifname(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

/// A namespace that goes when it is dropped.
struct Netns {
    dir: NetnsDir,
    fd: NetnsFd,
}

impl Netns {
    fn new(text: &str) -> Self {
        let dir = NetnsDir::default();
        let fd = dir.create(&name(text)).unwrap();
        Self { dir, fd }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        self.dir.delete(self.fd.name()).unwrap();
    }
}

fn namespaces(c: &mut Criterion) {
    let dir = NetnsDir::default();
    let mut group = c.benchmark_group("netns");
    group.bench_function("create", |b| {
        b.iter_batched(|| (), |()| Netns::new("a"), BatchSize::PerIteration);
    });
    group.bench_function("delete", |b| {
        b.iter_batched(
            || dir.create(&name("a")).unwrap(),
            |fd| dir.delete(fd.name()).unwrap(),
            BatchSize::PerIteration,
        );
    });
    let kept = Netns::new("kept");
    group.bench_function("enter", |b| b.iter(|| kept.fd.enter(|| ()).unwrap()));
    group.bench_function("open a netlink socket", |b| {
        b.iter(|| Netlink::open(&kept.fd).unwrap());
    });
    group
        .sample_size(10)
        .bench_function("create 50 in parallel", |b| {
            b.iter_batched(
                || (),
                |()| {
                    thread::scope(|scope| {
                        let work = |w| {
                            move || {
                                (0..25)
                                    .map(|n| Netns::new(&format!("p{w}-{n}")))
                                    .collect::<Vec<_>>()
                            }
                        };
                        let threads = [scope.spawn(work(0)), scope.spawn(work(1))];
                        threads.map(|t| t.join().unwrap())
                    })
                },
                BatchSize::PerIteration,
            );
        });
    group.finish();
}

fn veth(near: &Netns, far: &Netns) -> Netlink {
    let mut netlink = Netlink::open(&near.fd).unwrap();
    let end = |netns| VethEnd {
        netns,
        index: Some(2),
        ..VethEnd::new(ifname("eth0"))
    };
    let pair = NewVeth {
        near: end(None),
        near_up: true,
        master: None,
        far: end(Some(&far.fd)),
    };
    let address = Address::new("10.0.0.1/24".parse().unwrap());
    let mut batch = netlink.batch("bench");
    batch.add_veth(&pair).add_address(&ifname("eth0"), &address);
    batch.send().unwrap();
    let mut other = Netlink::open(&far.fd).unwrap();
    let mut batch = other.batch("bench");
    batch.set_link(&ifname("eth0"), &LinkChange::up());
    batch.send().unwrap();
    netlink
}

fn routing(c: &mut Criterion) {
    let (near, far) = (Netns::new("near"), Netns::new("far"));
    let mut netlink = veth(&near, &far);
    sysctl::write(&near.fd, &[("net/ipv4/ip_forward", "1")]).unwrap();
    let routes: Vec<Route> = (0..1000u32)
        .map(|n| {
            let to = Ipv4Net::new(Ipv4Addr::from(0x0b00_0000 + (n << 8)), 24).unwrap();
            Route::via(to.into(), "10.0.0.2".parse().unwrap(), ifname("eth0"))
        })
        .collect();
    let queries: Vec<LookupQuery> = (0..1000u32)
        .map(|n| {
            let to = Ipv4Addr::from(0x0b00_0001 + (n << 8));
            LookupQuery::forwarded("10.0.0.9".parse().unwrap(), to.into(), ifname("eth0"))
        })
        .collect();
    let mut group = c.benchmark_group("routing");
    group.throughput(Throughput::Elements(1000));
    group.bench_function("add and delete 1,000 routes", |b| {
        b.iter(|| {
            let mut batch = netlink.batch("bench");
            for route in &routes {
                batch.add_route(route);
            }
            for route in &routes {
                batch.delete_route(route);
            }
            batch.send().unwrap();
        });
    });
    let mut batch = netlink.batch("bench");
    for route in &routes {
        batch.add_route(route);
    }
    batch.send().unwrap();
    group.bench_function("1,000 look-ups", |b| {
        b.iter(|| netlink.lookup(&queries).unwrap());
    });
    group.finish();
}

/// A lab with one segment and three routers on it.
struct Lab {
    name: LabName,
    all: Vec<Netns>,
}

impl Lab {
    fn new() -> Self {
        let name = LabName::new(format!("b{}", process::id())).unwrap();
        let dir = NetnsDir::default();
        let segments = dir.create(&NetnsName::segments(&name)).unwrap();
        let mut netlink = Netlink::open(&segments).unwrap();
        let mut batch = netlink.batch("bench");
        let up = BridgeOptions {
            up: true,
            ..BridgeOptions::default()
        };
        batch.add_bridge(&ifname("br0"), &up);
        batch.send().unwrap();
        let mut all = vec![];
        for number in 1..=3 {
            let router = Netns::new(&format!("r{number}"));
            let mut batch = netlink.batch("bench");
            batch.add_veth(&NewVeth {
                near: VethEnd::new(ifname(&format!("p{number}"))),
                near_up: true,
                master: Some(ifname("br0")),
                far: VethEnd {
                    netns: Some(&router.fd),
                    ..VethEnd::new(ifname("eth0"))
                },
            });
            batch.send().unwrap();
            let mut netlink = Netlink::open(&router.fd).unwrap();
            let mut batch = netlink.batch("bench");
            let address = Address::new(format!("10.0.0.{number}/24").parse().unwrap());
            batch
                .set_link(&ifname("eth0"), &LinkChange::up())
                .add_address(&ifname("eth0"), &address);
            batch.send().unwrap();
            all.push(router);
        }
        all.push(Netns { dir, fd: segments });
        Self { name, all }
    }

    fn hosts(&self) -> Hosts {
        Hosts::open(&self.all[0].dir, &self.name).unwrap()
    }

    /// One host on each of `count` routers, all with the same address.
    fn requests(&self, count: usize) -> Vec<HostRequest> {
        let request = |number: usize| HostRequest {
            id: format!("{}@h{number}", self.name).parse().unwrap(),
            router: format!("{}.r{number}", self.name).parse().unwrap(),
            address: "10.0.0.9".parse().unwrap(),
            prefix_len: None,
            interface: None,
        };
        (1..=count).map(request).collect()
    }
}

/// From nothing to hosts that work, and back; each time with sockets opened anew, as a command
/// does it. Between two rounds the kernel frees what is gone, which is not measured but uses a
/// processor.
fn hosts(c: &mut Criterion) {
    let lab = Lab::new();
    let make = |requests: &[HostRequest]| {
        let mut hosts = lab.hosts();
        let plans: Vec<HostSpec> = requests.iter().map(|r| hosts.plan(r).unwrap()).collect();
        hosts.add_all(&plans.iter().collect::<Vec<_>>()).unwrap();
    };
    let remove = |requests: &[HostRequest]| {
        let ids: Vec<&HostId> = requests.iter().map(|r| &r.id).collect();
        lab.hosts().remove_all(&ids).unwrap();
    };
    let mut group = c.benchmark_group("hosts");
    for count in [1, 3] {
        let requests = lab.requests(count);
        group.bench_function(format!("add {count}"), |b| {
            b.iter_custom(|rounds| {
                (0..rounds)
                    .map(|_| {
                        let start = Instant::now();
                        make(&requests);
                        let took = start.elapsed();
                        remove(&requests);
                        took
                    })
                    .sum()
            });
        });
        group.bench_function(format!("remove {count}"), |b| {
            b.iter_custom(|rounds| {
                (0..rounds)
                    .map(|_| {
                        make(&requests);
                        let start = Instant::now();
                        remove(&requests);
                        start.elapsed()
                    })
                    .sum()
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = namespaces, routing, hosts
}
criterion_main!(benches);
