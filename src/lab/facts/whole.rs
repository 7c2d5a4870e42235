//! Whether a facts file is whole: what stands outside of its sections, and sections that show only a
//! part of what their name promises. What cannot be told from what is there would otherwise be lost
//! without a word.

use std::collections::BTreeSet;

use super::{
    listing,
    section::{COMPLETE, Section, outside, routing_table},
    shared, sysctl,
};
use crate::{
    lab::omission::{Omission, OmissionKind},
    netlink::object::Family,
};

/// Something that the file may have had and nobody can read.
pub(super) struct Lack {
    pub(super) line: usize,
    pub(super) message: String,
    /// None where it changes no verdict.
    pub(super) omission: Option<Omission>,
}

impl Lack {
    fn new(line: usize, message: String, omission: Omission) -> Self {
        Self {
            line,
            message,
            omission: Some(omission),
        }
    }
}

/// What the file lacks, and the lines of sections that are not to be read: second ones of a name.
pub(super) fn check(text: &str, sections: &[Section<'_>]) -> (Vec<Lack>, BTreeSet<usize>) {
    let mut lacks: Vec<Lack> = around(text).into_iter().chain(end(text)).collect();
    let mut second = BTreeSet::new();
    for (at, section) in sections.iter().enumerate() {
        let name = section.name;
        let mut before = sections.iter().take(at);
        if let Some(first) = before.find(|first| first.name == name && decides(name)) {
            second.insert(section.line);
            let message = format!("a second section `{name}`; it is left out");
            let same = first.text() == section.text();
            lacks.push(Lack {
                line: section.line,
                message,
                omission: (!same).then(|| of_second(name)),
            });
            continue;
        }
        if let Some((line, found)) = section.behind.filter(|_| decides(name)) {
            let message = format!(
                "section `{name}`: behind EXIT_CODE stands more, which is not read: {found}"
            );
            lacks.push(Lack::new(line, message, of_second(name)));
        }
        if let Some(head) = second_capture(section) {
            let message = format!("section `{name}` has `{head}` twice: the first is not counted");
            lacks.push(Lack::new(section.line, message, of_second(name)));
        }
        let why = part(section).or_else(|| listing(section, sections));
        let why = why.or_else(|| without_tables(section, sections));
        let why = why.or_else(|| snipped(section));
        let why = why.or_else(|| without_policies(section));
        if let Some(why) = why.or_else(|| cut(section, sections)) {
            let message = format!("section `{name}` shows a part: {why}");
            let omission = of_other_family(section).unwrap_or_else(|| of_second(name));
            lacks.push(Lack::new(section.line, message, omission));
        }
    }
    (lacks, second)
}

/// Lines outside of all sections. What belongs to a section that was damaged beyond its marks still
/// shows where these stood.
fn around(text: &str) -> Option<Lack> {
    let strays = outside(text);
    let (line, _) = *strays.first()?;
    let mark = strays
        .iter()
        .find(|(_, text)| text.contains("TSIM_SECTION_"));
    Some(match mark {
        Some((line, mark)) => Lack::new(
            *line,
            format!("what belongs to this mark of a section is not read, it was damaged: {mark}"),
            Omission::of_everything(OmissionKind::Section),
        ),
        None => Lack {
            line,
            message: format!(
                "lines outside of all sections are not read, {} from here",
                strays.len()
            ),
            omission: None,
        },
    })
}

/// The collector's last line, where its first ones promise it.
fn end(text: &str) -> Option<Lack> {
    let mut head = text.lines().take_while(|line| line.starts_with('#'));
    let promised = head.any(|line| line.contains(COMPLETE));
    let there = || {
        text.lines()
            .any(|line| line.contains(COMPLETE) && !line.starts_with('#'))
    };
    (promised && !there()).then(|| {
        let message = format!("the last line, {COMPLETE}, is missing: the file was cut");
        let omission = Omission::of_everything(OmissionKind::Section);
        Lack::new(text.lines().count(), message, omission)
    })
}

/// Whether a section of this name decides where packets go.
fn decides(name: &str) -> bool {
    let rulesets = [
        "iptables_save",
        "ip6tables_save",
        "ipset_save",
        "nft_ruleset",
    ];
    let others = ["interfaces", "policy_rules", "ipv6_policy_rules", "sysctl"];
    rulesets.contains(&name)
        || others.contains(&name)
        || name.ends_with("_forwarding")
        || routing_table(name).is_some()
}

/// What a section that cannot be used can concern.
pub(super) fn of_section(name: &str) -> Omission {
    let of = |family| Omission::of_family(OmissionKind::Section, family);
    match name {
        "iptables_save" | "policy_rules" | "ip_forwarding" => of(Family::V4),
        "ip6tables_save" | "ipv6_policy_rules" | "ipv6_forwarding" => of(Family::V6),
        // Rules that refer to sets that are not there say so themselves.
        "ipset_save" | "sysctl" | "rt_tables" => Omission::of_packets(OmissionKind::Section, []),
        other => match routing_table(other) {
            Some((family, _)) => of(family),
            None => Omission::of_everything(OmissionKind::Section),
        },
    }
}

/// What a section can concern of which something is there: sets and settings are then others than they
/// should be.
fn of_second(name: &str) -> Omission {
    match name {
        "ipset_save" | "sysctl" => Omission::of_everything(OmissionKind::Section),
        other => of_section(other),
    }
}

/// A line of a ruleset that says that something was left out, as people do who shorten one: to those who
/// load it, it is a comment.
fn snipped(section: &Section<'_>) -> Option<String> {
    const SAY: [&str; 5] = ["snip", "omitted", "truncated", "...", "…"];
    let rulesets = [
        "iptables_save",
        "ip6tables_save",
        "ipset_save",
        "nft_ruleset",
    ];
    let lines = section.body.iter().map(|(_, line)| line.trim());
    let mut lines = lines.filter(|_| rulesets.contains(&section.name));
    let found = lines.find(|line| {
        let aside = line.starts_with(['#', '[', '.', '…', '<', '(']);
        let counters = line.starts_with('[') && line.contains("] -A ");
        aside
            && !counters
            && SAY
                .iter()
                .any(|word| line.to_ascii_lowercase().contains(word))
    })?;
    Some(format!("`{found}`"))
}

/// The chain whose policy iptables-save(8) does not show although it has rules, or although the table has no
/// policy at all: the tool prints a line for each chain of a table that the kernel calls, also where
/// iptables-nft never made that chain. A ruleset that people wrote, without the tool's first line, has the
/// policies that it names and accepts otherwise.
fn without_policies(section: &Section<'_>) -> Option<String> {
    const BUILT_IN: [(&str, &[&str]); 2] = [
        ("filter", &["INPUT", "FORWARD", "OUTPUT"]),
        ("security", &["INPUT", "FORWARD", "OUTPUT"]),
    ];
    if !matches!(section.name, "iptables_save" | "ip6tables_save") {
        return None;
    }
    let lines = || section.body.iter().map(|(_, line)| line.trim());
    if !lines().any(|line| line.starts_with("# Generated by ip")) {
        return None;
    }
    BUILT_IN.iter().find_map(|(table, chains)| {
        let mut inside = lines().skip_while(|line| line.strip_prefix('*') != Some(*table));
        inside.next()?;
        let inside: Vec<&str> = inside.take_while(|line| !line.starts_with('*')).collect();
        let policies = inside.iter().filter_map(|line| line.strip_prefix(':'));
        let declared: Vec<&str> = policies
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        let has_rules = |chain: &str| {
            let rule = format!("-A {chain} ");
            inside.iter().any(|line| line.contains(&rule))
        };
        let none = !chains.iter().any(|chain| declared.contains(chain));
        let mut missing = chains.iter().filter(|chain| !declared.contains(chain));
        let missing = missing.find(|chain| none || has_rules(chain))?;
        Some(format!("table {table} has no line `:{missing} POLICY`"))
    })
}

/// Why the section's command shows less than the whole, by its own words.
fn part(section: &Section<'_>) -> Option<String> {
    let command = section.command;
    let words: Vec<&str> = command
        .split_whitespace()
        .map(|word| word.trim_matches(['"', '\'']))
        .collect();
    let begins = |start: &str| words.iter().any(|word| word.starts_with(start));
    let behind = |verbs: &[&str]| chosen(&words, verbs);
    let found = match section.name {
        "nft_ruleset" => {
            let of = behind(&["list"]).is_some_and(|what| what != "ruleset");
            let family = behind(&["ruleset"]).is_some();
            let has_sets = |(_, line): &(usize, &str)| {
                let line = line.trim_start();
                line.starts_with("set ") || line.starts_with("map ")
            };
            let terse = words.iter().any(|word| is_terse(word));
            of || family || terse && section.body.iter().any(has_sets)
        }
        "iptables_save" | "ip6tables_save" => {
            begins("-t") || begins("--table") || behind(&["-S", "--list-rules"]).is_some()
        }
        "ipset_save" => behind(&["save", "list"]).is_some(),
        "policy_rules" | "ipv6_policy_rules" => behind(&["show", "list", "ls"]).is_some(),
        // `ip addr show eth0`, `ip -4 addr`
        "interfaces" => behind(&SHOW).is_some() || of_other_family(section).is_some(),
        name if routing_table(name).is_some() => {
            let is_number = |word: &&str| word.parse::<u32>().is_ok();
            let table = routing_table(name)
                .map(|(_, table)| table)
                .filter(is_number);
            let shown = behind(&["table"]).filter(is_number);
            let other = table
                .zip(shown)
                .is_some_and(|(table, shown)| table != shown);
            other || words.iter().any(|word| SELECTORS.contains(word))
        }
        _ => return None,
    };
    (found || is_filtered(command)).then(|| format!("`{command}`"))
}

/// The verbs of ip-address(8) that name what is to be shown.
const SHOW: [&str; 8] = ["show", "sh", "s", "list", "ls", "lst", "l", "dev"];

/// What `ip -4 addr` and `ip -6 addr` do not show, where nothing else narrows them.
fn of_other_family(section: &Section<'_>) -> Option<Omission> {
    let words: Vec<&str> = section.command.split_whitespace().collect();
    let other = match (words.contains(&"-4"), words.contains(&"-6")) {
        (true, false) => Family::V6,
        (false, true) => Family::V4,
        _ => return None,
    };
    let narrowed = is_filtered(section.command) || chosen(&words, &SHOW).is_some();
    let is_whole = section.name == "interfaces" && !narrowed;
    is_whole.then(|| Omission::of_family(OmissionKind::Section, other))
}

/// What a command tells its tool to show, behind one of `verbs`.
fn chosen<'w>(words: &[&'w str], verbs: &[&str]) -> Option<&'w str> {
    let at = words.iter().position(|word| verbs.contains(word))?;
    let next = words.get(at + 1)?;
    let names = next.starts_with(char::is_alphanumeric) && !next.starts_with("2>");
    names.then_some(*next)
}

