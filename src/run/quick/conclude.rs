//! From what was measured and what was found out about it to the verdict, as pure code.

use crate::{
    firewall::{Caveat, place::HookPoint, ruletext::RuleText},
    run::{
        explain::{EndingAction, Explained, Reason, notes},
        outside::OutsideReason,
        report::Verdict,
        verdict::Finding,
    },
};

/// What to say of a service that was looked at more closely; none where its finding says it all.
pub(super) fn conclude(finding: &Finding, explained: &Explained) -> Option<(Verdict, String)> {
    match finding {
        Finding::Passed | Finding::Delivered => passed(explained),
        Finding::NotArrived if !explained.reason.is_known() => Some((
            Verdict::Unknown,
            format!("it did not reach PREROUTING; {explained}"),
        )),
        _ => {
            let (verdict, reason) = stopped(explained);
            let led = explained.led.as_ref();
            let led = led.map(|(out, mark)| format!(", on its way out of {out} (mark {mark:#x})"));
            Some((verdict, reason + &led.unwrap_or_default()))
        }
    }
}

fn passed(explained: &Explained) -> Option<(Verdict, String)> {
    if let Some(behind) = &explained.behind {
        return Some((Verdict::Unknown, behind.clone()));
    }
    if let Some(varied) = varied(explained, true) {
        return Some(varied);
    }
    // Its own way ends in the router, again and for a reason that does not change: what came out
    // was a copy (TEE, dup).
    let ended = matches!(
        explained.reason,
        Reason::Rule { .. } | Reason::Policy { .. }
    );
    let sure = explained.doubt.as_ref().is_some_and(|doubt| doubt.sure);
    if ended && (sure || explained.doubtful().next().is_none()) {
        let text = format!("{}; only a copy of it left", explained.reason);
        return Some((Verdict::No, text));
    }
    // It got through among others, and nobody knows what became of it when it was sent again.
    if !ended && !sure && !matches!(explained.reason, Reason::WentThrough(_)) {
        let text = format!("it got through, and not when it was sent again: {explained}");
        return Some((Verdict::Unknown, text));
    }
    if sure {
        let why = notes(explained.measured());
        return (!why.is_empty()).then_some((Verdict::Yes, why));
    }
    let chance = |(caveat, rule): &&(Caveat, RuleText)| {
        // iptables lets no rule in nat drop, so a jump there leads to rewriting, too.
        let rewrites = rule.parsed().only_rewrites() || (rule.xtables && rule.place.table == "nat");
        match caveat {
            open if open.is_open() => true,
            Caveat::Random(_) | Caveat::Ipsec(_) => !rewrites,
            _ => false,
        }
    };
    if explained.caveats.iter().any(|one| chance(&one)) {
        let why = notes(explained.caveats.iter().filter(chance));
        return Some((Verdict::Unknown, why));
    }
    let why = notes(explained.caveats.iter());
    (!why.is_empty()).then_some((Verdict::Yes, why))
}

/// What to say where the end of the probe's way depends on more than the probe; none where it does
/// not. `passed` says that it got through when all were sent.
fn varied(explained: &Explained, passed: bool) -> Option<(Verdict, String)> {
    let doubt = explained.doubt.as_ref().filter(|doubt| !doubt.sure)?;
    let reason = &explained.reason;
    let through = matches!(reason, Reason::WentThrough(_));
    let why = doubt.to_string();
    let this_time = || format!("{why}; this time {reason}");
    if doubt.by.iter().any(|(caveat, _)| caveat.is_open()) {
        return Some((Verdict::Unknown, this_time()));
    }
    Some(match doubt.alone {
        // Only the burst of a whole job exceeds the rate, or uses up the quota.
        Some(true) if passed || through => (Verdict::Yes, why),
        Some(true) => (Verdict::Unknown, this_time()),
        // The first few are stopped, and those behind them are not.
        Some(false) if doubt.soon => (Verdict::Unknown, why),
        // Where nothing is known of what stopped it, what got through does not count either.
        Some(false) if through || (passed && !reason.is_known()) => {
            let text =
                format!("stopped when it comes by itself; only more of them get through: {why}");
            (Verdict::No, text)
        }
        Some(false) => (Verdict::No, format!("{reason}; {why}")),
        None if explained.alone && through => (Verdict::Yes, why),
        None if explained.alone => {
            let text = format!("{reason}, sent by itself, too; {why}");
            (Verdict::No, text)
        }
        None if through => (Verdict::Unknown, why),
        None => (Verdict::Unknown, this_time()),
    })
}

