//! Trace events (`NFT_MSG_TRACE`) as the kernel sends them.
//!
//! Attributes and their meaning: linux/netfilter/nf_tables.h (`NFTA_TRACE_*`),
//! net/netfilter/nf_tables_trace.c. The headers come with the first event of every evaluation of a
//! base chain, cut to 40 bytes of the network and 20 bytes of the transport header.

use super::super::{
    kernel,
    wire::{Attributes, WireMessage, array},
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
pub enum TraceDecision {
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

impl TraceDecision {
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
pub(super) struct TraceEvent<'a> {
    pub(super) id: u32,
    pub(super) family: TableFamily,
    pub(super) table: &'a str,
    pub(super) chain: &'a str,
    pub(super) handle: u64,
    pub(super) kind: StepKind,
    pub(super) decision: TraceDecision,
    /// Interface numbers; 0 where there is none.
    pub(super) iif: u32,
    pub(super) oif: u32,
    pub(super) mark: u32,
    pub(super) network: Option<&'a [u8]>,
    pub(super) transport: Option<&'a [u8]>,
}

impl<'a> TraceEvent<'a> {
    /// Reads an event; none when the message is something else.
    pub(super) fn parse(message: &WireMessage<'a>) -> Option<Self> {
        let trace = ((libc::NFNL_SUBSYS_NFTABLES as u16) << 8) | kernel::TRACE;
        if message.kind != trace {
            return None;
        }
        let mut event = Self::empty(TableFamily(*message.body.first()?));
        let (mut kind, mut verdict, mut policy) = (0, None, None);
        // One pass: there are ten events per probe and as many attributes in each.
        for (attribute, payload) in message.attributes() {
            let number = || Some(u32::from_be_bytes(array(payload, 0)?));
            match attribute {
                ID => event.id = number()?,
                TYPE => kind = number()?,
                TABLE => event.table = text(payload)?,
                CHAIN => event.chain = text(payload)?,
                RULE_HANDLE => event.handle = u64::from_be_bytes(array(payload, 0)?),
                VERDICT => verdict = Some(Attributes(payload)),
                POLICY => policy = number(),
                IIF => event.iif = number()?,
                OIF => event.oif = number()?,
                MARK => event.mark = number()?,
                NETWORK_HEADER => event.network = Some(payload),
                TRANSPORT_HEADER => event.transport = Some(payload),
                _ => {}
            }
        }
        (event.kind, event.decision) = match kind {
            1 => (StepKind::Policy, TraceDecision::of(policy? as i32, None)),
            2 => (
                StepKind::Return,
                verdict.map_or(TraceDecision::Continue, decision),
            ),
            3 => (
                StepKind::Rule,
                verdict.map_or(TraceDecision::Continue, decision),
            ),
            _ => return None,
        };
        Some(event).filter(|event| !event.table.is_empty() && !event.chain.is_empty())
    }

    fn empty(family: TableFamily) -> Self {
        Self {
            id: 0,
            family,
            table: "",
            chain: "",
            handle: 0,
            kind: StepKind::Rule,
            decision: TraceDecision::Continue,
            iif: 0,
            oif: 0,
            mark: 0,
            network: None,
            transport: None,
        }
    }
}

fn decision(verdict: Attributes<'_>) -> TraceDecision {
    let code = verdict.find(VERDICT_CODE).and_then(|b| array(b, 0));
    let code = code.map_or(libc::NFT_CONTINUE, i32::from_be_bytes);
    TraceDecision::of(code, verdict.text(VERDICT_CHAIN))
}

/// A string without its closing NUL.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::nft::wire::Messages;

    /// What Linux 6.18 sent for a SYN from 10.0.1.2:48672 to 10.0.2.2:23, which
    /// `iptables-nft -A FORWARD -p tcp --dport 23 -j DROP` stopped.
    const DROP: &str = "\
        c0000000110a00000000000000000000 02000000 08000f0000000002 0800040000000003 08000600af3f6e15 \
        0c000200464f525741524400 0b00010066696c7465720000 0c0003000000000000000003 \
        0c0005000800010000000000 08000a0000000002 06000b0000010000 08000c0000000003 06000d0000010000 \
        180008004500003c16dd40003f060ddc0a0001020a000202 \
        18000900be6200177f97c1b300000000a002faf017320000 \
        12000700ce93ac9d7b38724a5711e25208000000";
    /// A jump to chain `sub` of `table inet fw`.
    const JUMP: &str = "\
        60000000110a00000000000000000000 01000000 08000f0000000002 0800040000000003 08000600c41beb38 \
        0c000200666f727761726400 0700010066770000 0c0003000000000000000009 \
        14000500 08000100fffffffd 0800020073756200";
    /// The policy of that table's base chain, drop.
    const POLICY: &str = "\
        48000000110a00000000000000000000 01000000 08000f0000000002 0800040000000001 08000600c41beb38 \
        0c000200666f727761726400 0700010066770000 0800100000000000";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| {
            let text = std::str::from_utf8(pair).unwrap();
            u8::from_str_radix(text, 16).unwrap()
        };
        digits.chunks_exact(2).map(byte).collect()
    }

    #[test]
    fn a_rules_verdict_is_read_with_place_interfaces_and_headers() {
        let bytes = bytes(DROP);
        let message = Messages(&bytes).next().unwrap();
        let event = TraceEvent::parse(&message).unwrap();
        assert_eq!(event.family, TableFamily::IP);
        assert_eq!((event.table, event.chain), ("filter", "FORWARD"));
        assert_eq!((event.handle, event.kind), (3, StepKind::Rule));
        assert_eq!(event.decision, TraceDecision::Drop);
        assert_eq!((event.iif, event.oif, event.mark), (2, 3, 0));
        assert_eq!(event.id, 0xaf3f_6e15);
        assert_eq!(event.network.unwrap()[16..], [10, 0, 2, 2]);
        assert_eq!(event.transport.unwrap()[4..8], [0x7f, 0x97, 0xc1, 0xb3]);
    }

    #[test]
    fn jumps_have_a_target_and_policies_a_verdict() {
        let (jump, policy) = (bytes(JUMP), bytes(POLICY));
        let jump = TraceEvent::parse(&Messages(&jump).next().unwrap()).unwrap();
        assert_eq!(jump.family, TableFamily::INET);
        assert_eq!(jump.decision, TraceDecision::Jump("sub".to_owned()));
        assert_eq!(jump.network, None);
        let policy = TraceEvent::parse(&Messages(&policy).next().unwrap()).unwrap();
        assert_eq!(policy.kind, StepKind::Policy);
        assert_eq!(policy.decision, TraceDecision::Drop);
    }

    #[test]
    fn what_is_cut_off_or_no_event_is_none() {
        let whole = bytes(DROP);
        for end in 16..whole.len() {
            let mut part = whole[..end].to_vec();
            part[..4].copy_from_slice(&(end as u32).to_ne_bytes());
            let _ = TraceEvent::parse(&Messages(&part).next().unwrap());
        }
        let mut other = whole;
        other[4] = 0x10;
        assert_eq!(TraceEvent::parse(&Messages(&other).next().unwrap()), None);
    }

    #[test]
    fn verdict_codes_are_told_apart() {
        for (code, want) in [
            (-1, TraceDecision::Continue),
            (-5, TraceDecision::Return),
            (0, TraceDecision::Drop),
            (1, TraceDecision::Accept),
            (2, TraceDecision::Stolen),
            (3 | 7 << 16, TraceDecision::Queue(7)),
            // With NF_VERDICT_FLAG_QUEUE_BYPASS.
            (3 | 0x8000 | 7 << 16, TraceDecision::Queue(7)),
            (-9, TraceDecision::Other(-9)),
        ] {
            assert_eq!(TraceDecision::of(code, None), want, "{code}");
        }
        assert_eq!(
            TraceDecision::of(-3, Some("a")),
            TraceDecision::Jump("a".to_owned())
        );
    }
}
