//! Rulesets as people have them, made into what the tools load; each line keeps its number.

use super::{
    section::Section,
    shared::{Shared, ShownTables, shared},
    sysctl,
};
use crate::{
    firewall::rule::{Field, Match, Rule},
    lab::{
        omission::{Concern, Omission, OmissionKind, PacketSet, RulesetMaps},
        topology::{Clock, Origin, Ruleset, RulesetKind},
    },
    model::protocol_number,
    netlink::object::{Family, PortRange},
};

/// A ruleset that can be loaded, and the lines, counted from 0, that cannot be, with the reason.
#[derive(Debug, Default)]
pub(super) struct PreparedRuleset {
    pub(super) text: String,
    pub(super) lost: Vec<(usize, String)>,
}

impl PreparedRuleset {
    /// The same without these lines, unless they are lost already or left to another section.
    pub(super) fn without(mut self, lost: Vec<(usize, String)>) -> Self {
        let mut lines: Vec<&str> = self.text.lines().collect();
        for (at, reason) in lost {
            if let Some(line) = lines.get_mut(at).filter(|line| !line.is_empty()) {
                *line = "";
                self.lost.push((at, reason));
            }
        }
        self.text = lines.iter().map(|line| format!("{line}\n")).collect();
        self
    }
}

/// Where a line of an nft dump is loaded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LoadedFrom {
    /// The dump itself.
    Dump,
    /// A section of iptables-save, which has its table or its chain in a form that can be loaded.
    Save,
    /// Nowhere: its table is not the one that iptables-save shows.
    Nowhere(&'static str),
}

/// Where each of the `lines` of an nft dump is loaded from.
pub(super) fn loaded_from(lines: &[&str], saved: &ShownTables) -> Vec<LoadedFrom> {
    let mut table = Shared::No;
    // How the chain ends that another section has.
    let mut ends: Option<String> = None;
    let mut from = Vec::with_capacity(lines.len());
    for (at, line) in lines.iter().enumerate() {
        if line.starts_with("table ") {
            table = shared(lines, at, saved);
        }
        let chain = line
            .trim_start()
            .strip_prefix("chain ")
            .and_then(|rest| rest.split(' ').next());
        if let (Shared::Chains(known), Some(chain)) = (&table, chain) {
            let indent = line.split("chain").next().unwrap_or_default();
            let own = known.iter().any(|own| own == chain);
            ends = own.then(|| format!("{indent}}}"));
        }
        from.push(match table {
            Shared::Differs(reason) => LoadedFrom::Nowhere(reason),
            Shared::Whole => LoadedFrom::Save,
            _ if ends.is_some() => LoadedFrom::Save,
            Shared::No | Shared::Chains(_) => LoadedFrom::Dump,
        });
        ends = ends.filter(|end| line != end);
        if *line == "}" {
            table = Shared::No;
        }
    }
    from
}

/// `nft list ruleset` without what a section of iptables-save has of it in a form that can be loaded,
/// and without rules that nft(8) could not print.
pub(super) fn nft(text: &str, saved: &ShownTables) -> PreparedRuleset {
    let mut prepared = PreparedRuleset::default();
    let lines: Vec<&str> = text.lines().collect();
    let from = loaded_from(&lines, saved);
    for (at, (line, from)) in lines.iter().zip(from).enumerate() {
        if from != LoadedFrom::Dump {
            if let LoadedFrom::Nowhere(reason) = from
                && line.starts_with("table ")
            {
                prepared.lost.push((at, reason.to_owned()));
            }
        } else if let Some(unprinted) = unprinted(line) {
            let reason = format!("nft could not print `{unprinted}`");
            prepared.lost.push((at, reason));
        } else if rewrites_what_is_not_told(line) {
            let reason = "nft lists so what sets the type or code of ICMP, and not whether it does";
            prepared.lost.push((at, reason.to_owned()));
        } else if let Some(asked) = asks_of_devices(line) {
            let reason =
                format!("`{asked}` asks what device an interface is, and labs have others");
            prepared.lost.push((at, reason));
        } else if let Some(others) = without_owner(line) {
            prepared.text.push_str(&others);
        } else {
            prepared.text.push_str(line);
        }
        prepared.text.push('\n');
    }
    prepared
}

