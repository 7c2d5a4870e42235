//! Packet and byte counters of a namespace's whole ruleset: every rule of every table and chain
//! of any family, and the policies of base chains.
//!
//! Rules of iptables-nft carry their counter as the same expression that native rules do; rules
//! without one are listed all the same.

use std::collections::HashMap;

use super::{
    DUMP_ATTEMPTS, NftError, NftSocket,
    socket::Dumped,
    wire::{Attributes, WireMessage},
};
use crate::firewall::{RulePlace, TableFamily};

/// Messages and attributes that are read here, linux/netfilter/nf_tables.h.
mod kernel {
    pub(super) const GET_CHAIN: u16 = 4;
    pub(super) const GET_RULE: u16 = 7;
    pub(super) const CHAIN_TABLE: u16 = 1;
    pub(super) const CHAIN_NAME: u16 = 3;
    pub(super) const CHAIN_HOOK: u16 = 4;
    pub(super) const CHAIN_POLICY: u16 = 5;
    pub(super) const CHAIN_TYPE: u16 = 7;
    pub(super) const CHAIN_COUNTERS: u16 = 8;
    pub(super) const HOOK_NUMBER: u16 = 1;
    pub(super) const RULE_TABLE: u16 = 1;
    pub(super) const RULE_CHAIN: u16 = 2;
    pub(super) const RULE_HANDLE: u16 = 3;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
    pub(super) const COUNTER_BYTES: u16 = 1;
    pub(super) const COUNTER_PACKETS: u16 = 2;
}

/// What a counter shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Counts {
    /// How much more this is than `before`; a counter that was reset shows its new value.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        let more = |now: u64, then: u64| now.checked_sub(then).unwrap_or(now);
        Self {
            packets: more(self.packets, before.packets),
            bytes: more(self.bytes, before.bytes),
        }
    }
}

/// A base chain, which sees packets at a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChain {
    /// Its type: `filter`, `nat` or `route`.
    pub kind: String,
    /// Its hook (`NF_INET_*`).
    pub hook: u32,
    /// Whether its policy is to drop.
    pub drops: bool,
}

/// The counters of one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CounterSnapshot {
    /// Rules that have a counter, and with handle 0 the policies of base chains that have one.
    pub counts: HashMap<RulePlace, Counts>,
}

/// Reads every counter.
///
/// # Errors
/// [`NftError`].
pub fn snapshot(socket: &mut NftSocket) -> Result<CounterSnapshot, NftError> {
    let what = "reading the counters of rules";
    whole(what, || {
        let mut counts = HashMap::new();
        let mut dumped = dump(socket, kernel::GET_RULE, what, |family, rule| {
            counts.extend(rule_place(family, rule).zip(rule_counts(rule)));
        })?;
        if dumped == Dumped::Whole {
            dumped = dump(socket, kernel::GET_CHAIN, what, |family, chain| {
                counts.extend(chain_place(family, chain).zip(chain_counts(chain)));
            })?;
        }
        Ok((CounterSnapshot { counts }, dumped))
    })
}

/// The base chains of a namespace by their place, which has the handle 0.
///
/// # Errors
/// [`NftError`].
pub fn base_chains(socket: &mut NftSocket) -> Result<HashMap<RulePlace, BaseChain>, NftError> {
    let what = "reading chains";
    whole(what, || {
        let mut chains = HashMap::new();
        let dumped = dump(socket, kernel::GET_CHAIN, what, |family, chain| {
            chains.extend(chain_place(family, chain).zip(base_chain(chain)));
        })?;
        Ok((chains, dumped))
    })
}

/// Reads again what changed while it was read.
fn whole<T>(
    what: &'static str,
    mut read: impl FnMut() -> Result<(T, Dumped), NftError>,
) -> Result<T, NftError> {
    for _ in 0..DUMP_ATTEMPTS {
        if let (value, Dumped::Whole) = read()? {
            return Ok(value);
        }
    }
    Err(NftError::Interrupted(what))
}

fn dump(
    socket: &mut NftSocket,
    message: u16,
    what: &'static str,
    mut each: impl FnMut(TableFamily, Attributes<'_>),
) -> Result<Dumped, NftError> {
    const ALL_FAMILIES: u8 = 0;
    socket.dump_messages(
        message,
        ALL_FAMILIES,
        &[],
        what,
        |message: &WireMessage<'_>| {
            // The family is the first byte of `struct nfgenmsg`.
            if let Some(&family) = message.body.first() {
                each(TableFamily(family), message.attributes());
            }
        },
    )
}

