//! Each kind of kernel object is set, read back and deleted.

use std::net::IpAddr;

use nix::errno::Errno;
use tsim::{
    netlink::{
        BridgeOptions, LinkChange, LookupKind, LookupQuery, Netlink, NetlinkError, NewVeth,
        PortOptions, VethEnd,
        object::{
            Address, Family, Mac, Neighbour, NextHop, PolicyRule, PortRange, Route, RouteKind,
            RuleAction, Scope,
        },
        sysctl,
    },
    netns::NetnsFd,
};

use crate::support::{Bed, ifname};

const NEAR: Mac = Mac([2, 0, 0, 0, 0, 1]);
const FAR: Mac = Mac([2, 0, 0, 0, 0, 2]);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn address(text: &str) -> Address {
    Address {
        local: text.parse().unwrap(),
        peer: None,
        scope: Scope::Global,
        prefix_route: true,
    }
}

/// `near` with eth0 (10.0.0.1/24, 2001:db8::1/64), joined to eth0 of `far`, all up.
fn pair(near: &NetnsFd, far: &NetnsFd) -> Netlink {
    let mut netlink = Netlink::open(near).unwrap();
    let end = |netns, mac| VethEnd {
        netns,
        index: Some(2),
        mac: Some(mac),
        mtu: Some(1400),
        ..VethEnd::new(ifname("eth0"))
    };
    let veth = NewVeth {
        near: end(None, NEAR),
        near_up: true,
        master: None,
        far: end(Some(far), FAR),
    };
    let mut batch = netlink.batch("router near");
    batch
        .add_veth(&veth)
        .add_address(&ifname("eth0"), &address("10.0.0.1/24"))
        .add_address(&ifname("eth0"), &address("2001:db8::1/64"))
        .set_link(&ifname("lo"), &LinkChange::up());
    batch.send().unwrap();
    let mut other = Netlink::open(far).unwrap();
    let mut batch = other.batch("router far");
    batch.set_link(&ifname("eth0"), &LinkChange::up());
    batch.send().unwrap();
    netlink.await_settled().unwrap();
    netlink
}

fn beds() -> (Bed, NetnsFd, NetnsFd) {
    let bed = Bed::new();
    let (near, far) = (bed.netns("near"), bed.netns("far"));
    (bed, near, far)
}

#[test]
fn a_veth_joins_two_namespaces_in_one_request() {
    let (_bed, near, far) = beds();
    let mut here = pair(&near, &far);
    let mut there = Netlink::open(&far).unwrap();
    for (netlink, mac) in [(&mut here, NEAR), (&mut there, FAR)] {
        let link = netlink.link(&ifname("eth0")).unwrap().unwrap();
        assert_eq!((link.index, link.mtu, link.mac), (2, 1400, Some(mac)));
        assert!(link.up && link.carrier);
        assert_eq!(link.kind.as_deref(), Some("veth"));
        assert_eq!(link.peer, Some(2));
    }
    let mut batch = here.batch("router near");
    batch.delete_link(&ifname("eth0"));
    batch.delete_link(&ifname("eth0"));
    batch.send().unwrap();
    assert_eq!(there.link(&ifname("eth0")).unwrap(), None);
}

#[test]
fn a_link_made_without_index_can_be_named_in_the_same_batch() {
    let (_bed, near, far) = beds();
    let mut netlink = Netlink::open(&near).unwrap();
    let veth = NewVeth {
        near: VethEnd::new(ifname("eth7")),
        near_up: false,
        master: None,
        far: VethEnd {
            netns: Some(&far),
            ..VethEnd::new(ifname("eth0"))
        },
    };
    let mut batch = netlink.batch("router near");
    batch
        .add_veth(&veth)
        .add_address(&ifname("eth7"), &address("10.0.0.1/24"));
    batch.send().unwrap();
    assert!(
        netlink
            .addresses()
            .unwrap()
            .contains(&(ifname("eth7"), address("10.0.0.1/24")))
    );
}

