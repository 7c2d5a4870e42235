//! What joins interfaces beside their subnets.

use super::*;
use crate::lab::{
    facts::{self, RouterFacts},
    links::Links,
    trace::{End, Entry, Onward, Wiring},
};

fn section(name: &str, body: &str) -> String {
    format!(
        "=== TSIM_SECTION_START:{name} ===\n---\n{body}\nEXIT_CODE: 0\n=== TSIM_SECTION_END:{name} ===\n"
    )
}

/// A router from interfaces (`NAME FLAGS MTU…` of the head line, then addresses), routes, and other
/// sections.
fn router(name: &str, interfaces: &str, routes: &str, more: &[(&str, &str)]) -> RouterFacts {
    let mut text = section("interfaces", interfaces);
    text += &section("routing_table", routes);
    if !more.iter().any(|(name, _)| *name == "iptables_save") {
        text += &section("iptables_save", "*filter\n:FORWARD ACCEPT\nCOMMIT");
    }
    for (name, body) in more {
        text += &section(name, body);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("{name}.txt"));
    std::fs::write(&path, text).unwrap();
    facts::load_file(&path).unwrap()
}

/// A head line of `ip addr show` and the addresses of the interface.
fn shown(name: &str, flags: &str, link: &str, addresses: &[&str]) -> String {
    let mut text = format!("7: {name}: <{flags},UP,LOWER_UP> mtu 1400\n    {link}\n");
    for address in addresses {
        let family = if address.contains(':') {
            "inet6"
        } else {
            "inet"
        };
        let scope = if address.starts_with("fe80") {
            "link"
        } else {
            "global"
        };
        text += &format!("    {family} {address} scope {scope} {name}\n");
    }
    text
}

fn tunnel(name: &str, addresses: &[&str]) -> String {
    shown(name, "POINTOPOINT,NOARP", "link/none", addresses)
}

fn port(name: &str, mac: u8, addresses: &[&str]) -> String {
    let link = format!("link/ether 52:54:00:00:00:{mac:02x} brd ff:ff:ff:ff:ff:ff");
    shown(name, "BROADCAST", &link, addresses)
}

/// The segments with more than one end, as `router:interface` each.
fn joined(topology: &Topology) -> Vec<String> {
    let ends = |segment: &Segment| {
        let members = segment.members.iter();
        let names: Vec<String> = members.map(|(r, i)| format!("{r}:{i}")).collect();
        names.join(" ")
    };
    let several = topology.segments.iter().filter(|s| s.members.len() > 1);
    several.map(ends).collect()
}

fn notices(topology: &Topology) -> Vec<&str> {
    let alone = topology.warnings.iter().map(|w| w.message.as_str());
    alone
        .filter(|message| message.contains("stands alone"))
        .collect()
}

#[test]
fn ends_whose_routes_lead_to_each_other_are_one_tunnel() {
    let of =
        |name: &str, own: &str, routes: &str| router(name, &tunnel("wg0", &[own]), routes, &[]);
    // /32 ends, as wg-quick makes them.
    let a = of("a", "10.7.0.1/32", "10.7.0.2 dev wg0 scope link");
    let b = of("b", "10.7.0.2/32", "10.7.0.0/24 dev wg0 scope link");
    assert_eq!(joined(&build(vec![a.clone(), b])), ["a:wg0 b:wg0"]);
    // One of them leads elsewhere; a default route leads anywhere.
    for routes in [
        "10.8.0.0/24 dev wg0 scope link",
        "default dev wg0 scope link",
    ] {
        let b = of("b", "10.7.0.2/32", routes);
        assert_eq!(
            joined(&build(vec![a.clone(), b])),
            Vec::<String>::new(),
            "{routes}"
        );
    }
    // Pairs of four addresses, OpenVPN.
    let server = of(
        "s",
        "10.8.0.1 peer 10.8.0.2/32",
        "10.8.0.0/24 via 10.8.0.2 dev wg0",
    );
    let client = of(
        "c",
        "10.8.0.6 peer 10.8.0.5/32",
        "10.8.0.1 via 10.8.0.5 dev wg0",
    );
    assert_eq!(joined(&build(vec![client, server])), ["c:wg0 s:wg0"]);
    // One side names its peer, the other does not.
    let server = of("s", "100.64.0.1 peer 100.64.0.9/32", "");
    let client = of("c", "100.64.0.9/32", "default dev wg0 scope link");
    assert_eq!(joined(&build(vec![client, server])), ["c:wg0 s:wg0"]);
}

#[test]
fn outer_addresses_and_keys_join_tunnels_without_addresses_of_their_own() {
    let gre = |name: &str, outer: &str, key: &str| {
        let interfaces = shown(
            "gre1@NONE",
            "POINTOPOINT,NOARP",
            &format!("link/gre {outer}"),
            &[],
        );
        let (local, remote) = outer.split_once(" peer ").unwrap();
        let details = format!("{interfaces}    gre remote {remote} local {local} ttl 255{key}");
        router(name, &interfaces, "", &[("links", &details)])
    };
    let a = gre("a", "192.0.2.1 peer 198.51.100.1", " key 5");
    let b = gre("b", "198.51.100.1 peer 192.0.2.1", " key 0.0.0.5");
    let c = gre("c", "198.51.100.1 peer 192.0.2.1", " key 6");
    assert_eq!(joined(&build(vec![a.clone(), b])), ["a:gre1 b:gre1"]);
    assert_eq!(joined(&build(vec![a, c])), Vec::<String>::new());
    // Without `ip -d link` there are the addresses in `ip addr`.
    let plain = |name: &str, outer: &str| {
        router(
            name,
            &shown("gre1", "POINTOPOINT", &format!("link/gre {outer}"), &[]),
            "",
            &[],
        )
    };
    let a = plain("a", "192.0.2.1 peer 198.51.100.1");
    let b = plain("b", "198.51.100.1 peer 192.0.2.1");
    assert_eq!(joined(&build(vec![a, b])), ["a:gre1 b:gre1"]);
}

