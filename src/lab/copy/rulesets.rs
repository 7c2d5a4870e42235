//! Rulesets: nf_tables as the kernel tells of them ([`Transcript`]), all else by the tools that save and load
//! it.
//!
//! Where messages alone cannot tell nf_tables, tools do that, too. iptables-nft keeps its rules in tables of
//! nf_tables, and nft(8) cannot say what some of them match: what iptables-save prints in full goes by
//! that, all others by nft, for of a table with one of its names (`ip filter`) which nft made iptables-save
//! leaves out what only nft can say. Sets of ipset come first, as rules refer to them.

use super::CopyError;
use crate::{
    firewall::{
        ipset,
        iptables::trace::has_tables_here,
        nft::{NftSocket, inventory::asked_here, transcript::Transcript},
    },
    netlink::object::Family,
    netns::{
        NetnsError, NetnsFd,
        tool::{ToolError, Tools},
    },
};

/// What the rules and chains of other jobs carry.
const OURS: &str = "TSIM_";

/// How the rules of one table tool are saved and loaded.
struct Xtables {
    /// The family of its tables in nf_tables; none for iptables-legacy.
    family: Option<&'static str>,
    save: &'static str,
    restore: &'static str,
    arguments: &'static [&'static str],
}

const NFT: [Xtables; 2] = [
    Xtables {
        family: Some("ip"),
        save: "iptables-nft-save",
        restore: "iptables-nft-restore",
        arguments: &[],
    },
    Xtables {
        family: Some("ip6"),
        save: "ip6tables-nft-save",
        restore: "ip6tables-nft-restore",
        arguments: &[],
    },
];

const LEGACY: [(Family, Xtables); 2] = [
    (
        Family::V4,
        Xtables {
            family: None,
            save: "iptables-legacy-save",
            restore: "iptables-legacy-restore",
            arguments: &["-w"],
        },
    ),
    (
        Family::V6,
        Xtables {
            family: None,
            save: "ip6tables-legacy-save",
            restore: "ip6tables-legacy-restore",
            arguments: &["-w"],
        },
    ),
];

