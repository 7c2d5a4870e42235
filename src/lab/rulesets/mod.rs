//! Loads rulesets with the tools that saved them, from a thread inside the router's namespace.
//!
//! A whole ruleset goes to its tool at once. Where the tool refuses, the line that it names is
//! blanked (so that the others keep their numbers), a warning is made of it, and the rest is tried
//! again. Where it names none, which iptables-legacy does at COMMIT, halving finds the line.

mod blame;
mod filter;
mod tools;

use super::{
    LabError,
    omission::RulesetMaps,
    topology::{Origin, Router, Ruleset, RulesetKind, Warning},
};
use crate::{fault, netns::tool::ToolError};

pub(super) use tools::Loaders;

/// Loads all rulesets of `router` into the namespace of the calling thread; returns a warning for
/// each rule that is left out.
///
/// # Errors
/// [`LabError`] when a tool cannot be run, or fails and no line is to blame.
pub(super) fn load_here(router: &Router, loaders: &Loaders) -> Result<Vec<Warning>, LabError> {
    let mut warnings = Vec::new();
    let maps = RulesetMaps::new(&router.rulesets);
    for ruleset in &router.rulesets {
        let sifted = filter::sift(ruleset.kind, &ruleset.text);
        warnings.extend(not_let_through(router, ruleset, &maps, &sifted.left_out));
        let mut loader = Loader {
            router,
            ruleset,
            maps: &maps,
            loaders,
            lines: sifted.lines,
            warnings: Vec::new(),
        };
        loader.load()?;
        warnings.append(&mut loader.warnings);
    }
    Ok(warnings)
}

/// What the filter left out, each with its first line.
fn not_let_through<'a>(
    router: &'a Router,
    ruleset: &'a Ruleset,
    maps: &'a RulesetMaps<'a>,
    left_out: &'a [filter::LeftOut],
) -> impl Iterator<Item = Warning> + 'a {
    let lines: Vec<&str> = ruleset.text.lines().collect();
    left_out.iter().map(move |out| {
        let text = lines.get(out.first).copied().unwrap_or_default();
        let message = message(&out.reason, text, out.last - out.first);
        let origin = origin(ruleset, out.first);
        if !out.matters {
            return Warning::notice(origin, &router.name, message);
        }
        let lines: Vec<usize> = (out.first..=out.last).collect();
        let omission = maps.omission(ruleset, &lines);
        Warning::omission(origin, &router.name, message, omission)
    })
}

/// The place of line `at` of `ruleset`, counted from 0.
fn origin(ruleset: &Ruleset, at: usize) -> Origin {
    let mut origin = ruleset.origin.clone();
    origin.line += at;
    origin
}

/// That `text` and the `more` lines behind it are left out.
fn message(reason: &str, text: &str, more: usize) -> String {
    let text = text.trim();
    match more {
        0 => format!("not loaded: {reason}: {text}"),
        more => format!("not loaded: {reason}: {text} and {more} more lines"),
    }
}

struct Loader<'a> {
    router: &'a Router,
    ruleset: &'a Ruleset,
    maps: &'a RulesetMaps<'a>,
    loaders: &'a Loaders,
    lines: Vec<String>,
    warnings: Vec<Warning>,
}

impl Loader<'_> {
    fn load(&mut self) -> Result<(), LabError> {
        while let Err(said) = self.attempt(&self.lines)? {
            let blamed = blame::lines(self.ruleset.kind, &self.lines, &said);
            let blamed = if blamed.is_empty() {
                self.halve()?.into_iter().collect()
            } else {
                blamed
            };
            let blamed = if blamed.is_empty() {
                self.bad_parts()?
            } else {
                blamed
            };
            if blamed.is_empty() {
                return Err(self.failed(&said));
            }
            for culprit in blamed {
                self.leave_out(&culprit, &said);
            }
        }
        Ok(())
    }

    /// Hands `lines` to the tool; what it said if it refused.
    fn attempt(&self, lines: &[String]) -> Result<Result<(), String>, LabError> {
        let run = |source| LabError::Run {
            router: self.router.name.clone(),
            source,
        };
        fault::step("lab.ruleset").map_err(|source| {
            run(ToolError::Start {
                tool: self.loaders.name(self.ruleset.kind).to_owned(),
                step: "start",
                source,
            })
        })?;
        let text = lines
            .iter()
            .fold(String::new(), |text, line| text + line + "\n");
        self.loaders.run(self.ruleset.kind, &text).map_err(run)
    }

    fn failed(&self, said: &str) -> LabError {
        LabError::Loader {
            tool: self.loaders.name(self.ruleset.kind),
            router: self.router.name.clone(),
            message: said.to_owned(),
        }
    }

    fn leave_out(&mut self, culprit: &blame::Culprit, said: &str) {
        let first = culprit.lines.first().copied().unwrap_or(0);
        let text = self.lines.get(first).map_or("", |l| l.trim()).to_owned();
        let reason = blame::reason(said, culprit.reason.as_deref());
        let message = message(&reason, &text, culprit.lines.len().saturating_sub(1));
        let omission = self.maps.omission(self.ruleset, &culprit.lines);
        let origin = origin(self.ruleset, first);
        let warning = Warning::omission(origin, &self.router.name, message, omission);
        self.warnings.push(warning);
        for line in &culprit.lines {
            if let Some(line) = self.lines.get_mut(*line) {
                line.clear();
            }
        }
    }

    /// The first rule without which the ruleset would load up to there; none if it does not load
    /// without any rule either.
    fn halve(&mut self) -> Result<Option<blame::Culprit>, LabError> {
        let rules = blame::rules(self.ruleset.kind, &self.lines);
        let only = |count: usize| -> Vec<String> {
            let mut lines = self.lines.clone();
            for rule in rules.iter().skip(count) {
                if let Some(line) = lines.get_mut(*rule) {
                    line.clear();
                }
            }
            lines
        };
        if rules.is_empty() || self.attempt(&only(0))?.is_err() {
            return Ok(None);
        }
        // The first `good` rules load, the first `bad` ones do not.
        let (mut good, mut bad) = (0, rules.len());
        while bad - good > 1 {
            let middle = good.midpoint(bad);
            match self.attempt(&only(middle))? {
                Ok(()) => good = middle,
                Err(_) => bad = middle,
            }
        }
        Ok(rules.get(good).map(|rule| blame::Culprit {
            lines: vec![*rule],
            reason: None,
        }))
    }
}

impl Loader<'_> {
    /// The tables or sets that do not load, each tried without the others.
    fn bad_parts(&self) -> Result<Vec<blame::Culprit>, LabError> {
        let mut bad = Vec::new();
        for part in blame::parts(self.ruleset.kind, &self.lines) {
            let mut alone = vec![String::new(); self.lines.len()];
            for at in &part {
                if let (Some(slot), Some(line)) = (alone.get_mut(*at), self.lines.get(*at)) {
                    slot.clone_from(line);
                }
            }
            if let Err(said) = self.attempt(&alone)? {
                bad.push(blame::Culprit {
                    lines: part,
                    reason: Some(said),
                });
            }
        }
        Ok(bad)
    }
}

/// The kinds of rulesets that `router` has.
pub(super) fn kinds(router: &Router) -> impl Iterator<Item = RulesetKind> {
    router.rulesets.iter().map(|ruleset| ruleset.kind)
}
