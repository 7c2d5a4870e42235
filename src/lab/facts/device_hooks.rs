//! What hooks at a device see of other interfaces' packets, and no lab shows them.
//!
//! Frames of a VLAN or a macvlan pass the device below it, those of a bridge or a bond pass its ports. So
//! rules of nf_tables at the hooks of such a device (family netdev, and `hook ingress` of family inet) and
//! programs of it (XDP) may stop or change what is another interface's. A lab has one device for each.

use std::collections::BTreeSet;

use super::{InterfaceFacts, RouterFacts, vrf::names};
use crate::{
    lab::{
        omission::{Concern, DeviceTable, Omission, OmissionKind, PacketSet, at_devices},
        topology::{At, MasterKind, Ruleset, RulesetKind, Warning},
    },
    model::IfName,
};

/// Tells which packets rules and programs of devices may stop or change.
pub(super) fn doubts(facts: &RouterFacts) -> Vec<Warning> {
    let rulesets = facts.rulesets.iter();
    let rulesets = rulesets.filter(|ruleset| ruleset.kind == RulesetKind::Nft);
    let with = facts.interfaces.iter().filter(|i| i.link.xdp);
    let by_programs = with.map(|interface| by_program(facts, interface));
    by_programs
        .chain(rulesets.flat_map(|ruleset| by_rules(facts, ruleset)))
        .collect()
}

/// Names the devices that hooks of nf_tables have by the beginning of their names (`devices = { "eth*" }`), as
/// kernels since 6.16 and their nft(8) let them: others take such a name for that of one device.
pub(super) fn name_devices(facts: &mut RouterFacts) {
    let interfaces = facts.interfaces.iter();
    let known: Vec<&str> = interfaces
        .map(|interface| interface.name.as_str())
        .collect();
    for ruleset in &mut facts.rulesets {
        if ruleset.kind != RulesetKind::Nft || !ruleset.text.contains('*') {
            continue;
        }
        let lines = ruleset.text.split_inclusive('\n');
        let lines = lines.map(|line| with_names(line, &known).unwrap_or_else(|| line.to_owned()));
        ruleset.text = lines.collect();
    }
}

/// `line` with the names of all `known` devices in the place of the beginnings of names that it has; none where it
/// has none, or no device is called so.
fn with_names(line: &str, known: &[&str]) -> Option<String> {
    let begins = ["type ", "devices = {"];
    let hooks = begins
        .iter()
        .any(|word| line.trim_start().starts_with(word));
    let (before, behind) = line
        .split_once(" device")
        .or_else(|| line.split_once("device"))?;
    let (list, rest) = match behind.strip_prefix("s = {") {
        Some(list) => list.split_once('}')?,
        None => {
            let one = behind.strip_prefix(' ')?;
            one.split_at(one.find([' ', ';'])?)
        }
    };
    let all = list.split(',').map(|name| name.trim().trim_matches('"'));
    let all = all.flat_map(|name| match name.strip_suffix('*') {
        Some(beginning) => known
            .iter()
            .filter(|name| name.starts_with(beginning))
            .copied()
            .collect(),
        None => vec![name],
    });
    let all: BTreeSet<String> = all.map(|name| format!("\"{name}\"")).collect();
    let space = if before.trim().is_empty() { "" } else { " " };
    (hooks && list.contains('*') && !all.is_empty()).then(|| {
        let all: Vec<String> = all.into_iter().collect();
        format!("{before}{space}devices = {{ {} }}{rest}", all.join(", "))
    })
}

/// A program of an interface (XDP), which may stop what comes in.
fn by_program(facts: &RouterFacts, interface: &At<InterfaceFacts>) -> Warning {
    let mut all = carried(facts, &interface.name);
    all.insert(interface.name.clone());
    let packets = all.iter().cloned().map(|name| PacketSet {
        incoming: Some(name),
        ..PacketSet::default()
    });
    let omission = Omission::of_packets(OmissionKind::Feature, packets).of_passed();
    let message = format!(
        "a program (XDP) that no lab has may stop what comes in by {}",
        listed(&all)
    );
    Warning::omission(facts.origin(interface.line), &facts.name, message, omission)
}