#[test]
fn bridges_and_their_ports_take_their_options() {
    let (_bed, near, far) = beds();
    let mut netlink = Netlink::open(&near).unwrap();
    let port = ifname("p0");
    let veth = NewVeth {
        near: VethEnd {
            index: Some(11),
            ..VethEnd::new(port.clone())
        },
        near_up: true,
        master: Some(ifname("br0")),
        far: VethEnd {
            netns: Some(&far),
            ..VethEnd::new(ifname("eth0"))
        },
    };
    let options = PortOptions {
        learning: false,
        flood: false,
    };
    let mut batch = netlink.batch("segments");
    batch
        .add_bridge(
            &ifname("br0"),
            &BridgeOptions {
                index: Some(10),
                up: true,
                ..BridgeOptions::default()
            },
        )
        .add_veth(&veth)
        .set_port(&port, options)
        .add_forwarding(&port, FAR);
    batch.send().unwrap();
    let link = netlink.link(&port).unwrap().unwrap();
    assert_eq!(
        (link.index, link.master, link.port),
        (11, Some(10), Some(options))
    );
    assert_eq!(netlink.forwarding(&port).unwrap(), [FAR]);

    let mut batch = netlink.batch("segments");
    batch
        .delete_forwarding(&port, FAR)
        .delete_forwarding(&port, FAR)
        .set_link(
            &port,
            &LinkChange {
                name: None,
                group: Some(7),
                arp: None,
                up: Some(false),
                mtu: Some(9000),
                mac: Some(NEAR),
                master: Some(None),
                alias: Some("free text".to_owned()),
            },
        );
    batch.send().unwrap();
    let link = netlink.link(&port).unwrap().unwrap();
    assert_eq!((link.mtu, link.mac, link.master), (9000, Some(NEAR), None));
    assert_eq!(link.alias.as_deref(), Some("free text"));
    assert!(!link.up);
}

#[test]
fn addresses_are_added_listed_and_deleted() {
    let (_bed, near, far) = beds();
    let mut netlink = pair(&near, &far);
    let dev = ifname("eth0");
    let odd = [
        Address {
            prefix_route: false,
            ..address("192.0.2.1/24")
        },
        Address {
            scope: Scope::Link,
            ..address("169.254.0.1/16")
        },
        Address {
            peer: Some("10.9.9.2/32".parse().unwrap()),
            ..address("10.9.9.1/32")
        },
        Address {
            peer: Some("2001:db8:9::2/128".parse().unwrap()),
            ..address("2001:db8:9::1/128")
        },
    ];
    let mut batch = netlink.batch("router near");
    odd.iter().for_each(|a| {
        batch.add_address(&dev, a);
    });
    batch.send().unwrap();
    let list = netlink.addresses().unwrap();
    for one in &odd {
        assert!(
            list.contains(&(dev.clone(), one.clone())),
            "{one} in {list:?}"
        );
    }
    let mut batch = netlink.batch("router near");
    odd.iter().for_each(|a| {
        batch.delete_address(&dev, a);
    });
    batch.send().unwrap();
    let list = netlink.addresses().unwrap();
    assert!(
        odd.iter()
            .all(|a| !list.contains(&(dev.clone(), a.clone())))
    );
}

/// What a route looks like when the kernel lists it.
fn listed(route: &Route) -> Route {
    let v6 = route.destination.addr().is_ipv6();
    let hops = route.next_hops.iter().any(|hop| hop.via.is_some());
    let link = route.kind == RouteKind::Unicast && !hops && !v6;
    Route {
        protocol: Some(4),
        scope: Some(if link { Scope::Link } else { Scope::Global }),
        metric: route.metric.or(v6.then_some(1024)),
        ..route.clone()
    }
}

