//! Wires between routers that no subnet tells: packets of plain hosts pass them as on the real
//! network.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    path::PathBuf,
    time::Duration,
};

use tsim::{
    lab::{
        Lab, LabState,
        sockets::RouterSockets,
        trace::{End, Trace, TracePacket, Wiring, trace},
    },
    netlink::{
        LinkChange, Netlink, NewVeth, VethEnd,
        object::{Address, Route},
    },
    netns::NetnsFd,
};

use crate::{
    lab::{Place, fixture},
    minilab::ip,
    support::ifname,
};

/// A host on the segment `segment` of the lab, made without the lab's knowledge.
pub(crate) fn plain_host(
    place: &Place,
    lab: &LabState,
    segment: &str,
    address: &str,
    gateway: &str,
) -> NetnsFd {
    let number = lab.segments.iter().position(|s| s.name == segment).unwrap();
    let host = place.bed.netns(&format!("plain{number}"));
    let port = ifname(&format!("x{number}"));
    let eth0 = ifname("eth0");
    let mut segments = Netlink::open(&place.segments()).unwrap();
    let mut batch = segments.batch("segments");
    batch.add_veth(&NewVeth {
        near: VethEnd::new(port.clone()),
        near_up: true,
        master: Some(ifname(&format!("br{number}"))),
        far: VethEnd {
            netns: Some(&host),
            ..VethEnd::new(eth0.clone())
        },
    });
    batch.send().unwrap();
    let mut netlink = Netlink::open(&host).unwrap();
    let default = if address.contains(':') {
        "::/0"
    } else {
        "0.0.0.0/0"
    };
    let mut batch = netlink.batch("host");
    batch
        .set_link(&eth0, &LinkChange::up())
        .add_address(&eth0, &Address::new(address.parse().unwrap()));
    batch.send().unwrap();
    segments.await_forwarding(&[&port]).unwrap();
    netlink.await_settled().unwrap();
    let mut batch = netlink.batch("host");
    batch.add_route(&Route::via(default.parse().unwrap(), ip(gateway), eth0));
    batch.send().unwrap();
    host
}

/// How a connection from `netns` fails: refused by who is there, or unanswered.
pub(crate) fn connect(netns: &NetnsFd, to: &str) -> ErrorKind {
    let to: SocketAddr = to.parse().unwrap();
    let attempt = || TcpStream::connect_timeout(&to, Duration::from_millis(800));
    netns.enter(attempt).unwrap().unwrap_err().kind()
}

fn ask(place: &Place, lab: &LabState, from: &str, to: &str) -> Trace {
    let mut sockets = RouterSockets::new(&place.bed.dir, place.name());
    let packet = TracePacket::new(ip(from), ip(to));
    trace(&Wiring::from(lab), &mut sockets, &packet, None).unwrap()
}

/// What a quick job says of 80/tcp, e.g. `NO: dropped by rule 1`.
fn quick(place: &Place, from: &str, to: &str) -> String {
    let lab = place.name().as_str();
    let question = ["--lab", lab, "--json", "-s", from, "-d", to, "-P", "80"];
    let output = place.run(env!("CARGO_BIN_EXE_tsim-quick"), &question);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let end = &report["end_to_end"][0];
    let text = |key: &str| end[key].as_str().unwrap_or_default();
    let warnings = report["warnings"].as_array().unwrap().iter();
    let up = warnings.filter_map(|warning| warning.as_str()?.split_once(" is taken as up"));
    let up: String = up
        .map(|(tunnel, more)| format!(" [{tunnel}{more}]"))
        .collect();
    format!("{}: {}{up}", text("result"), text("reason"))
}

fn routers(trace: &Trace) -> Vec<&str> {
    trace.hops.iter().map(|hop| hop.router.as_str()).collect()
}