/// A line with flags of a table without those about the program that owns it: the kernel would take
/// the table away with the nft(8) that loads it.
fn without_owner(line: &str) -> Option<String> {
    let flags = line.trim().strip_prefix("flags ")?.trim_end_matches(';');
    let flags: Vec<&str> = flags.split(',').map(str::trim).collect();
    let others = flags
        .iter()
        .filter(|flag| !["owner", "persist"].contains(flag));
    let others: Vec<&str> = others.copied().collect();
    (others.len() < flags.len()).then(|| match others.as_slice() {
        [] => String::new(),
        others => format!("\tflags {}", others.join(",")),
    })
}

/// How many lines of an nft dump stand before the first table that a section of iptables-save has,
/// too. nft(8) lists tables in the order in which they were made.
pub(super) fn older_tables(body: &[(usize, &str)], saved: &ShownTables) -> usize {
    let lines: Vec<&str> = body.iter().map(|(_, line)| *line).collect();
    let begins = |at: &usize| {
        let table = lines
            .get(*at)
            .is_some_and(|line| line.starts_with("table "));
        table
            && matches!(
                shared(&lines, *at, saved),
                Shared::Whole | Shared::Chains(_)
            )
    };
    (0..lines.len()).find(begins).unwrap_or(0)
}

/// What stands behind a `#` in a rule: a match or target of xtables that an nft(8) without them
/// prints as a comment. Handles are printed so, too, and mean nothing.
fn unprinted(line: &str) -> Option<&str> {
    let trimmed = line.trim_start();
    if trimmed.starts_with('#') || !line.starts_with(['\t', ' ']) {
        return None;
    }
    let mut quoted = false;
    let at = line.char_indices().find_map(|(at, c)| {
        quoted ^= c == '"';
        (c == '#' && !quoted).then_some(at)
    })?;
    let comment = line.get(at + 1..)?.trim();
    (!comment.starts_with("handle ")).then_some(comment)
}

/// Whether a rule is listed as one that rewrites part of the source port of any protocol. So nft(8) lists
/// `icmp code set 0`, too, without the test for ICMP that the kernel has of it.
fn rewrites_what_is_not_told(line: &str) -> bool {
    const OF_PROTOCOLS: [Field; 6] = [
        Field::Protocol,
        Field::IcmpType,
        Field::Icmpv6Type,
        Field::SourcePort,
        Field::DestinationPort,
        Field::TcpFlags,
    ];
    let tells = |test: &Match| test.test.reads().iter().any(|of| OF_PROTOCOLS.contains(of));
    line.contains("th sport set th sport & ")
        && !Rule::of_nft(line.trim()).matches.iter().any(tells)
}

/// What a rule asks of an interface's device that a lab cannot tell: all of a lab are of type veth, and
/// their frames those of Ethernet.
fn asks_of_devices(line: &str) -> Option<&str> {
    let outside = line.split('"').step_by(2).flat_map(str::split_whitespace);
    let words: Vec<&str> = outside.collect();
    let is_rule = !matches!(words.first(), Some(&("typeof" | "type" | "elements")));
    let asked = ["iifkind", "oifkind", "iiftype", "oiftype"];
    let mut asked = words.iter().filter(|word| asked.contains(word));
    asked.next().copied().filter(|_| is_rule)
}

/// A line of `nft -a` without its handle, which says nothing.
pub(super) fn without_handle(line: &str) -> &str {
    let Some((before, handle)) = line.rsplit_once(" # handle ") else {
        return line;
    };
    let outside = before.matches('"').count() % 2 == 0;
    let is_number = !handle.is_empty() && handle.bytes().all(|byte| byte.is_ascii_digit());
    if outside && is_number { before } else { line }
}