#[test]
fn routes_of_every_kind_are_added_listed_and_deleted() {
    let (_bed, near, far) = beds();
    let mut netlink = pair(&near, &far);
    let dev = ifname("eth0");
    let via = |to: &str, gateway: &str| Route::via(to.parse().unwrap(), ip(gateway), dev.clone());
    let dead = |to: &str, kind| Route::without_hops(to.parse().unwrap(), kind);
    let hop = |gateway: &str, weight| NextHop {
        via: Some(ip(gateway)),
        dev: Some(dev.clone()),
        weight,
        onlink: false,
    };
    let onlink = |mut route: Route| {
        route.next_hops[0].onlink = true;
        route
    };
    let mut routes = vec![
        via("0.0.0.0/0", "10.0.0.254"),
        via("::/0", "2001:db8::fe"),
        Route {
            table: 70_000,
            metric: Some(7),
            source: Some(ip("10.0.0.1")),
            tos: 0x10,
            mtu: Some(1300),
            ..via("10.1.0.0/16", "10.0.0.2")
        },
        onlink(via("10.2.0.0/16", "203.0.113.1")),
        onlink(via("2001:db8:2::/48", "2001:db8:ff::1")),
        via("10.3.0.0/16", "2001:db8::2"),
        Route {
            next_hops: vec![hop("10.0.0.2", 1), hop("10.0.0.3", 5)],
            ..via("10.4.0.0/16", "10.0.0.2")
        },
        Route {
            next_hops: vec![hop("2001:db8::2", 1), hop("2001:db8::3", 5)],
            ..via("2001:db8:4::/48", "2001:db8::2")
        },
        Route {
            next_hops: vec![NextHop {
                via: None,
                ..hop("10.0.0.2", 1)
            }],
            table: 100,
            ..via("10.5.0.0/16", "10.0.0.2")
        },
    ];
    for (at, kind) in [
        RouteKind::Blackhole,
        RouteKind::Unreachable,
        RouteKind::Prohibit,
        RouteKind::Throw,
    ]
    .into_iter()
    .enumerate()
    {
        routes.push(dead(&format!("10.1{at}.0.0/16"), kind));
        routes.push(dead(&format!("2001:db8:1{at}::/48"), kind));
    }
    let mut batch = netlink.batch("router near");
    routes.iter().for_each(|r| {
        batch.add_route(r);
    });
    batch.send().unwrap();
    let mut list = netlink.routes(Family::V4, None).unwrap();
    list.extend(netlink.routes(Family::V6, None).unwrap());
    for route in &routes {
        assert!(list.contains(&listed(route)), "{route} in {list:#?}");
    }
    assert_eq!(netlink.routes(Family::V4, Some(100)).unwrap().len(), 1);
    assert_eq!(netlink.routes(Family::V4, Some(101)).unwrap(), []);
    let mut batch = netlink.batch("router near");
    routes.iter().for_each(|r| {
        batch.delete_route(r);
    });
    batch.send().unwrap();
    let list = netlink.routes(Family::V4, None).unwrap();
    assert!(list.iter().all(|route| route.protocol == Some(2)));
}

#[test]
fn rules_with_every_selector_are_added_listed_and_deleted() {
    let (_bed, near, _far) = beds();
    let mut netlink = Netlink::open(&near).unwrap();
    let full = |family, from: &str, to: &str| PolicyRule {
        invert: true,
        from: Some(from.parse().unwrap()),
        to: Some(to.parse().unwrap()),
        fwmark: Some((0x10, 0xff)),
        tos: Some(0x10),
        iif: Some(ifname("eth0")),
        oif: Some(ifname("eth1")),
        ip_proto: Some(6),
        sport: Some(PortRange { first: 1, last: 9 }),
        dport: Some(PortRange {
            first: 80,
            last: 80,
        }),
        suppress_prefix_len: Some(0),
        ..PolicyRule::new(family, 100, RuleAction::Table(70_000))
    };
    for (family, rule) in [
        (Family::V4, full(Family::V4, "10.0.0.0/8", "192.0.2.1/32")),
        (
            Family::V6,
            full(Family::V6, "2001:db8::/32", "2001:db8::1/128"),
        ),
    ] {
        let mut rules = vec![rule];
        for (at, action) in [
            RuleAction::Table(100),
            RuleAction::Goto(32_766),
            RuleAction::Nop,
            RuleAction::Blackhole,
            RuleAction::Unreachable,
            RuleAction::Prohibit,
        ]
        .into_iter()
        .enumerate()
        {
            rules.push(PolicyRule::new(
                family,
                200 + u32::try_from(at).unwrap(),
                action,
            ));
        }
        let defaults = PolicyRule::kernel_defaults(family);
        assert_eq!(netlink.rules(family).unwrap(), defaults);
        let mut batch = netlink.batch("router near");
        rules.iter().for_each(|r| {
            batch.add_rule(r);
        });
        defaults.iter().for_each(|r| {
            batch.delete_rule(r);
        });
        batch.send().unwrap();
        assert_eq!(netlink.rules(family).unwrap(), rules);
        let mut batch = netlink.batch("router near");
        rules.iter().for_each(|r| {
            batch.delete_rule(r);
        });
        defaults.iter().for_each(|r| {
            batch.add_rule(r);
        });
        batch.send().unwrap();
        assert_eq!(netlink.rules(family).unwrap(), defaults);
    }
}