#[test]
fn a_tunnel_carries_what_a_route_without_gateway_sends_into_it() {
    let place = Place::new();
    let up = place.up(&fixture("reports/vpn-without-gateway"));
    let trace = ask(&place, &up.lab, "10.1.0.50", "10.2.0.60");
    assert_eq!(routers(&trace), ["gw1", "gw2"]);
    let near = plain_host(&place, &up.lab, "10.1.0.0/24", "10.1.0.50/24", "10.1.0.1");
    let _far = plain_host(&place, &up.lab, "10.2.0.0/24", "10.2.0.60/24", "10.2.0.1");
    // The far host refuses what comes to it; gw2 lets nothing but 443/tcp through.
    let assert_right = || {
        let refused = ErrorKind::ConnectionRefused;
        assert_eq!(connect(&near, "10.2.0.60:443"), refused);
        assert_eq!(connect(&near, "10.2.0.60:22"), ErrorKind::TimedOut);
    };
    assert_right();
    let anew = place.tsim(&["lab", "reload", place.name().as_str(), "gw2"]);
    assert!(anew.status.success(), "{anew:?}");
    assert_right();
    place.down();
}

#[test]
fn a_tunnel_carries_ipv6_as_well() {
    let place = Place::new();
    let side = |own: &str, wg: &str, to: &str| {
        format!(
            r#""interfaces": [{{"name": "eth1", "addresses": ["{own}"]}},
                {{"name": "tun0", "kind": "tunnel", "addresses": ["{wg}"]}}],
               "routes": ["{to} dev tun0"]"#
        )
    };
    let a = side("2001:db8:1::1/64", "2001:db8:9::1/126", "2001:db8:2::/64");
    let b = side("2001:db8:2::1/64", "2001:db8:9::2/126", "2001:db8:1::/64");
    let up = place.up(&place.facts(&[("a", &a), ("b", &b)]));
    let trace = ask(&place, &up.lab, "2001:db8:1::9", "2001:db8:2::9");
    assert_eq!(routers(&trace), ["a", "b"]);
    let near = plain_host(
        &place,
        &up.lab,
        "2001:db8:1::/64",
        "2001:db8:1::9/64",
        "2001:db8:1::1",
    );
    let _far = plain_host(
        &place,
        &up.lab,
        "2001:db8:2::/64",
        "2001:db8:2::9/64",
        "2001:db8:2::1",
    );
    assert_eq!(
        connect(&near, "[2001:db8:2::9]:80"),
        ErrorKind::ConnectionRefused
    );
    place.down();
}

/// Facts of a WireGuard gateway with a network behind it.
fn wireguard(place: &Place, name: &str, net: u8, routes: &str, peers: &[(&str, &str)]) -> PathBuf {
    let dir = place.dir.path().join("wireguard");
    fs::create_dir_all(&dir).unwrap();
    let mut shown = format!("interface: wg0\n  public key: {name}=\n  private key: (hidden)\n");
    for (peer, allowed) in peers {
        let endpoint = format!("192.0.2.{}:51820", peer.len());
        shown += &format!("\npeer: {peer}=\n  endpoint: {endpoint}\n  allowed ips: {allowed}\n");
    }
    let interfaces = format!(
        "2: eth1: <BROADCAST,UP,LOWER_UP> mtu 1500\n    link/ether 52:54:00:00:00:{net:02x} brd ff:ff:ff:ff:ff:ff\n    \
         inet 10.{net}.0.1/24 scope global eth1\n\
         3: wg0: <POINTOPOINT,NOARP,UP,LOWER_UP> mtu 1420\n    link/none\n    \
         inet 10.7.0.{net}/24 scope global wg0\n"
    );
    let own = format!(
        "10.{net}.0.0/24 dev eth1 proto kernel scope link\n10.7.0.0/24 dev wg0 proto kernel scope link\n{routes}\n"
    );
    let sections = [
        ("interfaces", interfaces.as_str()),
        ("routing_table", &own),
        ("iptables_save", "*filter\n:FORWARD ACCEPT\nCOMMIT\n"),
        ("wireguard", &shown),
    ];
    let text: String = sections
        .iter()
        .map(|(name, body)| {
            format!(
                "=== TSIM_SECTION_START:{name} ===\n---\n{body}=== TSIM_SECTION_END:{name} ===\n"
            )
        })
        .collect();
    fs::write(dir.join(format!("{name}_facts.txt")), text).unwrap();
    dir
}