fn wireguard(name: &str, own: &str, peers: &[(&str, &str)]) -> RouterFacts {
    let mut shown = format!(
        "interface: wg0\n  public key: {name}=\n  private key: (hidden)\n  listening port: 51820\n"
    );
    for (peer, allowed) in peers {
        shown += &format!(
            "\npeer: {peer}=\n  endpoint: 192.0.2.9:51820\n  allowed ips: {allowed}\n  \
             latest handshake: 1 minute, 5 seconds ago\n"
        );
    }
    let address = format!("{own}/24");
    router(
        name,
        &tunnel("wg0", &[&address]),
        "",
        &[("wireguard", &shown)],
    )
}

#[test]
fn wireguard_ends_are_joined_by_their_keys_and_allowed_addresses_choose_the_peer() {
    let hub = wireguard(
        "hub",
        "10.7.0.1",
        &[
            ("b", "10.7.0.2/32, 10.2.0.0/16"),
            ("c", "10.7.0.3/32, 10.2.3.0/24"),
            ("laptop", "10.7.0.50/32"),
            ("office", "10.9.0.0/16"),
        ],
    );
    let b = wireguard("b", "10.7.0.2", &[("hub", "10.7.0.0/24, 10.1.0.0/16")]);
    let c = wireguard("c", "10.7.0.3", &[("hub", "10.7.0.0/24")]);
    let stranger = wireguard("d", "10.7.0.4", &[("nobody", "10.7.0.0/24")]);
    let topology = build(vec![b, c, stranger, hub]);
    assert_eq!(joined(&topology), ["b:wg0 c:wg0 hub:wg0"]);
    let wiring = Wiring::from(&topology);
    let hub = "hub".parse().unwrap();
    let wg0 = "wg0".parse().unwrap();
    let to = |destination: &str| {
        let destination = destination.parse().unwrap();
        wiring.onward(&hub, &wg0, destination, destination)
    };
    let at = |router: &str| Entry {
        router: router.parse().unwrap(),
        iface_in: Some("wg0".parse().unwrap()),
    };
    assert_eq!(to("10.2.1.9"), Onward::Routers(vec![at("b")]));
    assert_eq!(
        to("10.2.3.9"),
        Onward::Routers(vec![at("c")]),
        "the longest prefix"
    );
    assert_eq!(to("10.3.0.1"), Onward::End(End::NoPeer));
    assert!(matches!(
        to("10.7.0.50"),
        Onward::End(End::Delivered { .. })
    ));
    assert!(matches!(to("10.9.0.1"), Onward::End(End::Leaves { .. })));
    let takes =
        |router: &str, source: &str| wiring.takes(&hub, &wg0, &at(router), source.parse().unwrap());
    assert!(takes("b", "10.1.0.9") && !takes("c", "10.1.0.9"));
}

#[test]
fn link_local_next_hops_join_ends_that_are_each_others_and_nobody_elses() {
    let leaf = |name: &str, mac: u8, own: &str, next: &str| {
        let routes =
            format!("10.{mac}.0.0/16 via inet6 {next} dev swp1 proto bgp metric 20 onlink");
        router(name, &port("swp1", mac, &[own]), &routes, &[])
    };
    let a = leaf("a", 1, "fe80::1/64", "fe80::2");
    let b = leaf("b", 2, "fe80::2/64", "fe80::1");
    assert_eq!(
        joined(&build(vec![a.clone(), b.clone()])),
        ["a:swp1 b:swp1"]
    );
    // A third that could be the second one as well: nothing tells them apart.
    let c = leaf("c", 3, "fe80::2/64", "fe80::1");
    assert_eq!(
        joined(&build(vec![a.clone(), b, c.clone()])),
        Vec::<String>::new()
    );
    // Who was heard on the link tells.
    let heard = "fe80::2 dev swp1 lladdr 52:54:00:00:00:03 router REACHABLE";
    let routes = "10.2.0.0/16 via inet6 fe80::2 dev swp1 onlink";
    let a = router(
        "a",
        &port("swp1", 1, &["fe80::1/64"]),
        routes,
        &[("neighbours", heard)],
    );
    let b = router("b", &port("swp1", 2, &["fe80::2/64"]), "", &[]);
    assert_eq!(joined(&build(vec![a, b, c])), ["a:swp1 c:swp1"]);
    // An address that is made of a hardware address is nobody else's.
    let next = "fe80::5054:ff:fe00:2";
    let a = leaf("a", 1, "fe80::5054:ff:fe00:1/64", next);
    let b = router("b", &port("swp1", 2, &["fe80::5054:ff:fe00:2/64"]), "", &[]);
    assert_eq!(joined(&build(vec![a, b])), ["a:swp1 b:swp1"]);
}

