//! What a chain of iptables-legacy reports of a packet whose trace bit is set.

use super::notes::Note;
use crate::firewall::{nft::trace::StepKind, place::HookPoint};

/// Something that a chain of iptables-legacy reported of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyStep {
    /// At which hook.
    pub hook: HookPoint,
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
    /// What the report is about.
    pub kind: StepKind,
    /// Position of the rule in the chain, counted from 1.
    pub position: usize,
}

impl LegacyStep {
    /// Reads the prefix of a report, `TRACE: TABLE:CHAIN:KIND:POSITION`; none where it is another
    /// logger's.
    pub(super) fn read(note: &Note) -> Option<Self> {
        let text = note.prefix.trim_end().strip_prefix("TRACE: ")?;
        let (text, position) = text.rsplit_once(':')?;
        let (text, kind) = text.rsplit_once(':')?;
        let (table, chain) = text.split_once(':')?;
        let kind = match kind {
            "rule" => StepKind::Rule,
            "return" => StepKind::Return,
            "policy" => StepKind::Policy,
            _ => return None,
        };
        // `NF_INET_*`, linux/netfilter.h.
        let hook = match note.hook {
            0 => HookPoint::Prerouting,
            1 => HookPoint::Input,
            2 => HookPoint::Forward,
            4 => HookPoint::Postrouting,
            _ => return None,
        };
        Some(Self {
            hook,
            table: table.to_owned(),
            chain: chain.to_owned(),
            kind,
            position: position.parse().ok()?,
        })
    }
}