fn stopped(explained: &Explained) -> (Verdict, String) {
    if let Reason::Rule { action, rule, .. } = &explained.reason
        && let Some(way) = goes_its_own_way(rule)
        && may_take(action, rule)
    {
        return (Verdict::Unknown, way);
    }
    if let Some(varied) = varied(explained, false) {
        return varied;
    }
    let sure = explained.doubt.as_ref().is_some_and(|doubt| doubt.sure);
    if let Some(which) = which_depends(explained).filter(|_| sure) {
        return (Verdict::No, which);
    }
    let doubtful: Vec<&(Caveat, RuleText)> = match sure {
        true => explained.measured().collect(),
        false => explained.doubtful().collect(),
    };
    let rates = || {
        let limited = |(caveat, _): &&(Caveat, RuleText)| matches!(caveat, Caveat::RateLimited(_));
        notes(explained.caveats.iter().filter(limited))
    };
    let own_doing = doubtful.iter().any(|(caveat, _)| caveat.may_be_own_doing());
    match &explained.reason {
        // Alone it goes through: only the burst of a whole job exceeds the rate.
        Reason::WentThrough(_) if !rates().is_empty() => (Verdict::Yes, rates()),
        Reason::WentThrough(_) => (Verdict::Unknown, format!("stopped once, {explained}")),
        // Nothing but chains of the highest priority comes behind POSTROUTING, so what was lost
        // there was not recognised.
        Reason::Outside(OutsideReason::Unknown {
            after: HookPoint::Postrouting,
            ..
        }) => (
            Verdict::Unknown,
            "it passed every chain and was not recognised behind them".to_owned(),
        ),
        reason @ Reason::Untaken(_) => (Verdict::Unknown, reason.to_string()),
        reason @ Reason::PerhapsTaken { rule, .. } => (
            Verdict::Unknown,
            match goes_its_own_way(rule) {
                Some(way) => format!("perhaps {way}; this kernel's trace does not show it"),
                None => reason.to_string(),
            },
        ),
        reason if own_doing && !explained.alone => {
            let why = notes(doubtful);
            (Verdict::Unknown, format!("{why}; this time {reason}"))
        }
        reason if own_doing => {
            let why = notes(doubtful);
            (Verdict::No, format!("{reason}, sent by itself, too; {why}"))
        }
        reason => match notes(doubtful) {
            why if why.is_empty() => (Verdict::No, reason.to_string()),
            why => (Verdict::No, format!("{reason}; {why}")),
        },
    }
}

/// That a probe is stopped by one rule or another, where it was not sent by itself to see by which.
fn which_depends(explained: &Explained) -> Option<String> {
    if !explained.reason.is_known() || explained.alone {
        return None;
    }
    let which = notes(explained.decide_which());
    let reason = &explained.reason;
    (!which.is_empty()).then(|| format!("{reason}; by which rule, depends: {which}"))
}

/// Whether a rule that was seen to end a probe like this takes packets away. SYNPROXY of nft(8) holds the
/// checksum of IPv6 against that of IPv4 (`nft_synproxy_do_eval()`) and drops what no network card has
/// checked, as probes are.
fn may_take(action: &EndingAction, rule: &RuleText) -> bool {
    match action {
        EndingAction::Taken => true,
        EndingAction::Dropped => rule.parsed().answers_itself(),
        _ => false,
    }
}