/// What the tool of this name shall load, with these arguments.
type Loading = (&'static str, &'static [&'static str], String);

/// A router's rulesets.
pub(super) struct Rulesets {
    sets: Vec<u8>,
    legacy: Vec<Loading>,
    tables: Tables,
}

/// The tables of nf_tables.
enum Tables {
    /// As the kernel tells of them.
    Told(Transcript),
    /// As the tools do.
    Printed(TableTexts),
}

/// The tables of nf_tables as text.
struct TableTexts {
    xtables: Vec<Loading>,
    nft: String,
    differences: Vec<String>,
}

impl Rulesets {
    /// Saves the rulesets of `router`.
    pub(super) fn read(router: &NetnsFd, tools: &Tools) -> Result<Self, CopyError> {
        router.enter(|| Self::read_here(tools))?
    }

    fn read_here(tools: &Tools) -> Result<Self, CopyError> {
        let sets = match ipset::has_sets_here() {
            Ok(false) => String::new(),
            // Without ipset in the kernel, or its tool, no rule can refer to a set.
            Ok(true) | Err(_) => print(tools, "ipset", &["save"]).unwrap_or_default(),
        };
        let mut legacy = Vec::new();
        for (family, tool) in LEGACY {
            if has_tables_here(family) {
                let text = without_ours(&print(tools, tool.save, &[])?);
                legacy.push((tool.restore, tool.arguments, text));
            }
        }
        let told = asked_here()
            .1
            .map(|mut socket| Transcript::read(&mut socket));
        let tables = match told {
            Some(Ok(Some(told))) => Tables::Told(told),
            _ => Tables::Printed(TableTexts::read_here(tools)?),
        };
        Ok(Self {
            sets: sets.into_bytes(),
            legacy,
            tables,
        })
    }

    /// Loads them into `copy`; returns what cannot be loaded.
    pub(super) fn load(
        self,
        router: &NetnsFd,
        copy: &NetnsFd,
        tools: &Tools,
    ) -> Result<Vec<String>, CopyError> {
        let run_all = |all: &[Loading]| {
            let mut all = all.iter();
            all.try_for_each(|(tool, arguments, text)| {
                tools.run(tool, arguments, text.as_bytes()).map(drop)
            })
        };
        let first: Result<Result<(), ToolError>, NetnsError> = copy.enter(|| {
            if !self.sets.is_empty() {
                tools.run("ipset", &["restore"], &self.sets)?;
            }
            match &self.tables {
                Tables::Told(_) => {}
                Tables::Printed(texts) => run_all(&texts.xtables)?,
            }
            run_all(&self.legacy)
        });
        first??;
        let texts = match self.tables {
            Tables::Told(told) if make(&told, copy)? => return Ok(Vec::new()),
            Tables::Told(_) => {
                let texts = router.enter(|| TableTexts::read_here(tools))??;
                let again: Result<Result<(), ToolError>, NetnsError> = copy.enter(|| {
                    tools.run("nft", &["flush", "ruleset"], &[])?;
                    run_all(&texts.xtables)
                });
                again??;
                texts
            }
            Tables::Printed(texts) => texts,
        };
        if !texts.nft.is_empty() {
            copy.enter(|| tools.run("nft", &["-f", "-"], texts.nft.as_bytes()))??;
        }
        Ok(texts.differences)
    }
}

/// Whether the tables are in `copy` now as they were told of.
fn make(told: &Transcript, copy: &NetnsFd) -> Result<bool, NetnsError> {
    copy.enter(|| {
        let made = NftSocket::open_here().and_then(|mut socket| told.make(&mut socket));
        made.unwrap_or(false)
    })
}

impl TableTexts {
    fn read_here(tools: &Tools) -> Result<Self, ToolError> {
        let ruleset = match print(tools, "nft", &["list", "ruleset"]) {
            // No nft and no nf_tables: there is nothing that it could list.
            Err(ToolError::NotFound { .. }) => String::new(),
            other => other?,
        };
        let mut saved = Self {
            xtables: Vec::new(),
            nft: String::new(),
            differences: Vec::new(),
        };
        let managed = saved.take_xtables(&ruleset, tools)?;
        for table in tables(&ruleset) {
            let head = table.lines().next().unwrap_or_default();
            if managed.iter().any(|managed| managed == head) || is_owned(table) {
                continue;
            }
            if is_beyond_nft(table) {
                let what = head.trim_end_matches(" {");
                saved.differences.push(format!(
                    "{what} holds rules of iptables that nft cannot print"
                ));
            }
            saved.nft.push_str(table);
        }
        Ok(saved)
    }

    /// Has the tables go by iptables-save that it prints in full; returns their heads.
    fn take_xtables(&mut self, ruleset: &str, tools: &Tools) -> Result<Vec<String>, ToolError> {
        let mut managed = Vec::new();
        for tool in NFT {
            let family = tool.family.unwrap_or_default();
            let own = tables(ruleset).into_iter();
            let own: Vec<(&str, &str)> = own
                .filter_map(|table| Some((name_in(family, table)?, table)))
                .collect();
            if own.is_empty() {
                continue;
            }
            let text = without_ours(&print(tools, tool.save, &[])?);
            let mut kept = String::new();
            for (name, table) in own {
                let Some(section) = section(&text, name).filter(|text| says_all(text, table))
                else {
                    continue;
                };
                managed.push(format!("table {family} {name} {{"));
                kept.push_str(section);
            }
            if !kept.is_empty() {
                self.xtables.push((tool.restore, tool.arguments, kept));
            }
        }
        Ok(managed)
    }
}

/// What a tool prints.
fn print(tools: &Tools, tool: &str, arguments: &[&str]) -> Result<String, ToolError> {
    let printed = tools.run(tool, arguments, &[])?;
    Ok(String::from_utf8_lossy(&printed.stdout).into_owned())
}

/// The text of each table in what `nft list ruleset` prints.
fn tables(ruleset: &str) -> Vec<&str> {
    let mut tables = Vec::new();
    let mut rest = ruleset;
    // Words of a comment may be the same; only a line begins a table.
    let begins = |text: &str| match text.starts_with("table ") {
        true => Some(0),
        false => text.find("\ntable ").map(|at| at + 1),
    };
    while let Some(at) = begins(rest) {
        let text = &rest[at..];
        let end = text.find("\n}\n").map_or(text.len(), |end| end + 3);
        tables.push(&text[..end]);
        rest = &text[end..];
    }
    tables
}

/// Whether a table holds what nft(8) prints and cannot load.
fn is_beyond_nft(table: &str) -> bool {
    ["# xt_", "xt match", "xt target"]
        .iter()
        .any(|words| table.contains(words))
}

/// The name of a table, if it is of that family.
fn name_in<'t>(family: &str, table: &'t str) -> Option<&'t str> {
    let rest = table.strip_prefix("table ")?.strip_prefix(family)?;
    rest.strip_prefix(' ')?
        .split_once(" {")
        .map(|(name, _)| name)
}

/// What iptables-save printed of a table.
fn section<'s>(save: &'s str, name: &str) -> Option<&'s str> {
    let begins = format!("*{name}\n");
    let at = match save.starts_with(&begins) {
        true => 0,
        false => save.find(&format!("\n{begins}"))? + 1,
    };
    let text = save.get(at..)?;
    let end = text.find("\nCOMMIT\n")? + "\nCOMMIT\n".len();
    text.get(..end)
}

