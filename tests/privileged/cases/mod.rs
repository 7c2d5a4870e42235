//! The case table: what is right for each ruleset in `netns-fixtures/cases`, held against every
//! back end, both families, and a packet capture.

mod bed;
mod detailed;
pub(crate) mod file;
pub(crate) mod fuzz;
mod kernel;
mod round_trip;
mod seeds;
mod translate;
mod varied;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{self, Write as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Mutex,
};

use tsim::{
    firewall::Backend,
    netlink::object::Family,
    run::report::{QuickReport, Verdict},
};

use self::{
    bed::CaseBed,
    file::{CaseFile, Expected, Loader, Run},
    kernel::Kernel,
};
use crate::beside;

/// How many cases run at once. They wait for the kernel more than they compute.
const THREADS: usize = 4;
/// Said of every job of this test.
const USUAL_WARNINGS: [&str; 2] = [
    "--no-registry: ",
    "taps of this back end stay in the router",
];

/// What became of the cases.
#[derive(Default)]
struct Outcome {
    runs: usize,
    not_runnable: BTreeMap<String, Vec<String>>,
    failures: Vec<String>,
    /// Each verdict with its reason, for a comparison with another run of the table.
    verdicts: BTreeSet<String>,
}

#[test]
fn every_case_has_the_verdicts_and_reasons_that_are_right() {
    // For work on one of them: the beginning of its name.
    let only = env::var("TSIM_CASES").unwrap_or_default();
    let mut cases = file::all(Path::new("netns-fixtures/cases"));
    cases.retain(|case| case.name.starts_with(&only));
    let kernel = Kernel::running();
    let outcome = Mutex::new(Outcome::default());
    beside::each(THREADS, &cases, |case| check(case, &kernel, &outcome));
    let outcome = outcome.into_inner().unwrap();
    for (symbol, names) in &outcome.not_runnable {
        // Not `println!`, of which nothing is shown when the test passes.
        let names = names.join(", ");
        let _ = writeln!(
            io::stderr(),
            "not runnable without CONFIG_{symbol}: {names}"
        );
    }
    println!("{} cases, {} runs", cases.len(), outcome.runs);
    if let Some(file) = env::var_os("TSIM_VERDICTS") {
        let lines = outcome.verdicts.into_iter().map(|line| line + "\n");
        fs::write(file, lines.collect::<String>()).unwrap();
    }
    assert!(!cases.is_empty(), "no case {only:?}");
    let failures = outcome.failures;
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn check(case: &CaseFile, kernel: &Kernel, outcome: &Mutex<Outcome>) {
    if let Some(symbol) = case.needs.iter().find(|symbol| kernel.lacks(symbol)) {
        let mut outcome = outcome.lock().unwrap();
        let names = outcome.not_runnable.entry(symbol.clone()).or_default();
        names.push(case.name.clone());
        return;
    }
    for loader in case.loaders() {
        for family in case.families() {
            let checked = catch_unwind(AssertUnwindSafe(|| asked(case, loader, family)));
            let asked = checked.unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref().map(|t: &&str| (*t).to_owned()));
                Asked {
                    failures: vec![format!("panicked: {}", text.unwrap_or_default())],
                    ..Asked::default()
                }
            });
            let mut outcome = outcome.lock().unwrap();
            outcome.runs += asked.runs;
            let name = format!("{} ({loader:?}, {family:?})", case.name);
            let told = |line: String| format!("{name}: {line}");
            outcome
                .failures
                .extend(asked.failures.into_iter().map(told));
            outcome
                .verdicts
                .extend(asked.verdicts.into_iter().map(told));
        }
    }
}

/// What came of the jobs about rules that were loaded in one way.
#[derive(Default)]
struct Asked {
    runs: usize,
    failures: Vec<String>,
    verdicts: Vec<String>,
}

/// Asks every back end about rules that were loaded in one way.
fn asked(case: &CaseFile, loader: Loader, family: Family) -> Asked {
    let new = || CaseBed::new(case, loader, family).unwrap_or_else(|error| panic!("{error}"));
    let mut shared = new();
    let mut before = shared.ruleset(case, loader, family);
    let mut asked = Asked::default();
    for backend in loader.backends() {
        let run = Run {
            loader,
            backend,
            family,
        };
        let expected = case.expected(run);
        // Discarding and passing on differ in one verdict; forking tools takes its time.
        let both = backend == Backend::Nft;
        for capture in if both { &[false, true][..] } else { &[true] } {
            let capture = *capture;
            if case.fresh && asked.runs > 0 {
                shared = new();
                before = shared.ruleset(case, loader, family);
            }
            let (report, seen) = if capture {
                let (report, seen) = shared.captured(case, run, &expected);
                (report, Some(seen))
            } else {
                (shared.measure(case, run, &expected), None)
            };
            asked.runs += 1;
            let mut wrong = compare(case, run, &expected, &report, seen.as_deref());
            let after = shared.ruleset(case, loader, family);
            if after != before && !case.leaves() {
                wrong.push(format!("the ruleset changed from\n{before}to\n{after}"));
            }
            before = after;
            let how = if capture { ", captured" } else { "" };
            let told = |line: String| format!("{run}{how}: {line}");
            asked.failures.extend(wrong.into_iter().map(told));
            asked.verdicts.extend(verdicts(&report).map(told));
        }
    }
    asked
}