/// Where the rule stands of which NFT_MSG_GETRULE tells.
pub(super) fn rule_place(family: TableFamily, rule: Attributes<'_>) -> Option<RulePlace> {
    Some(RulePlace {
        family,
        table: rule.text(kernel::RULE_TABLE)?.to_owned(),
        chain: rule.text(kernel::RULE_CHAIN)?.to_owned(),
        handle: rule.be64(kernel::RULE_HANDLE)?,
    })
}

fn chain_place(family: TableFamily, chain: Attributes<'_>) -> Option<RulePlace> {
    Some(RulePlace {
        family,
        table: chain.text(kernel::CHAIN_TABLE)?.to_owned(),
        chain: chain.text(kernel::CHAIN_NAME)?.to_owned(),
        handle: 0,
    })
}

/// The first counter among the expressions of a rule.
fn rule_counts(rule: Attributes<'_>) -> Option<Counts> {
    let mut expressions = rule.nested(kernel::RULE_EXPRESSIONS)?;
    expressions.find_map(|(_, expression)| {
        let expression = Attributes(expression);
        let is_counter = expression.text(kernel::EXPR_NAME) == Some("counter");
        let data = expression.nested(kernel::EXPR_DATA)?;
        is_counter.then(|| counts(data)).flatten()
    })
}

fn chain_counts(chain: Attributes<'_>) -> Option<Counts> {
    counts(chain.nested(kernel::CHAIN_COUNTERS)?)
}

fn counts(counter: Attributes<'_>) -> Option<Counts> {
    Some(Counts {
        packets: counter.be64(kernel::COUNTER_PACKETS)?,
        bytes: counter.be64(kernel::COUNTER_BYTES)?,
    })
}

fn base_chain(chain: Attributes<'_>) -> Option<BaseChain> {
    let hook = chain.nested(kernel::CHAIN_HOOK)?;
    Some(BaseChain {
        kind: chain.text(kernel::CHAIN_TYPE)?.to_owned(),
        hook: hook.be32(kernel::HOOK_NUMBER)?,
        drops: chain.be32(kernel::CHAIN_POLICY) == Some(libc::NF_DROP as u32),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = 4 + payload.len() as u16;
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn counter(packets: u64, bytes: u64) -> Vec<u8> {
        let data = [
            attribute(kernel::COUNTER_BYTES, &bytes.to_be_bytes()),
            attribute(kernel::COUNTER_PACKETS, &packets.to_be_bytes()),
        ];
        data.concat()
    }

    fn expression(name: &str, data: &[u8]) -> Vec<u8> {
        let name = [name.as_bytes(), &[0]].concat();
        let parts = [
            attribute(kernel::EXPR_NAME, &name),
            attribute(kernel::EXPR_DATA, data),
        ];
        attribute(1, &parts.concat())
    }

    #[test]
    fn the_counter_of_a_rule_is_found_behind_other_expressions() {
        let expressions = [
            expression("match", &[]),
            expression("counter", &counter(7, 420)),
            expression("target", &[]),
        ];
        let rule = [
            attribute(kernel::RULE_TABLE, b"filter\0"),
            attribute(kernel::RULE_CHAIN, b"FORWARD\0"),
            attribute(kernel::RULE_HANDLE, &9u64.to_be_bytes()),
            attribute(kernel::RULE_EXPRESSIONS, &expressions.concat()),
        ];
        let rule = rule.concat();
        let want = Counts {
            packets: 7,
            bytes: 420,
        };
        assert_eq!(rule_counts(Attributes(&rule)), Some(want));
        let place = rule_place(TableFamily::IP, Attributes(&rule)).unwrap();
        assert_eq!((place.chain.as_str(), place.handle), ("FORWARD", 9));
    }

    #[test]
    fn a_rule_without_a_counter_has_none() {
        let rule = attribute(kernel::RULE_EXPRESSIONS, &expression("cmp", &[]));
        assert_eq!(rule_counts(Attributes(&rule)), None);
    }

    #[test]
    fn a_counter_that_was_reset_shows_what_came_since() {
        let at = |packets| Counts { packets, bytes: 0 };
        assert_eq!(at(9).since(at(7)).packets, 2);
        assert_eq!(at(1).since(at(7)).packets, 1);
    }
}
