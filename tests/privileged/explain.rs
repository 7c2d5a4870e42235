//! Why a service was blocked: for each way to stop a packet the reason names it, and nothing else.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType};
use tsim::{
    config::Config,
    firewall::{
        Runs, TagSpace, Taps,
        nft::{
            NftSocket, NftTaps,
            trace::{
                PROBES_PER_DRAIN, StepKind, StoppedBy, TraceSockets, TraceSpec, Tracer, Trail,
            },
        },
        rule::{OpenPorts, Rewritten},
    },
    model::{Dscp, Protocol, RunId, Service},
    netlink::{
        LinkChange, Netlink, NewVeth, VethEnd, object::Address, object::Family, object::Scope,
        sysctl,
    },
    netns::{NetnsFd, tool::Tools},
    run::{
        explain::{ExplainQuestion, Explainer, Explanation, Scrutiny},
        packet::{Headers, Probe, packets},
    },
    sys::{
        in_flight,
        mmsg::{Target, send_each},
    },
};

use crate::support::{Bed, ifname};

/// A source, a router and a destination in a row, for both families:
///
/// ```text
/// s eth0 10.0.1.2, fd01::2 — i0 10.0.1.1, fd01::1 r o0 10.0.2.1, fd02::1 — eth0 10.0.2.2, fd02::2 d
/// ```
struct Row {
    _bed: Bed,
    router: NetnsFd,
    socket: OwnedFd,
    run_id: RunId,
    headers: Headers,
    tags: TagSpace,
    tools: Tools,
}

fn address(text: &str) -> Address {
    Address {
        local: text.parse().unwrap(),
        peer: None,
        scope: Scope::Global,
        prefix_route: true,
    }
}

fn join(near: &NetnsFd, near_name: &str, far: &NetnsFd, far_name: &str) {
    let mut netlink = Netlink::open(near).unwrap();
    let veth = NewVeth {
        near: VethEnd::new(ifname(near_name)),
        near_up: true,
        master: None,
        far: VethEnd {
            netns: Some(far),
            ..VethEnd::new(ifname(far_name))
        },
    };
    let mut batch = netlink.batch("near");
    batch.add_veth(&veth);
    batch.send().unwrap();
    let mut netlink = Netlink::open(far).unwrap();
    let mut batch = netlink.batch("far");
    batch.set_link(&ifname(far_name), &LinkChange::up());
    batch.send().unwrap();
}

fn addresses(netns: &NetnsFd, list: &[(&str, &str)]) {
    // Duplicate address detection would hold IPv6 addresses back.
    sysctl::write(netns, &[("net/ipv6/conf/all/accept_dad", "0")]).unwrap();
    for (dev, _) in list {
        let path = format!("net/ipv6/conf/{dev}/accept_dad");
        sysctl::write(netns, &[(path, "0")]).unwrap();
    }
    let mut netlink = Netlink::open(netns).unwrap();
    let mut batch = netlink.batch("test");
    batch.set_link(&ifname("lo"), &LinkChange::up());
    for (dev, text) in list {
        batch.add_address(&ifname(dev), &address(text));
    }
    batch.send().unwrap();
}

impl Row {
    fn v4() -> Self {
        Self::new("10.0.1.2", "10.0.2.2", AddressFamily::Inet)
    }

    fn v6() -> Self {
        Self::new("fd01::2", "fd02::2", AddressFamily::Inet6)
    }