#[test]
fn neighbours_are_replaced_read_and_deleted() {
    let (_bed, near, far) = beds();
    let mut netlink = pair(&near, &far);
    let dev = ifname("eth0");
    for address in ["10.0.0.7", "2001:db8::7"].map(ip) {
        for mac in [NEAR, FAR] {
            let wanted = Neighbour::permanent(dev.clone(), address, mac);
            let mut batch = netlink.batch("router near");
            batch.replace_neighbour(&wanted);
            batch.send().unwrap();
            let found = netlink.neighbour(&dev, address).unwrap();
            assert_eq!(found.as_ref(), Some(&wanted));
            let list = netlink.neighbours(Family::of(address)).unwrap();
            assert!(list.contains(&wanted));
        }
        let mut batch = netlink.batch("router near");
        batch.delete_neighbour(&dev, address);
        batch.delete_neighbour(&dev, address);
        batch.send().unwrap();
        assert_eq!(netlink.neighbour(&dev, address).unwrap(), None);
    }
}

#[test]
fn every_failure_of_a_batch_is_reported_with_its_object_and_the_kernels_words() {
    let (_bed, near, far) = beds();
    let mut netlink = pair(&near, &far);
    let dev = ifname("eth0");
    let good = Route::via("10.1.0.0/16".parse().unwrap(), ip("10.0.0.2"), dev.clone());
    let lost = Route::via(
        "10.2.0.0/16".parse().unwrap(),
        ip("203.0.113.1"),
        dev.clone(),
    );
    let nowhere = Route::via(
        "10.3.0.0/16".parse().unwrap(),
        ip("10.0.0.2"),
        ifname("eth9"),
    );
    let last = Route::via("10.4.0.0/16".parse().unwrap(), ip("10.0.0.2"), dev.clone());
    let mut batch = netlink.batch("router corp10.hq-gw");
    batch
        .add_route(&good)
        .add_route(&lost)
        .add_route(&nowhere)
        .add_route(&good)
        .add_route(&last);
    let errors = batch.send().unwrap_err().0;
    assert_eq!(errors.len(), 3, "{errors:?}");
    let find = |what: &str| {
        let found = errors.iter().find(|e| e.to_string().contains(what));
        found.unwrap_or_else(|| panic!("{what} in {errors:?}"))
    };
    assert_eq!(
        find("10.2.0.0/16"),
        &NetlinkError::Refused {
            what: "to add route 10.2.0.0/16 via 203.0.113.1 dev eth0 of router corp10.hq-gw"
                .to_owned(),
            errno: Errno::ENETUNREACH,
            ext_ack: Some("Nexthop has invalid gateway".to_owned()),
        }
    );
    assert!(matches!(
        find("10.3.0.0/16"),
        NetlinkError::NoInterface { name, .. } if *name == ifname("eth9")
    ));
    assert_eq!(find("10.1.0.0/16").errno(), Some(Errno::EEXIST));
    let routes = netlink.routes(Family::V4, Some(Route::MAIN)).unwrap();
    assert!(routes.iter().any(|r| r.destination == last.destination));
}