/// What `ipset list` says of a set that a set can be made without.
const ABOUT_SETS: [&str; 3] = ["Revision:", "Size in memory:", "References:"];

/// A set of `ipset list`.
#[derive(Default)]
struct Listed<'a> {
    name: &'a str,
    kind: &'a str,
    /// The lines that make it; the first is that of its head.
    lines: Vec<usize>,
    /// How many elements it says that it has.
    has: Option<usize>,
    /// How many are shown; none where they are not (`ipset list -terse`).
    shown: Option<usize>,
}

impl Listed<'_> {
    /// Why it is not whole. An old ipset(8) does not count.
    fn lacks(&self) -> Option<String> {
        let shown = self.shown.unwrap_or(0);
        let whole = self.shown.is_some() && self.has.is_none_or(|has| has == shown);
        let has = self.has.map_or("all".to_owned(), |has| has.to_string());
        (!self.lines.is_empty() && !whole)
            .then(|| format!("{shown} of {has} elements of set {} are shown", self.name))
    }
}

/// `ipset list` as `ipset save` would print it, without sets that it does not show whole; any other text
/// as it is.
pub(super) fn sets(section: &Section<'_>) -> PreparedRuleset {
    if !section.body.iter().any(|(_, l)| l.starts_with("Name: ")) {
        return PreparedRuleset {
            text: section.text(),
            lost: Vec::new(),
        };
    }
    let mut sets: Vec<Listed<'_>> = Vec::new();
    let mut lines = Vec::new();
    for (at, (_, line)) in section.body.iter().enumerate() {
        let field = |key: &str| line.strip_prefix(key).map(str::trim);
        let mut made = String::new();
        if let Some(name) = field("Name: ") {
            sets.push(Listed {
                name,
                ..Listed::default()
            });
        } else if let Some(set) = sets.last_mut() {
            if let Some(kind) = field("Type: ") {
                set.kind = kind;
            } else if let Some(value) = field("Header:") {
                made = format!("create {} {} {value}", set.name, set.kind);
                set.lines.push(at);
            } else if let Some(number) = field("Number of entries:") {
                set.has = number.parse().ok();
            } else if line.starts_with("Members:") {
                set.shown = Some(0);
            } else if let Some(shown) = set.shown.as_mut().filter(|_| !line.trim().is_empty()) {
                made = format!("add {} {}", set.name, line.trim());
                *shown += 1;
                set.lines.push(at);
            } else if !ABOUT_SETS.iter().any(|start| line.starts_with(start)) {
                // No line of `ipset list`, and what is no line of `ipset save` either is said later.
                (*line).clone_into(&mut made);
            }
        } else {
            (*line).clone_into(&mut made);
        }
        lines.push(made);
    }
    let mut lost = Vec::new();
    for set in &sets {
        if let (Some(why), Some(first)) = (set.lacks(), set.lines.first()) {
            set.lines
                .iter()
                .filter_map(|at| lines.get_mut(*at).map(String::clear))
                .count();
            lost.push((*first, why));
        }
    }
    PreparedRuleset {
        text: lines.iter().map(|line| format!("{line}\n")).collect(),
        lost,
    }
}

/// The text without tables of which iptables-nft says that their chains are others: it shows its own
/// empty ones instead, which the router does not have.
pub(super) fn without_artefacts(text: &str) -> String {
    let note = |line: &str| {
        let name = line.strip_prefix("# Table `")?.split('\'').next()?;
        line.contains("incompatible").then(|| name.to_owned())
    };
    let others: Vec<String> = text.lines().filter_map(note).collect();
    let lines: Vec<&str> = text.lines().collect();
    let mut kept = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        let end = lines[at..].iter().position(|line| line.trim() == "COMMIT");
        let name = line.strip_prefix('*').map(str::trim);
        let other = name.is_some_and(|name| others.iter().any(|other| other == name));
        let body = lines.get(at + 1..at + end.unwrap_or(0)).unwrap_or_default();
        let bare = |line: &&str| line.starts_with(':') && line.contains(" ACCEPT ");
        if other && end.is_some() && body.iter().all(bare) {
            kept.push_str(&"\n".repeat(body.len() + 2));
            at += body.len() + 2;
        } else {
            kept.push_str(line);
            kept.push('\n');
            at += 1;
        }
    }
    kept
}