    fn new(source: &str, destination: &str, family: AddressFamily) -> Self {
        let bed = Bed::new();
        let (s, r, d) = (bed.netns("s"), bed.netns("r"), bed.netns("d"));
        join(&s, "eth0", &r, "i0");
        join(&r, "o0", &d, "eth0");
        addresses(&s, &[("eth0", "10.0.1.2/24"), ("eth0", "fd01::2/64")]);
        addresses(&d, &[("eth0", "10.0.2.2/24"), ("eth0", "fd02::2/64")]);
        let on_router = [
            ("i0", "10.0.1.1/24"),
            ("i0", "fd01::1/64"),
            ("o0", "10.0.2.1/24"),
            ("o0", "fd02::1/64"),
        ];
        addresses(&r, &on_router);
        let forward = [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
        ];
        sysctl::write(&r, &forward).unwrap();
        let socket = s
            .socket(
                family,
                SockType::Raw,
                SockFlag::empty(),
                Some(SockProtocol::Raw),
            )
            .unwrap();
        let tools = Tools::new(Config::default().tool_dirs);
        let run = |args: &[&str]| s.enter(|| tools.run("ip", args, &[])).unwrap().unwrap();
        run(&["route", "add", "default", "via", "10.0.1.1"]);
        run(&["-6", "route", "add", "default", "via", "fd01::1"]);
        let mac = Netlink::open(&r)
            .unwrap()
            .link(&ifname("i0"))
            .unwrap()
            .unwrap()
            .mac
            .unwrap();
        for gateway in ["10.0.1.1", "fd01::1"] {
            run(&[
                "neigh",
                "add",
                gateway,
                "lladdr",
                &mac.to_string(),
                "dev",
                "eth0",
            ]);
        }
        Self {
            _bed: bed,
            router: r,
            socket,
            run_id: RunId::new("explain").unwrap(),
            headers: Headers {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                protocol: Protocol::Tcp,
                source_port: 40_000,
                destination_port: 0,
                tos: 0,
                ttl: 64,
                size: None,
                options_open: false,
                chosen: None,
            },
            tags: TagSpace::new(Dscp::new(40).unwrap(), 0x1234_5678_9abc_def1),
            tools,
        }
    }

    /// Runs a tool in the router, e.g. `nft add table ip t`.
    fn run(&self, command: &str) -> String {
        let words: Vec<&str> = command.split(' ').collect();
        self.tool(words[0], &words[1..], "")
    }

    fn tool(&self, tool: &str, args: &[&str], input: &str) -> String {
        let ran = self
            .router
            .enter(|| self.tools.run(tool, args, input.as_bytes()));
        String::from_utf8(ran.unwrap().unwrap().stdout).unwrap()
    }

    fn nft(&self, ruleset: &str) {
        // The grammar wants a line end behind a brace.
        let ruleset = ruleset.replace('}', "}\n").replace("24 }\n", "24 }");
        self.tool("nft", &["-f", "-"], &ruleset);
    }

    fn probes(&self, services: &[(u32, Service)]) -> Vec<Probe> {
        let one = |&(index, service): &(u32, Service)| Probe {
            index,
            headers: Headers {
                protocol: service.protocol,
                destination_port: service.port,
                ..self.headers
            },
        };
        services.iter().map(one).collect()
    }

    fn send(&self, probes: &[Probe]) -> io::Result<()> {
        self.send_as(self.tags, probes)
    }

    /// Sends probes of the job that has these tags.
    fn send_as(&self, tags: TagSpace, probes: &[Probe]) -> io::Result<()> {
        for packets in packets(tags, probes, &[]) {
            let to = Target::Address(packets.destination);
            let socket = self.socket.as_fd();
            let refused = send_each(socket, &packets.bytes, packets.size, to);
            if let Some((_, error)) = refused.into_iter().next() {
                return Err(error);
            }
        }
        in_flight::wait(self.socket.as_fd());
        Ok(())
    }

    fn explain_with(&self, explainer: &mut Explainer, services: &[(u32, Service)]) -> Explanation {
        self.explain_beside(explainer, services, &mut || ())
    }

    /// Does something `before` probes are sent again, each time.
    fn explain_beside(
        &self,
        explainer: &mut Explainer,
        services: &[(u32, Service)],
        before: &mut dyn FnMut(),
    ) -> Explanation {
        let ingress = ifname("i0");
        let probes = self.probes(services);
        let question = ExplainQuestion {
            netns: &self.router,
            run_id: &self.run_id,
            tags: self.tags,
            ingress: Some(&ingress),
            probes: &probes,
            scrutiny: &Scrutiny::default(),
            from_itself: false,
            open_ports: OpenPorts::Clients,
            rewritten: &Rewritten::default(),
            pass_on: false,
            notes: None,
            patience: Duration::from_secs(20),
        };
        let mut send = |indexes: &[u32]| {
            before();
            let wanted: Vec<_> = probes
                .iter()
                .copied()
                .filter(|probe| indexes.binary_search(&probe.index).is_ok())
                .collect();
            self.send(&wanted)
        };
        explainer.explain(&question, &mut send).unwrap()
    }

    fn explain(&self, services: &[(u32, Service)]) -> Explanation {
        self.explain_with(&mut Explainer::new(self.tools.clone()), services)
    }