#[test]
fn an_address_of_whole_length_is_where_its_gateways_subnet_has_it() {
    let gateway = router("w", &port("eth0", 1, &["10.0.0.1/24"]), "", &[]);
    let host = |name: &str, own: &str, via: &str| {
        let ports = port("eth0", 2, &[own]) + &port("vmbr0", 3, &[own]);
        let routes = format!("{via} dev eth0 scope link\ndefault via {via} dev eth0 onlink");
        router(name, &ports, &routes, &[])
    };
    let h = |via: &str| host("h", "10.0.0.5/32", via);
    let with = |more: Vec<RouterFacts>| joined(&build([vec![gateway.clone()], more].concat()));
    assert_eq!(with(vec![h("10.0.0.1")]), ["w:eth0 h:eth0"]);
    // The gateway is another, or the address somebody else's as well.
    assert_eq!(with(vec![h("10.0.0.2")]), [""; 0]);
    let other = host("x", "10.0.0.5/32", "10.0.0.9");
    assert_eq!(with(vec![h("10.0.0.1"), other]), [""; 0]);
    let outside = host("h", "10.7.0.5/32", "10.0.0.1");
    assert_eq!(with(vec![outside]), [""; 0]);
}

#[test]
fn a_borrowed_address_puts_a_tunnel_on_no_subnet() {
    let end = |name: &str, own: u8, route: &str| {
        let lan = port("eth0", own, &[&format!("10.{own}.0.1/24")]);
        let tunnel = tunnel("tun0", &[&format!("10.{own}.0.1/32")]);
        router(name, &(lan + &tunnel), route, &[])
    };
    let there = "10.2.0.0/24 dev tun0 scope link";
    let back = "10.1.0.0/24 dev tun0 scope link";
    let both = build(vec![end("a", 1, there), end("b", 2, back)]);
    assert_eq!(joined(&both), ["a:tun0 b:tun0"], "each leads to the other");
    let one = build(vec![end("a", 1, there), end("b", 2, "")]);
    assert_eq!(joined(&one), [""; 0], "nothing says that b's is its end");
}

/// As lldpd(8) of Debian is heard where nobody told it otherwise: by the hardware address, and a
/// description that is the interface's name or another.
#[test]
fn lldpd_says_hardware_addresses_and_descriptions_of_several_lines() {
    let heard = |descr: &str| {
        format!(
            "lldp.swp1.via=LLDP\nlldp.swp1.rid=1\nlldp.swp1.chassis.mac=52:54:00:00:00:02\n\
             lldp.swp1.chassis.name=b.example.net\nlldp.swp1.chassis.descr=Some system\nof two \
             lines = long\nlldp.swp1.chassis.mgmt-ip=10.0.0.2\nlldp.swp1.port.mac=52:54:00:00:00:03\n\
             lldp.swp1.port.descr={descr}\nlldp.swp1.port.ttl=120"
        )
    };
    let a = |descr: &str| {
        let lldp = heard(descr);
        router("a", &port("swp1", 1, &[]), "", &[("lldp", &lldp)])
    };
    let plain = port("eth2", 2, &[]) + &port("eth3", 3, &[]);
    let vlan = port("eth3.7@eth3", 3, &[]) + "    vlan protocol 802.1Q id 7 <REORDER_HDR>\n";
    let bonded = port("eth2", 3, &[]).replace("mtu 1400", "mtu 1400 master bond0")
        + &port("eth3", 3, &[]).replace("mtu 1400", "mtu 1400 master bond0")
        + &port("bond0", 3, &[])
        + "    bond mode active-backup\n";
    for (ports, descr, ends) in [
        (plain.clone() + &vlan, "eth3", "a:swp1 b:eth3"),
        (plain.clone() + &vlan, "uplink", "a:swp1 b:eth3"),
        (plain, "eth2", "a:swp1 b:eth3"),
        (bonded, "eth2", "a:swp1 b:bond0"),
    ] {
        let topology = build(vec![a(descr), router("b", &ports, "", &[])]);
        assert_eq!(joined(&topology), [ends], "{descr}");
        let strange = topology
            .warnings
            .iter()
            .filter(|w| w.message.contains("not read"));
        assert_eq!(strange.count(), 0, "{:?}", topology.warnings);
    }
}

#[test]
fn a_team_is_one_link_with_its_ports() {
    let slave = |name: &str| {
        port(name, 1, &[]).replace("mtu 1400", "mtu 1400 master team0") + "    team_slave\n"
    };
    let a = |more: &[(&str, &str)], own: &[&str]| {
        let ports = slave("eth1") + &slave("eth2") + &port("team0", 1, own) + "    team\n";
        router("a", &ports, "", more)
    };
    let b = |own: &[&str]| router("b", &port("eth9", 2, own), "", &[]);
    let by_subnet = build(vec![a(&[], &["10.0.0.1/24"]), b(&["10.0.0.2/24"])]);
    assert_eq!(joined(&by_subnet), ["a:team0 b:eth9"]);
    let lldp = "lldp.eth2.chassis.name=b\nlldp.eth2.port.ifname=eth9";
    let by_lldp = build(vec![a(&[("lldp", lldp)], &[]), b(&[])]);
    assert_eq!(joined(&by_lldp), ["a:team0 b:eth9"]);
    let heard = "10.0.0.2 dev team0 lladdr 52:54:00:00:00:02 REACHABLE";
    let by_neighbours = build(vec![a(&[("neighbours", heard)], &[]), b(&[])]);
    assert_eq!(joined(&by_neighbours), ["a:team0 b:eth9"]);
}