/// Rules of nf_tables at devices that carry the packets of others.
fn by_rules(facts: &RouterFacts, ruleset: &Ruleset) -> Vec<Warning> {
    let named = |line: &str| {
        let interfaces = facts.interfaces.iter().map(|interface| &interface.name);
        let named = interfaces.filter(|name| names(line, name));
        named.flat_map(|name| carried(facts, name)).collect()
    };
    let warning = |table: DeviceTable| {
        let message = format!(
            "`{}` sees what comes in or leaves by {} at the device below, which no lab shows it",
            table.head,
            listed(&table.carried)
        );
        let omission = Omission {
            kind: OmissionKind::Feature,
            concern: Concern(table.extents),
        };
        let origin = facts.origin(ruleset.origin.line + table.line);
        Warning::omission(origin, &facts.name, message, omission)
    };
    at_devices(ruleset, named)
        .into_iter()
        .map(warning)
        .collect()
}

/// The other interfaces whose packets pass `device`.
fn carried(facts: &RouterFacts, device: &IfName) -> BTreeSet<IfName> {
    let mut found = BTreeSet::new();
    let mut pending = vec![device];
    while let Some(device) = pending.pop() {
        for interface in &facts.interfaces {
            let above = match &interface.link.master {
                Some(master) if interface.name == *device && master.kind != MasterKind::Vrf => {
                    Some(&master.name)
                }
                _ => is_on(interface, device).then_some(&interface.name),
            };
            if let Some(above) = above
                && found.insert(above.clone())
            {
                pending.push(above);
            }
        }
    }
    found
}

/// Whether an interface's packets pass `device` below it as they are; where no `ip -d link` says what it is,
/// its name may (`eth0.10`).
fn is_on(interface: &InterfaceFacts, device: &IfName) -> bool {
    const SHARING: [&str; 4] = ["vlan", "macvlan", "macvtap", "ipvlan"];
    match interface.link.kind.as_deref() {
        Some(kind) => SHARING.contains(&kind) && interface.link.over.as_ref() == Some(device),
        None => interface
            .name
            .as_str()
            .strip_prefix(device.as_str())
            .and_then(|rest| rest.strip_prefix('.')?.parse().ok())
            .is_some_and(|tag: u16| (1..=4094).contains(&tag)),
    }
}