    /// The reason in words for one port.
    fn reason(&self, port: u16, protocol: Protocol) -> String {
        let explanation = self.explain(&[(7, Service { port, protocol })]);
        assert_eq!(explanation.warnings, Vec::<String>::new());
        explanation.reasons[0].to_string()
    }

    fn tcp(&self, port: u16) -> String {
        self.reason(port, Protocol::Tcp)
    }
}

const FORWARD: &str = "type filter hook forward priority 0;";

#[test]
fn a_native_rule_that_drops_is_named_with_its_text() {
    let row = Row::v4();
    row.nft(&format!(
        "table inet fw {{ chain forward {{ {FORWARD} tcp dport 22 accept
         tcp dport {{ 23, 24 }} counter drop comment \"no telnet\"
         udp dport 53 drop
         }} }}"
    ));
    let want = "dropped by rule 2 of chain forward (table inet fw): \
                tcp dport { 23, 24 } counter drop comment \"no telnet\"";
    assert_eq!(row.tcp(23), want);
    assert_eq!(
        row.reason(53, Protocol::Udp),
        "dropped by rule 3 of chain forward (table inet fw): udp dport 53 drop"
    );
    assert_eq!(row.tcp(22), "went through when it was sent again");
}

#[test]
fn a_policy_that_drops_is_named_with_its_chain() {
    let row = Row::v4();
    row.nft(&format!(
        "table ip fw {{ chain forward {{ {FORWARD} policy drop; tcp dport 22 accept\n }} }}"
    ));
    assert_eq!(
        row.tcp(23),
        "dropped by the policy of chain forward (table ip fw)"
    );
}

#[test]
fn a_rejecting_rule_says_with_what() {
    let row = Row::v4();
    row.nft(&format!(
        "table ip fw {{ chain forward {{ {FORWARD} tcp dport 23 reject with tcp reset\n }} }}"
    ));
    assert_eq!(
        row.tcp(23),
        "rejected with tcp reset by rule 1 of chain forward (table ip fw): \
         tcp dport 23 reject with tcp reset"
    );
}

#[test]
fn rules_of_iptables_are_shown_as_iptables_shows_them() {
    let row = Row::v4();
    for rule in [
        "-p tcp --dport 22 -j ACCEPT",
        "-p tcp --dport 23 -j DROP",
        "-p tcp --dport 24 -j REJECT --reject-with icmp-host-prohibited",
        "-p udp -m multiport --dports 25,26 -m comment --comment two -j DROP",
    ] {
        row.run(&format!("iptables-nft -A FORWARD {rule}"));
    }
    row.run("iptables-nft -P FORWARD DROP");
    assert_eq!(
        row.tcp(23),
        "dropped by rule 2 of chain FORWARD (table filter): \
         -A FORWARD -p tcp -m tcp --dport 23 -j DROP"
    );
    assert_eq!(
        row.tcp(24),
        "rejected with icmp-host-prohibited by rule 3 of chain FORWARD (table filter): \
         -A FORWARD -p tcp -m tcp --dport 24 -j REJECT --reject-with icmp-host-prohibited"
    );
    assert_eq!(
        row.reason(26, Protocol::Udp),
        "dropped by rule 4 of chain FORWARD (table filter): \
         -A FORWARD -p udp -m multiport --dports 25,26 -m comment --comment two -j DROP"
    );
    assert_eq!(
        row.tcp(80),
        "dropped by the policy of chain FORWARD (table filter)"
    );
}

#[test]
fn the_rule_in_the_chain_that_was_jumped_to_is_blamed_and_return_is_not() {
    let row = Row::v4();
    for command in [
        "-N deep",
        "-N lan",
        "-A lan -p tcp --dport 80 -j RETURN",
        "-A lan -p tcp --dport 81 -j deep",
        "-A deep -p tcp --dport 1:100 -j DROP",
        "-A FORWARD -i i0 -j lan",
        "-A FORWARD -p tcp --dport 80 -j DROP",
    ] {
        row.run(&format!("iptables-nft {command}"));
    }
    assert_eq!(
        row.tcp(81),
        "dropped by rule 1 of chain deep (table filter): -A deep -p tcp -m tcp --dport 1:100 -j DROP"
    );
    assert_eq!(
        row.tcp(80),
        "dropped by rule 2 of chain FORWARD (table filter): \
         -A FORWARD -p tcp -m tcp --dport 80 -j DROP"
    );
}

