//! Rules at the hooks of devices that carry the packets of other interfaces: of what VLANs are made over,
//! of the ports of bridges and bonds. A lab has each of these as a device of its own, and its rules see
//! nothing there.

use std::collections::BTreeSet;

use super::{
    Extent, Hooks, PacketSet, RuleExtent,
    rule::ends_unread,
    rulesets::{Layer, RulesetLine, RulesetMap},
};
use crate::{
    firewall::rule::{Field, Rule, RuleVerdict},
    lab::topology::Ruleset,
    model::IfName,
};

/// What the rules of a table do at devices that carry the packets of others.
#[derive(Debug)]
pub(crate) struct DeviceTable {
    /// Where it begins, counted from 0.
    pub(crate) line: usize,
    /// Its first line.
    pub(crate) head: String,
    /// The interfaces whose packets it sees there.
    pub(crate) carried: BTreeSet<IfName>,
    /// The packets that it may stop or change.
    pub(crate) extents: Vec<Extent>,
}

/// Packets that a chain sees at a device.
#[derive(Debug, Clone)]
struct Sight {
    table: usize,
    chain: String,
    leaving: bool,
    carried: BTreeSet<IfName>,
}

/// The tables of `ruleset` that may stop or change something at devices of which `carried` says what else
/// comes by those that a line names.
#[must_use]
pub(crate) fn at_devices(
    ruleset: &Ruleset,
    carried: impl Fn(&str) -> BTreeSet<IfName>,
) -> Vec<DeviceTable> {
    let map = RulesetMap::read(ruleset.kind, &ruleset.text);
    let sights = sights(&map, carried);
    let mut tables: Vec<usize> = sights.iter().map(|sight| sight.table).collect();
    tables.dedup();
    let of_table = |table| map.at_devices_of(table, &sights);
    let found = tables.into_iter().map(of_table);
    found.filter(|found| !found.extents.is_empty()).collect()
}

/// What each base chain sees at devices.
fn sights(map: &RulesetMap<'_>, carried: impl Fn(&str) -> BTreeSet<IfName>) -> Vec<Sight> {
    let sight = |line: &RulesetLine<'_>| {
        let mut words = line.text.split_whitespace();
        words.find(|word| *word == "hook")?;
        let leaving = match words.next()? {
            "ingress" => false,
            "egress" => true,
            _ => return None,
        };
        let carried = carried(line.text);
        (!carried.is_empty()).then_some(Sight {
            table: line.table?,
            chain: line.chain?.to_owned(),
            leaving,
            carried,
        })
    };
    map.lines.iter().filter_map(sight).collect()
}

impl RulesetMap<'_> {
    fn at_devices_of(&self, table: usize, sights: &[Sight]) -> DeviceTable {
        let first = self.lines.iter().position(|line| line.table == Some(table));
        let first = first.unwrap_or(0);
        let head = self.lines.get(first).map_or("", |line| line.text);
        let mut found = DeviceTable {
            line: first,
            head: head.trim_end_matches([' ', '{']).to_owned(),
            carried: BTreeSet::new(),
            extents: Vec::new(),
        };
        for line in self.lines.iter().filter(|line| line.table == Some(table)) {
            let Some(chain) = line.chain else { continue };
            let sees = |sight: &&Sight| sight.table == table && self.leads_to(sight, chain);
            for sight in sights.iter().filter(sees) {
                let extents = self.at_device(line, sight);
                if !extents.is_empty() {
                    found.carried.extend(sight.carried.iter().cloned());
                }
                found.extents.extend(extents);
            }
        }
        found
    }

    /// Whether the table has rules of a chain.
    fn has_chain(&self, table: usize, chain: &str) -> bool {
        let mut lines = self.lines.iter();
        lines.any(|line| line.table == Some(table) && line.chain == Some(chain))
    }

    /// Whether what a base chain sees at a device may come to `chain`.
    fn leads_to(&self, sight: &Sight, chain: &str) -> bool {
        if sight.chain == chain {
            return true;
        }
        let Some(table) = self.tables.get(sight.table) else {
            return false;
        };
        let hooks = table.chains.of(chain);
        let sees = match table.layer {
            Layer::Device => !hooks.is_empty(),
            _ => hooks.ingress,
        };
        sees && !table.chains.is_base(chain)
    }

    /// What a line does to the packets that come by it at a device.
    fn at_device(&self, line: &RulesetLine<'_>, sight: &Sight) -> Vec<Extent> {
        let Some(table) = self.tables.get(sight.table) else {
            return Vec::new();
        };
        let text = line.text.trim();
        let (direction, hooks) = match sight.leaving {
            true => ("oifname", Hooks::named("postrouting")),
            false => ("iifname", Hooks::named("ingress")),
        };
        let does = match text.split_whitespace().next().unwrap_or_default() {
            "type" => match text.contains("policy drop") {
                true => "drop",
                false => return Vec::new(),
            },
            "chain" | "}" | "policy" | "comment" | "devices" => return Vec::new(),
            _ => text,
        };
        if !self.acts(&Rule::of_text(does, false), sight.table) {
            return Vec::new();
        }
        // It names the device, of which a packet above knows nothing.
        if ["iif", "oif"].iter().any(|word| does.contains(word)) {
            let by = sight.carried.iter().cloned().map(PacketSet::by);
            return by.map(Extent::Packets).collect();
        }
        let names: Vec<String> = sight
            .carried
            .iter()
            .map(|name| format!("\"{name}\""))
            .collect();
        let does = format!("{direction} {{ {} }} {does}", names.join(", "));
        let rule = RuleExtent::new(&does, false, table.chains.filter(), table.family, hooks);
        vec![Extent::Rule(rule)]
    }

    /// Whether a rule stops or changes packets, by itself.
    fn acts(&self, rule: &Rule, table: usize) -> bool {
        let leads = |verdict: &RuleVerdict| match verdict {
            RuleVerdict::Accept | RuleVerdict::Return => false,
            RuleVerdict::Jump(to) | RuleVerdict::Goto(to) => !self.has_chain(table, to),
            _ => true,
        };
        let matters = |field: Field| !matches!(field, Field::Priority | Field::TcpOptions);
        rule.verdicts().any(leads)
            || rule.changes().any(matters)
            || rule.remembers().next().is_some()
            || ends_unread(rule)
    }
}