fn listed(names: &BTreeSet<IfName>) -> String {
    let names: Vec<&str> = names.iter().map(IfName::as_str).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_of_names_stands_for_all_devices_that_are_called_so() {
        let known = ["lo", "eth0", "eth1", "wan"];
        let named = |line: &str| with_names(line, &known);
        let both = Some("\t\ttype filter hook ingress devices = { \"eth0\", \"eth1\" } priority 0; policy drop;\n".to_owned());
        for devices in [
            "device \"eth*\"",
            "devices = { \"eth*\" }",
            "devices = { eth*, eth1 }",
        ] {
            let line = format!("\t\ttype filter hook ingress {devices} priority 0; policy drop;\n");
            assert_eq!(named(&line), both, "{line}");
        }
        let table = Some("\t\tdevices = { \"lo\", \"wan\" }\n".to_owned());
        assert_eq!(named("\t\tdevices = { \"lo\", \"w*\" }\n"), table);
        for line in [
            "\t\ttype filter hook ingress device \"eth0\" priority 0; policy drop;",
            "\t\ttype filter hook ingress device \"ppp*\" priority 0; policy drop;",
            "\t\tmeta iifname \"eth*\" accept comment \"device x*\"",
        ] {
            assert_eq!(named(line), None, "{line}");
        }
    }
    use crate::{
        lab::{facts::text, omission::Extent},
        model::RouterName,
    };

    const LINKS: &str = "\
2: eth0: <BROADCAST,UP> mtu 1500
3: eth0.10@eth0: <BROADCAST,UP> mtu 1500
    inet 10.0.0.1/24 scope global eth0.10
11: guests@eth1: <BROADCAST,UP> mtu 1500
    vlan protocol 802.1Q id 9 <REORDER_HDR>
    inet 10.0.3.1/24 scope global guests
4: lan1: <BROADCAST,UP> mtu 1500 master br0
5: br0: <BROADCAST,UP> mtu 1500
    bridge forward_delay 1500
6: br0.7@br0: <BROADCAST,UP> mtu 1500
    inet 10.0.7.1/24 scope global br0.7
7: up1: <BROADCAST,SLAVE,UP> mtu 1500 master bond0
8: bond0: <BROADCAST,MASTER,UP> mtu 1500
    inet 10.0.1.1/24 scope global bond0
9: gre1@eth0: <POINTOPOINT,UP> mtu 1400
    gre remote 10.0.0.2 local 10.0.0.1
    inet 10.0.9.1/30 scope global gre1
10: eth1: <BROADCAST,UP> mtu 1500
    inet 10.0.2.1/24 scope global eth1";

    fn warnings(links: &str, rules: &str) -> Vec<Warning> {
        let section = |name: &str, body: &str| {
            format!(
                "=== TSIM_SECTION_START:{name} ===\nCOMMAND: x\n---\n{body}\nEXIT_CODE: 0\n\
                 === TSIM_SECTION_END:{name} ===\n"
            )
        };
        let text = section("interfaces", links)
            + &section("routing_table_main", "")
            + &section("nft_ruleset", rules);
        doubts(&text::read(RouterName::new("r").unwrap(), "r.txt", &text).unwrap())
    }

    /// What a chain at a hook of a device is said to concern.
    fn of(family: &str, hook: &str, rule: &str) -> Vec<Extent> {
        let rules = format!(
            "table {family} t {{\n\tchain c {{\n\t\ttype filter hook {hook} priority 0; policy accept;\n\
             \t\t{rule}\n\t}}\n\tchain later {{\n\t\ttcp dport 81 drop\n\t}}\n}}"
        );
        let found = warnings(LINKS, &rules).into_iter();
        found
            .flat_map(|warning| warning.omission.unwrap().concern.0)
            .collect()
    }

    fn texts(extents: &[Extent]) -> Vec<&str> {
        let texts = extents.iter().map(|extent| match extent {
            Extent::Rule(rule) => rule.text.as_str(),
            Extent::Packets(packets) => packets.interface.as_ref().unwrap().as_str(),
        });
        texts.collect()
    }

    #[test]
    fn rules_of_a_device_concern_what_is_above_it() {
        let drop = "tcp dport 80 drop";
        let ingress = of("netdev", "ingress device \"eth0\"", drop);
        assert_eq!(
            texts(&ingress),
            ["iifname { \"eth0.10\" } tcp dport 80 drop"]
        );
        let jump = of("netdev", "ingress device \"eth0\"", "jump later");
        assert_eq!(texts(&jump), ["iifname { \"eth0.10\" } tcp dport 81 drop"]);
        let egress = of("netdev", "egress devices = { eth1, lan1 }", drop);
        let want = "oifname { \"br0\", \"br0.7\", \"guests\" } tcp dport 80 drop";
        assert_eq!(texts(&egress), [want]);
        let inet = of("inet", "ingress device \"up1\"", "meta mark set 0x1");
        assert_eq!(texts(&inet), ["iifname { \"bond0\" } meta mark set 0x1"]);
        let own = of("inet", "ingress device \"up1\"", "iifname \"up1\" drop");
        assert_eq!(texts(&own), ["bond0"]);
    }

    #[test]
    fn rules_that_do_nothing_to_others_concern_none() {
        for (family, hook, rule) in [
            ("inet", "ingress device \"guests\"", "drop"),
            ("inet", "ingress device \"eth0\"", "counter"),
            ("inet", "ingress device \"eth0\"", "tcp dport 80 accept"),
            ("inet", "ingress device \"eth0.10\"", "drop"),
            ("inet", "forward", "drop"),
        ] {
            assert_eq!(of(family, hook, rule), [], "{family} {hook} {rule}");
        }
        let dropping = "table netdev t {\n\tchain c {\n\t\ttype filter hook ingress device \"eth0\" \
                        priority 0; policy drop;\n\t}\n}";
        assert_eq!(warnings(LINKS, dropping).len(), 1);
    }

    #[test]
    fn a_program_of_a_device_sees_what_is_above_it() {
        let links = LINKS.replace(
            "2: eth0: <BROADCAST,UP> mtu 1500",
            "2: eth0: <BROADCAST,UP> mtu 1500 xdp",
        );
        let found = warnings(&links, "");
        assert_eq!(found.len(), 1);
        let message = found[0].to_string();
        assert!(message.ends_with("comes in by eth0, eth0.10"), "{message}");
    }
}