/// The text with what the tool complains of by itself as comments: that it finds no names for what it prints
/// as numbers, or no module for a table that nobody uses.
pub(super) fn without_complaints(text: &str) -> String {
    const COMPLAINTS: [&str; 2] = ["Warning: cannot open /etc/xtables/", "modprobe: "];
    let complains = |line: &str| COMPLAINTS.iter().any(|start| line.starts_with(start));
    let lines = text
        .split_inclusive('\n')
        .map(|line| match complains(line) {
            true => format!("# {line}"),
            false => line.to_owned(),
        });
    lines.collect()
}

/// The lines of a saved ruleset of iptables that are none, such as a shell's complaint.
pub(super) fn strange(text: &str) -> Vec<(usize, String)> {
    let known = |line: &str| {
        let starts = ["#", "*", ":", "-A ", "-I ", "[", "COMMIT"];
        line.trim().is_empty() || starts.iter().any(|start| line.starts_with(start))
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !known(line));
    let reason = "no line of iptables-save";
    lines.map(|(at, _)| (at, reason.to_owned())).collect()
}

/// The text without the lines that are lost.
pub(super) fn without(text: &str, lost: &[(usize, String)]) -> String {
    let mut kept = String::with_capacity(text.len());
    for (at, line) in text.lines().enumerate() {
        if !lost.iter().any(|(lost, _)| *lost == at) {
            kept.push_str(line);
        }
        kept.push('\n');
    }
    kept
}

/// Sections of the collector that no lab can have; they were looked at, and mostly hold nothing.
pub(super) const LOOKED_AT: [&str; 8] = [
    "bpftool_net",
    "iptables_legacy_save",
    "ip6tables_legacy_save",
    "ebtables_save",
    "ipvs",
    "tc_filters",
    "xfrm_default",
    "xfrm_policy",
];

/// What a section says that is not read and may hold something that decides about packets: what
/// it is, and which packets. None where it holds nothing of the kind.
pub(super) fn unread(section: &Section<'_>) -> Option<(String, Omission)> {
    let mut lines = section.body.iter().map(|(_, line)| line.trim());
    if !lines.any(|line| !line.is_empty() && !line.starts_with('#')) {
        return None;
    }
    let (what, omission) = held(section)?;
    let message = format!("section `{}` is not read: it holds {what}", section.name);
    (!omission.concern.is_nothing()).then_some((message, omission))
}