#[test]
fn with_several_chains_at_a_hook_the_one_that_drops_is_blamed() {
    let row = Row::v4();
    row.nft(&format!(
        "table inet a {{ chain f {{ {FORWARD} policy accept; tcp dport 23 accept\n }} }}
         table ip b {{ chain f {{ type filter hook forward priority 10; tcp dport 23 drop\n }} }}
         table ip c {{ chain p {{ type filter hook postrouting priority 300; tcp dport 24 drop\n }} }}"
    ));
    assert_eq!(
        row.tcp(23),
        "dropped by rule 1 of chain f (table ip b): tcp dport 23 drop"
    );
    assert_eq!(
        row.tcp(24),
        "dropped by rule 1 of chain p (table ip c): tcp dport 24 drop"
    );
}

#[test]
fn drops_in_raw_prerouting_and_on_the_device_are_found() {
    let row = Row::v4();
    row.run("iptables-nft -t raw -A PREROUTING -p tcp --dport 23 -j DROP");
    row.nft(
        "table netdev n { chain in { type filter hook ingress device i0 priority 0;
         tcp dport 24 drop\n } }",
    );
    assert_eq!(
        row.tcp(23),
        "dropped by rule 1 of chain PREROUTING (table raw): \
         -A PREROUTING -p tcp -m tcp --dport 23 -j DROP"
    );
    assert_eq!(
        row.tcp(24),
        "dropped by rule 1 of chain in (table netdev n): tcp dport 24 drop"
    );
}

#[test]
fn a_queue_without_a_listener_is_called_that() {
    let row = Row::v4();
    row.run("iptables-nft -A FORWARD -p tcp --dport 23 -j NFQUEUE --queue-num 3");
    assert_eq!(
        row.tcp(23),
        "handed to NFQUEUE 3 by rule 1 of chain FORWARD (table filter): -A FORWARD -p tcp -m tcp \
         --dport 23 -j NFQUEUE --queue-num 3, without a listener"
    );
}

#[test]
fn routes_that_go_nowhere_are_told_apart() {
    let row = Row::v4();
    for (kind, want) in [
        ("blackhole", "blackhole route to 10.0.2.2"),
        ("unreachable", "unreachable route to 10.0.2.2"),
        ("prohibit", "prohibit route to 10.0.2.2"),
    ] {
        row.run(&format!("ip route add {kind} 10.0.2.2/32"));
        assert_eq!(row.tcp(80), format!("dropped outside netfilter: {want}"));
        row.run(&format!("ip route del {kind} 10.0.2.2/32"));
    }
    row.run("ip route del 10.0.2.0/24");
    assert_eq!(
        row.tcp(80),
        "dropped outside netfilter: no route to 10.0.2.2"
    );
    row.run("ip link set o0 down");
    assert_eq!(
        row.tcp(80),
        "dropped outside netfilter: interface o0 is down"
    );
}

#[test]
fn routes_of_ipv6_that_go_nowhere_are_told_apart() {
    let row = Row::v6();
    for (kind, want) in [
        ("blackhole", "blackhole route to fd02::2"),
        ("unreachable", "unreachable route to fd02::2"),
        ("prohibit", "prohibit route to fd02::2"),
    ] {
        row.run(&format!("ip -6 route add {kind} fd02::2/128"));
        assert_eq!(row.tcp(80), format!("dropped outside netfilter: {want}"));
        row.run(&format!("ip -6 route del {kind} fd02::2/128"));
    }
    row.run("ip -6 route del fd02::/64 dev o0");
    assert_eq!(
        row.tcp(80),
        "dropped outside netfilter: no route to fd02::2"
    );
}

#[test]
fn a_rule_of_ip6tables_is_named() {
    let row = Row::v6();
    row.run("ip6tables-nft -A FORWARD -p tcp --dport 23 -j DROP");
    assert_eq!(
        row.tcp(23),
        "dropped by rule 1 of chain FORWARD (table ip6 filter): \
         -A FORWARD -p tcp -m tcp --dport 23 -j DROP"
    );
}