/// What becomes of a packet that the rule takes away, where that is not its end.
fn goes_its_own_way(rule: &RuleText) -> Option<String> {
    let parsed = rule.text.as_ref().map(|_| rule.parsed())?;
    if parsed.sends_on() {
        return Some(format!("sent on past all taps by {rule}"));
    }
    parsed.answers_itself().then(|| {
        format!(
            "{rule} answers it in the server's place: a detailed job shows whether the server is \
             reached then"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        firewall::{RulePlace, TableFamily, nft::trace::ProbeExit},
        run::explain::Doubt,
    };

    fn rule(position: usize, text: &str) -> RuleText {
        RuleText {
            place: RulePlace {
                family: TableFamily::INET,
                table: "fw".to_owned(),
                chain: "f".to_owned(),
                handle: position as u64,
            },
            position: Some(position),
            text: Some(text.to_owned()),
            xtables: false,
        }
    }

    fn explained(reason: Reason, caveats: Vec<(Caveat, RuleText)>) -> Explained {
        Explained {
            index: 0,
            reason,
            caveats,
            behind: None,
            alone: false,
            doubt: None,
            copied: None,
            led: None,
            steps: Vec::new(),
        }
    }

    fn dropped(rule: RuleText) -> Reason {
        Reason::Rule {
            hook: HookPoint::Forward,
            action: EndingAction::Dropped,
            rule,
        }
    }

    #[test]
    fn what_a_rule_may_have_taken_away_unseen_is_undecided() {
        let taken = |text: &str| {
            let (hook, rule) = (HookPoint::Forward, rule(3, text));
            stopped(&explained(Reason::PerhapsTaken { hook, rule }, Vec::new()))
        };
        let (verdict, why) = taken("tcp dport 80 synproxy mss 1460");
        assert_eq!(verdict, Verdict::Unknown);
        assert!(why.starts_with("perhaps rule 3"), "{why}");
        assert!(why.contains("answers it in the server's place"), "{why}");
        let (verdict, why) = taken("something new");
        assert_eq!(verdict, Verdict::Unknown);
        assert!(why.contains("perhaps taken away at forward"), "{why}");
    }

    fn limit(text: &str) -> (Caveat, RuleText) {
        (Caveat::RateLimited("5/hour".to_owned()), rule(1, text))
    }

    fn stopped(explained: &Explained) -> (Verdict, String) {
        conclude(&Finding::Stopped, explained).unwrap()
    }

    #[test]
    fn what_a_rate_may_have_stopped_is_undecided_until_it_was_sent_alone() {
        let caveats = vec![limit("limit rate 5/hour accept")];
        let mut one = explained(dropped(rule(2, "drop")), caveats.clone());
        let (verdict, why) = stopped(&one);
        assert_eq!(verdict, Verdict::Unknown);
        assert!(
            why.starts_with("rate-limited: 5/hour on rule 1 of chain f"),
            "{why}"
        );
        one.alone = true;
        assert_eq!(stopped(&one).0, Verdict::No);
        one.reason = Reason::WentThrough(ProbeExit::Out);
        assert_eq!(stopped(&one).0, Verdict::Yes);
    }

    #[test]
    fn a_rate_that_can_only_stop_does_not_excuse_another_rule() {
        let caveats = vec![limit("limit rate over 5/hour drop")];
        let one = explained(dropped(rule(2, "drop")), caveats.clone());
        assert_eq!(stopped(&one).0, Verdict::No);
        let itself = explained(dropped(rule(1, "limit rate over 5/hour drop")), caveats);
        assert_eq!(stopped(&itself).0, Verdict::Unknown);
    }

    #[test]
    fn the_clock_and_open_connections_are_named_and_change_nothing() {
        for caveat in [
            Caveat::TimeOfDay("meta hour".to_owned()),
            Caveat::History("ct count over 5".to_owned()),
        ] {
            let by = rule(1, "meta hour x drop");
            let one = explained(dropped(by.clone()), vec![(caveat.clone(), by)]);
            let (verdict, why) = stopped(&one);
            assert_eq!(verdict, Verdict::No);
            assert!(why.contains(&caveat.to_string()), "{why}");
        }
    }

    #[test]
    fn a_yes_names_what_it_depends_on_and_chance_makes_it_unknown() {
        let out = || Reason::WentThrough(ProbeExit::Out);
        let passed = |one: &Explained| conclude(&Finding::Passed, one);
        assert_eq!(passed(&explained(out(), Vec::new())), None);
        let one = explained(out(), vec![limit("limit rate 5/hour accept")]);
        assert_eq!(passed(&one).unwrap().0, Verdict::Yes);
        let chance = || Caveat::Random("numgen".to_owned());
        let one = explained(out(), vec![(chance(), rule(1, "numgen x drop"))]);
        assert_eq!(passed(&one).unwrap().0, Verdict::Unknown);
        let one = explained(out(), vec![(chance(), rule(1, "dnat to numgen x"))]);
        assert_eq!(passed(&one).unwrap().0, Verdict::Yes);
        let mut one = explained(out(), Vec::new());
        one.behind = Some("it got past the last tap, behind which rule 1 may stop it".to_owned());
        assert_eq!(passed(&one).unwrap().0, Verdict::Unknown);
    }

    #[test]
    fn what_got_through_among_others_and_was_lost_again_is_no_yes() {
        let at = HookPoint::Forward;
        let history = Caveat::History("connlimit".to_owned());
        let by = (history, rule(1, "ct count over 3 accept"));
        let mut one = explained(Reason::Within(at), vec![by.clone()]);
        let (verdict, why) = conclude(&Finding::Passed, &one).unwrap();
        assert_eq!(verdict, Verdict::Unknown);
        assert!(why.starts_with("it got through, and not when"), "{why}");
        // Legacy rules showed in a third sending what varies.
        one.doubt = Some(Doubt {
            alone: Some(false),
            by: vec![by],
            ..Doubt::default()
        });
        let (verdict, why) = conclude(&Finding::Passed, &one).unwrap();
        assert_eq!(verdict, Verdict::No);
        assert!(why.starts_with("stopped when it comes by itself"), "{why}");
        let lost = explained(Reason::TooManyEvents, Vec::new());
        let told = conclude(&Finding::Passed, &lost).map(|told| told.0);
        assert_eq!(told, Some(Verdict::Unknown));
    }

    #[test]
    fn what_is_answered_in_the_servers_place_is_not_decided() {
        for text in ["tcp dport 80 synproxy mss 1460", "-A FORWARD -j SYNPROXY"] {
            let taken = Reason::Rule {
                hook: HookPoint::Forward,
                action: EndingAction::Taken,
                rule: rule(1, text),
            };
            let (verdict, why) = stopped(&explained(taken, Vec::new()));
            assert_eq!(verdict, Verdict::Unknown);
            assert!(why.starts_with("rule 1 of chain f"), "{why}");
        }
    }

    #[test]
    fn what_left_unrecognised_or_past_the_taps_is_no_no() {
        let lost = Reason::Outside(OutsideReason::Unknown {
            after: HookPoint::Postrouting,
            evidence: Vec::new(),
        });
        assert_eq!(stopped(&explained(lost, Vec::new())).0, Verdict::Unknown);
        let forwarded = Reason::Rule {
            hook: HookPoint::Ingress,
            action: EndingAction::Taken,
            rule: rule(1, "fwd to \"out\""),
        };
        let one = explained(forwarded, Vec::new());
        assert_eq!(stopped(&one).0, Verdict::Unknown);
        assert_eq!(
            conclude(&Finding::NotArrived, &one).unwrap().0,
            Verdict::Unknown
        );
    }
}