#[test]
fn lldp_and_links_toml_join_what_they_name_and_a_bridge_speaks_for_its_ports() {
    let lldp =
        "lldp.swp1.via=LLDP\nlldp.swp1.chassis.name=b.example.net\nlldp.swp1.port.ifname=eth2";
    let a = || router("a", &port("swp1", 1, &[]), "", &[("lldp", lldp)]);
    let ports = port("br0", 2, &["10.0.0.1/24"])
        + &port("eth2", 2, &[]).replace("mtu 1400", "mtu 1400 master br0 state UP");
    let b = || router("b", &ports, "", &[]);
    assert_eq!(joined(&build(vec![a(), b()])), ["a:swp1 b:br0"]);

    let a = || router("a", &port("swp1", 1, &["10.0.0.9/24"]), "", &[]);
    let dir = tempfile::tempdir().unwrap();
    let load = |text: &str| {
        std::fs::write(dir.path().join("links.toml"), text).unwrap();
        Links::load(dir.path(), &[a(), b()])
    };
    let text = "[[link]]\nends = [\"a:swp1\", \"x:e0\"]\n\n[[gateway]]\nsegment = \"10.0.0.0/24\"\nrouter = \"b\"\n";
    let topology = build_with(vec![a(), b()], &load(text).unwrap());
    let segment = &topology.segments[0];
    assert_eq!(segment.absent, ["x:e0"]);
    assert_eq!(segment.gateways, ["b".parse().unwrap()]);
    for (wrong, said) in [
        ("[[link]]\nends = [\"a:swp1\"]", "two ends or more"),
        (
            "[[link]]\nends = [\"a:swp1\", \"b:eth7\"]",
            "b has no interface eth7; it has",
        ),
        ("[[link]]\nends = [\"x:e0\", \"y:e0\"]", "no facts of any"),
        (
            "[[link]]\nends = [\"a\", \"b:br0\"]",
            "ROUTER:INTERFACE is allowed",
        ),
        (
            "[[gateway]]\nsegment = \"10.9.0.0/24\"\nrouter = \"b\"",
            "b has no address in it",
        ),
        (
            "[[gateway]]\nsegment = \"10.0.0.0/24\"\nrouter = \"x\"",
            "no facts of a router x",
        ),
        ("[[wire]]\n", "unknown field `wire`"),
    ] {
        let error = load(wrong).unwrap_err().to_string();
        assert!(
            error.contains(said) && error.contains("links.toml"),
            "{error}"
        );
    }
}

#[test]
fn links_of_one_subnet_are_as_many_as_links_toml_names() {
    let facts = || {
        let of = |(name, mac)| {
            let address = format!("10.9.0.{mac}/24");
            let other = format!("10.9.0.{}/24", mac + 10);
            let ports = port("e0", mac, &[&address]) + &port("e1", mac + 10, &[&other]);
            router(name, &ports, "", &[])
        };
        [("a", 1), ("b", 2), ("c", 3)].map(of).to_vec()
    };
    let link = |ends: &[&str]| crate::lab::links::Link {
        ends: ends.iter().map(|end| (*end).to_owned()).collect(),
    };
    let made = |links: &[&[&str]]| {
        let links = Links {
            link: links.iter().map(|ends| link(ends)).collect(),
            ..Links::default()
        };
        build_with(facts(), &links)
    };
    let all = ["a:e0 a:e1 b:e0 b:e1 c:e0 c:e1"];
    assert_eq!(joined(&made(&[])), all);
    assert_eq!(joined(&made(&[&["a:e0", "b:e0"]])), all);
    let two = made(&[
        &["a:e0", "b:e0"],
        &["a:e1", "b:e1", "x:e0"],
        &["b:e1", "c:e0"],
    ]);
    assert_eq!(joined(&two), ["a:e0 b:e0", "a:e1 b:e1 c:e0"]);
    let said = &two.warnings.last().unwrap().message;
    let right = "links.toml has several links in 10.9.0.0/24, and c:e1 on none of them";
    assert_eq!(said, right);
    // The other end of one has no facts.
    let absent = made(&[&["a:e0", "x:e0"], &["b:e0", "y:e0"]]);
    assert_eq!(joined(&absent), ["a:e1 b:e1 c:e0 c:e1"]);
}