#[test]
fn forwarding_switched_off_is_said() {
    let row = Row::v4();
    sysctl::write(&row.router, &[("net/ipv4/conf/i0/forwarding", "0")]).unwrap();
    assert_eq!(
        row.tcp(80),
        "dropped outside netfilter: forwarding is off on i0"
    );
    let row = Row::v6();
    sysctl::write(&row.router, &[("net/ipv6/conf/all/forwarding", "0")]).unwrap();
    assert_eq!(row.tcp(80), "dropped outside netfilter: forwarding is off");
}

#[test]
fn the_reverse_path_filter_is_told_from_a_blackhole() {
    let row = Row::v4();
    sysctl::write(&row.router, &[("net/ipv4/conf/i0/rp_filter", "1")]).unwrap();
    row.run("ip route add 10.0.1.2/32 dev o0");
    assert_eq!(
        row.tcp(80),
        "dropped outside netfilter: rp_filter on i0: the way back to 10.0.1.2 leads to o0"
    );
}

#[test]
fn the_way_back_is_asked_for_from_the_translated_destination() {
    let row = Row::v4();
    row.run("ip link add d0 type veth peer name d1");
    row.run("ip link set d0 up");
    row.run("ip route add 10.9.9.0/24 via 10.0.2.2");
    row.run("ip route add 10.0.1.0/24 dev d0 table 2");
    row.run("ip rule add from 10.9.9.9 lookup 2 prio 1536");
    row.run(
        "iptables-nft -t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.9.9.9",
    );
    sysctl::write(&row.router, &[("net/ipv4/conf/i0/rp_filter", "1")]).unwrap();
    assert_eq!(
        row.tcp(80),
        "dropped outside netfilter: rp_filter on i0: the way back to 10.0.1.2 (from 10.9.9.9) \
         leads to d0 (policy rule 1536: from 10.9.9.9 lookup 2)"
    );
    assert_eq!(row.tcp(81), "went through when it was sent again");
}

#[test]
fn the_way_back_is_asked_for_with_the_mark_only_where_the_kernel_does() {
    let row = Row::v4();
    row.run("ip link add d0 type veth peer name d1");
    row.run("ip link set d0 up");
    row.run("iptables-nft -t mangle -A PREROUTING -p tcp --dport 80 -j MARK --set-mark 5");
    row.run("ip rule add fwmark 5 to 10.0.1.0/24 lookup 2 prio 7");
    row.run("ip route add 10.0.1.0/24 dev d0 table 2");
    sysctl::write(&row.router, &[("net/ipv4/conf/i0/rp_filter", "1")]).unwrap();
    assert_eq!(row.tcp(80), "went through when it was sent again");
    sysctl::write(&row.router, &[("net/ipv4/conf/i0/src_valid_mark", "1")]).unwrap();
    assert_eq!(
        row.tcp(80),
        "dropped outside netfilter: rp_filter on i0: the way back to 10.0.1.2 (from 10.0.2.2) \
         leads to d0 (policy rule 7: from all to 10.0.1.0/24 fwmark 0x5 lookup 2)"
    );
}

#[test]
fn policy_rules_of_ipv6_that_end_a_packet_are_named() {
    let row = Row::v6();
    row.run("ip -6 rule add ipproto tcp dport 81 prohibit prio 11");
    row.run("ip -6 rule add ipproto tcp dport 82 unreachable prio 12");
    row.run("ip -6 rule add ipproto tcp dport 83 blackhole prio 13");
    for (port, rule) in [
        (81, "11: from all ipproto 6 dport 81 prohibit"),
        (82, "12: from all ipproto 6 dport 82 unreachable"),
        (83, "13: from all ipproto 6 dport 83 blackhole"),
    ] {
        let want = format!("dropped outside netfilter: policy rule {rule}");
        assert_eq!(row.tcp(port), want);
    }
}

#[test]
fn a_blackhole_for_what_comes_in_by_one_interface_is_told_from_rp_filter() {
    let row = Row::v4();
    sysctl::write(&row.router, &[("net/ipv4/conf/i0/rp_filter", "1")]).unwrap();
    row.run("ip rule add iif i0 to 10.0.2.0/24 blackhole prio 9");
    assert_eq!(
        row.tcp(80),
        "dropped outside netfilter: policy rule 9: from all to 10.0.2.0/24 iif i0 blackhole"
    );
}