/// Whether a command gives what it shows to a tool that picks some of it.
fn is_filtered(command: &str) -> bool {
    const PICK: [&str; 6] = ["grep", "egrep", "fgrep", "head", "tail", "awk"];
    let tools = command.split('|').skip(1);
    let mut tools = tools.filter_map(|tool| tool.split_whitespace().next()?.rsplit('/').next());
    tools.any(|tool| PICK.contains(&tool))
}

/// Whether nft(8) was asked to leave out what rules and sets have counted (`-s`, `-sn`, `--stateless`).
pub(super) fn is_stateless(command: &str) -> bool {
    let mut words = command.split_whitespace();
    let options = |word: &str| {
        let short = word.strip_prefix('-').filter(|rest| !rest.starts_with('-'));
        word == "--stateless" || short.is_some_and(|letters| letters.contains('s'))
    };
    words.any(|word| word.ends_with("nft")) && words.any(options)
}

/// `-t`, `-nt`, `--terse` of nft(8): sets without what they hold.
fn is_terse(word: &str) -> bool {
    let short = word.strip_prefix('-').filter(|rest| !rest.starts_with('-'));
    word == "--terse" || short.is_some_and(|letters| letters.contains('t'))
}

/// Words of ip-route(8) that choose among the routes of a table.
const SELECTORS: [&str; 14] = [
    "proto", "protocol", "dev", "oif", "iif", "via", "type", "scope", "root", "match", "exact",
    "from", "get", "src",
];

