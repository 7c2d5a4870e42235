//! A netlink socket to nf_tables of one namespace: transactions and dumps.
//!
//! The kernel works a request off within `sendmsg`: when that returns, every reply to a
//! transaction is in the receive buffer. So replies are drained without waiting, and a missing
//! ACK is an error instead of a hang.

use std::{io, os::fd::AsFd as _};

use netlink_sys::Socket;
use thiserror::Error;

use super::wire::{Attributes, HEADER, Messages, WireMessage, array, request};
use crate::{
    firewall::netfilter_socket,
    netlink::buffers,
    sys::{
        mmsg::{Inbox, WhenEmpty},
        nftnl::Encoder,
        socket_option::netns_cookie,
    },
};

/// A transaction above this size needs a larger send buffer than the default of 208 KiB.
const DEFAULT_SEND_BUFFER: usize = 150 * 1024;
/// `NLMSGERR_ATTR_MSG`, linux/netlink.h.
const ERROR_MESSAGE: u16 = 1;

/// Talking to nf_tables failed.
#[derive(Debug, Error)]
pub enum NftError {
    /// No socket could be opened or set up.
    #[error("cannot open a netfilter netlink socket")]
    Open(#[source] io::Error),
    /// A request could not be sent.
    #[error("cannot send to nf_tables: {what}")]
    Send {
        /// What was asked for.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Replies could not be read.
    #[error("cannot read the reply of nf_tables: {what}")]
    Receive {
        /// What was asked for.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("nf_tables refused: {what} (message {nth}){}", .ext_ack.as_ref().map(|t| format!(": {t}")).unwrap_or_default())]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// The message of the transaction that was refused, counted from 0 (its opening).
        nth: u32,
        /// The kernel's own words, where it had any.
        ext_ack: Option<String>,
        /// The error number.
        #[source]
        source: io::Error,
    },
    /// The kernel neither refused nor acknowledged.
    #[error("nf_tables did not acknowledge: {0}")]
    NoAck(&'static str),
    /// A dump was interrupted by changes again and again.
    #[error("nf_tables changed during every attempt to read: {0}")]
    Interrupted(&'static str),
    /// This process cannot be named for ever.
    #[error("cannot tell which process this is")]
    Process(#[source] io::Error),
    /// A transaction could not be encoded.
    #[error(transparent)]
    Encode(#[from] crate::sys::nftnl::EncodeError),
}

impl NftError {
    /// The errno with which the kernel refused, if it did.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// A socket to nf_tables of the namespace in which it was opened, whichever thread uses it.
#[derive(Debug)]
pub struct NftSocket {
    socket: Socket,
    sequence: u32,
    inbox: Inbox,
    netns: Option<u64>,
}

impl NftSocket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NftError::Open`].
    pub fn open_here() -> Result<Self, NftError> {
        let open = || {
            // What names no address goes to the kernel, without connect(2), too.
            let socket = netfilter_socket::open_here()?;
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            Ok(Self {
                socket,
                sequence: 1,
                inbox: Inbox::default(),
                netns: None,
            })
        };
        open().map_err(NftError::Open)
    }

    /// An encoder whose messages belong to this socket.
    #[must_use]
    pub fn encoder(&self) -> Encoder {
        Encoder::new(self.sequence)
    }

    /// Runs one transaction: all of it is in force when this returns, or nothing of it.
    ///
    /// # Errors
    /// [`NftError`]; after [`NftError::Refused`] nothing was changed.
    pub fn transact(&mut self, batch: &Encoder, what: &'static str) -> Result<(), NftError> {
        let first = std::mem::replace(&mut self.sequence, batch.next_sequence());
        if batch.bytes().len() > DEFAULT_SEND_BUFFER {
            buffers::send(&self.socket, 4 * batch.bytes().len())
                .map_err(|source| NftError::Send { what, source })?;
        }
        self.socket
            .send(batch.bytes(), 0)
            .map_err(|source| NftError::Send { what, source })?;
        let mut acknowledged = false;
        let mut refused = None;
        while self.receive(WhenEmpty::Return, what)? {
            for message in Messages(self.inbox.datagram()) {
                match error_of(&message) {
                    Some((0, _)) => acknowledged = true,
                    Some((errno, ext_ack)) if refused.is_none() => {
                        refused = Some((message.sequence.wrapping_sub(first), errno, ext_ack));
                    }
                    _ => {}
                }
            }
            // Asked for with the last message, it comes behind whatever was refused.
            if acknowledged {
                break;
            }
        }
        match refused {
            Some((nth, errno, ext_ack)) => {
                let source = io::Error::from_raw_os_error(errno);
                Err(NftError::Refused {
                    what,
                    nth,
                    ext_ack,
                    source,
                })
            }
            None if acknowledged => Ok(()),
            None => Err(NftError::NoAck(what)),
        }
    }

    /// Waits until every transaction that has begun is over, and told of. One without a message takes
    /// its turn (`commit_mutex`, which nf_tables_commit() holds until it has told of everything) and
    /// changes nothing, not even the generation.
    ///
    /// # Errors
    /// [`NftError`].
    pub(super) fn settle(&mut self) -> Result<(), NftError> {
        let what = "waiting for transactions";
        let mut nothing = self.encoder();
        nothing.nothing();
        self.sequence = nothing.next_sequence();
        self.socket
            .send(nothing.bytes(), 0)
            .map_err(|source| NftError::Send { what, source })?;
        Ok(())
    }

    /// The number of its namespace ([`netns_cookie`]), asked for once.
    pub(super) fn netns_cookie(&mut self) -> io::Result<u64> {
        match self.netns {
            Some(known) => Ok(known),
            None => Ok(*self.netns.insert(netns_cookie(&self.socket)?)),
        }
    }

    /// Asks for a dump of objects selected by string attributes and gives each to `each`.
    ///
    /// # Errors
    /// [`NftError`]; `each` may have seen a part by then.
    pub(super) fn dump(
        &mut self,
        message: u16,
        family: u8,
        select: &[(u16, &str)],
        what: &'static str,
        mut each: impl FnMut(Attributes<'_>),
    ) -> Result<Dumped, NftError> {
        self.dump_messages(message, family, select, what, |message| {
            each(message.attributes());
        })
    }

    /// As [`NftSocket::dump`], with the head of each message, which names the object's family.
    ///
    /// # Errors
    /// [`NftError`]; `each` may have seen a part by then.
    pub(super) fn dump_messages(
        &mut self,
        message: u16,
        family: u8,
        select: &[(u16, &str)],
        what: &'static str,
        mut each: impl FnMut(&WireMessage<'_>),
    ) -> Result<Dumped, NftError> {
        let sequence = self.next_sequence();
        let bytes = request(message, family, libc::NLM_F_DUMP as u16, sequence, select);
        self.socket
            .send(&bytes, 0)
            .map_err(|source| NftError::Send { what, source })?;
        let mut dumped = Dumped::Whole;
        loop {
            self.receive(WhenEmpty::Wait, what)?;
            for message in Messages(self.inbox.datagram()).filter(|m| m.sequence == sequence) {
                if message.flags & libc::NLM_F_DUMP_INTR as u16 != 0 {
                    dumped = Dumped::Interrupted;
                }
                if i32::from(message.kind) == libc::NLMSG_DONE {
                    return Ok(dumped);
                }
                match error_of(&message) {
                    Some((0, _)) => {}
                    Some((errno, ext_ack)) => {
                        let source = io::Error::from_raw_os_error(errno);
                        return Err(NftError::Refused {
                            what,
                            nth: 0,
                            ext_ack,
                            source,
                        });
                    }
                    None => each(&message),
                }
            }
        }
    }

    /// Asks for one object and gives it to `read`.
    ///
    /// # Errors
    /// [`NftError`].
    pub(super) fn get<T>(
        &mut self,
        message: u16,
        family: u8,
        select: &[(u16, &str)],
        what: &'static str,
        read: impl Fn(Attributes<'_>) -> Option<T>,
    ) -> Result<T, NftError> {
        let sequence = self.next_sequence();
        let bytes = request(message, family, 0, sequence, select);
        self.socket
            .send(&bytes, 0)
            .map_err(|source| NftError::Send { what, source })?;
        while self.receive(WhenEmpty::Return, what)? {
            for message in Messages(self.inbox.datagram()).filter(|m| m.sequence == sequence) {
                match error_of(&message) {
                    Some((errno, ext_ack)) => {
                        let source = io::Error::from_raw_os_error(errno);
                        return Err(NftError::Refused {
                            what,
                            nth: 0,
                            ext_ack,
                            source,
                        });
                    }
                    None => {
                        if let Some(value) = read(message.attributes()) {
                            return Ok(value);
                        }
                    }
                }
            }
        }
        Err(NftError::NoAck(what))
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Goes on to the next datagram; false when none waits.
    fn receive(&mut self, empty: WhenEmpty, what: &'static str) -> Result<bool, NftError> {
        let there = self.inbox.advance(self.socket.as_fd(), empty);
        there.map_err(|source| NftError::Receive { what, source })
    }
}

/// Whether a dump shows one state of the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dumped {
    /// Nothing changed while it was read.
    Whole,
    /// Something changed; it may lack or repeat objects.
    Interrupted,
}

/// The errno (0 for an ACK) and the kernel's words of an error message, if it is one.
fn error_of(message: &WireMessage<'_>) -> Option<(i32, Option<String>)> {
    if i32::from(message.kind) != libc::NLMSG_ERROR {
        return None;
    }
    let errno = -i32::from_ne_bytes(array(message.body, 0)?);
    // With NETLINK_CAP_ACK only the header of the offending message comes back before attributes.
    let attributes = Attributes(message.body.get(4 + HEADER..).unwrap_or_default());
    Some((errno, attributes.text(ERROR_MESSAGE).map(str::to_owned)))
}