/// What a section that is not read holds.
fn held(section: &Section<'_>) -> Option<(&'static str, Omission)> {
    let mut lines = section.body.iter().map(|(_, line)| line.trim());
    let named = |part: &str| section.name.contains(part) || section.command.contains(part);
    let feature = |concern| Omission {
        kind: OmissionKind::Feature,
        concern,
    };
    let everything = |what, holds: bool| holds.then(|| (what, feature(Concern::everything())));
    let firewall = "a firewall that is not loaded";
    if named("ip6tables") {
        Some((firewall, of_ruleset(section, RulesetKind::Ip6tables)))
    } else if named("iptables") {
        Some((firewall, of_ruleset(section, RulesetKind::Iptables)))
    } else if named("ebtables") {
        everything(
            "rules of bridges, which no lab has",
            filters_bridges(section),
        )
    } else if named("ipvs") {
        let services = virtual_services(section);
        Some(("IPVS, which is not modelled", feature(services)))
    } else if named("xfrm_state") {
        None
    } else if named("xfrm_default") || named("getdefault") {
        // `fwd: block`, of ip-xfrm(8): what no policy selects is dropped.
        let blocks = lines.any(|line| line.ends_with("block"));
        let omission = Omission::of_everything(OmissionKind::Feature).of_passed();
        blocks.then_some((
            "a default of IPsec that blocks, which is not modelled",
            omission,
        ))
    } else if named("xfrm") || named("ipsec") {
        Some(("IPsec, which is not modelled", feature(policies(section))))
    } else if section.name.starts_with("tc") || section.command.starts_with("tc ") {
        queueing(section, named("tc_filters"))
    } else if named("bpftool") {
        // `eth0(2) driver id 15`, `ip forward prio 1 prog_id 15`
        let programs = lines.any(|line| line.contains(" id ") || line.contains("_id "));
        everything("programs (BPF), which no lab has", programs)
    } else {
        let lines = || section.body.iter().map(|(_, line)| line.trim());
        let found = match () {
            () if named("nft") || lines().any(looks_like_firewall) => firewall,
            () if lines().any(is_policy_rule) => "policy rules, which `policy_rules` would have",
            () if lines().any(is_deciding_setting) => "settings, which `sysctl` would have",
            () => return None,
        };
        Some((found, Omission::of_everything(OmissionKind::Section)))
    }
}

/// What tc(8) shows of filters (`of_filters`) and queues that drop packets.
fn queueing(section: &Section<'_>, of_filters: bool) -> Option<(&'static str, Omission)> {
    let filters = |line: &str| match of_filters {
        true => decides(line),
        false => line.contains("filter") || line.contains("action"),
    };
    let all = || section.body.iter().map(|(_, line)| line.trim());
    if all().any(filters) {
        let omission = Omission::of_everything(OmissionKind::Feature);
        return Some(("filters of tc, which are not modelled", omission));
    }
    let mut queues = all().filter_map(|line| Some(line.split_once("qdisc")?.1));
    // Packets that are stopped get no farther for that.
    let omission = Omission::of_everything(OmissionKind::Feature).of_passed();
    queues
        .any(|words| drops(words.trim_start_matches([':', ' '])))
        .then_some((
            "queues of tc that drop packets, which are not modelled",
            omission,
        ))
}

/// Whether a line is a rule as ip-rule(8) prints it, and none that every kernel has.
fn is_policy_rule(line: &str) -> bool {
    let Some((priority, rule)) = line.split_once(':') else {
        return false;
    };
    let rule = rule.trim();
    let own = ["local", "main", "default"];
    let of_kernel = rule
        .strip_prefix("from all lookup ")
        .is_some_and(|table| own.contains(&table));
    let is_rule = rule.starts_with("from ") || rule.starts_with("not from ");
    priority.parse::<u32>().is_ok() && is_rule && !of_kernel
}

/// Whether a line is a setting as sysctl(8) prints it, and one that a lab takes over.
fn is_deciding_setting(line: &str) -> bool {
    let setting = line.split_once(" = ").map(|(name, _)| name);
    setting.is_some_and(|name| {
        let of_network = ["net.ipv4.", "net.ipv6.", "net.bridge.", "net.netfilter."];
        of_network.iter().any(|start| name.starts_with(start)) && sysctl::names_one(name)
    })
}

/// Whether a section of ebtables has a rule, or a policy that drops.
fn filters_bridges(section: &Section<'_>) -> bool {
    // `Bridge chain: INPUT, entries: 0, policy: ACCEPT`, or as ebtables-save(8) `:INPUT ACCEPT`.
    let lines = || section.body.iter().map(|(_, line)| line.trim());
    let is_chain = |line: &&str| line.starts_with("Bridge chain") || line.starts_with(':');
    let is_empty = |line: &str| {
        (line.starts_with(':') || line.contains("entries: 0")) && line.contains("ACCEPT")
    };
    let mut chains = lines().filter(is_chain).peekable();
    lines().any(|line| line.starts_with('-')) || chains.peek().is_none() || !chains.all(is_empty)
}

