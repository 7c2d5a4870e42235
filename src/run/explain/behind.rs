//! What chains behind the last taps may still do with a probe that came so far.

use super::{
    ExplainError,
    read::{Reader, subject},
};
use crate::{
    firewall::{
        nft::{
            census::Behind,
            trace::{Exit, StoppedBy, Trail},
        },
        place::HookPoint,
    },
    run::packet::Headers,
};

/// What may stop a probe behind the taps, in words; none where nothing can. `index` gives the
/// number of a device.
pub(super) fn behind(
    reader: &mut Reader<'_>,
    chains: &[Behind],
    headers: &Headers,
    trail: Option<&Trail>,
    index: impl Fn(&str) -> Option<u32>,
) -> Result<Option<String>, ExplainError> {
    let exit = trail.and_then(|trail| match trail.stopped_by() {
        StoppedBy::Nothing(exit) => Some(exit),
        _ => None,
    });
    let out = trail.map(|trail| trail.head.oif).filter(|oif| *oif > 0);
    for chain in chains {
        let elsewhere = match chain.hook {
            HookPoint::Input => exit == Some(Exit::Out),
            _ => exit == Some(Exit::Local),
        };
        let device = |name: &String| out.is_none() || index(name) == out;
        let passes = chain.devices.as_ref().is_none_or(|d| d.iter().any(device));
        if elsewhere || !passes {
            continue;
        }
        let rules = reader.chain(&chain.place)?;
        if chain.policy_drops {
            return Ok(Some(format!("the policy of {rules} may stop it")));
        }
        let subject = subject(headers, trail);
        let mut all = rules.rules.iter().zip(rules.parsed.iter());
        let stopping = all.find(|(_, rule)| rule.may_stop() && rule.concerns(&subject));
        if let Some((rule, _)) = stopping {
            return Ok(Some(format!("{rule} may stop it")));
        }
    }
    Ok(None)
}