/// `iptables -S` shows one table. The others are known where nft(8) shows the tables of iptables-nft, or
/// no module of another table is loaded.
fn listing(section: &Section<'_>, sections: &[Section<'_>]) -> Option<String> {
    let (family, table, module) = match section.name {
        "iptables_save" => (Family::V4, "table ip filter {", "iptable_"),
        "ip6tables_save" => (Family::V6, "table ip6 filter {", "ip6table_"),
        _ => return None,
    };
    if !listing::is_listing(section) {
        return None;
    }
    let of = |name: &str| sections.iter().find(|s| s.name == name);
    let in_nft = of("nft_ruleset").is_some_and(|s| s.body.iter().any(|(_, l)| *l == table));
    let modules = ["loaded_modules", "netfilter_modules"]
        .iter()
        .find_map(|name| of(name));
    let alone = modules.is_some_and(|modules| {
        let mut names = modules
            .body
            .iter()
            .filter_map(|(_, l)| l.split_whitespace().next());
        !names.any(|name| {
            name == "nf_tables" || name.starts_with(module) && !name.ends_with("_filter")
        })
    });
    let tool = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    (!in_nft && !alone).then(|| {
        format!("`{tool} -S` has one table, and nothing tells of the others; `{tool}-save` has all")
    })
}