#[test]
fn the_allowed_addresses_of_wireguard_choose_the_end_and_refuse_the_rest() {
    let place = Place::new();
    let peers = [
        ("b", "10.7.0.2/32, 10.2.0.0/24"),
        ("c", "10.7.0.3/32, 10.3.0.0/24"),
    ];
    wireguard(
        &place,
        "hub",
        1,
        "10.2.0.0/24 dev wg0\n10.3.0.0/24 dev wg0\n10.9.0.0/24 dev wg0",
        &peers,
    );
    let all = [("hub", "10.0.0.0/8")];
    wireguard(&place, "b", 2, "10.0.0.0/8 dev wg0", &all);
    // c does not take what comes from the network behind b.
    let some = [("hub", "10.7.0.0/24, 10.1.0.0/24")];
    let facts = wireguard(&place, "c", 3, "10.0.0.0/8 dev wg0", &some);
    let up = place.up(&facts);
    // No entry of a neighbour leads a real connection around what c does not take.
    let asked = "-s 10.2.0.9 -d 10.3.0.9 -P 80 --lab";
    let asked: Vec<&str> = asked.split(' ').chain([place.name().as_str()]).collect();
    let output = place.run(env!("CARGO_BIN_EXE_tsim-detailed"), &asked);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let why = "drops it: 10.2.0.9 is not among the allowed IPs of its WireGuard peer hub";
    assert!(said.contains(why), "{said}");
    let host = |net: u8| {
        let (segment, own) = (format!("10.{net}.0.0/24"), format!("10.{net}.0.9/24"));
        plain_host(&place, &up.lab, &segment, &own, &format!("10.{net}.0.1"))
    };
    let (near, _b, far) = (host(1), host(2), host(3));
    for (to, want) in [("10.2.0.9", &["hub", "b"]), ("10.3.0.9", &["hub", "c"])] {
        assert_eq!(routers(&ask(&place, &up.lab, "10.1.0.9", to)), want);
        assert_eq!(
            connect(&near, &format!("{to}:80")),
            ErrorKind::ConnectionRefused,
            "{to}"
        );
        let outer = format!(
            "YES:  [hub: wg0; whether its own packets get through is another question: tsim quick \
             --lab {} -s 10.1.0.1 -d 192.0.2.1 -P 51820/udp]",
            place.name()
        );
        assert_eq!(quick(&place, "10.1.0.9", to), outer);
    }
    assert_eq!(
        ask(&place, &up.lab, "10.1.0.9", "10.9.0.9").end,
        End::NoPeer
    );
    let said = quick(&place, "10.1.0.9", "10.9.0.9");
    assert!(said.starts_with("NO: hub drops it: no peer"), "{said}");
    assert_eq!(connect(&near, "10.9.0.9:80"), ErrorKind::TimedOut);
    let trace = ask(&place, &up.lab, "10.2.0.9", "10.3.0.9");
    assert_eq!(routers(&trace), ["b", "hub"]);
    assert!(matches!(trace.end, End::NotAllowed { .. }), "{trace:?}");
    let said = quick(&place, "10.2.0.9", "10.3.0.9");
    let why = "NO: c:wg0 drops it: 10.2.0.9 is not among the allowed IPs of its WireGuard peer hub";
    assert!(said.starts_with(why), "{said}");
    assert_eq!(connect(&far, "10.2.0.9:80"), ErrorKind::TimedOut);
    place.down();
}

#[test]
fn next_hops_by_link_local_addresses_carry_ipv4() {
    let place = Place::new();
    let up = place.up(&fixture("reports/bgp-unnumbered"));
    let trace = ask(&place, &up.lab, "10.1.0.9", "10.2.0.9");
    assert_eq!(routers(&trace), ["leaf1", "leaf2"]);
    let near = plain_host(&place, &up.lab, "10.1.0.0/24", "10.1.0.9/24", "10.1.0.1");
    let _far = plain_host(&place, &up.lab, "10.2.0.0/24", "10.2.0.9/24", "10.2.0.1");
    assert_eq!(connect(&near, "10.2.0.9:80"), ErrorKind::ConnectionRefused);
    assert_eq!(
        connect(&near, "10.2.0.9:22"),
        ErrorKind::TimedOut,
        "rule 1 of leaf2"
    );
    place.down();
}