#[test]
fn ten_thousand_failures_are_all_reported() {
    let (_bed, near, far) = beds();
    let mut netlink = pair(&near, &far);
    let mut batch = netlink.batch("router near");
    for number in 0..10_000u32 {
        let to = std::net::Ipv4Addr::from(0x0b00_0000 + (number << 8));
        let to = ipnet::Ipv4Net::new(to, 24).unwrap().into();
        batch.add_route(&Route::via(to, ip("203.0.113.1"), ifname("eth0")));
    }
    let errors = batch.send().unwrap_err().0;
    assert_eq!(errors.len(), 10_000);
    let refused = |e: &NetlinkError| matches!(e, NetlinkError::Refused { .. });
    assert!(errors.iter().all(refused));
}

#[test]
fn lookups_answer_as_the_kernel_routes() {
    let (_bed, near, far) = beds();
    let mut netlink = pair(&near, &far);
    let dev = ifname("eth0");
    sysctl::write(
        &near,
        &[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "1"),
        ],
    )
    .unwrap();
    let via = |to: &str, gateway: &str| Route::via(to.parse().unwrap(), ip(gateway), dev.clone());
    let dead = |to: &str, kind| Route::without_hops(to.parse().unwrap(), kind);
    let by_port = PolicyRule {
        ip_proto: Some(6),
        dport: Some(PortRange {
            first: 443,
            last: 443,
        }),
        ..PolicyRule::new(Family::V4, 100, RuleAction::Table(7))
    };
    let mut batch = netlink.batch("router near");
    batch
        .add_route(&via("10.1.0.0/16", "10.0.0.2"))
        .add_route(&via("2001:db8:1::/48", "2001:db8::2"))
        .add_route(&Route {
            table: 7,
            ..via("10.1.0.0/16", "10.0.0.3")
        })
        .add_rule(&by_port);
    for (at, kind) in [
        RouteKind::Blackhole,
        RouteKind::Unreachable,
        RouteKind::Prohibit,
    ]
    .into_iter()
    .enumerate()
    {
        batch.add_route(&dead(&format!("10.1{at}.0.0/16"), kind));
        batch.add_route(&dead(&format!("2001:db8:1{at}::/48"), kind));
    }
    batch.send().unwrap();

    for (to, kind, gateway) in [
        ("10.1.2.3", LookupKind::Unicast, Some("10.0.0.2")),
        ("2001:db8:1::7", LookupKind::Unicast, Some("2001:db8::2")),
        ("10.0.0.9", LookupKind::Unicast, None),
        ("10.0.0.1", LookupKind::Local, None),
        ("2001:db8::1", LookupKind::Local, None),
        ("10.0.0.255", LookupKind::Broadcast, None),
        ("10.10.1.1", LookupKind::Blackhole, None),
        ("10.11.1.1", LookupKind::Unreachable, None),
        ("10.12.1.1", LookupKind::Prohibit, None),
        ("2001:db8:10::1", LookupKind::Blackhole, None),
        ("2001:db8:11::1", LookupKind::Unreachable, None),
        ("2001:db8:12::1", LookupKind::Prohibit, None),
        ("192.0.2.1", LookupKind::NoRoute, None),
        ("2001:dead::1", LookupKind::NoRoute, None),
    ] {
        let answer = netlink.lookup_one(&LookupQuery::to(ip(to))).unwrap();
        assert_eq!((answer.kind, answer.via), (kind, gateway.map(ip)), "{to}");
        let up = kind == LookupKind::Unicast;
        assert_eq!(answer.dev.as_ref() == Some(&dev), up || to == "10.0.0.255");
    }

    let forwarded = |from: &str, to: &str| LookupQuery::forwarded(ip(from), ip(to), dev.clone());
    let port = |port| LookupQuery {
        ip_proto: Some(6),
        dport: Some(port),
        ..forwarded("10.0.0.9", "10.1.2.3")
    };
    let queries = [
        port(443),
        port(80),
        forwarded("10.0.0.9", "10.12.1.1"),
        forwarded("10.0.0.9", "192.0.2.1"),
        forwarded("198.51.100.1", "10.1.2.3"),
        forwarded("10.0.0.9", "10.10.1.1"),
        LookupQuery {
            fib_match: true,
            ..LookupQuery::to(ip("10.1.2.3"))
        },
    ];
    let answers: Vec<_> = netlink.lookup(&queries).unwrap();
    let kinds: Vec<_> = answers.iter().map(|a| a.as_ref().unwrap().kind).collect();
    assert_eq!(
        kinds,
        [
            LookupKind::Unicast,
            LookupKind::Unicast,
            LookupKind::Prohibit,
            LookupKind::NoRoute,
            LookupKind::Refused,
            LookupKind::Refused,
            LookupKind::Unicast,
        ]
    );
    let one = |at: usize| answers[at].as_ref().unwrap();
    assert_eq!((one(0).table, one(0).via), (7, Some(ip("10.0.0.3"))));
    assert_eq!((one(1).table, one(1).via), (254, Some(ip("10.0.0.2"))));
    assert_eq!(one(6).matched, Some("10.1.0.0/16".parse().unwrap()));
    // The kernel answers for TCP, UDP and ICMP only; it is not told of others.
    let odd = LookupQuery {
        ip_proto: Some(200),
        ..LookupQuery::to(ip("10.1.2.3"))
    };
    let odd = netlink.lookup_one(&odd).unwrap();
    assert_eq!((odd.table, odd.via), (254, Some(ip("10.0.0.2"))));
}