#[test]
fn frames_of_one_vlan_do_not_come_out_of_another() {
    let tagged = |name: &str, below: &str, mac: u8, addresses: &[&str], tag: &str| {
        let own = port(name, mac, addresses);
        let own = own.replace(&format!("{name}:"), &format!("{name}@{below}:"));
        match tag {
            "" => own,
            tag => format!("{own}    vlan protocol 802.1Q id {tag} <REORDER_HDR>\n"),
        }
    };
    let of = |name: &str, mac: u8, interfaces: &[String]| {
        router(
            name,
            &(port("eth0", mac, &[]) + &interfaces.concat()),
            "",
            &[],
        )
    };
    // One wire with two VLANs: by a name that says nothing, and by the name alone.
    let one = |tag: &str| {
        let own = |mac: u8, ten: &str, name: &str, tag: &str| {
            let [a, b] = [1, 2].map(|net| format!("10.{net}.0.{mac}/24"));
            let ten = tagged("eth0.10", "eth0", mac, &[&a], ten);
            [ten, tagged(name, "eth0", mac, &[&b], tag)]
        };
        let a = of("a", 1, &own(1, "10", "wan", "20"));
        build(vec![a, of("b", 2, &own(2, "", "lower", tag))])
    };
    let said = |topology: &Topology| {
        let said = |w: &&Warning| w.message.starts_with("10.2.0.0/24 is in VLANs 20 and 21,");
        topology.warnings.iter().filter(said).count()
    };
    assert_eq!(joined(&one("20")), ["a:eth0.10 b:eth0.10", "a:wan b:lower"]);
    assert_eq!(joined(&one("21")), ["a:eth0.10 b:eth0.10"]);
    assert_eq!((said(&one("20")), said(&one("21"))), (0, 2));
    // Who has no tag may be behind a port of either VLAN, and is where there is but one.
    let end = |name: &str, mac: u8, tag: &str| {
        let address = format!("10.2.0.{mac}/24");
        of(name, mac, &[tagged("wan", "eth0", mac, &[&address], tag)])
    };
    let (a, b, c) = (|| end("a", 1, "20"), end("b", 2, "21"), || end("c", 3, ""));
    assert_eq!(joined(&build(vec![a(), c()])), ["a:wan c:wan"]);
    assert!(joined(&build(vec![a(), b, c()])).is_empty());
    // Of two tags on each other the outer one counts, too.
    let nested = |name: &str, mac: u8, outer: &str| {
        let address = format!("10.3.0.{mac}/24");
        let outer = tagged("svlan", "eth0", mac, &[], outer);
        of(
            name,
            mac,
            &[outer, tagged("cvlan", "svlan", mac, &[&address], "10")],
        )
    };
    let with = |outer: &str| joined(&build(vec![nested("a", 1, "100"), nested("b", 2, outer)]));
    assert_eq!(with("100"), ["a:cvlan b:cvlan"]);
    assert!(with("200").is_empty());
}

#[test]
fn ports_of_a_bridge_that_heeds_vlans_are_on_one_link_only_within_their_vlan() {
    let port_of_br0 = |name: &str, mac: u8| {
        port(name, mac, &[]).replace("mtu 1400", "mtu 1400 master br0 state UP")
    };
    let interfaces = |filtering: u8| {
        let vlan = port("br0.10", 9, &["10.0.10.1/24"]).replace("br0.10:", "br0.10@br0:")
            + "    vlan protocol 802.1Q id 10 <REORDER_HDR> addrgenmode eui64\n";
        port("br0", 9, &["10.0.1.1/24"])
            + &format!(
                "    bridge forward_delay 1500 vlan_filtering {filtering} vlan_protocol 802.1Q\n"
            )
            + &vlan
            + &["p1", "p10", "p20", "q20", "trunk"]
                .map(|name| port_of_br0(name, 20))
                .concat()
    };
    let lldp: String = ["p1", "p10", "p20", "q20", "trunk"]
        .map(|name| format!("lldp.{name}.chassis.name=r{name}\nlldp.{name}.port.ifname=eth0\n"))
        .concat();
    let vlans = "port              vlan-id  \np1                1 PVID Egress Untagged\n\
                 p10               10 PVID Egress Untagged\np20               20 PVID Egress Untagged\n\
                 q20               5-7\n                  20 PVID Egress Untagged\n\
                 trunk             10-20\nbr0               1 PVID Egress Untagged\n                  10";
    let others = || {
        ["p1", "p10", "p20", "q20", "trunk"]
            .map(|name| router(&format!("r{name}"), &port("eth0", 0x40, &[]), "", &[]))
    };
    let build_with = |filtering: u8, more: &[(&str, &str)]| {
        let mut sections = vec![("lldp", lldp.as_str())];
        sections.extend(more);
        let bridge = router("b", &interfaces(filtering), "", &sections);
        build([vec![bridge], others().to_vec()].concat())
    };
    let apart = joined(&build_with(1, &[("bridge_vlan", vlans)]));
    assert_eq!(
        apart,
        [
            "b:br0 rp1:eth0",
            "b:br0.10 rp10:eth0",
            "b:p20 rp20:eth0 rq20:eth0",
            "b:trunk rtrunk:eth0"
        ]
    );
    let untagged = |port: &str, vlan: u16| {
        format!(
            r#"{{"ifname":"{port}","vlans":[{{"vlan":5,"vlanEnd":7}},
               {{"vlan":{vlan},"flags":["PVID","Egress Untagged"]}}]}}"#
        )
    };
    let ports = [("p1", 1), ("p10", 10), ("p20", 20), ("q20", 20), ("br0", 1)];
    let ports = ports.map(|(port, vlan)| untagged(port, vlan)).join(",");
    let json = format!(r#"[{ports},{{"ifname":"trunk","vlans":[{{"vlan":10,"vlanEnd":20}}]}}]"#);
    assert_eq!(joined(&build_with(1, &[("bridge_vlan", &json)])), apart);
    // Nothing tells the VLANs: each is by itself, and that is said.
    let unknown = build_with(1, &[]);
    assert!(
        joined(&unknown)
            .iter()
            .all(|ends| ends.matches(':').count() == 2)
    );
    let said = |w: &&Warning| w.message.contains("its bridge heeds VLANs");
    assert_eq!(unknown.warnings.iter().filter(said).count(), 5);
    // One that does not heed them is one link.
    let one = joined(&build_with(0, &[("bridge_vlan", vlans)]));
    assert_eq!(
        one,
        ["b:br0 rp1:eth0 rp10:eth0 rp20:eth0 rq20:eth0 rtrunk:eth0"]
    );
}

