//! What is collected from the router of a case makes the same router again: the same rulesets, routes
//! and policy rules, and the same verdicts; of nft(8) also from its JSON.
//!
//! Every twelfth case in IPv4; all of them in both families where `TSIM_ROUND_TRIPS=all`, as the stage
//! `round-trips` of tests/run.sh has it.

use std::{env, fs, os::unix::fs::PermissionsExt, path::Path};

use tsim::{
    lab::{self, UpOptions, topology::Warning},
    netlink::object::Family,
};

use super::{
    THREADS,
    bed::CaseBed,
    file::{self, CaseFile, Loader, Run},
    kernel::Kernel,
};
use crate::{beside, collect::collect, lab::tool, quick::TestLab};

/// Every how many cases one is tried.
const STRIDE: usize = 12;

/// Makes `iptables-save` that of the legacy variant, as on a router that has only that.
fn legacy_tools(dir: &Path) {
    for six in ["", "6"] {
        let file = dir.join(format!("ip{six}tables-save"));
        let script = format!("#!/bin/sh\nexec ip{six}tables-legacy-save \"$@\"\n");
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// What the tool that loaded the rules shows of them. Tables of iptables stand in the order in which
/// they came into being.
fn shown(bed: &CaseBed, case: &CaseFile, loader: Loader, family: Family) -> String {
    let text = bed.ruleset(case, loader, family);
    if loader == Loader::Nft {
        return text + &bed.routes(family);
    }
    let begin = if text.starts_with('*') {
        Some(0)
    } else {
        text.find("\n*").map(|at| at + 1)
    };
    let save = begin.map_or("", |at| &text[at..]);
    let mut tables: Vec<&str> = save.split_inclusive("COMMIT\n").collect();
    tables.sort_unstable();
    tables.concat() + &bed.routes(family)
}

/// The facts with the ruleset as `nft -j` prints it.
fn with_json(facts: &str, json: &str) -> String {
    let head = "=== TSIM_SECTION_START:nft_ruleset ===";
    let (before, rest) = facts.split_once(head).unwrap();
    let (mark, rest) = rest.split_once("---\n").unwrap();
    let (_, behind) = rest.split_once("\nEXIT_CODE").unwrap();
    format!("{before}{head}{mark}---\n{json}\nEXIT_CODE{behind}")
}

/// What is different in the second lab.
fn differs(case: &CaseFile, loader: Loader, family: Family, json: bool) -> Option<String> {
    let first = match CaseBed::new(case, loader, family) {
        Ok(bed) => bed,
        Err(error) => return Some(error.to_string()),
    };
    let before = shown(&first, case, loader, family);
    let dir = tempfile::tempdir().unwrap();
    let (stubs, facts) = (dir.path().join("stubs"), dir.path().join("facts"));
    fs::create_dir(&stubs).unwrap();
    fs::create_dir(&facts).unwrap();
    if loader == Loader::IptablesLegacy {
        legacy_tools(&stubs);
    }
    let mut text = collect(first.router(), &["sh"], &stubs);
    if json {
        text = with_json(
            &text,
            &tool(first.router(), "nft", &["-j", "-s", "list", "ruleset"]),
        );
    }
    fs::write(facts.join("r_facts.txt"), &text).unwrap();
    let options = UpOptions {
        legacy: loader == Loader::IptablesLegacy,
        ..UpOptions::default()
    };
    let lab = TestLab::up_with(facts.to_str().unwrap(), options);
    let said = |warning: &Warning, words: &str| warning.message.contains(words);
    if lab.lab.warnings.iter().any(|w| said(w, "has a realm")) {
        // No lab has any.
        return None;
    }
    // That rules hide neighbours is told of a router that has all of its rules, too.
    let is_lost = |warning: &&Warning| {
        warning.matters() && !said(warning, "which no lab needs to find neighbours")
    };
    let is_doubted = lab.lab.warnings.iter().any(Warning::matters);
    let lost = lab.lab.warnings.iter().filter(is_lost);
    let lost: Vec<String> = lost.map(ToString::to_string).collect();
    let (config, name) = (lab.config.clone(), lab.bed.lab.clone());
    let second = CaseBed::of_lab(lab);
    let after = shown(&second, case, loader, family);
    // nft 1.0.6 leaves devices of chains, flags of tables and `auto-merge` out of its JSON.
    let is_said = |text: &String| text.contains("of the JSON of nft this is not known");
    if json && !lost.is_empty() && lost.iter().all(is_said) {
        return None;
    }
    let (before, after) = match json {
        true => [before, after]
            .map(|text| text.replace("\t\tauto-merge\n", ""))
            .into(),
        false => (before, after),
    };
    if !lost.is_empty() {
        return Some(format!("left out: {}", lost.join("\n")));
    }
    if before != after {
        return Some(format!("from\n{before}to\n{after}"));
    }
    let run = Run {
        loader,
        backend: loader.backends()[0],
        family,
    };
    let verdicts = |bed: &CaseBed| -> Vec<String> {
        let report = bed.measure(case, run, &case.expected(run));
        let services = &report.routers[0].services;
        services
            .iter()
            .map(|s| format!("{} {}", s.service(), s.result))
            .collect()
    };
    let (one, other) = (verdicts(&first), verdicts(&second));
    let mut pairs = one.iter().zip(&other);
    let is_same =
        pairs.all(|(one, other)| one == other || is_doubted && other.ends_with("UNKNOWN"));
    if !is_same {
        return Some(format!("{one:?} and {other:?}"));
    }
    // Loaded once more, the same rules are the same to the kernel, behind jobs, too; unless the bed itself
    // loaded them anew.
    let drift = lab::status(&config, &name).unwrap().drift;
    (!case.fresh && !drift.is_empty()).then(|| format!("{drift:?}"))
}

#[test]
fn what_is_collected_from_a_case_makes_the_same_router() {
    let all = env::var("TSIM_ROUND_TRIPS").is_ok_and(|value| value == "all");
    let only = env::var("TSIM_CASES").unwrap_or_default();
    let kernel = Kernel::running();
    let mut runs = Vec::new();
    let cases = file::all(Path::new("netns-fixtures/cases"));
    for (at, case) in cases.iter().enumerate() {
        let chosen = all || !only.is_empty() || at % STRIDE == 0;
        let lacks = case.needs.iter().any(|symbol| kernel.lacks(symbol));
        if !chosen || lacks || !case.name.starts_with(&only) {
            continue;
        }
        for loader in case.loaders() {
            for family in case.families() {
                if !all && family == Family::V6 {
                    continue;
                }
                for json in [false, true] {
                    if json && loader != Loader::Nft {
                        continue;
                    }
                    runs.push((case, loader, family, json));
                }
            }
        }
    }
    let wrong = beside::each(THREADS, &runs, |&(case, loader, family, json)| {
        let what = differs(case, loader, family, json)?;
        let how = if json { ", as JSON" } else { "" };
        let name = &case.name;
        Some(format!("{name} ({loader:?}, {family:?}{how}): {what}"))
    });
    let wrong: Vec<String> = wrong.into_iter().flatten().collect();
    println!("{} round trips, {} of them differ", runs.len(), wrong.len());
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n\n")
    );
}