#[test]
fn sysctls_are_those_of_the_namespace() {
    let (_bed, near, far) = beds();
    let path = "net/ipv4/ip_forward";
    sysctl::write(&near, &[(path, "1")]).unwrap();
    assert_eq!(sysctl::read(&near, &[path]).unwrap(), ["1"]);
    sysctl::write(&far, &[(path, "0")]).unwrap();
    assert_eq!(sysctl::read(&near, &[path]).unwrap(), ["1"]);
    let errors = sysctl::write(&near, &[("net/ipv4/none", "1"), ("kernel/sysrq", "1")]);
    assert_eq!(errors.unwrap_err().len(), 2);
    // It can only be read. What it is already needs no writing.
    let read_only = "net/ipv4/conf/all/mc_forwarding";
    sysctl::write(&near, &[(read_only, "0")]).unwrap();
    assert!(sysctl::write(&near, &[(read_only, "1")]).is_err());
}

#[test]
fn what_the_kernel_does_later_is_awaited_and_not_polled_for() {
    let (_bed, near, far) = beds();
    let mut netlink = Netlink::open(&near).unwrap();
    let veth = NewVeth {
        near: VethEnd::new(ifname("p0")),
        near_up: true,
        master: Some(ifname("br0")),
        far: VethEnd {
            netns: Some(&far),
            ..VethEnd::new(ifname("eth0"))
        },
    };
    let up = BridgeOptions {
        up: true,
        ..BridgeOptions::default()
    };
    let mut batch = netlink.batch("segments");
    batch.add_bridge(&ifname("br0"), &up).add_veth(&veth);
    batch.send().unwrap();
    let mut other = Netlink::open(&far).unwrap();
    for number in 0..50 {
        let address = address(&format!("2001:db8::{number:x}/64"));
        let mut batch = other.batch("host");
        batch
            .set_link(&ifname("eth0"), &LinkChange::up())
            .add_address(&ifname("eth0"), &address);
        batch.send().unwrap();
        netlink.await_forwarding(&[&ifname("p0")]).unwrap();
        let port = netlink.link(&ifname("p0")).unwrap().unwrap();
        assert_eq!((port.running, port.forwarding), (true, Some(true)));
        other.await_settled().unwrap();
        let way = other.lookup_one(&LookupQuery::to(address.local.addr()));
        assert_eq!(way.unwrap().kind, LookupKind::Local);
        let mut batch = other.batch("host");
        let down = LinkChange {
            up: Some(false),
            ..LinkChange::default()
        };
        batch.set_link(&ifname("eth0"), &down);
        batch.send().unwrap();
    }
}