#[test]
fn a_source_that_the_router_has_itself_is_a_martian() {
    let row = Row::v4();
    row.run("ip addr add 10.0.1.2/32 dev o0");
    assert_eq!(
        row.tcp(80),
        "dropped outside netfilter: martian source 10.0.1.2"
    );
}

#[test]
fn a_ttl_that_a_rule_has_lowered_is_seen() {
    let row = Row::v4();
    row.run("iptables-nft -t mangle -A PREROUTING -p tcp --dport 80 -j TTL --ttl-set 1");
    assert_eq!(
        row.tcp(80),
        "dropped outside netfilter: TTL 1 does not allow another hop"
    );
}

#[test]
fn policy_routing_by_mark_and_port_is_followed() {
    let row = Row::v4();
    row.run("iptables-nft -t mangle -A PREROUTING -p tcp --dport 80 -j MARK --set-mark 5");
    row.run("ip rule add fwmark 5 prohibit");
    row.run("ip rule add ipproto tcp dport 81 blackhole");
    assert_eq!(
        row.tcp(80),
        "dropped outside netfilter: policy rule 32765: from all fwmark 0x5 prohibit"
    );
    assert_eq!(
        row.tcp(81),
        "dropped outside netfilter: policy rule 32764: from all ipproto 6 dport 81 blackhole"
    );
    assert_eq!(row.tcp(82), "went through when it was sent again");
}

#[test]
fn the_look_up_is_for_the_address_after_dnat() {
    let row = Row::v4();
    row.run(
        "iptables-nft -t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.9.9.9",
    );
    assert_eq!(
        row.tcp(80),
        "dropped outside netfilter: no route to 10.9.9.9"
    );
}

#[test]
fn a_limit_on_the_way_makes_the_reason_uncertain_and_is_named() {
    let row = Row::v4();
    for rule in [
        "-p tcp --dport 80 -m limit --limit 1/day --limit-burst 1 -j ACCEPT",
        "-p tcp --dport 99 -m limit --limit 1/day --limit-burst 1 -j ACCEPT",
        "-m limit --limit 5/min -j LOG",
        "-p tcp -j DROP",
    ] {
        row.run(&format!("iptables-nft -A FORWARD {rule}"));
    }
    let port = |port| Service {
        port,
        protocol: Protocol::Tcp,
    };
    let services = [(0, port(80)), (1, port(81))];
    // The burst of one lets the first probe through.
    row.send(&row.probes(&services)).unwrap();
    let explanation = row.explain(&services);
    assert_eq!(
        explanation.reasons[0].to_string(),
        "dropped by rule 4 of chain FORWARD (table filter): -A FORWARD -p tcp -j DROP; \
         rate-limited: 1/day burst 1 on rule 1 of chain FORWARD (table filter): -A FORWARD -p tcp \
         -m tcp --dport 80 -m limit --limit 1/day --limit-burst 1 -j ACCEPT"
    );
    assert!(explanation.reasons[0].doubtful().next().is_some());
    assert!(
        explanation.reasons[1].doubtful().next().is_none(),
        "{}",
        explanation.reasons[1]
    );
}