/// Two ends numbered alike, `a` and `b`, and a bridge with a port in VLAN 10 and one in VLAN 20.
fn two_vlans_numbered_alike(bridge: &[(&str, &str)], of_a: &[(&str, &str)]) -> Topology {
    let port_of_br0 = |name: &str, mac: u8| {
        port(name, mac, &[]).replace("mtu 1400", "mtu 1400 master br0 state UP")
    };
    let interfaces = port("br0", 9, &[])
        + "    bridge forward_delay 1500 vlan_filtering 1 vlan_protocol 802.1Q\n"
        + &["p10", "p20", "trunk"]
            .map(|name| port_of_br0(name, 20))
            .concat();
    let vlans = "p10  10 PVID Egress Untagged\np20  20 PVID Egress Untagged\ntrunk  10-20";
    let mut sections = vec![("bridge_vlan", vlans)];
    sections.extend(bridge);
    build(vec![
        router("a", &port("eth0", 0xa, &["10.0.0.1/24"]), "", of_a),
        router("b", &port("eth0", 0xb, &["10.0.0.2/24"]), "", &[]),
        router("sw", &interfaces, "", &sections),
    ])
}

#[test]
fn ends_that_a_bridge_has_in_different_vlans_are_not_on_one_link() {
    let doubted = |topology: &Topology| {
        let about = topology.warnings.iter().filter(|w| w.matters());
        let about = about.filter(|w| w.message.contains("sw:br0 has ports in VLANs 10 and 20"));
        about.count()
    };
    let fdb = |a: &str, b: &str| {
        format!(
            "52:54:00:00:00:14 dev p10 vlan 10 master br0 permanent\n\
             33:33:00:00:00:01 dev p10 self permanent\n\
             52:54:00:00:00:0a dev {a} master br0\n52:54:00:00:00:0b dev {b} master br0 extern_learn"
        )
    };
    let with = |text: &str| two_vlans_numbered_alike(&[("bridge_fdb", text)], &[]);
    let apart = with(&fdb("p10 vlan 10", "p20 vlan 20"));
    assert_eq!(joined(&apart), ["a:eth0 sw:p10", "b:eth0 sw:p20"]);
    let said = |w: &&Warning| w.message.contains("is in VLANs 10 and 20 of sw:br0");
    assert_eq!(apart.warnings.iter().filter(said).count(), 2);
    assert_eq!(doubted(&apart), 0);
    let json = r#"[{"mac":"52:54:00:00:00:0a","ifname":"p10","vlan":10,"flags":[],"master":"br0","state":""},
        {"mac":"52:54:00:00:00:0b","ifname":"p20","vlan":20,"flags":[],"master":"br0","state":""}]"#;
    assert_eq!(joined(&with(json)), joined(&apart));
    // What LLDP tells is as good.
    let lldp = "lldp.p10.chassis.name=a\nlldp.p10.port.ifname=eth0\n\
                lldp.p20.chassis.name=b\nlldp.p20.port.ifname=eth0";
    assert_eq!(
        joined(&two_vlans_numbered_alike(&[("lldp", lldp)], &[])),
        joined(&apart)
    );
    // Both in one VLAN, and nobody doubts it; frames with a tag are of an interface with that tag.
    let one = with(&fdb("p10 vlan 10", "p10 vlan 10"));
    assert_eq!(
        (joined(&one), doubted(&one)),
        (vec!["a:eth0 b:eth0 sw:p10".to_owned()], 0)
    );
    let tagged = with(&fdb("trunk vlan 10", "p20 vlan 20"));
    assert_eq!(joined(&tagged), ["a:eth0 b:eth0 sw:p20"]);
    assert_eq!(doubted(&tagged), 2);
    // Nothing tells: what is between them is doubted, unless they were heard by each other.
    let unknown = with("");
    assert_eq!(
        (joined(&unknown), doubted(&unknown)),
        (vec!["a:eth0 b:eth0".to_owned()], 2)
    );
    let heard = [(
        "neighbours",
        "10.0.0.2 dev eth0 lladdr 52:54:00:00:00:0b STALE",
    )];
    let known = two_vlans_numbered_alike(&[], &heard);
    assert_eq!(
        (joined(&known), doubted(&known)),
        (vec!["a:eth0 b:eth0".to_owned()], 0)
    );
}

