//! A copy of a router is like the router in all that a packet can meet, and the router never
//! notices.

use std::{net::UdpSocket, time::Instant};

use tsim::{
    config::Config,
    lab::copy::RouterCopy,
    model::RouterName,
    netlink::{Netlink, object::Family, sysctl},
    netns::{NetnsFd, tool::Tools},
};

use crate::{quick::TestLab, support::ifname};

fn tools() -> Tools {
    Tools::new(Config::default().tool_dirs)
}

fn router(lab: &TestLab, name: &str) -> NetnsFd {
    lab.lab
        .router_netns(&RouterName::new(name).unwrap())
        .unwrap()
}

/// What a tool prints in a namespace, without counters and other numbers of packets.
fn printed(netns: &NetnsFd, tool: &str, args: &[&str]) -> Vec<String> {
    let ran = netns
        .enter(|| tools().run(tool, args, &[]))
        .unwrap()
        .unwrap();
    let text = String::from_utf8(ran.stdout).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.trim_end().to_owned()).collect()
}

/// Sets in any order, as the kernel keeps their elements.
fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

fn without_counts(lines: Vec<String>) -> Vec<String> {
    let word = |word: &&str| !word.starts_with('[');
    let cut = |line: String| line.split(' ').filter(word).collect::<Vec<_>>().join(" ");
    lines.into_iter().map(cut).collect()
}

fn assert_alike(original: &NetnsFd, copy: &NetnsFd) {
    let nft = |netns| printed(netns, "nft", &["-s", "list", "ruleset"]);
    assert_eq!(sorted(nft(original)), sorted(nft(copy)));
    for save in ["iptables-nft-save", "ip6tables-nft-save"] {
        let saved = |netns| without_counts(printed(netns, save, &[]));
        assert_eq!(sorted(saved(original)), sorted(saved(copy)), "{save}");
    }
    let sets = |netns| sorted(printed(netns, "ipset", &["save"]));
    assert_eq!(sets(original), sets(copy));
    let (mut a, mut b) = (
        Netlink::open(original).unwrap(),
        Netlink::open(copy).unwrap(),
    );
    for family in [Family::V4, Family::V6] {
        assert_eq!(a.rules(family).unwrap(), b.rules(family).unwrap());
        let routes = |netlink: &mut Netlink| {
            let all = netlink.routes(family, None).unwrap();
            sorted(all.iter().map(|route| format!("{route:?}")).collect())
        };
        assert_eq!(routes(&mut a), routes(&mut b));
    }
    assert_eq!(a.addresses().unwrap(), b.addresses().unwrap());
    let links = |netlink: &mut Netlink| {
        let all = netlink.links().unwrap().into_iter();
        all.map(|l| (l.index, l.name, l.mac, l.mtu, l.up))
            .collect::<Vec<_>>()
    };
    assert_eq!(links(&mut a), links(&mut b));
}

fn assert_settings_alike(original: &NetnsFd, copy: &NetnsFd) {
    let keys = [
        "net.ipv4.ip_forward",
        "net.ipv4.conf.all.rp_filter",
        "net.ipv4.conf.default.rp_filter",
        "net.ipv6.conf.all.forwarding",
        "net.ipv4.fib_multipath_hash_policy",
    ];
    let read = |netns| printed(netns, "sysctl", &keys);
    assert_eq!(read(original), read(copy));
}

#[test]
fn copies_of_routers_from_real_facts_are_like_them() {
    let lab = TestLab::up("corp10");
    let names: Vec<_> = lab.lab.routers.iter().map(|r| r.name.to_string()).collect();
    for name in names {
        let original = router(&lab, &name);
        let before = printed(&original, "nft", &["list", "ruleset"]);
        let start = Instant::now();
        let copy = RouterCopy::of(&original, &tools()).unwrap();
        eprintln!("{name}: copied in {:?}", start.elapsed());
        assert_eq!(copy.differences(), Vec::<String>::new(), "{name}");
        assert_alike(&original, copy.netns());
        assert_settings_alike(&original, copy.netns());
        assert_eq!(printed(&original, "nft", &["list", "ruleset"]), before);
    }
}

