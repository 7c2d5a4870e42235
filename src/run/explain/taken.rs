//! Rules that take packets away without a trace.

use super::{
    ExplainError, ExplainQuestion,
    read::{RuleReader, subject},
    reason::{Explained, Reason},
};
use crate::{firewall::nft::trace::Trail, run::packet::Headers};

/// Where nothing was seen to stop the probe at a hook, names a rule that takes packets of its kind
/// away, if there is one: it may have been that.
pub(super) fn perhaps_taken(
    reader: &mut RuleReader<'_>,
    question: &ExplainQuestion<'_>,
    headers: &Headers,
    trail: Option<&Trail>,
    explained: &mut Explained,
) -> Result<(), ExplainError> {
    let hook = match (&explained.reason, trail) {
        (Reason::Within(hook), _) => *hook,
        (Reason::Outside(reason), Some(trail)) if !reason.is_known() => {
            let untaken = reader.matched(trail, |rule, parsed| {
                parsed.proxied_to().is_some() && !rule.xtables
            })?;
            explained.reason = untaken.map_or(explained.reason.clone(), Reason::Untaken);
            return Ok(());
        }
        _ => return Ok(()),
    };
    let subject = subject(headers, trail);
    for place in &question.scrutiny.census.taking {
        let rule = reader.chain(place)?.rule(place.handle);
        if rule.parsed().concerns(&subject) {
            explained.reason = Reason::PerhapsTaken { hook, rule };
            break;
        }
    }
    Ok(())
}
