//! Loads rulesets with the tools that saved them, from a thread inside the router's namespace.
//!
//! A whole ruleset goes to its tool at once. Where the tool refuses, the line that it names is
//! blanked (so that the others keep their numbers), a warning is made of it, and the rest is tried
//! again. Where it names none, which iptables-legacy does at COMMIT, or one after the other,
//! [`search`] finds them by their forms; and where no rule is to blame, the tables are tried one by
//! one.

mod blame;
mod filter;
mod form;
mod lasting;
mod search;
mod shares;
mod tools;
mod writes;

use std::{collections::BTreeSet, sync::OnceLock};

use super::{
    LabError, UpProgress, UpStep,
    omission::RulesetMaps,
    topology::{Clock, Router, Ruleset, RulesetKind, Warning},
};
use crate::{
    fault,
    netns::{shut_in::shut_in, tool::ToolError},
    sys::time_zone,
};

pub(super) use tools::{Loaders, Trial};

/// The rulesets of a router, made ready for their loaders when that is first asked for.
#[derive(Debug)]
pub(super) struct RouterRulesets<'a> {
    router: &'a Router,
    ready: OnceLock<Vec<Ready>>,
}

/// A ruleset as it goes to its loader.
#[derive(Debug)]
struct Ready {
    /// As many lines as the ruleset has; those that were left out are empty.
    text: String,
    left_out: Vec<filter::LeftOut>,
}

impl<'a> RouterRulesets<'a> {
    /// Those of `router`, of which nothing is read yet.
    pub(super) fn new(router: &'a Router) -> Self {
        let ready = OnceLock::new();
        Self { router, ready }
    }

    /// Sifts them; pure, so that it can be done while the namespace is made.
    pub(super) fn make_ready(&self) {
        self.ready();
    }

    fn ready(&self) -> &[Ready] {
        let all = || self.router.rulesets.iter().map(ready).collect();
        self.ready.get_or_init(all)
    }
}

fn ready(ruleset: &Ruleset) -> Ready {
    let sifted = filter::sift(ruleset.kind, &ruleset.text, clock_here(ruleset));
    let text = match lasting::may_end(ruleset.kind, &ruleset.text) {
        true => {
            let mut lines: Vec<String> = sifted.lines.iter().map(|l| (*l).to_owned()).collect();
            lasting::lasting(ruleset.kind, &mut lines);
            joined(&lines)
        }
        false => joined(&sifted.lines),
    };
    let left_out = sifted.left_out;
    Ready { text, left_out }
}

/// `lines` as one text, which has them again.
fn joined(lines: &[impl AsRef<str>]) -> String {
    let length = lines.iter().map(|line| line.as_ref().len() + 1).sum();
    let mut text = String::with_capacity(length);
    for line in lines {
        text.push_str(line.as_ref());
        text.push('\n');
    }
    text
}

/// Loads all `rulesets` of a router into the namespace of the calling thread; returns a warning for
/// each rule that is left out.
///
/// # Errors
/// [`LabError`] when a tool cannot be run, or fails and no line is to blame.
pub(super) fn load_here(
    rulesets: &RouterRulesets<'_>,
    loaders: &Loaders,
    progress: &dyn UpProgress,
) -> Result<Vec<Warning>, LabError> {
    if rulesets.router.rulesets.is_empty() {
        return Ok(Vec::new());
    }
    let mut warnings = shut_in(loaders.dirs(), || load_shut_in(rulesets, loaders, progress))??;
    warnings.extend(without_effect(rulesets.router, loaders));
    Ok(warnings)
}