/// Whether iptables-save printed all of a table: each chain as the base chain that it is or is not, and
/// as many rules. It prints all built-in chains, also those that iptables has not made yet, since they
/// had no rules: these accept.
fn says_all(section: &str, table: &str) -> bool {
    let heads = section
        .lines()
        .filter_map(|line| line.strip_prefix(':')?.split_once(' '));
    let rules = section.lines().filter(|line| line.starts_with("-A "));
    let mut chains: Vec<(&str, bool)> = Vec::new();
    let mut own_rules = 0;
    for line in table.lines().skip(1).filter(|line| *line != "}") {
        let begun = line
            .strip_prefix("\tchain ")
            .and_then(|l| l.strip_suffix(" {"));
        match (begun, line.strip_prefix("\t\t"), chains.last_mut()) {
            (Some(name), ..) => chains.push((name.trim_matches('"'), false)),
            (None, Some(hook), Some(chain)) if hook.starts_with("type ") => chain.1 = true,
            (None, Some(rule), Some((chain, _))) => {
                own_rules += usize::from(!chain.contains(OURS) && !rule.contains(OURS));
            }
            // A set or the like, which no table of iptables has.
            (None, None, _) if line.ends_with('{') => return false,
            _ => {}
        }
    }
    chains.retain(|(chain, _)| !chain.contains(OURS));
    let is_there = |name: &str| chains.iter().any(|(chain, _)| *chain == name);
    let mut printed: Vec<(&str, bool)> = heads
        .filter(|(name, policy)| is_there(name) || !policy.starts_with("ACCEPT "))
        .map(|(name, policy)| (name, !policy.starts_with('-')))
        .collect();
    printed.sort_unstable();
    chains.sort_unstable();
    printed == chains && rules.count() == own_rules
}

/// Whether a table belongs to a process, as the taps and traces of jobs do.
fn is_owned(table: &str) -> bool {
    let own = |line: &str| {
        let line = line.trim();
        (line.starts_with("flags ") && line.contains("owner")) || line.contains("TSIM_KSMS=")
    };
    table.lines().any(own)
}

/// A saved ruleset without the taps of jobs.
fn without_ours(save: &str) -> String {
    let ours = |line: &str| line.contains(OURS);
    let kept = save.lines().filter(|line| !ours(line));
    kept.fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_cut_apart_and_those_of_jobs_are_known() {
        let ruleset = "table inet fw {\n\tchain c {\n\t}\n}\n\
                       # Warning: table ip filter is managed by iptables-nft, do not touch!\n\
                       table ip filter {\n\tset s {\n\t\ttype ipv4_addr\n\t}\n}\n\
                       table netdev tsim {\n\tflags owner\n}\n";
        let tables = tables(ruleset);
        let heads: Vec<_> = tables.iter().filter_map(|t| t.lines().next()).collect();
        assert_eq!(
            heads,
            [
                "table inet fw {",
                "table ip filter {",
                "table netdev tsim {"
            ]
        );
        let owned: Vec<bool> = tables.iter().map(|table| is_owned(table)).collect();
        assert_eq!(owned, [false, false, true]);
    }

    #[test]
    fn a_table_goes_by_the_tool_that_can_say_all_of_it() {
        const HOOK: &str = "\t\ttype filter hook forward priority filter; policy accept;\n";
        let chain = |head: &str, rules: &str| {
            format!("table ip filter {{\n\tchain {head} {{\n{HOOK}{rules}\t}}\n}}\n")
        };
        let save = "*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\n\
                    -A FORWARD -p tcp -m tcp --dport 81 -j DROP\nCOMMIT\n";
        let filter = section(save, "filter").unwrap();
        assert!(filter.starts_with("*filter\n:FORWARD") && filter.ends_with("COMMIT\n"));
        assert_eq!(section(save, "mangle"), None);
        let rule = "\t\ttcp dport 81 drop\n";
        let own = chain("FORWARD", rule);
        assert_eq!(name_in("ip", &own), Some("filter"));
        assert_eq!(name_in("ip6", &own), None);
        assert!(says_all(filter, &own));
        assert!(!says_all(filter, &chain("FORWARD", &rule.repeat(2))));
        let with = |more: &str| filter.replace(":FORWARD", &format!("{more}\n:FORWARD"));
        assert!(says_all(&with(":INPUT ACCEPT [0:0]"), &own));
        assert!(!says_all(&with(":INPUT DROP [0:0]"), &own));
        assert!(!says_all(&with(":mine - [0:0]"), &own));
        // A base chain of another name is none to iptables.
        let native = filter.replace(":FORWARD ACCEPT", ":forward -");
        assert!(!says_all(&native, &chain("forward", rule)));
        let with_set = own.replace("{\n\tchain", "{\n\tset s {\n\t\ttype mark\n\t}\n\tchain");
        assert!(!says_all(filter, &with_set));
    }

    #[test]
    fn taps_are_no_part_of_a_saved_ruleset() {
        let save = "*mangle\n:PREROUTING ACCEPT [0:0]\n:TSIM_q1_i - [0:0]\n\
                    -A PREROUTING -m dscp --dscp 0x20 -m comment --comment \"TSIM_KSMS=q1\" -j TSIM_q1_i\n\
                    -A PREROUTING -j ACCEPT\nCOMMIT\n";
        assert_eq!(
            without_ours(save),
            "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j ACCEPT\nCOMMIT\n"
        );
    }
}
