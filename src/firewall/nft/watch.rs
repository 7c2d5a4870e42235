//! Noticing that somebody else changes a ruleset while a job measures it.
//!
//! nf_tables tells multicast group `NFNLGRP_NFTABLES` of every object that a transaction makes or
//! removes. What tsim's own jobs put in and take out is left out here: taps change no verdict. It
//! does not even come to the socket: the 32 jobs that may share a router would fill the buffer that
//! an ordinary user gets.
//! Nor do quotas that packets use up: the kernel tells of them as of new objects, on behalf of nobody.
//! Elements that packets add to sets are not told of, and rules of iptables-legacy neither.

use std::{collections::BTreeSet, fmt, io};

use netlink_sys::Socket;
use nix::errno::Errno;

use super::{
    NftError, OWN, is_own,
    wire::{HEADER, Messages},
};
use crate::{
    firewall::netfilter_socket,
    netlink::buffers,
    sys::socket_filter::{self, Pattern},
};

/// `NFNLGRP_NFTABLES`, linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;
/// One object is told of in a datagram of at most a page or so (NLMSG_GOODSIZE).
const BUFFER: usize = 32 * 1024;
/// Asked of the socket, the kernel doubles it: a ruleset that is loaded anew has thousands of objects.
const RECEIVE_BUFFER: usize = 16 << 20;
/// `NFT_MSG_NEWGEN` of subsystem `NFNL_SUBSYS_NFTABLES`: a new generation, of no table.
const NEW_GENERATION: u16 = 10 << 8 | 15;
/// `NFT_MSG_NEWOBJ`: a named object.
const NEW_OBJECT: u16 = 10 << 8 | 18;
/// The attribute that names the table is the first of every object (`NFTA_TABLE_NAME`,
/// `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, …).
const TABLE: u16 = 1;

/// Listens for changes of one namespace's ruleset.
#[derive(Debug)]
pub struct RulesetWatch {
    socket: Socket,
    buffer: Vec<u8>,
}

/// What was changed since the last look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RulesetChanges {
    /// Nothing.
    None,
    /// Something in these tables.
    Tables(BTreeSet<String>),
    /// So much that the kernel could not tell all of it.
    Many,
}

impl RulesetWatch {
    /// Listens in the calling thread's network namespace from now on.
    ///
    /// # Errors
    /// [`NftError::Open`].
    pub fn open_here() -> Result<Self, NftError> {
        let socket = netfilter_socket::listen_here(GROUP, |socket| {
            buffers::receive(socket, RECEIVE_BUFFER)?;
            socket_filter::keep_out(socket, &own_objects())
        });
        Ok(Self {
            socket: socket.map_err(NftError::Open)?,
            buffer: Vec::with_capacity(BUFFER),
        })
    }

    /// Hears of no more changes: until a socket that does is closed, the kernel copies all that jobs put in
    /// and take out for it.
    pub fn end(&self) {
        // One that stays is a cost and no fault.
        if let Err(error) = self.socket.drop_membership(GROUP) {
            tracing::debug!("still listening to changes: {error}");
        }
    }

    /// What was changed by others since the watch was opened or last asked. Does not wait.
    ///
    /// # Errors
    /// [`NftError::Receive`].
    pub fn changes(&mut self) -> Result<RulesetChanges, NftError> {
        let mut tables = BTreeSet::new();
        let mut lost = false;
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(_) => tables.extend(Messages(&self.buffer).filter_map(|message| {
                    let table = message.attributes().text(TABLE)?;
                    let own = is_own(table);
                    (message.kind != NEW_GENERATION && !own).then(|| table.to_owned())
                })),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.raw_os_error() == Some(Errno::ENOBUFS as i32) => lost = true,
                Err(source) => {
                    let what = "listening for changes";
                    return Err(NftError::Receive { what, source });
                }
            }
        }
        Ok(match (lost, tables.is_empty()) {
            (true, _) => RulesetChanges::Many,
            (false, true) => RulesetChanges::None,
            (false, false) => RulesetChanges::Tables(tables),
        })
    }
}

/// Messages that only tell of what tsim or a packet made. Since Linux 5.11 one datagram tells of several objects
/// of one transaction, of which the first is looked at: tsim's transactions have no others.
fn own_objects() -> Vec<Pattern> {
    let at = |offset: usize, bytes: &[u8]| -> Pattern {
        (offset as u32..).zip(bytes.iter().copied()).collect()
    };
    // `nlmsg_type` of struct nlmsghdr; the first attribute comes behind that and struct nfgenmsg,
    // its type behind its length.
    let generation = at(4, &NEW_GENERATION.to_ne_bytes());
    // Behind the type and the flags the sequence number and the sender's port, 0 both.
    let mut used_up = at(4, &NEW_OBJECT.to_ne_bytes());
    used_up.extend(at(8, &[0; 8]));
    let own = |prefix: &&str| {
        let attribute = HEADER + 4;
        let mut pattern = at(attribute + 2, &TABLE.to_ne_bytes());
        pattern.extend(at(attribute + 4, prefix.as_bytes()));
        pattern
    };
    [generation, used_up]
        .into_iter()
        .chain(OWN.iter().map(own))
        .collect()
}

impl fmt::Display for RulesetChanges {
    /// What was changed, as the subject of a sentence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("nothing"),
            Self::Tables(tables) if tables.len() == 1 => {
                tables.iter().try_for_each(|t| write!(f, "table {t}"))
            }
            Self::Tables(tables) => {
                let names: Vec<&str> = tables.iter().map(String::as_str).collect();
                write!(f, "tables {}", names.join(", "))
            }
            Self::Many => f.write_str("the ruleset"),
        }
    }
}