#[test]
fn a_thousand_services_are_explained_once_and_the_ruleset_is_as_before() {
    let row = Row::v4();
    row.run("iptables-nft -A FORWARD -p tcp -m tcp --dport 1:500 -j DROP");
    row.run("iptables-nft -P FORWARD DROP");
    let before = row.run("nft -a list ruleset");
    let services: Vec<(u32, Service)> = (1..=1000)
        .map(|port| {
            let protocol = Protocol::Tcp;
            (u32::from(port), Service { port, protocol })
        })
        .collect();
    let mut explainer = Explainer::new(row.tools.clone());
    for _ in 0..2 {
        let began = std::time::Instant::now();
        let explanation = row.explain_with(&mut explainer, &services);
        println!("1,000 services explained in {:?}", began.elapsed());
        assert_eq!(explanation.warnings, Vec::<String>::new());
        for (explained, (index, service)) in explanation.reasons.iter().zip(&services) {
            let want = if service.port <= 500 {
                "dropped by rule 1 of chain FORWARD (table filter): \
                 -A FORWARD -p tcp -m tcp --dport 1:500 -j DROP"
            } else {
                "dropped by the policy of chain FORWARD (table filter)"
            };
            assert_eq!(explained.index, *index);
            assert_eq!(explained.to_string(), want);
        }
    }
    let counts = |text: String| -> String {
        let words = text.split_whitespace();
        let words = words.map(|w| if w.parse::<u64>().is_ok() { "N" } else { w });
        words.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(counts(row.run("nft -a list ruleset")), counts(before));
    assert!(!row.run("nft list tables").contains("tsim"));
}

#[test]
fn probes_that_do_not_come_in_are_not_called_dropped() {
    let row = Row::v4();
    row.run("ip link set i0 down");
    assert_eq!(
        row.tcp(80),
        "dropped outside netfilter: interface i0 is down"
    );
}

/// A tracer in the router, without the layers above.
fn tracer(row: &Row) -> Tracer {
    tracer_of(row, row.run_id.clone(), row.tags)
}

/// The same of the job with this name and these tags.
fn tracer_of(row: &Row, run_id: RunId, tags: TagSpace) -> Tracer {
    let spec = TraceSpec {
        pass_on: false,
        run_id,
        family: Family::of(row.headers.destination),
        tags,
        protocols: vec![Protocol::Tcp, Protocol::Udp],
        from_itself: false,
        ingress: None,
    };
    let sockets = row.router.enter(TraceSockets::open_here).unwrap().unwrap();
    Tracer::start(sockets, &spec).unwrap()
}

fn many(count: u32) -> Vec<(u32, Service)> {
    let service = |index: u32| Service {
        port: (index % 60_000 + 1) as u16,
        protocol: Protocol::Tcp,
    };
    (0..count).map(|index| (index, service(index))).collect()
}

#[test]
fn events_that_do_not_fit_are_noticed_and_the_next_ones_are_whole() {
    let row = Row::v4();
    row.run("iptables-nft -P FORWARD DROP");
    let mut tracer = tracer(&row);
    row.send(&row.probes(&many(40_000))).unwrap();
    assert!(tracer.drain().unwrap().overrun);
    // As many as there is room for: an ordinary user's buffer holds the events of a few.
    let few = many(tracer.probes_at_once() as u32);
    row.send(&row.probes(&few)).unwrap();
    let drained = tracer.drain().unwrap();
    assert!(!drained.overrun);
    assert_eq!(drained.trails.len(), few.len());
    let whole = |trail: &Trail| matches!(trail.stopped_by(), StoppedBy::Policy(_));
    assert!(drained.trails.values().all(whole));
    tracer.stop().1.unwrap();
}

#[test]
fn probes_with_many_events_are_sent_again_in_smaller_batches() {
    let row = Row::v4();
    // 100 rules that match and decide nothing are 100 events for each probe.
    let rules = "counter\n".repeat(100);
    row.nft(&format!(
        "table ip fw {{ chain forward {{ {FORWARD} policy drop; {rules} }} }}"
    ));
    let explanation = row.explain(&many(PROBES_PER_DRAIN as u32));
    assert_eq!(explanation.warnings, Vec::<String>::new());
    for explained in &explanation.reasons {
        assert_eq!(
            explained.to_string(),
            "dropped by the policy of chain forward (table ip fw)"
        );
        // Kernels up to 6.1 also tell that the chain is at its end.
        let rules = explained.steps.iter().filter(|s| s.kind == StepKind::Rule);
        assert_eq!(rules.count(), 100, "{:#?}", explained.steps);
    }
}

#[test]
fn events_of_another_job_that_leave_no_room_are_waited_for() {
    let row = Row::v4();
    row.run("iptables-nft -P FORWARD DROP");
    let tags = TagSpace::new(Dscp::new(41).unwrap(), 0x1234_5678_9abc_def2);
    let other = tracer_of(&row, RunId::new("other").unwrap(), tags);
    let theirs = row.probes(&many(6_000));
    let mut times = 0;
    let mut before = || {
        times += 1;
        if times <= 3 {
            row.send_as(tags, &theirs).unwrap();
        }
    };
    let mut explainer = Explainer::new(row.tools.clone());
    let explanation = row.explain_beside(&mut explainer, &many(1), &mut before);
    assert_eq!(explanation.warnings, Vec::<String>::new());
    assert_eq!(
        explanation.reasons[0].to_string(),
        "dropped by the policy of chain FORWARD (table filter)"
    );
    assert_eq!(times, 4, "their events did not leave too little room");
    other.stop().1.unwrap();
}

#[test]
fn a_copy_that_leaves_is_not_taken_for_the_probe() {
    let row = Row::v4();
    row.run("iptables-nft -t mangle -A PREROUTING -p tcp --dport 23 -j TEE --gateway 10.0.2.2");
    row.run("iptables-nft -A FORWARD -p tcp --dport 23 -j DROP");
    assert_eq!(
        row.tcp(23),
        "dropped by rule 1 of chain FORWARD (table filter): \
         -A FORWARD -p tcp -m tcp --dport 23 -j DROP"
    );
}

#[test]
fn a_rule_of_iptables_legacy_is_named() {
    let row = Row::v4();
    row.run("iptables-legacy -A FORWARD -p tcp --dport 23 -j DROP");
    assert_eq!(
        row.tcp(23),
        "dropped by rule 1 of chain FORWARD (table filter): \
         -A FORWARD -p tcp -m tcp --dport 23 -j DROP"
    );
}

#[test]
fn the_jobs_taps_see_traced_probes_come_in_and_not_go_out() {
    let row = Row::v4();
    row.run("iptables-nft -A FORWARD -p tcp --dport 23 -j DROP");
    let taps = Taps::new(
        row.run_id.clone(),
        Family::V4,
        row.tags,
        (2, Runs::new(&[(Protocol::Tcp, 2)])),
    );
    let socket = row.router.enter(NftSocket::open_here).unwrap().unwrap();
    let mut taps = NftTaps::install(socket, taps).unwrap();
    let services = [22, 23].map(|port| Service {
        port,
        protocol: Protocol::Tcp,
    });
    let services: Vec<_> = (0..).zip(services).collect();
    row.send(&row.probes(&services)).unwrap();
    let read = taps.read().unwrap();
    assert_eq!((read.packets_in, read.out.len()), (2, 1));
    let explanation = row.explain(&services);
    let words: Vec<String> = explanation
        .reasons
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(words[0], "went through when it was sent again");
    assert!(
        words[1].starts_with("dropped by rule 1 of chain FORWARD"),
        "{}",
        words[1]
    );
    let after = taps.read().unwrap();
    assert_eq!((after.packets_in, after.packets_out), (4, read.packets_out));
    taps.remove().1.unwrap();
}

#[test]
fn a_rule_that_remembers_probes_is_warned_about() {
    let row = Row::v4();
    row.nft(&format!(
        "table ip fw {{ set seen {{ type ipv4_addr; flags dynamic; timeout 1m; }}
         chain forward {{ {FORWARD} policy drop; add @seen {{ ip saddr }}
         }} }}"
    ));
    let explanation = row.explain(&many(1));
    assert_eq!(
        explanation.warnings,
        [
            "probes left an entry in set seen by rule 1 of chain forward (table ip fw): \
          add @seen { ip saddr }"
        ]
    );
}

