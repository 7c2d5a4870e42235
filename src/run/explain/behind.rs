//! What chains behind the last taps may still do with a probe that came so far, and what those of a
//! device's ingress, before the first ones, may do with packets of other senders.

use super::{
    ExplainError,
    read::{RuleReader, subject},
};
use crate::{
    firewall::{
        nft::{
            census::LaterChain,
            trace::{ProbeExit, StoppedBy, Trail},
        },
        place::HookPoint,
        rule::{Field, OpenPorts, Packet},
    },
    run::packet::Headers,
};

/// What stands before a chain behind the last tap.
const PAST: &str = "it got past the last tap, behind which ";

/// What may stop a probe where no tap sees it, in words; none where nothing can. `index` gives the
/// number of a device.
pub(super) fn behind(
    reader: &mut RuleReader<'_>,
    chains: &[LaterChain],
    (headers, came_by): (&Headers, Option<&str>),
    trail: Option<&Trail>,
    index: impl Fn(&str) -> Option<u32>,
) -> Result<Option<String>, ExplainError> {
    let exit = trail.and_then(|trail| match trail.stopped_by() {
        StoppedBy::Nothing(exit) => Some(exit),
        _ => None,
    });
    let out = trail.map(|trail| trail.head.oif).filter(|oif| *oif > 0);
    for chain in chains {
        if chain.hook == HookPoint::Ingress {
            let here = |device: &String| came_by.is_none_or(|name| name == device);
            if chain.devices.as_ref().is_some_and(|d| d.iter().any(here))
                && let Some(told) = by_sender(reader, chain, &subject(headers, None))?
            {
                return Ok(Some(told));
            }
            continue;
        }
        let elsewhere = match chain.hook {
            HookPoint::Input => exit == Some(ProbeExit::Out),
            _ => exit == Some(ProbeExit::Local),
        };
        let device = |name: &String| out.is_none() || index(name) == out;
        let passes = chain.devices.as_ref().is_none_or(|d| d.iter().any(device));
        if elsewhere || !passes {
            continue;
        }
        let rules = reader.chain(&chain.place)?;
        if chain.policy_drops {
            return Ok(Some(format!("{PAST}the policy of {rules} may stop it")));
        }
        let subject = leaving(reader, headers, trail)?;
        let mut all = rules.rules.iter().zip(rules.parsed.iter());
        let stopping = all.find(|(_, rule)| rule.may_stop() && rule.concerns(&subject));
        if let Some((rule, _)) = stopping {
            return Ok(Some(format!("{PAST}{rule} may stop it")));
        }
    }
    Ok(None)
}

/// What rules behind the last tap may see of a probe, which has the source port that this router chose.
fn leaving(
    reader: &mut RuleReader<'_>,
    headers: &Headers,
    trail: Option<&Trail>,
) -> Result<Packet, ExplainError> {
    let subject = subject(headers, trail);
    // Nothing marks it any more once it came past the last chain of IP.
    let left = trail.filter(|trail| trail.exit.is_some());
    let subject = match left {
        Some(trail) => subject.with(Field::Mark, trail.head.mark),
        None => subject,
    };
    let chosen = trail.map(|trail| reader.chosen(trail, headers.source_port));
    Ok(match chosen.transpose()? {
        Some(OpenPorts::Translated(ports)) => {
            subject.within(Field::SourcePort, ports.first.into(), ports.last.into())
        }
        _ => subject,
    })
}

/// A rule of an ingress chain that a packet of another sender may be stopped by, where the probe was
/// not.
fn by_sender(
    reader: &mut RuleReader<'_>,
    chain: &LaterChain,
    subject: &Packet,
) -> Result<Option<String>, ExplainError> {
    let rules = reader.chain(&chain.place)?;
    let mut all = rules.rules.iter().zip(rules.parsed.iter());
    let found = all.find_map(|(rule, parsed)| {
        let caveat = parsed.caveat().filter(|caveat| caveat.is_open())?;
        let acts = parsed.decides() && parsed.concerns(subject);
        acts.then(|| format!("{caveat} on {rule}"))
    });
    Ok(found)
}
