//! What if a router had another ruleset, or routers other facts: the lab's facts with changes, from which
//! a lab is made for the time of the question. The lab itself is asked and not touched.
//!
//! The changes go through the same door as facts: what is in a ruleset is read, sifted and loaded as that
//! of facts is, and what cannot be loaded makes UNKNOWN what it can change.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::temporary::{TemporaryError, TemporaryFacts};
use crate::{
    config::Config,
    files::{self, ReadError},
    lab::{self, LabError, LabState, facts::exchange, topology::RulesetKind},
    model::RouterName,
};

/// Most bytes of a ruleset.
const MOST: u64 = 256 << 20;

/// A change could not be made.
#[derive(Debug, Error)]
pub enum WhatIfError {
    /// The lab, or its facts.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// Files for a time.
    #[error(transparent)]
    Temporary(#[from] TemporaryError),
    /// A file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// A file could not be written or copied.
    #[error("cannot copy the facts {path}")]
    Copy {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The facts are not those that the lab was made of.
    #[error(
        "the facts in {facts} are not those that lab {lab} was made of (other: {routers}); bring it up \
         anew with `tsim lab up {lab} --facts {facts} --replace`"
    )]
    OtherFacts {
        /// The lab.
        lab: String,
        /// Their directory.
        facts: String,
        /// Routers that differ.
        routers: String,
    },
    /// A file is no ruleset.
    #[error(
        "{path} is neither what iptables-save nor what `nft list ruleset` prints: a line `*filter` or \
         `table inet …` is wanted"
    )]
    NoRuleset {
        /// The file.
        path: PathBuf,
    },
    /// A router's facts cannot be changed.
    #[error("the facts of {router} in {path} cannot be changed: {why}")]
    Facts {
        /// The router.
        router: RouterName,
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// A ruleset in the place of a router's own of the same kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRuleset {
    /// The router.
    pub router: RouterName,
    /// The file with what iptables-save or `nft list ruleset` printed.
    pub file: PathBuf,
    /// Whether it is of ip6tables-save, which looks like that of iptables-save.
    pub v6: bool,
}

/// The facts of `lab` with other facts and rulesets in their place.
///
/// # Errors
/// [`WhatIfError`]; nothing is left.
pub fn facts(
    config: &Config,
    state: &LabState,
    others: Option<&Path>,
    rulesets: &[NewRuleset],
) -> Result<TemporaryFacts, WhatIfError> {
    let changes = lab::changes(config, &state.lab, &state.facts)?;
    let differ = [&changes.added, &changes.removed, &changes.changed];
    let differ: Vec<&str> = differ
        .into_iter()
        .flatten()
        .map(RouterName::as_str)
        .collect();
    if !differ.is_empty() {
        return Err(WhatIfError::OtherFacts {
            lab: state.lab.to_string(),
            facts: state.facts.display().to_string(),
            routers: differ.join(", "),
        });
    }
    let topology = lab::topology_of(config, &state.lab)?;
    let made = TemporaryFacts::new(config)?;
    copy(&state.facts, made.path())?;
    if let Some(others) = others {
        copy(others, made.path())?;
    }
    for new in rulesets {
        state.router(&new.router)?;
        let router = topology
            .routers
            .iter()
            .find(|router| router.name == new.router);
        let file = router.and_then(|router| Path::new(&router.file).file_name());
        let Some(file) = file else { continue };
        replace(new, &made.path().join(file))?;
    }
    Ok(made)
}

/// Copies the files of a directory of facts.
fn copy(from: &Path, to: &Path) -> Result<(), WhatIfError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| WhatIfError::Copy { path, source }
    };
    for entry in fs::read_dir(from).map_err(failed(from))? {
        let entry = entry.map_err(failed(from))?;
        let path = entry.path();
        // Links are none of the facts: they are not read through that door either.
        if entry.file_type().map_err(failed(&path))?.is_file() {
            fs::copy(&path, to.join(entry.file_name())).map_err(failed(&path))?;
        }
    }
    Ok(())
}

/// Puts the ruleset in the place of that in a router's facts.
fn replace(new: &NewRuleset, facts: &Path) -> Result<(), WhatIfError> {
    let text = read(&new.file)?;
    let kind = kind(&text, new.v6).ok_or_else(|| WhatIfError::NoRuleset {
        path: new.file.clone(),
    })?;
    let refuse = |why: &str| WhatIfError::Facts {
        router: new.router.clone(),
        path: facts.to_owned(),
        why: why.to_owned(),
    };
    if exchange::has_mark(&text) {
        return Err(refuse("the ruleset has a line of a facts file"));
    }
    let before = read(facts)?;
    let after = match facts.extension().is_some_and(|ending| ending == "json") {
        true => in_json(&before, kind, &text).map_err(|why| refuse(&why))?,
        false => exchange::in_sections(&before, kind, &text).map_err(|e| refuse(&e.to_string()))?,
    };
    fs::write(facts, after).map_err(|source| WhatIfError::Copy {
        path: facts.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<String, WhatIfError> {
    let bytes = files::read(path, MOST).map_err(|source| WhatIfError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Which tool printed a ruleset.
fn kind(text: &str, v6: bool) -> Option<RulesetKind> {
    let begins = |start: &str| text.lines().any(|line| line.starts_with(start));
    if begins("*") && begins("COMMIT") {
        return Some(if v6 {
            RulesetKind::Ip6tables
        } else {
            RulesetKind::Iptables
        });
    }
    // An empty ruleset of nft has no line at all.
    let blank = |line: &str| line.trim().is_empty() || line.starts_with('#');
    (begins("table ") || text.lines().all(blank)).then_some(RulesetKind::Nft)
}

fn in_json(facts: &str, kind: RulesetKind, text: &str) -> Result<String, String> {
    let mut facts: serde_json::Value = serde_json::from_str(facts).map_err(|e| e.to_string())?;
    let object = facts.as_object_mut().ok_or("they are no object")?;
    object.insert(kind.to_string(), text.into());
    if kind == RulesetKind::Nft {
        // Nobody says in which time zone the new one was printed.
        object.remove("utc");
    }
    serde_json::to_string(&facts).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rulesets_are_told_by_their_form() {
        let save = "# Generated\n*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n";
        assert_eq!(kind(save, false), Some(RulesetKind::Iptables));
        assert_eq!(kind(save, true), Some(RulesetKind::Ip6tables));
        assert_eq!(kind("table inet fw {\n}\n", false), Some(RulesetKind::Nft));
        assert_eq!(kind("# nothing\n", false), Some(RulesetKind::Nft));
        assert_eq!(kind("hello\n", false), None);
    }

    #[test]
    fn a_ruleset_of_json_is_replaced() {
        let after = in_json(
            r#"{"name":"r1","nft":"old","utc":true}"#,
            RulesetKind::Nft,
            "new",
        )
        .unwrap();
        assert_eq!(after, r#"{"name":"r1","nft":"new"}"#);
    }
}