#[test]
fn an_end_that_stands_alone_though_the_lab_has_what_is_behind_it_is_named() {
    let near = router(
        "a",
        &tunnel("wg0", &["10.7.0.1/32"]),
        "10.2.0.0/16 dev wg0 scope link\ndefault dev wg0 scope link",
        &[],
    );
    let far = router("b", &port("eth0", 1, &["10.2.0.1/24"]), "", &[]);
    let topology = build(vec![near, far]);
    assert_eq!(
        notices(&topology),
        [
            "a:wg0 stands alone, but 10.2.0.0/24 is reached by it, which b:eth0 has; if nothing is \
          missing from the facts, say in links.toml what is at its other end: [[link]] ends = \
          [\"a:wg0\", \"ROUTER:INTERFACE\"]"
        ]
    );
    let elsewhere = router(
        "a",
        &tunnel("wg0", &["10.7.0.1/32"]),
        "10.9.0.0/16 dev wg0",
        &[],
    );
    assert_eq!(notices(&build(vec![elsewhere])), Vec::<&str>::new());
}

/// A router with the VRF red of eth1 and eth2, and eth0 outside of it.
fn with_vrf(rulesets: &str, more: &[(&str, &str)]) -> RouterFacts {
    let slave = |text: String| text.replace("mtu 1400", "mtu 1400 master red state UP");
    let interfaces = shown(
        "red",
        "NOARP,MASTER",
        "link/ether 52:54:00:00:00:09 brd ff:ff:ff:ff:ff:ff",
        &[],
    ) + &slave(port("eth1", 1, &["10.1.0.1/24"]))
        + &slave(port("eth2", 2, &["10.2.0.1/24"]))
        + &port("eth0", 3, &["192.0.2.1/24"]);
    let red = "10.1.0.0/24 dev eth1 proto kernel scope link\n10.2.0.0/24 dev eth2 proto kernel scope link\n\
               unreachable default metric 4278198272";
    let rules = "1000: from all lookup [l3mdev-table]\n32765: from all lookup local\n32766: from all lookup main";
    let mut sections = vec![("routing_table_1001", red), ("iptables_save", rulesets)];
    if !more.iter().any(|(name, _)| *name == "policy_rules") {
        sections.push(("policy_rules", rules));
    }
    sections.extend(more);
    router(
        "leaf",
        &interfaces,
        "192.0.2.0/24 dev eth0\ndefault via 192.0.2.254 dev eth0",
        &sections,
    )
}

#[test]
fn a_vrf_is_a_rule_for_each_of_its_ports_and_what_that_cannot_do_is_an_omission() {
    let open = "*filter\n:FORWARD ACCEPT\n-A FORWARD -p tcp --dport 22 -j DROP\nCOMMIT";
    let facts = with_vrf(open, &[]);
    let by_port = |facts: &RouterFacts| -> Vec<(u32, String)> {
        let rules = facts.rules.iter().filter(|rule| rule.priority == 1000);
        rules
            .map(|rule| match (&rule.iif, &rule.action) {
                (Some(iif), crate::netlink::object::RuleAction::Table(table)) => {
                    (*table, iif.to_string())
                }
                other => panic!("{other:?}"),
            })
            .collect()
    };
    let want = [(1001, "eth1".to_owned()), (1001, "eth2".to_owned())];
    assert_eq!(by_port(&facts), want);
    assert!(facts.lost_rules.is_empty());
    let omitted = |facts: &RouterFacts| -> Vec<String> {
        let matter = facts.warnings.iter().filter(|warning| warning.matters());
        matter.map(|warning| warning.message.clone()).collect()
    };
    let own =
        "addresses of VRFs are the router's own only within their VRF, in the lab for all packets";
    assert_eq!(omitted(&facts), [own]);
    // Who asks from outside of the VRF meets none of its addresses.
    let omission = facts.warnings.iter().find_map(|w| w.omission.as_ref());
    let omission = format!("{:?}", omission.unwrap().concern);
    for (part, there) in [
        ("to: Some(Nets { within: 10.1.0.1/32", true),
        ("incoming: Some(IfName(\"eth0\"))", true),
        ("incoming: Some(IfName(\"eth2\"))", false),
    ] {
        assert_eq!(omission.contains(part), there, "{omission}");
    }
    // The ports' names stand for the VRF in some hooks only.
    for named in [
        "-A FORWARD -i eth1 -j ACCEPT",
        "-A INPUT -i red -j DROP",
        "-A FORWARD -i eth+ -j DROP",
        "-A FORWARD -m rpfilter --invert -j DROP",
    ] {
        let facts = with_vrf(
            &open.replace("-A FORWARD -p tcp --dport 22 -j DROP", named),
            &[],
        );
        assert_eq!(by_port(&facts), want);
        assert_eq!(omitted(&facts).len(), 2, "{named}");
    }
    let strict = [("sysctl", "net.ipv4.conf.all.rp_filter = 1")];
    assert_eq!(omitted(&with_vrf(open, &strict)).len(), 2);
    let others = "32765: from all lookup local\n32766: from all lookup main";
    let by_rules = |rules: &str, more: &[(&str, &str)]| {
        let rules = format!("{rules}\n{others}");
        omitted(&with_vrf(
            open,
            &[&[("policy_rules", rules.as_str())], more].concat(),
        ))
    };
    let rules = "900: from all iif eth0 lookup 7\n1000: from all lookup [l3mdev-table]";
    let leak = by_rules(rules, &[("routing_table_7", "10.2.0.0/24 dev red")]);
    let goes_on = "route to 10.2.0.0/24 in table 7: it goes on in the table of VRF red, and in the lab \
                   out of red";
    assert_eq!(leak, [goes_on, own]);
    let none = by_rules("900: from all iif eth1 lookup 1001", &[]);
    let no_rule = "ports of VRFs, and no policy rule that looks into the tables of VRFs";
    assert_eq!(none, [no_rule, own]);
    // Kernels differ in which of the two packets have come in by.
    for (rule, ports, kept) in [
        ("900: from all iif eth1 lookup 7", &["eth1"][..], 0),
        ("900: from all iif red lookup 7", &["eth1", "eth2"], 0),
        ("900: not from all iif eth2 lookup 7", &["eth2"], 1),
        ("900: from all iif eth0 lookup 7", &[], 1),
    ] {
        let rules = format!("{rule}\n1000: from all lookup [l3mdev-table]\n{others}");
        let facts = with_vrf(open, &[("policy_rules", &rules)]);
        let lost = facts
            .lost_rules
            .iter()
            .filter_map(|lost| lost.rule.iif.as_ref());
        assert_eq!(
            lost.map(IfName::as_str).collect::<Vec<_>>(),
            ports,
            "{rule}"
        );
        let own = facts.rules.iter().filter(|rule| rule.priority == 900);
        assert_eq!(own.count(), kept, "{rule}");
    }
    // Nothing tells the table: the rule is left out, and that is an omission.
    let unknown = with_vrf(
        open,
        &[("routing_table_1002", "10.1.0.0/24 dev eth1 scope link")],
    );
    assert_eq!(unknown.lost_rules.len(), 1);
}