#[test]
fn a_ruleset_that_changes_meanwhile_is_warned_about() {
    let row = Row::v4();
    row.run("iptables-nft -P FORWARD DROP");
    let services = many(1);
    let question = ExplainQuestion {
        netns: &row.router,
        run_id: &row.run_id,
        tags: row.tags,
        ingress: None,
        probes: &row.probes(&services),
        scrutiny: &Scrutiny::default(),
        from_itself: false,
        open_ports: OpenPorts::Clients,
        rewritten: &Rewritten::default(),
        pass_on: false,
        notes: None,
        patience: Duration::from_secs(20),
    };
    let mut send = |_: &[u32]| {
        row.run("iptables-nft -A FORWARD -p tcp --dport 9 -j DROP");
        row.send(&row.probes(&services))
    };
    let mut explainer = Explainer::new(row.tools.clone());
    let explanation = explainer.explain(&question, &mut send).unwrap();
    assert_eq!(
        explanation.warnings,
        ["table filter changed while blocked services were explained"]
    );
}

#[test]
fn a_trace_is_gone_when_its_tracer_dies() {
    let row = Row::v4();
    let tracer = tracer(&row);
    assert!(row.run("nft list tables").contains("tsimtrace"));
    drop(tracer);
    // Closing waits until the kernel has taken the table away, if it does: the next job sweeps. But a child that
    // another test has forked has the socket, too, until it runs its program.
    let is_gone = |_| !row.run("nft list tables").contains("tsimtrace");
    assert_eq!((0..100).any(is_gone), crate::kernels::owner_tables());
}
