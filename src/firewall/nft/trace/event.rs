//! Trace events (`NFT_MSG_TRACE`) as the kernel sends them.
//!
//! Attributes and their meaning: linux/netfilter/nf_tables.h (`NFTA_TRACE_*`),
//! net/netfilter/nf_tables_trace.c. The headers come with the first event of every evaluation of a
//! base chain, cut to 40 bytes of the network and 20 bytes of the transport header.

use super::super::{
    kernel,
    wire::{Attributes, Message, array},
};
use crate::firewall::TableFamily;

const TABLE: u16 = 1;
const CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const TYPE: u16 = 4;
const VERDICT: u16 = 5;
const ID: u16 = 6;
const NETWORK_HEADER: u16 = 8;
const TRANSPORT_HEADER: u16 = 9;
const IIF: u16 = 10;
const OIF: u16 = 12;
const MARK: u16 = 14;
const POLICY: u16 = 16;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepKind {
    /// A rule matched to its end.
    Rule,
    /// The end of a chain that was jumped to.
    Return,
    /// The policy of a base chain.
    Policy,
}

/// What was decided about the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Go on with the next rule.
    Continue,
    /// Go on with the next chain of the hook.
    Accept,
    /// Discard it.
    Drop,
    /// Somebody else deals with it (`NF_STOLEN`), such as SYNPROXY.
    Stolen,
    /// Hand it to this queue.
    Queue(u16),
    /// Go on in this chain and come back.
    Jump(String),
    /// Go on in this chain.
    Goto(String),
    /// Go back to the calling chain.
    Return,
    /// A code that is not known here.
    Other(i32),
}

impl Decision {
    fn of(code: i32, chain: Option<&str>) -> Self {
        let chain = || chain.unwrap_or_default().to_owned();
        match code {
            libc::NFT_CONTINUE | libc::NFT_BREAK => Self::Continue,
            libc::NFT_JUMP => Self::Jump(chain()),
            libc::NFT_GOTO => Self::Goto(chain()),
            libc::NFT_RETURN => Self::Return,
            // The verdict is the low byte; NF_QUEUE has its number above, and a flag between.
            code if code >= 0 => match code & 0xff {
                libc::NF_DROP => Self::Drop,
                libc::NF_ACCEPT => Self::Accept,
                libc::NF_STOLEN => Self::Stolen,
                libc::NF_QUEUE => Self::Queue((code >> 16) as u16),
                _ => Self::Other(code),
            },
            _ => Self::Other(code),
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event<'a> {
    pub(super) id: u32,
    pub(super) family: TableFamily,
    pub(super) table: &'a str,
    pub(super) chain: &'a str,
    pub(super) handle: u64,
    pub(super) kind: StepKind,
    pub(super) decision: Decision,
    /// Interface numbers; 0 where there is none.
    pub(super) iif: u32,
    pub(super) oif: u32,
    pub(super) mark: u32,
    pub(super) network: Option<&'a [u8]>,
    pub(super) transport: Option<&'a [u8]>,
}

impl<'a> Event<'a> {
    /// Reads an event; none when the message is something else.
    pub(super) fn parse(message: &Message<'a>) -> Option<Self> {
        let trace = ((libc::NFNL_SUBSYS_NFTABLES as u16) << 8) | kernel::TRACE;
        if message.kind != trace {
            return None;
        }
        let attributes = message.attributes();
        let kind = match attributes.be32(TYPE)? {
            1 => StepKind::Policy,
            2 => StepKind::Return,
            3 => StepKind::Rule,
            _ => return None,
        };
        Some(Self {
            id: attributes.be32(ID)?,
            family: TableFamily(*message.body.first()?),
            table: attributes.text(TABLE)?,
            chain: attributes.text(CHAIN)?,
            handle: attributes.be64(RULE_HANDLE).unwrap_or(0),
            kind,
            decision: decision(attributes, kind),
            iif: attributes.be32(IIF).unwrap_or(0),
            oif: attributes.be32(OIF).unwrap_or(0),
            mark: attributes.be32(MARK).unwrap_or(0),
            network: attributes.find(NETWORK_HEADER),
            transport: attributes.find(TRANSPORT_HEADER),
        })
    }
}

fn decision(attributes: Attributes<'_>, kind: StepKind) -> Decision {
    if kind == StepKind::Policy {
        let code = attributes.be32(POLICY).unwrap_or(libc::NF_ACCEPT as u32);
        return Decision::of(code as i32, None);
    }
    let Some(verdict) = attributes.nested(VERDICT) else {
        return Decision::Continue;
    };
    let code = verdict.find(VERDICT_CODE).and_then(|b| array(b, 0));
    let code = code.map_or(libc::NFT_CONTINUE, i32::from_be_bytes);
    Decision::of(code, verdict.text(VERDICT_CHAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdict_codes_are_told_apart() {
        for (code, want) in [
            (-1, Decision::Continue),
            (-5, Decision::Return),
            (0, Decision::Drop),
            (1, Decision::Accept),
            (2, Decision::Stolen),
            (3 | 7 << 16, Decision::Queue(7)),
            // With NF_VERDICT_FLAG_QUEUE_BYPASS.
            (3 | 0x8000 | 7 << 16, Decision::Queue(7)),
            (-9, Decision::Other(-9)),
        ] {
            assert_eq!(Decision::of(code, None), want, "{code}");
        }
        assert_eq!(Decision::of(-3, Some("a")), Decision::Jump("a".to_owned()));
    }
}