#[test]
fn tunnels_in_one_subnet_that_contradict_each_other_are_doubted() {
    let end = |name: &str, own: &str, outer: &str, details: &str| {
        let shown = tunnel("t0", &[own]);
        let outer = port("eth0", u8::from(name == "b"), &[outer]);
        let links = format!("{shown}    {details}");
        router(name, &(shown.clone() + &outer), "", &[("links", &links)])
    };
    let doubted = |a: &str, b: &str| {
        let a = end("a", "10.0.0.1/24", "192.0.2.1/24", a);
        let b = end("b", "10.0.0.2/24", "198.51.100.1/24", b);
        let built = build(vec![a, b]);
        let mut all = built.warnings.iter();
        all.any(|w| w.matters() && w.message.contains("ends of one tunnel"))
    };
    let to = |remote: &str, local: &str| format!("remote {remote} local {local}");
    let (there, back) = (
        to("198.51.100.1", "192.0.2.1"),
        to("192.0.2.1", "198.51.100.1"),
    );
    for (a, b, want) in [
        (
            format!("gre {there} ttl 64"),
            format!("gre {back} ttl 64"),
            false,
        ),
        (
            format!("gre {there} ikey 0.0.0.1 okey 0.0.0.2"),
            format!("gre {back} ikey 0.0.0.2 okey 0.0.0.1"),
            false,
        ),
        (
            format!("gre {there} ikey 0.0.0.1 okey 0.0.0.1"),
            format!("gre {back} ikey 0.0.0.2 okey 0.0.0.2"),
            true,
        ),
        (
            format!("gre {there} key 1"),
            format!("gre {back} ttl 64"),
            true,
        ),
        (format!("gre {there}"), format!("ipip {back}"), true),
        (
            format!("gre {}", to("203.0.113.77", "192.0.2.1")),
            format!("gre {}", to("203.0.113.88", "198.51.100.1")),
            true,
        ),
        (
            format!("vxlan id 10 {there} dstport 4789"),
            format!("vxlan id 10 {back} dstport 8472"),
            true,
        ),
        (
            "vxlan id 10 local 192.0.2.1 dstport 4789".to_owned(),
            "vxlan id 4000 local 198.51.100.1 dstport 4789".to_owned(),
            true,
        ),
        (
            "vxlan id 10 local 192.0.2.1 dstport 4789".to_owned(),
            "vxlan id 10 local 198.51.100.1 dstport 4789".to_owned(),
            false,
        ),
    ] {
        assert_eq!(doubted(&a, &b), want, "{a}; {b}");
    }
}

#[test]
fn a_next_hop_that_routers_of_two_segments_have_is_doubted() {
    let of = |name: &str, mac: u8, own: &[&str], routes: &str, more: &[(&str, &str)]| {
        router(name, &port("eth0", mac, own), routes, more)
    };
    let route = "10.2.0.0/24 via 10.0.0.1 dev eth0";
    let doubted = |neighbours: &str| {
        let all = vec![
            of(
                "r0",
                1,
                &["10.0.0.9/24"],
                route,
                &[("neighbours", neighbours)],
            ),
            of("r1", 2, &["10.0.0.1/24"], "", &[]),
            of("r2", 3, &["10.0.0.1/24"], "", &[]),
        ];
        let built = build(all);
        let mut all = built.warnings.iter();
        all.any(|w| w.matters() && w.message.contains("next hop 10.0.0.1 of r0:eth0"))
    };
    assert!(doubted(""));
    let first = "10.0.0.1 dev eth0 lladdr 52:54:00:00:00:02 REACHABLE";
    assert!(!doubted(first), "its hardware address tells");
}
