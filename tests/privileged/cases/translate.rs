//! One ruleset of iptables has one answer, whoever loads it: `iptables-nft` and `iptables-legacy`
//! are held against the case table, and here its translation into native nft is.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use tsim::firewall::Backend;

use super::{
    THREADS,
    bed::CaseBed,
    file::{self, CaseFile, Loader, Run},
    kernel::Kernel,
};
use crate::beside;

/// Fewer translations than this would mean that the translator is not what it was.
const AT_LEAST: usize = 60;

#[test]
fn a_translation_into_native_nft_has_the_same_verdicts() {
    let kernel = Kernel::running();
    let mut cases = file::all(Path::new("netns-fixtures/cases"));
    cases.retain(|case| {
        let iptables = case.loaders().contains(&Loader::IptablesNft);
        iptables && !case.needs.iter().any(|symbol| kernel.lacks(symbol))
    });
    let asked = AtomicUsize::new(0);
    let failures = beside::each(THREADS, &cases, |case| differs(case, &asked)).concat();
    let asked = asked.into_inner();
    println!("{asked} rulesets had a translation");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(asked >= AT_LEAST, "{asked}");
}

/// What a translation of the case's rules answers otherwise than the rules.
fn differs(case: &CaseFile, asked: &AtomicUsize) -> Vec<String> {
    let mut wrong = Vec::new();
    for family in case.families() {
        let Some(bed) = CaseBed::translated(case, family) else {
            continue;
        };
        asked.fetch_add(1, Ordering::Relaxed);
        let run = Run {
            loader: Loader::IptablesNft,
            backend: Backend::Nft,
            family,
        };
        let expected = case.expected(run);
        let report = bed.measure(case, run, &expected);
        for (answer, expected) in report.routers[0].services.iter().zip(&expected) {
            if answer.result != expected.verdict {
                wrong.push(format!(
                    "{}, {family:?}: {} is {} ({}) in translation instead of {}",
                    case.name,
                    answer.service(),
                    answer.result,
                    answer.reason.as_deref().unwrap_or_default(),
                    expected.verdict
                ));
            }
        }
    }
    wrong
}
