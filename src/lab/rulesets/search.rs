//! Finds the rules that a tool refuses where it does not say which, or says one at a time.
//!
//! iptables-legacy refuses a table as a whole; ipset, and iptables before it asks the kernel, stop
//! at the first line. Loading again for every refused rule took minutes for 1,640 of them. Rules of
//! one form ([`form`]) mostly share their fate, so forms are tried instead: halves of all forms, and
//! within a refused form a few rules. Where all of those are refused, so is the form.

use std::collections::BTreeSet;

use super::{blame::Culprit, form};
use crate::lab::topology::RulesetKind;

/// How often a tool is run before what is still in doubt is left out as a whole.
const MOST_ATTEMPTS: usize = 400;

/// Rules of a form that stand for it. A smaller form is tried rule by rule.
const SAMPLES: usize = 8;

/// What a search tries: whether the tool takes the ruleset with only these rules in it, and what it
/// says where it does not.
pub(super) type TryLoad<'a, E> = dyn FnMut(&BTreeSet<usize>) -> Result<Result<(), String>, E> + 'a;

struct Search<'a, 'b, E> {
    attempt: &'a mut TryLoad<'b, E>,
    attempts: usize,
    found: Vec<Culprit>,
}

/// The rules among `rules` that are refused each by itself, as far as can be told.
///
/// # Errors
/// What `attempt` fails with.
pub(super) fn refused<E>(
    kind: RulesetKind,
    lines: &[String],
    rules: &[usize],
    attempt: &mut TryLoad<'_, E>,
) -> Result<Vec<Culprit>, E> {
    let mut search = Search {
        attempt,
        attempts: 0,
        found: Vec::new(),
    };
    search.forms(&form::groups(kind, lines, rules))?;
    search.found.sort_by(|a, b| a.lines.cmp(&b.lines));
    Ok(search.found)
}

impl<E> Search<'_, '_, E> {
    fn takes(&mut self, rules: impl IntoIterator<Item = usize>) -> Result<Result<(), String>, E> {
        self.attempts += 1;
        (self.attempt)(&rules.into_iter().collect())
    }

    /// Looks for refused rules among those of several forms.
    fn forms(&mut self, forms: &[Vec<usize>]) -> Result<(), E> {
        let mut doubtful = vec![forms];
        while let Some(forms) = doubtful.pop() {
            let Err(said) = self.takes(forms.iter().flatten().copied())? else {
                continue;
            };
            match forms {
                [] => {}
                [form] => self.form(form, &said)?,
                several => {
                    let (one, other) = several.split_at(several.len() / 2);
                    doubtful.extend([one, other]);
                }
            }
        }
        Ok(())
    }

    /// Looks for refused rules among those of one form, which `said` refuses as a whole.
    fn form(&mut self, form: &[usize], said: &str) -> Result<(), E> {
        if self.attempts >= MOST_ATTEMPTS {
            let among = format!("one or some of {} rules of this form: {said}", form.len());
            self.leave_out(form, &among);
            return Ok(());
        }
        let step = form.len().div_ceil(SAMPLES).max(1);
        let mut refused = BTreeSet::new();
        let samples: Vec<usize> = form.iter().copied().step_by(step).collect();
        for rule in &samples {
            if let Err(said) = self.takes([*rule])? {
                refused.insert(*rule);
                self.leave_out(&[*rule], &said);
            }
        }
        let others: Vec<usize> = form
            .iter()
            .copied()
            .filter(|r| !samples.contains(r))
            .collect();
        if others.is_empty() {
            Ok(())
        } else if refused.len() == samples.len() {
            self.leave_out(&others, said);
            Ok(())
        } else {
            let (one, other) = others.split_at(others.len() / 2);
            self.forms(&[one.to_vec(), other.to_vec()])
        }
    }

    fn leave_out(&mut self, rules: &[usize], said: &str) {
        let one = |rule: &usize| Culprit {
            lines: vec![*rule],
            reason: Some(said.to_owned()),
        };
        self.found.extend(rules.iter().map(one));
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// The lines that are found, and after how many attempts, where `bad` are refused of `count`.
    fn search(
        count: usize,
        bad: impl Fn(usize) -> bool,
        form: impl Fn(usize) -> usize,
    ) -> (Vec<usize>, usize) {
        let line = |n: usize| format!("-A FORWARD -s 10.0.0.{} -m m{} -j ACCEPT", n % 256, form(n));
        let lines: Vec<_> = (0..count).map(line).collect();
        let rules: Vec<_> = (0..count).collect();
        let mut attempts = 0;
        let mut attempt = |rules: &BTreeSet<usize>| {
            attempts += 1;
            let refused = rules.iter().any(|rule| bad(*rule));
            Ok::<_, Infallible>(if refused {
                Err("no".to_owned())
            } else {
                Ok(())
            })
        };
        let found = refused(RulesetKind::Iptables, &lines, &rules, &mut attempt).unwrap();
        let found = found
            .into_iter()
            .flat_map(|culprit| culprit.lines)
            .collect();
        (found, attempts)
    }

    #[test]
    fn forms_that_are_refused_are_found_in_few_attempts() {
        // 1,640 of 5,000 lines, as a third of 15 forms.
        let bad = |n: usize| n % 15 < 5 && n < 4_920;
        let (found, attempts) = search(5_000, bad, |n| if bad(n) { n % 15 } else { 20 + n % 15 });
        assert_eq!(found, (0..5_000).filter(|n| bad(*n)).collect::<Vec<_>>());
        assert_eq!(found.len(), 1_640);
        assert!(attempts < 120, "{attempts}");
    }

    #[test]
    fn a_few_rules_of_a_good_form_are_found_alone() {
        let bad = |n: usize| [3, 777, 4_999].contains(&n);
        let (found, attempts) = search(5_000, bad, |_| 1);
        assert_eq!(found, [3, 777, 4_999]);
        assert!(attempts < 200, "{attempts}");
    }

    #[test]
    fn a_search_has_an_end() {
        let (found, attempts) = search(5_000, |n| n % 3 == 0, |_| 1);
        assert!(
            (0..5_000)
                .filter(|n| n % 3 == 0)
                .all(|n| found.contains(&n))
        );
        assert!(attempts < 2 * MOST_ATTEMPTS, "{attempts}");
    }

    #[test]
    fn nothing_is_found_where_each_rule_is_taken() {
        let (found, _) = search(100, |_| false, |n| n % 7);
        assert_eq!(found, [0; 0]);
    }
}
