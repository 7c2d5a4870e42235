//! Which tables and chains a namespace has, whoever made them.

use super::{
    DUMP_ATTEMPTS, NftError, NftSocket,
    socket::Dumped,
    wire::{Attributes, array},
};
use crate::firewall::Support;

/// linux/netfilter/nf_tables.h.
pub(super) mod kernel {
    pub(in super::super) const GET_TABLE: u16 = 1;
    pub(in super::super) const GET_CHAIN: u16 = 4;
    pub(in super::super) const TABLE_NAME: u16 = 1;
    pub(in super::super) const CHAIN_TABLE: u16 = 1;
    pub(in super::super) const CHAIN_NAME: u16 = 3;
    pub(in super::super) const CHAIN_HOOK: u16 = 4;
    pub(in super::super) const CHAIN_POLICY: u16 = 5;
    pub(in super::super) const CHAIN_USE: u16 = 6;
    pub(in super::super) const HOOK_NUMBER: u16 = 1;
    pub(in super::super) const HOOK_PRIORITY: u16 = 2;
    pub(in super::super) const ACCEPT: u32 = 1;
}

/// The tables and chains of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Names of tables.
    pub tables: Vec<String>,
    /// Chains, base chains and others.
    pub chains: Vec<InventoryChain>,
}

/// One chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InventoryChain {
    /// Its table's name.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where it is attached; none for a chain that others jump to.
    pub hook: Option<HookedAt>,
    /// How many rules it has, plus how many jump to it.
    pub used: u32,
    /// Whether a packet that no rule decides on is dropped.
    pub policy_drops: bool,
}

/// Where a base chain is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HookedAt {
    /// `NF_INET_*`.
    pub number: u32,
    /// Chains of lower priority come first.
    pub priority: i32,
}

impl Inventory {
    /// Reads the tables and chains of `family` (`NFPROTO_*`).
    ///
    /// # Errors
    /// [`NftError`].
    pub fn read(socket: &mut NftSocket, family: u8) -> Result<Self, NftError> {
        let tables = dump(socket, kernel::GET_TABLE, family, "listing tables", |a| {
            a.text(kernel::TABLE_NAME).map(str::to_owned)
        })?;
        let chains = dump(socket, kernel::GET_CHAIN, family, "listing chains", chain)?;
        Ok(Self { tables, chains })
    }

    /// Whether there is this table, or this chain in it.
    #[must_use]
    pub fn has(&self, table: &str, chain: Option<&str>) -> bool {
        match chain {
            None => self.tables.iter().any(|t| t == table),
            Some(chain) => {
                let mut chains = self.chains.iter();
                chains.any(|c| c.table == table && c.name == chain)
            }
        }
    }
}

/// Whether the kernel has nf_tables, asked in the calling thread's namespace by a question that
/// changes nothing. `EINVAL` means that there is no such subsystem, nfnetlink_rcv_msg().
#[must_use]
pub fn support_here() -> Support {
    asked_here().0
}

/// The same, with the socket that was asked where there is nf_tables.
#[must_use]
pub fn asked_here() -> (Support, Option<NftSocket>) {
    let asked = NftSocket::open_here().and_then(|mut socket| {
        super::generation(&mut socket)?;
        Ok(socket)
    });
    let mut kept = None;
    let asked = asked.map(|socket| kept = Some(socket));
    let support = Support::from_attempt(asked, |error| match error {
        NftError::Open(source) => source.raw_os_error(),
        other => other.errno(),
    });
    (support, kept)
}

fn dump<T>(
    socket: &mut NftSocket,
    message: u16,
    family: u8,
    what: &'static str,
    read: impl Fn(Attributes<'_>) -> Option<T>,
) -> Result<Vec<T>, NftError> {
    for _ in 0..DUMP_ATTEMPTS {
        let mut found = Vec::new();
        let dumped = socket.dump(message, family, &[], what, |a| found.extend(read(a)))?;
        if dumped == Dumped::Whole {
            return Ok(found);
        }
    }
    Err(NftError::Interrupted(what))
}

/// A chain as NFT_MSG_GETCHAIN tells of it.
pub(super) fn chain(attributes: Attributes<'_>) -> Option<InventoryChain> {
    let hook = attributes.nested(kernel::CHAIN_HOOK).and_then(|hook| {
        let number = hook.be32(kernel::HOOK_NUMBER)?;
        let priority = i32::from_be_bytes(array(hook.find(kernel::HOOK_PRIORITY)?, 0)?);
        Some(HookedAt { number, priority })
    });
    Some(InventoryChain {
        table: attributes.text(kernel::CHAIN_TABLE)?.to_owned(),
        name: attributes.text(kernel::CHAIN_NAME)?.to_owned(),
        hook,
        used: attributes.be32(kernel::CHAIN_USE).unwrap_or(0),
        policy_drops: attributes
            .be32(kernel::CHAIN_POLICY)
            .unwrap_or(kernel::ACCEPT)
            != kernel::ACCEPT,
    })
}