#[test]
fn sources_behind_tunnels_and_hosts_of_one_bridge_are_what_the_reports_say() {
    let place = Place::new();
    let up = place.up(&fixture("reports/source-behind-a-tunnel"));
    let trace = ask(&place, &up.lab, "10.20.1.9", "10.1.0.9");
    assert_eq!(trace.hops[0].iface_in, Some(ifname("wg0")));
    assert_eq!(trace.arrives(), Some(true));
    place.down();
    let place = Place::new();
    let up = place.up(&fixture("reports/hosts-of-one-bridge"));
    let trace = ask(&place, &up.lab, "10.0.0.50", "10.0.0.77");
    assert_eq!((trace.hops.len(), trace.arrives()), (0, None));
    assert!(trace.end_text().contains("a bridge of kvm"), "{trace:?}");
    place.down();
}

/// Who a datagram from `netns` is from when it reaches `to` in `far`; none where it does not.
fn sender_of_datagram(netns: &NetnsFd, far: &NetnsFd, to: &str) -> Option<IpAddr> {
    let receiver = far.enter(|| UdpSocket::bind(to)).unwrap().unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    netns
        .enter(|| UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"1", to)))
        .unwrap()
        .unwrap();
    let (_, from) = receiver.recv_from(&mut [0]).ok()?;
    Some(from.ip())
}

#[test]
fn ends_that_stand_alone_are_named_with_the_line_that_joins_them() {
    let place = Place::new();
    let side = |own: &str, wire: &str, to: &str| {
        format!(
            r#""interfaces": [{{"name": "eth1", "addresses": ["{own}"]}},
                {{"name": "wg0", "kind": "tunnel", "addresses": ["{wire}"]}}],
               "routes": ["{to} dev wg0"]"#
        )
    };
    let a = side("10.1.0.1/24", "10.7.0.1/32", "10.2.0.0/24");
    let b = side("10.2.0.1/24", "10.8.0.1/32", "10.1.0.0/24");
    let facts = place.facts(&[("a", &a), ("b", &b)]);
    let up = |more: &[&str]| {
        let arguments = ["lab", "up", place.name().as_str(), "--facts"];
        let arguments = [&arguments[..], &[facts.to_str().unwrap()], more].concat();
        let output = place.tsim(&arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let line = r#"[[link]] ends = ["a:wg0", "b:wg0"]"#;
    let said = up(&[]);
    assert!(
        said.contains("a:wg0 stands alone") && said.contains(line),
        "{said}"
    );
    let text = line.replace("]] ", "]]\n");
    fs::write(facts.join("links.toml"), text).unwrap();
    // What changed is said before anything is done about it.
    let status = place.tsim(&["lab", "status", place.name().as_str()]);
    let told = String::from_utf8(status.stdout).unwrap();
    let changed = "a: who is at the other ends of its wires changed since the lab was made";
    assert!(
        status.status.code() == Some(1) && told.contains(changed),
        "{told}"
    );
    let said = up(&["--replace"]);
    assert!(!said.contains("stands alone"), "{said}");
    let lab = Lab::open(&place.config, place.name()).unwrap();
    let trace = ask(&place, &lab, "10.1.0.9", "10.2.0.9");
    assert_eq!(routers(&trace), ["a", "b"]);
    place.down();
}

#[test]
fn packets_between_ports_of_a_vrf_take_its_table() {
    let place = Place::new();
    let up = place.up(&fixture("reports/vrf-ports"));
    let trace = ask(&place, &up.lab, "10.10.1.50", "10.10.2.60");
    let hop = &trace.hops[0];
    assert_eq!(
        (&hop.iface_in, &hop.iface_out),
        (&Some(ifname("eth1")), &Some(ifname("eth2")))
    );
    let near = plain_host(
        &place,
        &up.lab,
        "10.10.1.0/24",
        "10.10.1.50/24",
        "10.10.1.1",
    );
    let far = plain_host(
        &place,
        &up.lab,
        "10.10.2.0/24",
        "10.10.2.60/24",
        "10.10.2.1",
    );
    // A datagram, since rule 2 drops whatever would answer a connection.
    assert_eq!(
        sender_of_datagram(&near, &far, "10.10.2.60:443"),
        Some(ip("10.10.1.50"))
    );
    // The VRF's table ends with an unreachable route: nothing leaks out of it. The error itself has
    // no way back here, since packets of the router's own come in by no port of the VRF.
    let leaked = ask(&place, &up.lab, "10.10.1.50", "192.0.2.60");
    assert_eq!(leaked.arrives(), Some(false), "{leaked:?}");
    place.down();
}
