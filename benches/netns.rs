//! What the kernel side costs: namespaces, links, routes, look-ups. Needs root.
//!
//! `cargo bench --bench netns`
#![allow(clippy::unwrap_used, missing_docs)]

use std::{net::Ipv4Addr, process, thread, time::Duration};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ipnet::Ipv4Net;
use tsim::{
    model::{IfName, NetnsName},
    netlink::{
        LinkChange, LookupQuery, Netlink, NewVeth, VethEnd,
        object::{Address, Route, Scope},
        sysctl,
    },
    netns::{NetnsDir, NetnsFd},
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
    let address = Address {
        local: "10.0.0.1/24".parse().unwrap(),
        peer: None,
        scope: Scope::Global,
        prefix_route: true,
    };
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

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = namespaces, routing
}
criterion_main!(benches);