/// Whether a line of `tc filter show` is about an action that a packet's way may depend on.
fn decides(line: &str) -> bool {
    let action = line.split_once("action order ");
    let action = action.and_then(|(_, action)| Some(action.split_once(':')?.1.trim()));
    match action {
        Some(action) => !is_harmless(action),
        None => line.contains("direct-action"),
    }
}

/// Whether a queue, as `tc qdisc show` prints it, drops packets however few come.
fn drops(queue: &str) -> bool {
    /// Of what a first packet may have at least: without options, in IPv4.
    const LEAST: u32 = 40;
    let words: Vec<&str> = queue.split_whitespace().collect();
    let has = |word: &str| words.contains(&word);
    let behind = |word: &str| {
        let at = words.iter().position(|known| *known == word)?;
        words.get(at + 1).copied()
    };
    match words.first().copied().unwrap_or_default() {
        // Of `etf` packets need a time of their own, and `plug` waits for a program.
        "blackhole" | "etf" | "plug" => true,
        "netem" => has("loss") || has("corrupt"),
        // What no filter puts into a class.
        "drr" | "qfq" => true,
        "hfsc" => !has("default"),
        // Twice that, with the link's header and options.
        "tbf" => {
            let burst = behind("burst").and_then(|burst| burst.strip_suffix('b')?.parse().ok());
            burst.is_some_and(|burst: u32| burst < 2 * LEAST)
        }
        _ => false,
    }
}

/// Whether an action of tc(8) neither ends a packet's way, nor leads it elsewhere, nor changes what
/// rules, routes and the next router read of it. A policer ends what exceeds a rate, ifb devices give
/// back what they get, and tc-connmark(8) and tc-ctinfo(8) find no connection of a first packet.
fn is_harmless(action: &str) -> bool {
    let has = |word: &str| action.contains(word);
    match action.split_whitespace().next().unwrap_or_default() {
        "connmark" | "csum" | "ctinfo" | "police" | "sample" | "simple" => true,
        "gact" => !["drop", "trap", "stolen"].into_iter().any(has),
        "mirred" => has("Mirror") || has("Redirect to device ifb"),
        "skbedit" => !has(" mark ") && !has(" ptype "),
        _ => false,
    }
}

fn looks_like_firewall(line: &str) -> bool {
    let starts = [
        "*filter",
        "*nat",
        "*mangle",
        "*raw",
        "table inet ",
        "table ip",
        "-A ",
    ];
    starts.iter().any(|start| line.starts_with(start))
        || line.starts_with("Chain ") && line.contains("(policy")
        || line.contains("\"nftables\":")
}

/// A ruleset as it was printed; of iptables-save(8) without the blanks before its lines, which what was
/// pasted may have.
pub(super) fn text_of(section: &Section<'_>, kind: RulesetKind) -> String {
    let text = section.text();
    let saved = matches!(kind, RulesetKind::Iptables | RulesetKind::Ip6tables);
    if !saved || !text.lines().any(|line| line.starts_with([' ', '\t'])) {
        return text;
    }
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    lines.join("\n") + "\n"
}

/// What any rule or policy of a ruleset that is not loaded can do.
fn of_ruleset(section: &Section<'_>, kind: RulesetKind) -> Omission {
    let family = match kind {
        RulesetKind::Ip6tables => Family::V6,
        _ => Family::V4,
    };
    let lines: Vec<&str> = section.body.iter().map(|(_, line)| *line).collect();
    if !lines.iter().any(|line| line.starts_with('*')) {
        return Omission::of_family(OmissionKind::Section, family);
    }
    let ruleset = [Ruleset {
        kind,
        text: section.text(),
        origin: Origin {
            file: String::new(),
            line: section.first_line(),
        },
        in_one_line: false,
        clock: Clock::default(),
    }];
    let maps = RulesetMaps::new(&ruleset);
    let mut concern = Concern::default();
    for (at, line) in lines.iter().enumerate() {
        let rule = line.starts_with("-A") || line.starts_with('[');
        let policy = line.starts_with(':') && line.contains(" DROP");
        let known = ["#", "*", ":", "COMMIT"]
            .iter()
            .any(|start| line.starts_with(start));
        if !rule && !known && !line.trim().is_empty() {
            return Omission::of_family(OmissionKind::Section, family);
        }
        if rule || policy {
            concern
                .0
                .extend(maps.omission(&ruleset[0], &[at]).concern.0);
        }
    }
    Omission {
        kind: OmissionKind::Section,
        concern,
    }
}

