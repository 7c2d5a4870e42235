//! A copy of a router is like the router in all that a packet can meet, and the router never
//! notices.

use std::{net::UdpSocket, time::Instant};

use tsim::{
    config::Config,
    firewall::nft::{NftSocket, transcript::Transcript},
    lab::copy::RouterCopy,
    model::{NetnsName, RouterName},
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

/// Tables with all that messages take over, and rules of iptables in them.
const OF_ALL_KINDS: &str = r#"
table inet every {
    comment "of all kinds"
    counter seen { comment "named" }
    quota some { over 25 mbytes }
    limit slow { rate 400/minute }
    ct helper ftp { type "ftp" protocol tcp; }
    set plain { type ipv4_addr; elements = { 192.0.2.1 comment "one", 192.0.2.7 }; }
    set ranges { type ipv4_addr; flags interval; elements = { 0.0.0.0/8, 10.0.0.0/8, 11.0.0.0-11.0.0.9, 255.255.255.0/24 }; }
    set pairs { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/8 . 22-23, 192.0.2.1 . 443 }; }
    set known { type ipv4_addr; size 100; flags dynamic,timeout; timeout 1h; elements = { 192.0.2.3 } }
    map to { type inet_service : ipv4_addr . inet_service; elements = { 80 : 192.0.2.8 . 8080 }; }
    map ways { type inet_service : verdict; flags interval; elements = { 1-21 : drop, 22 : jump more, 8000-9000 : goto more }; }
    map counts { type ipv4_addr : counter; elements = { 192.0.2.1 : "seen" }; }
    chain more { counter name "seen" limit name "slow" ct state { established, related } accept; return; }
    chain in {
        type filter hook forward priority filter; policy drop;
        ip saddr @ranges ip daddr . tcp dport @pairs accept comment "both"
        tcp dport vmap @ways
        tcp flags & (syn|ack) == syn update @known { ip saddr limit rate 3/second }
        iifname { "a*", "dst" } meta mark set numgen inc mod 3 map { 0 : 1, 1 : 2, 2 : 3 }
        ip protocol tcp ct helper set "ftp"
        quota name "some" drop
        counter name ip saddr map @counts
        log prefix "left " level info flags all
        reject with icmpx type admin-prohibited
    }
    chain nat { type nat hook prerouting priority dstnat; dnat ip addr . port to tcp dport map @to; }
}
table netdev n {
    chain c {
        type filter hook ingress device "dst" priority 0;
        ip ttl 1 drop
    }
}
table bridge b {
    chain c {
        type filter hook forward priority 0;
        ether type arp accept
    }
}
table ip6 v6 {
    chain c {
        type route hook output priority mangle;
        ip6 daddr fd00::/8 meta mark set 0x7
    }
}
"#;

const OF_IPTABLES: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [7:300]\n:OUTPUT ACCEPT [0:0]\n:mine - [0:0]\n\
    -A FORWARD -p tcp -m multiport --dports 22,80:90 -m conntrack --ctstate NEW -m comment --comment \"a b\" -j mine\n\
    -A FORWARD ! -p tcp -m length --length 100:200 -m limit --limit 3/sec -j RETURN\n\
    -A FORWARD -p sctp -m sctp --dport 5 -m statistic --mode nth --every 3 --packet 1 -j ACCEPT\n\
    -A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu\n\
    -A mine -p tcp -m recent --name r --set -j REJECT --reject-with tcp-reset\n\
    -A mine -p udp -m string --string abc --algo bm -m hashlimit --hashlimit-upto 5/sec --hashlimit-name h -j LOG\n\
    COMMIT\n*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
    -A PREROUTING -p tcp -m tcp --dport 8080 -j DNAT --to-destination 192.0.2.1-192.0.2.4:80 --random\n\
    -A POSTROUTING -o dst -j MASQUERADE\nCOMMIT\n";

/// Without what nft(8) counts down.
fn without_times(lines: Vec<String>) -> Vec<String> {
    let cut = |line: String| {
        line.split(" expires ")
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    lines.into_iter().map(cut).collect()
}

#[test]
fn tables_with_all_that_there_is_are_taken_over() {
    let lab = TestLab::up("small3");
    let original = router(&lab, "r3");
    let load = |tool: &str, args: &[&str], text: &str| {
        let ran = original.enter(|| tools().run(tool, args, text.as_bytes()));
        ran.unwrap().unwrap();
    };
    load("nft", &["-f", "-"], OF_ALL_KINDS);
    load("iptables-nft-restore", &[], OF_IPTABLES);
    let told = original.enter(|| {
        let mut socket = NftSocket::open_here().unwrap();
        Transcript::read(&mut socket).unwrap()
    });
    let told = told.unwrap().expect("can be told");
    let copy = RouterCopy::of(&original, &tools()).unwrap();
    assert_eq!(copy.differences(), Vec::<String>::new());
    let all = |netns| without_times(printed(netns, "nft", &["-s", "list", "ruleset"]));
    assert_eq!(all(&original), all(copy.netns()));
    let saved = |netns| without_counts(printed(netns, "iptables-nft-save", &[]));
    assert_eq!(saved(&original), saved(copy.netns()));
    // The copy is what was told, not what tools made of it.
    let empty = NetnsFd::unnamed(NetnsName::new("empty").unwrap()).unwrap();
    let made = empty.enter(|| {
        tools().run("ip", &["link", "add", "dst", "type", "veth"], &[])?;
        Ok::<_, tsim::netns::tool::ToolError>(NftSocket::open_here().map(|mut s| told.make(&mut s)))
    });
    assert!(made.unwrap().unwrap().unwrap().unwrap());
}

#[test]
fn rules_that_ask_for_sets_by_number_are_copied_by_tools() {
    let original = NetnsFd::unnamed(NetnsName::new("original").unwrap()).unwrap();
    let run = |tool: &str, args: &[&str], text: &str| {
        let ran = original.enter(|| tools().run(tool, args, text.as_bytes()));
        ran.unwrap().unwrap();
    };
    // The second set's number is 1 here, and 0 in a copy.
    run(
        "ipset",
        &["restore"],
        "create gone hash:ip\ncreate kept hash:ip\nadd kept 192.0.2.1\ndestroy gone\n",
    );
    run(
        "iptables-nft-restore",
        &[],
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A FORWARD -m set --match-set kept src -j DROP\nCOMMIT\n",
    );
    let copy = RouterCopy::of(&original, &tools()).unwrap();
    assert_eq!(copy.differences(), Vec::<String>::new());
    assert_alike(&original, copy.netns());
}
