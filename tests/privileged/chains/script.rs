//! A chain as a shell script of plain commands, which anyone can run by hand.

use std::fmt::Write;

use super::{
    plan::Loader,
    world::{Node, World},
};

/// The namespace of the bridges, one for each segment.
pub(super) const WIRES: &str = "wires";

/// Every node with the interfaces that it has, by number.
fn nodes(world: &World) -> impl Iterator<Item = (usize, &Node)> {
    let hosts = [&world.source, &world.destination];
    world.routers.iter().chain(hosts).enumerate()
}

/// The segments of a node, each once.
fn segments(node: &Node) -> Vec<usize> {
    let mut all: Vec<usize> = node
        .interfaces
        .iter()
        .map(|(segment, _)| *segment)
        .collect();
    all.dedup();
    all
}

fn mac(node: usize, segment: usize) -> String {
    format!("02:00:00:00:{node:02x}:{segment:02x}")
}

/// The bridges' ports.
pub(super) fn ports(world: &World) -> Vec<String> {
    let of = |(number, node)| {
        let port = move |segment| format!("p{number}-{segment}");
        segments(node).into_iter().map(port)
    };
    nodes(world).flat_map(of).collect()
}

/// The script, for namespaces whose names begin with `prefix` and a dot.
pub(super) fn of(world: &World, loader: Loader, prefix: &str) -> String {
    let mut text = format!("set -e\nip netns add {prefix}.{WIRES}\n");
    for (_, node) in nodes(world) {
        let netns = format!("{prefix}.{}", node.name);
        writeln!(text, "ip netns add {netns}").unwrap();
        // Whatever the machine's own defaults are.
        let mut settings = "net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
                            net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.accept_ra=0"
            .to_owned();
        match node.is_host {
            // What a router tells of shorter ways would be for the connections after this one.
            true => {
                settings += " net.ipv4.conf.all.accept_redirects=0 \
                            net.ipv4.conf.default.accept_redirects=0 \
                            net.ipv6.conf.default.accept_redirects=0";
            }
            false => settings += " net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        }
        writeln!(text, "ip netns exec {netns} sysctl -qw {settings}").unwrap();
    }
    wires(world, prefix, &mut text);
    for (number, node) in nodes(world) {
        configure(world, (number, node), prefix, &mut text);
        load(world, node, loader, prefix, &mut text);
    }
    text
}

fn wires(world: &World, prefix: &str, text: &mut String) {
    writeln!(text, "ip -n {prefix}.{WIRES} -batch - <<END").unwrap();
    let mut known = Vec::new();
    for (number, node) in nodes(world) {
        for segment in segments(node) {
            if !known.contains(&segment) {
                known.push(segment);
                writeln!(text, "link add b{segment} type bridge mcast_snooping 0").unwrap();
                writeln!(text, "link set b{segment} up").unwrap();
            }
            let (port, mac) = (format!("p{number}-{segment}"), mac(number, segment));
            let (name, netns) = (format!("s{segment}"), format!("{prefix}.{}", node.name));
            writeln!(
                text,
                "link add {port} type veth peer name {name} address {mac} netns {netns}"
            )
            .unwrap();
            writeln!(text, "link set {port} master b{segment} up").unwrap();
        }
    }
    text.push_str("END\n");
}

fn configure(world: &World, (number, node): (usize, &Node), prefix: &str, text: &mut String) {
    let netns = format!("{prefix}.{}", node.name);
    let family = if world.v6 { "-6" } else { "-4" };
    writeln!(
        text,
        "ip {family} -n {netns} -batch - <<END\nlink set lo up"
    )
    .unwrap();
    for segment in segments(node) {
        writeln!(text, "link set s{segment} up").unwrap();
    }
    for (segment, mtu) in &node.mtus {
        writeln!(text, "link set s{segment} mtu {mtu}").unwrap();
    }
    let nodad = if world.v6 { " nodad" } else { "" };
    for (segment, address) in &node.interfaces {
        writeln!(text, "addr add {address} dev s{segment}{nodad}").unwrap();
    }
    // Nobody has to be asked who has an address, so that nothing comes later than it is sent.
    for (other, neighbour) in nodes(world).filter(|(other, _)| *other != number) {
        for (segment, address) in &neighbour.interfaces {
            if !segments(node).contains(segment) {
                continue;
            }
            let (address, _) = address.split_once('/').unwrap();
            let mac = mac(other, *segment);
            writeln!(
                text,
                "neigh replace {address} lladdr {mac} dev s{segment} nud permanent"
            )
            .unwrap();
        }
    }
    // A group is of no family.
    if !node.next_hops.is_empty() {
        writeln!(text, "END\nip -n {netns} -batch - <<END").unwrap();
        for next_hop in &node.next_hops {
            writeln!(text, "nexthop add {next_hop}").unwrap();
        }
        writeln!(text, "END\nip {family} -n {netns} -batch - <<END").unwrap();
    }
    for route in &node.routes {
        writeln!(text, "route add {route}").unwrap();
    }
    for rule in &node.policy {
        writeln!(text, "rule add {rule}").unwrap();
    }
    text.push_str("END\n");
    if node.numbers_only {
        let key = "net.ipv4.nexthop_compat_mode=0";
        writeln!(text, "ip netns exec {netns} sysctl -qw {key}").unwrap();
    }
    for segment in node.strict.iter().filter(|_| !world.v6) {
        let key = format!("net.ipv4.conf.s{segment}.rp_filter");
        writeln!(text, "ip netns exec {netns} sysctl -qw {key}=1").unwrap();
    }
}

fn load(world: &World, node: &Node, loader: Loader, prefix: &str, text: &mut String) {
    if node.rules.is_empty() {
        return;
    }
    let six = if world.v6 { "6" } else { "" };
    let (program, rules) = match loader {
        Loader::Nft => ("nft -f -".to_owned(), node.rules.nft(world.v6)),
        Loader::IptablesNft => (
            format!("ip{six}tables-nft-restore"),
            node.rules.iptables(world.v6),
        ),
        Loader::IptablesLegacy => (
            format!("ip{six}tables-legacy-restore"),
            node.rules.iptables(world.v6),
        ),
    };
    let netns = format!("{prefix}.{}", node.name);
    writeln!(text, "ip netns exec {netns} {program} <<END\n{rules}END").unwrap();
}