/// What a job says of each service at the router.
fn verdicts(report: &QuickReport) -> impl Iterator<Item = String> {
    report.routers[0].services.iter().map(|answer| {
        let reason = steady(answer.reason.as_deref().unwrap_or_default());
        format!("{} {} {reason}", answer.service(), answer.result)
    })
}

/// What every run of the table says: on what the verdict depends, where chance or what was before decides, and
/// not how many of these very packets got through, or what stopped one of them this time.
fn steady(reason: &str) -> &str {
    let depends = [
        "decided by chance or turn: ",
        "depends on what was seen before: ",
    ];
    let begins = depends.iter().find_map(|words| reason.find(words));
    begins.map_or(reason, |at| {
        let on_what = &reason[at..];
        on_what.split("; this time").next().unwrap_or(on_what)
    })
}

/// Whether a back end of iptables says of native rules that it does not see them. That is right
/// whatever the case: it has no place behind chains of others.
fn beyond(run: Run, verdict: Verdict, reason: &str) -> bool {
    let native = run.loader == Loader::Nft && run.backend != Backend::Nft;
    native && verdict == Verdict::Unknown && reason.contains("the nft back end can")
}

/// Asks once, with a capture. Says as well how the ruleset changed, if it did.
fn asked_once(
    bed: &CaseBed,
    case: &CaseFile,
    run: Run,
    expected: &[Expected],
) -> (QuickReport, Vec<Verdict>, Option<String>) {
    let before = bed.ruleset(case, run.loader, run.family);
    let (report, seen) = bed.captured(case, run, expected);
    let after = bed.ruleset(case, run.loader, run.family);
    let changed = format!("the ruleset changed from\n{before}to\n{after}");
    (report, seen, (after != before).then_some(changed))
}

/// What a router takes for itself leaves by no interface, so a capture shows nothing of it.
pub(super) const TAKEN: &str = "it ends on the router itself";

/// Holds a report against the file and the capture.
fn compare(
    case: &CaseFile,
    run: Run,
    expected: &[Expected],
    report: &QuickReport,
    seen: Option<&[Verdict]>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let services = &report.routers[0].services;
    for (at, (answer, expected)) in services.iter().zip(expected).enumerate() {
        let reason = answer.reason.as_deref().unwrap_or_default();
        let fits = |text: &String| reason.contains(text.as_str());
        let because = expected.because.is_empty() || expected.because.iter().any(fits);
        let right = answer.result == expected.verdict && because;
        if !right && !beyond(run, answer.result, reason) {
            wrong.push(format!(
                "{} is {} ({reason}) instead of {} ({})",
                answer.service(),
                answer.result,
                expected.verdict,
                expected.because.join(" | ")
            ));
        }
        // A burst gets through where one packet does not: then the file alone says what is right.
        let captured = seen.filter(|_| !case.burst).map(|seen| seen[at]);
        let local = report.routers[0].iface_out.as_ref();
        let local = local.is_some_and(|o| o.as_str() == "lo") || reason.contains(TAKEN);
        let decided = answer.result != Verdict::Unknown && !local;
        if let Some(captured) = captured.filter(|seen| decided && *seen != answer.result) {
            wrong.push(format!(
                "{} is {} ({reason}), and the capture shows {captured}",
                answer.service(),
                answer.result,
            ));
        }
    }
    let wanted = case.warns(run);
    let told = &report.warnings;
    let missing = wanted
        .iter()
        .filter(|w| !told.iter().any(|t| t.contains(w.as_str())));
    wrong.extend(missing.map(|w| format!("no warning {w:?} in {told:?}")));
    let extra = told.iter().filter(|told| {
        let usual = USUAL_WARNINGS.iter().any(|usual| told.contains(usual));
        !usual && !wanted.iter().any(|wanted| told.contains(wanted.as_str()))
    });
    wrong.extend(extra.map(|told| format!("warns: {told}")));
    wrong
}