/// The table of a ruleset that was captured a second time with other rules.
fn second_capture<'a>(section: &Section<'a>) -> Option<&'a str> {
    let start = match section.name {
        "iptables_save" | "ip6tables_save" => "*",
        "nft_ruleset" => "table ",
        _ => return None,
    };
    let lines = section.body.iter().map(|(_, line)| *line);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let lines: Vec<&str> = lines.collect();
    let (first, second) = lines.split_at(lines.len() / 2);
    let mut seen = BTreeSet::new();
    let mut heads = lines.iter().filter(|line| line.starts_with(start));
    heads
        .find(|head| !seen.insert(**head))
        .filter(|_| first != second)
        .copied()
}

/// Rules lead to tables local and main on every router; a list without was cut. Where there is no IPv6
/// there is none of its rules.
fn without_tables(section: &Section<'_>, sections: &[Section<'_>]) -> Option<String> {
    let routes = |s: &&Section<'_>| {
        routing_table(s.name).is_some_and(|(family, _)| family == Family::V6)
            && s.body.iter().any(|(_, line)| line.contains('/'))
    };
    match section.name {
        "policy_rules" => (),
        "ipv6_policy_rules" => _ = sections.iter().find(routes)?,
        _ => return None,
    }
    let leads_to = |table: &str| {
        let mut words = section.body.iter().flat_map(|(_, line)| {
            line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-')
        });
        words.any(|word| word == table)
    };
    let mut tables = [("local", "255"), ("main", "254")].into_iter();
    if let Some((table, _)) = tables.find(|(name, number)| !leads_to(name) && !leads_to(number)) {
        return Some(format!("no rule leads to table {table}"));
    }
    let lines: Vec<&str> = section.body.iter().map(|(_, line)| line.trim()).collect();
    let is_json = lines.first().is_some_and(|line| line.starts_with('['));
    let all = is_json || lines.iter().any(|line| leads_all_to_main(line));
    (!all).then(|| "no rule leads all packets to table main".to_owned())
}

/// Whether a line of `ip rule` is the one behind all others, which the kernel makes.
fn leads_all_to_main(line: &str) -> bool {
    let rule = line.split_once(':').map(|(_, rule)| rule);
    let words: Vec<&str> = rule.unwrap_or_default().split_whitespace().collect();
    match words.as_slice() {
        ["from", "all", "lookup" | "table", "main" | "254", rest @ ..] => {
            matches!(rest, [] | ["proto" | "protocol", _])
        }
        _ => false,
    }
}

/// Why `nft list ruleset` shows less than there is.
fn cut(section: &Section<'_>, sections: &[Section<'_>]) -> Option<String> {
    let text = (section.name == "nft_ruleset").then(|| section.text())?;
    shared::cut(&text, &shared::saved(sections))
}

/// What a line of sysctl(8) that cannot be read can concern, where it is about a setting that decides.
pub(super) fn of_setting(line: &str) -> Option<Omission> {
    sysctl::names_one(line).then(|| {
        let of = |family| Omission::of_family(OmissionKind::Sysctl, family);
        match (line.contains("ipv4"), line.contains("ipv6")) {
            (true, false) => of(Family::V4),
            (false, true) => of(Family::V6),
            _ => Omission::of_everything(OmissionKind::Sysctl),
        }
    })
}