/// `TCP  10.10.40.96:8066 rr` of `ipvsadm -Ln`, `-A -t 10.10.40.96:8066 -s rr` of `ipvsadm -Sn`.
fn virtual_services(section: &Section<'_>) -> Concern {
    let mut packets = Vec::new();
    for (_, line) in &section.body {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (protocol, at) = match words[..] {
            ["TCP", at, ..] | ["-A", "-t", at, ..] => (6, at),
            ["UDP", at, ..] | ["-A", "-u", at, ..] => (17, at),
            // The listing's head, and the servers behind a service.
            [] | ["IP", "Virtual", ..] | ["Prot", ..] | ["->", ..] | ["-a", ..] => continue,
            _ => return Concern::everything(),
        };
        let Ok(socket) = at.parse::<std::net::SocketAddr>() else {
            return Concern::everything();
        };
        let port = PortRange {
            first: socket.port(),
            last: socket.port(),
        };
        packets.push(PacketSet {
            protocol: Some(protocol),
            // A service of port 0 takes every port.
            dport: Some(port).filter(|port| port.first != 0),
            ..PacketSet::to(socket.ip().into())
        });
    }
    match packets.is_empty() {
        true => Concern::everything(),
        false => Concern::packets(packets),
    }
}

/// `src 10.1.0.0/24 dst 10.2.0.0/24` of `ip xfrm policy`, each with lines of its own behind it.
fn policies(section: &Section<'_>) -> Concern {
    let mut packets = Vec::new();
    for (at, (_, line)) in section.body.iter().enumerate() {
        // Below a policy stand its direction and its templates.
        if line.starts_with(['\t', ' ']) || line.is_empty() {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["src", from, "dst", to, ..] = words[..] else {
            return Concern::everything();
        };
        let of_socket = section.body.get(at + 1);
        if of_socket.is_some_and(|(_, next)| next.trim_start().starts_with("socket ")) {
            continue; // a program's own, which names no addresses
        }
        let net = |text: &str| text.parse::<ipnet::IpNet>().ok();
        let behind = |key: &str| {
            let at = words.iter().position(|word| *word == key)?;
            words.get(at + 1).copied()
        };
        match (net(from), net(to)) {
            (Some(from), Some(to)) => packets.push(PacketSet {
                from: Some(from.into()),
                protocol: behind("proto").and_then(protocol_number),
                sport: behind("sport").and_then(selected_ports),
                dport: behind("dport").and_then(selected_ports),
                ..PacketSet::to(to)
            }),
            _ => return Concern::everything(),
        }
    }
    Concern::packets(packets)
}

/// The ports that a policy may select by this one: ip(8) does not show the mask, which covers the bits
/// that are 0 at the end, or none.
fn selected_ports(port: &str) -> Option<PortRange> {
    let first: u16 = port.parse().ok()?;
    let last = match first.trailing_zeros() {
        16 => u16::MAX,
        zeros => first | ((1 << zeros) - 1),
    };
    Some(PortRange { first, last })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_that_iptables_makes_up_are_left_out() {
        let note =
            "# Table `raw' contains incompatible base-chains, use 'nft' tool to list them.\n";
        let raw = "*raw\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n";
        let full = "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n";
        let text = [note, raw, full].concat();
        let want = [note, "\n\n\n", full].concat();
        assert_eq!(without_artefacts(&text), want);
        let rules = text.replace("raw", "filter");
        let kept = without_artefacts(&rules);
        assert!(kept.ends_with(full), "a policy that drops is real");
        let saved = [raw, full].concat();
        assert_eq!(without_artefacts(&saved), saved);
    }

    #[test]
    fn complaints_of_the_tool_itself_lose_nothing() {
        let lines = [
            "Warning: cannot open /etc/xtables/connlabel.conf: No such file or directory",
            "modprobe: FATAL: Module ip_tables not found in directory /lib/modules/6.1",
            "-A FORWARD -m connlabel --label 3 -j DROP",
            "-bash: iptables-save: command not found",
        ];
        let text = without_complaints(&lines.join("\n"));
        let lost: Vec<usize> = strange(&text).iter().map(|lost| lost.0).collect();
        assert_eq!((lost, text.lines().count()), (vec![3], 4));
    }

    #[test]
    fn handles_are_no_part_of_a_line() {
        for (line, want) in [
            ("table ip filter { # handle 1", "table ip filter {"),
            (
                "\t\tdrop comment \"x\" # handle 12",
                "\t\tdrop comment \"x\"",
            ),
            (
                "\t\tdrop comment \"a # handle 7",
                "\t\tdrop comment \"a # handle 7",
            ),
            ("\t\tdrop # handle x", "\t\tdrop # handle x"),
        ] {
            assert_eq!(without_handle(line), want);
        }
    }

    #[test]
    fn part_of_a_port_is_of_icmp_where_no_protocol_is_told() {
        for (line, lost) in [
            ("th sport set th sport & 65280", true),
            (
                "iifname \"eth0\" th sport set th sport & 65283 | 3 accept",
                true,
            ),
            (
                "meta nfproto ipv4 th sport set th sport & 4607 | 4352",
                true,
            ),
            (
                "icmp type echo-request th sport set th sport & 65283 | 3",
                false,
            ),
            ("ip protocol icmp th sport set th sport & 65283 | 3", false),
            (
                "meta l4proto { tcp, udp } th sport set th sport & 65280",
                false,
            ),
            ("th sport set 5", false),
        ] {
            assert_eq!(
                rewrites_what_is_not_told(&format!("\t\t{line}")),
                lost,
                "{line}"
            );
        }
    }

    #[test]
    fn rules_that_ask_what_device_an_interface_is_are_lost() {
        for (line, asked) in [
            (
                "meta iifkind \"bridge\" tcp dport 80 accept",
                Some("iifkind"),
            ),
            (
                "tcp dport 80 meta oifkind != { \"bridge\", \"vlan\" } drop",
                Some("oifkind"),
            ),
            ("meta iifkind vmap { \"bridge\" : drop }", Some("iifkind")),
            ("meta iiftype ppp accept", Some("iiftype")),
            ("meta iiftype ether tcp dport 22 accept", Some("iiftype")),
            ("typeof meta iifkind . tcp dport", None),
            (
                "iifname \"wan\" accept comment \"by iifkind no more\"",
                None,
            ),
        ] {
            assert_eq!(asks_of_devices(&format!("\t\t{line}")), asked, "{line}");
        }
    }

    #[test]
    fn rules_that_nft_could_not_print_are_lost() {
        for (line, want) in [
            (
                "\t\tip saddr 10.1.0.0/24 counter # xt_REJECT",
                Some("xt_REJECT"),
            ),
            (
                "\t\ttcp dport 25 # match-set blk src drop",
                Some("match-set blk src drop"),
            ),
            ("\t\ttcp dport 25 drop # handle 7", None),
            ("\t\ttcp dport 25 drop comment \"# no\"", None),
            ("# Warning: table ip filter", None),
        ] {
            assert_eq!(unprinted(line), want, "{line}");
        }
    }
}
