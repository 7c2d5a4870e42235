//! Which program loads which ruleset.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::shares;
use crate::{
    lab::{LabError, topology::RulesetKind},
    netns::tool::{ToolError, Tools},
};

/// The programs that a lab needs.
#[derive(Debug)]
pub(in crate::lab) struct Loaders {
    dirs: Vec<PathBuf>,
    tools: Tools,
    programs: BTreeMap<RulesetKind, Program>,
}

#[derive(Debug, Clone, Copy)]
struct Program {
    name: &'static str,
    arguments: &'static [&'static str],
}

/// Whether a ruleset is to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::lab) enum Trial {
    /// It is.
    Load,
    /// It is a part that is tried before the whole is loaded. nft would add the whole to it, so it
    /// only asks the kernel; the others replace what is there, or add what is there already.
    Check,
}
/// Bytes of text per share that is tried first. A rule takes several times its text in a message.
const SHARE: usize = 64 << 10;

/// File names to try in order, arguments, and the Debian package.
type Choice = (
    &'static [&'static str],
    &'static [&'static str],
    &'static str,
);

fn choice(kind: RulesetKind, legacy: bool) -> Choice {
    match (kind, legacy) {
        // A set that is there already, with the same element twice, is no failure.
        (RulesetKind::Ipset, _) => (&["ipset"], &["-exist", "restore"], "ipset"),
        (RulesetKind::Nft, _) => (&["nft"], &["-f", "-"], "nftables"),
        (RulesetKind::Iptables, false) => (
            &["iptables-nft-restore", "iptables-restore"],
            &[],
            "iptables",
        ),
        (RulesetKind::Ip6tables, false) => (
            &["ip6tables-nft-restore", "ip6tables-restore"],
            &[],
            "iptables",
        ),
        // All routers share one lock file, so that each waits for the others.
        (RulesetKind::Iptables, true) => (&["iptables-legacy-restore"], &["-w"], "iptables"),
        (RulesetKind::Ip6tables, true) => (&["ip6tables-legacy-restore"], &["-w"], "iptables"),
    }
}

impl Loaders {
    /// Finds the programs for `kinds` in `dirs`.
    ///
    /// # Errors
    /// [`LabError::ToolMissing`].
    pub(in crate::lab) fn find(
        dirs: &[PathBuf],
        kinds: impl Iterator<Item = RulesetKind>,
        legacy: bool,
    ) -> Result<Self, LabError> {
        // Where they run, `/run` is another, and links through it lead nowhere.
        let real = |dir: &PathBuf| dir.canonicalize().unwrap_or_else(|_| dir.clone());
        let real: Vec<PathBuf> = dirs.iter().map(real).collect();
        let tools = Tools::new(real).locked();
        let mut programs = BTreeMap::new();
        for kind in kinds {
            if programs.contains_key(&kind) {
                continue;
            }
            let (names, arguments, package) = choice(kind, legacy);
            let found = names.iter().find(|name| tools.find(name).is_ok());
            let name = found.ok_or_else(|| LabError::ToolMissing {
                tool: names.first().copied().unwrap_or_default(),
                dirs: dirs.to_vec(),
                package,
            })?;
            programs.insert(kind, Program { name, arguments });
        }
        let dirs = dirs.to_vec();
        Ok(Self {
            dirs,
            tools,
            programs,
        })
    }

    /// Has the kernel load what the programs would load themselves if they could start others:
    /// the legacy variants of iptables ask for their tables before the kernel does. Where that
    /// fails, the programs say what is missing.
    pub(in crate::lab) fn load_modules(&self) {
        let legacy = |name: &str| self.programs.values().any(|program| program.name == name);
        for (name, module, there) in [
            (
                "iptables-legacy-restore",
                "ip_tables",
                "/proc/net/ip_tables_names",
            ),
            (
                "ip6tables-legacy-restore",
                "ip6_tables",
                "/proc/net/ip6_tables_names",
            ),
        ] {
            if legacy(name) && !Path::new(there).exists() {
                let _ = Tools::new(self.dirs.clone()).run("modprobe", &["-q", module], &[]);
            }
        }
    }

    /// Where the programs are.
    pub(super) fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The name of the program for `kind`.
    pub(super) fn name(&self, kind: RulesetKind) -> &'static str {
        let found = self.programs.get(&kind);
        found.map_or_else(|| choice(kind, false).0[0], |program| program.name)
    }

    /// Hands `text` to the program for `kind`, in shares where one message to the kernel does not hold
    /// it; what it said if it refused.
    pub(in crate::lab) fn run(
        &self,
        kind: RulesetKind,
        text: &str,
        trial: Trial,
    ) -> Result<Result<(), String>, ToolError> {
        let more = how(kind, trial, 0);
        let mut said = match self.run_once(kind, text, more)? {
            Err(said) if shares::is_too_long(&said) => said,
            done => return Ok(done),
        };
        let mut count = 2.max(text.len() / SHARE);
        while let Some(shares) = shares::split(kind, text, count) {
            match self.run_shares(kind, text, &shares, trial)? {
                Err(again) if shares::is_too_long(&again) => said = again,
                done => return Ok(done),
            }
            count *= 2;
        }
        Ok(Err(said))
    }

    /// One share after the other. Of a ruleset that is refused nothing stays, as if it were one
    /// message; iptables empties its tables with the first share of the next attempt.
    fn run_shares(
        &self,
        kind: RulesetKind,
        text: &str,
        shares: &[String],
        trial: Trial,
    ) -> Result<Result<(), String>, ToolError> {
        for (at, share) in shares.iter().enumerate() {
            if let Err(said) = self.run_once(kind, share, how(kind, trial, at))? {
                if kind == RulesetKind::Nft && trial == Trial::Load && at > 0 {
                    // What the share said is what counts.
                    let _ = self.run_once(kind, &shares::removal(text), &[])?;
                }
                return Ok(Err(said));
            }
        }
        Ok(Ok(()))
    }

    fn run_once(
        &self,
        kind: RulesetKind,
        text: &str,
        more: &[&str],
    ) -> Result<Result<(), String>, ToolError> {
        let found = self.programs.get(&kind);
        let arguments = found.map_or(choice(kind, false).1, |program| program.arguments);
        let arguments = [more, arguments].concat();
        match self.tools.run(self.name(kind), &arguments, text.as_bytes()) {
            Ok(_) => Ok(Ok(())),
            Err(ToolError::Failed { stderr, status, .. }) => Ok(Err(if stderr.trim().is_empty() {
                status.to_string()
            } else {
                stderr.trim().to_owned()
            })),
            Err(error) => Err(error),
        }
    }
}

/// The options for the share `at` of a ruleset, or for one that is whole.
fn how(kind: RulesetKind, trial: Trial, at: usize) -> &'static [&'static str] {
    match kind {
        RulesetKind::Nft if trial == Trial::Check => &["-c"],
        RulesetKind::Iptables | RulesetKind::Ip6tables if at > 0 => &[shares::ADD],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_named_with_its_package() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned()];
        let kinds = [RulesetKind::Iptables];
        let error = Loaders::find(&dirs, kinds.into_iter(), true).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("iptables-legacy-restore"), "{text}");
        assert!(text.contains("install iptables"), "{text}");
        std::fs::write(dir.path().join("iptables-restore"), "").unwrap();
        let loaders = Loaders::find(&dirs, kinds.into_iter(), false).unwrap();
        assert_eq!(loaders.name(RulesetKind::Iptables), "iptables-restore");
    }
}