/// The rules that are loaded and end where this kernel lets them write no more: what they do on the router is
/// missing as if they were not there.
fn without_effect(router: &Router, loaders: &Loaders) -> Vec<Warning> {
    let maps = RulesetMaps::new(&router.rulesets);
    let mut found = Vec::new();
    for ruleset in router
        .rulesets
        .iter()
        .filter(|r| r.kind == RulesetKind::Nft)
    {
        for (at, line) in ruleset.text.lines().enumerate() {
            let Some(part) = writes::refused_write(line, loaders) else {
                continue;
            };
            let message = format!(
                "without effect: this machine's kernel lets no rule write {part}: {}",
                line.trim()
            );
            let omission = maps.omission(ruleset, &[at]);
            let origin = ruleset.origin_of(at);
            found.push(Warning::omission(origin, &router.name, message, omission));
        }
    }
    found
}

fn load_shut_in(
    rulesets: &RouterRulesets<'_>,
    loaders: &Loaders,
    progress: &dyn UpProgress,
) -> Result<Vec<Warning>, LabError> {
    let router = rulesets.router;
    let mut warnings = Vec::new();
    let maps = RulesetMaps::new(&router.rulesets);
    for (ruleset, ready) in router.rulesets.iter().zip(rulesets.ready()) {
        warnings.extend(not_let_through(router, ruleset, &maps, &ready.left_out));
        let mut loader = Loader {
            router,
            ruleset,
            maps: &maps,
            loaders,
            progress,
            lines: Vec::new(),
            warnings: Vec::new(),
        };
        loader.load(&ready.text)?;
        warnings.append(&mut loader.warnings);
    }
    Ok(warnings)
}

/// The clock of a ruleset's rules, as far as this machine's goes like it.
fn clock_here(ruleset: &Ruleset) -> Clock {
    let mut clock = ruleset.clock;
    clock.kernel_in_utc &= time_zone::is_utc();
    clock
}

/// What stands in the rulesets of `router` that no saved ruleset contains, or that only the kernel's time
/// zone decides, and that is not loaded therefore.
#[must_use]
pub fn strange_lines(router: &Router) -> Vec<Warning> {
    let maps = RulesetMaps::new(&router.rulesets);
    let of = |ruleset: &Ruleset| -> Vec<Warning> {
        let left_out = filter::sift(ruleset.kind, &ruleset.text, clock_here(ruleset)).left_out;
        not_let_through(router, ruleset, &maps, &left_out)
    };
    router.rulesets.iter().flat_map(of).collect()
}

/// What the filter left out, each with its first line.
fn not_let_through(
    router: &Router,
    ruleset: &Ruleset,
    maps: &RulesetMaps<'_>,
    left_out: &[filter::LeftOut],
) -> Vec<Warning> {
    if left_out.is_empty() {
        return Vec::new();
    }
    let lines: Vec<&str> = ruleset.text.lines().collect();
    let warning = |out: &filter::LeftOut| {
        let text = lines.get(out.first).copied().unwrap_or_default();
        let message = message(&out.reason, text, out.last - out.first);
        let origin = ruleset.origin_of(out.first);
        if !out.matters {
            return Warning::notice(origin, &router.name, message);
        }
        let lines: Vec<usize> = (out.first..=out.last).collect();
        let omission = maps.omission(ruleset, &lines);
        Warning::omission(origin, &router.name, message, omission)
    };
    left_out.iter().map(warning).collect()
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
    progress: &'a dyn UpProgress,
    /// The lines of the text that was refused last; none yet where none was.
    lines: Vec<String>,
    warnings: Vec<Warning>,
}

/// How often what a tool says is believed before all refused rules are searched for at once.
const ROUNDS: usize = 3;