#[test]
fn a_copy_of_both_families_takes_packets_by_the_interface_asked_for() {
    let lab = TestLab::up("small3");
    let original = router(&lab, "r3");
    let copy = RouterCopy::of(&original, &tools()).unwrap();
    assert_eq!(copy.differences(), Vec::<String>::new());
    assert_alike(&original, copy.netns());
    let outside = copy.facing(&ifname("dst")).unwrap().unwrap();
    let run = |args: &[&str]| printed(copy.netns(), "nft", args);
    run(&["add", "table", "inet", "seen"]);
    let chain = "{ type filter hook prerouting priority -400; }";
    run(&["add", "chain", "inet", "seen", "in", chain]);
    for (family, to) in [("ip", "10.81.3.1"), ("ip6", "2001:db8:81:3::1")] {
        let rule = format!(
            "add rule inet seen in iifname \"dst\" {family} daddr {to} udp dport 9 counter"
        );
        run(&rule.split(' ').collect::<Vec<_>>());
        let send = || {
            let any = if family == "ip" {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let socket = UdpSocket::bind(any)?;
            let to: std::net::IpAddr = to.parse().unwrap();
            socket.send_to(b"x", (to, 9))
        };
        // An IPv4 address for the socket to send from.
        let _ = outside
            .enter(|| tools().run("ip", &["address", "add", "192.0.2.2/32", "dev", "lo"], &[]));
        outside.enter(send).unwrap().unwrap();
    }
    let seen = run(&["list", "table", "inet", "seen"]).join("\n");
    assert_eq!(seen.matches("counter packets 1 ").count(), 2, "{seen}");
    assert!(copy.facing(&ifname("nothere")).unwrap().is_none());
}

#[test]
fn a_route_with_two_next_hops_can_be_cut_to_one() {
    let lab = TestLab::up("reports/equal-cost-two-uplinks");
    let original = router(&lab, "gw");
    let default = |netns: &NetnsFd| {
        let all = Netlink::open(netns)
            .unwrap()
            .routes(Family::V4, Some(254))
            .unwrap();
        all.into_iter()
            .find(|r| r.destination.prefix_len() == 0)
            .unwrap()
    };
    let both = default(&original);
    assert_eq!(both.next_hops.len(), 2);
    for hop in &both.next_hops {
        let copy = RouterCopy::of(&original, &tools()).unwrap();
        copy.cut(&both, hop).unwrap();
        let left = default(copy.netns()).next_hops;
        assert_eq!(left.iter().map(|h| h.via).collect::<Vec<_>>(), [hop.via]);
    }
    assert_eq!(default(&original), both);
}

/// Every second port, which is more than any page holds.
fn many_ports() -> String {
    let ports: Vec<String> = (1..=20_000).map(|n| (2 * n + 1).to_string()).collect();
    ports.join(",")
}

#[test]
fn settings_of_any_length_are_copied_whole() {
    let lab = TestLab::up("small3");
    let original = router(&lab, "r3");
    let few = (40_000..40_020).step_by(2).map(|port| port.to_string());
    let few = few.collect::<Vec<_>>().join(",");
    for ports in [few, many_ports()] {
        let file = "/proc/sys/net/ipv4/ip_local_reserved_ports";
        let say = || std::fs::write(file, &ports);
        original.enter(say).unwrap().unwrap();
        let copy = RouterCopy::of(&original, &tools()).unwrap();
        assert_eq!(copy.differences(), Vec::<String>::new());
        let read = |netns: &NetnsFd| {
            let key = ["net/ipv4/ip_local_reserved_ports"];
            sysctl::read(netns, &key).unwrap().remove(0)
        };
        assert_eq!(read(&original), ports);
        assert_eq!(read(copy.netns()), ports);
    }
}
