//! Rulesets, by the tools that save and load them.
//!
//! iptables-nft keeps its rules in tables of nf_tables, and nft(8) cannot say what some of them
//! match: these tables go by iptables-save, all others by nft. Sets of ipset come first, as rules
//! refer to them.

use super::CopyError;
use crate::{
    firewall::iptables::trace::has_tables_here,
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

/// A router's rulesets as text.
pub(super) struct RulesetTexts {
    sets: Vec<u8>,
    /// Tool, its arguments, and what it shall load.
    xtables: Vec<(&'static str, &'static [&'static str], String)>,
    nft: String,
    differences: Vec<String>,
}

impl RulesetTexts {
    /// Saves the rulesets of `router`.
    pub(super) fn read(router: &NetnsFd, tools: &Tools) -> Result<Self, CopyError> {
        router.enter(|| Self::read_here(tools))?
    }

    fn read_here(tools: &Tools) -> Result<Self, CopyError> {
        let print = |tool: &str, arguments: &[&str]| -> Result<String, ToolError> {
            let printed = tools.run(tool, arguments, &[])?;
            Ok(String::from_utf8_lossy(&printed.stdout).into_owned())
        };
        let ruleset = match print("nft", &["list", "ruleset"]) {
            // No nft and no nf_tables: there is nothing that it could list.
            Err(ToolError::NotFound { .. }) => String::new(),
            other => other?,
        };
        let mut saved = Self {
            // Without ipset in the kernel, or its tool, no rule can refer to a set.
            sets: print("ipset", &["save"]).unwrap_or_default().into_bytes(),
            xtables: Vec::new(),
            nft: String::new(),
            differences: Vec::new(),
        };
        let mut managed = Vec::new();
        for tool in NFT {
            let family = tool.family.unwrap_or_default();
            let heads = ruleset.lines().filter(|line| line.starts_with("table "));
            if !heads
                .into_iter()
                .any(|line| line.split(' ').nth(1) == Some(family))
            {
                continue;
            }
            let text = without_ours(&print(tool.save, &[])?);
            let names = text.lines().filter_map(|line| line.strip_prefix('*'));
            managed.extend(names.map(|name| format!("table {family} {name} {{")));
            saved.xtables.push((tool.restore, tool.arguments, text));
        }
        for (family, tool) in LEGACY {
            if has_tables_here(family) {
                let text = without_ours(&print(tool.save, &[])?);
                saved.xtables.push((tool.restore, tool.arguments, text));
            }
        }
        for table in tables(&ruleset) {
            let head = table.lines().next().unwrap_or_default();
            if managed.iter().any(|managed| managed == head) || is_owned(table) {
                continue;
            }
            if table.contains("# xt_") || table.contains("xt match") {
                let what = head.trim_end_matches(" {");
                saved.differences.push(format!(
                    "{what} holds rules of iptables that nft cannot print"
                ));
            }
            saved.nft.push_str(table);
        }
        Ok(saved)
    }

    /// Loads them into `copy`; returns what cannot be loaded.
    pub(super) fn load(self, copy: &NetnsFd, tools: &Tools) -> Result<Vec<String>, CopyError> {
        let loaded: Result<Result<(), ToolError>, NetnsError> = copy.enter(|| {
            if !self.sets.is_empty() {
                tools.run("ipset", &["restore"], &self.sets)?;
            }
            for (tool, arguments, text) in &self.xtables {
                tools.run(tool, arguments, text.as_bytes())?;
            }
            if !self.nft.is_empty() {
                tools.run("nft", &["-f", "-"], self.nft.as_bytes())?;
            }
            Ok(())
        });
        loaded??;
        Ok(self.differences)
    }
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