impl Loader<'_> {
    fn load(&mut self, text: &str) -> Result<(), LabError> {
        let Err(mut said) = self.attempt(text, Trial::Load)? else {
            return Ok(());
        };
        self.lines = text.lines().map(ToOwned::to_owned).collect();
        let mut rounds = 0;
        loop {
            rounds += 1;
            let blamed = if rounds % ROUNDS == 0 {
                // It goes on like this for a while.
                self.search()?
            } else {
                Vec::new()
            };
            let blamed = first_of([
                &|| Ok(blamed.clone()),
                &|| Ok(blame::lines(self.ruleset.kind, &self.lines, &said)),
                &|| self.search(),
                &|| self.bad_parts(),
            ])?;
            if blamed.is_empty() {
                return Err(self.failed(&said));
            }
            for culprit in blamed {
                self.leave_out(&culprit, &said);
            }
            self.progress.step(UpStep::Refused);
            match self.attempt(&joined(&self.lines), Trial::Load)? {
                Ok(()) => return Ok(()),
                Err(again) => said = again,
            }
        }
    }

    /// The rules that are refused each by itself. None where the ruleset does not load without any
    /// rule either.
    fn search(&self) -> Result<Vec<blame::Culprit>, LabError> {
        let kind = self.ruleset.kind;
        let rules = blame::rules(kind, &self.lines);
        let mut only = |wanted: &BTreeSet<usize>| {
            let mut lines = self.lines.clone();
            for rule in rules.iter().filter(|rule| !wanted.contains(*rule)) {
                if let Some(line) = lines.get_mut(*rule) {
                    line.clear();
                }
            }
            self.attempt(&joined(&lines), Trial::Check)
        };
        if rules.is_empty() || only(&BTreeSet::new())?.is_err() {
            return Ok(Vec::new());
        }
        search::refused(kind, &self.lines, &rules, &mut only)
    }

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
            if let Err(said) = self.attempt(&joined(&alone), Trial::Check)? {
                bad.push(blame::Culprit {
                    lines: part,
                    reason: Some(said),
                });
            }
        }
        Ok(bad)
    }

    /// Hands `text` to the tool; what it said if it refused.
    fn attempt(&self, text: &str, trial: Trial) -> Result<Result<(), String>, LabError> {
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
        self.loaders
            .run(self.ruleset.kind, text, trial)
            .map_err(run)
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
        let origin = self.ruleset.origin_of(first);
        let warning = Warning::omission(origin, &self.router.name, message, omission);
        self.warnings.push(warning);
        for line in &culprit.lines {
            if let Some(line) = self.lines.get_mut(*line) {
                line.clear();
            }
        }
    }
}

/// What the first of `sources` finds that finds anything.
fn first_of(
    sources: [&dyn Fn() -> Result<Vec<blame::Culprit>, LabError>; 4],
) -> Result<Vec<blame::Culprit>, LabError> {
    for source in sources {
        let found = source()?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// The kinds of rulesets that `router` has.
pub(super) fn kinds(router: &Router) -> impl Iterator<Item = RulesetKind> {
    router.rulesets.iter().map(|ruleset| ruleset.kind)
}

#[cfg(test)]
mod silence_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_to_a_loader_has_the_lines_of_the_ruleset() {
        let rules =
            "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -M /tmp/x\n\n-A FORWARD -j ACCEPT\r\nCOMMIT";
        let left = ready(&Ruleset::for_test(RulesetKind::Iptables, rules));
        let want = "*filter\n:FORWARD DROP [0:0]\n\n\n-A FORWARD -j ACCEPT\nCOMMIT\n";
        assert_eq!(left.text, want);
        assert_eq!(left.left_out.len(), 1);
        let lines: Vec<&str> = left.text.lines().collect();
        assert_eq!(joined(&lines), left.text);
    }

    #[test]
    fn no_element_that_goes_to_a_loader_times_out() {
        let text = |kind, text| ready(&Ruleset::for_test(kind, text)).text;
        let sets = "create a hash:ip timeout 9\nquit\nadd a 10.0.0.1 timeout 4\n";
        let want = "create a hash:ip timeout 9\n\nadd a 10.0.0.1 timeout 0\n";
        assert_eq!(text(RulesetKind::Ipset, sets), want);
        let table = "table ip x {\n\tset a {\n\t\ttype ipv4_addr\n\t\tflags timeout\n\
            \t\telements = { 10.0.0.1 expires 3s }\n\t}\n}\n";
        assert!(!text(RulesetKind::Nft, table).contains("expires"));
    }
}
