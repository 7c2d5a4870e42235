//! Probes of nf_tables. Each makes something in the calling thread's namespace, which must be one
//! that nobody else uses, and leaves nothing there: the socket's closing ends what it owns, and
//! the rest is deleted.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use netlink_sys::Socket;

use super::{NftError, NftSocket, TABLE_OWNER};
use crate::{
    firewall::{Support, netfilter_socket},
    sys::nftnl::{EncodeError, Encoder, Expr, Family, Hook, Meta, Set},
};

const TABLE: &str = "tsim_probe";
const CHAIN: &str = "probe";
/// How nft(8) numbers the key type `mark`.
const KEY_TYPE_MARK: u32 = 19;
/// `NFNLGRP_NFTRACE` and `NFT_MSG_TRACE`, linux/netfilter/nfnetlink.h and nf_tables.h.
const TRACE_GROUP: u32 = 9;
const TRACE_MESSAGE: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | 17;
/// How long a packet to this machine itself may take at most.
const PATIENCE: Duration = Duration::from_secs(30);

/// nf_tables as such: a table.
#[must_use]
pub fn tables() -> Support {
    probe(0, |_| Ok(()))
}

/// Owner tables (`NFT_TABLE_F_OWNER`, since Linux 5.12).
#[must_use]
pub fn owner_tables() -> Support {
    probe(TABLE_OWNER, |_| Ok(()))
}

/// Sets that rules add to (`dynset`).
#[must_use]
pub fn dynamic_sets() -> Support {
    probe(0, |batch| {
        let set = Set {
            name: "set",
            id: 1,
            key_type: KEY_TYPE_MARK,
            key_len: 4,
            size: 16,
        };
        batch.set(Family::Ip, TABLE, set)?;
        let add = Expr::AddToSet { name: "set", id: 1 };
        chain_with_rule(batch, &[Expr::LoadData(&[0; 4]), add])
    })
}

/// Packet traces (`meta nftrace`): a packet that this namespace sends to itself must be reported.
/// The loopback interface must be up.
#[must_use]
pub fn traces() -> Support {
    match trace_one_packet() {
        Ok(true) => Support::Yes,
        Ok(false) => Support::No("a traced packet was not reported".to_owned()),
        Err(ProbeError::Nft(error)) => judge(Err(error)),
        Err(ProbeError::Io(error)) => Support::from_attempt(Err(error), io::Error::raw_os_error),
    }
}

enum ProbeError {
    Nft(NftError),
    Io(io::Error),
}

impl From<NftError> for ProbeError {
    fn from(error: NftError) -> Self {
        Self::Nft(error)
    }
}

impl From<io::Error> for ProbeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn trace_one_packet() -> Result<bool, ProbeError> {
    let listener = netfilter_socket::open_here()?;
    listener.add_membership(TRACE_GROUP)?;
    let mut socket = NftSocket::open_here()?;
    make(&mut socket, 0, |batch| {
        chain_with_rule(batch, &[Expr::LoadData(&[1]), Expr::SetMeta(Meta::NfTrace)])
    })?;
    // The events are written before the packet is delivered: no need to wait for them.
    let seen = send_to_myself().and_then(|()| reported(&listener));
    delete(&mut socket)?;
    Ok(seen?)
}

fn send_to_myself() -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(&[0], socket.local_addr()?)?;
    socket.recv(&mut [0]).map(|_| ())
}

fn reported(listener: &Socket) -> io::Result<bool> {
    let mut buffer = Vec::with_capacity(4096);
    match listener.recv(&mut buffer, libc::MSG_DONTWAIT) {
        Ok(_) => Ok(buffer.get(4..6) == Some(&TRACE_MESSAGE.to_ne_bytes())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a table with `content` and deletes it again.
fn probe(flags: u32, content: impl FnOnce(&mut Encoder) -> Result<(), EncodeError>) -> Support {
    let attempt = || {
        let mut socket = NftSocket::open_here()?;
        make(&mut socket, flags, content)?;
        delete(&mut socket)
    };
    judge(attempt())
}

fn make(
    socket: &mut NftSocket,
    flags: u32,
    content: impl FnOnce(&mut Encoder) -> Result<(), EncodeError>,
) -> Result<(), NftError> {
    let mut batch = socket.encoder();
    batch.begin();
    batch.table(Family::Ip, TABLE, flags)?;
    content(&mut batch)?;
    batch.end();
    socket.transact(&batch, "probing a feature")
}

fn delete(socket: &mut NftSocket) -> Result<(), NftError> {
    let mut batch = socket.encoder();
    batch.begin();
    batch.delete_table(Family::Ip, TABLE)?;
    batch.end();
    socket.transact(&batch, "ending a probe")
}

fn chain_with_rule(batch: &mut Encoder, exprs: &[Expr<'_>]) -> Result<(), EncodeError> {
    batch.base_chain(Family::Ip, TABLE, CHAIN, Hook::Prerouting, 0)?;
    batch.rule(Family::Ip, TABLE, CHAIN, exprs)
}

fn judge(attempt: Result<(), NftError>) -> Support {
    Support::from_attempt(attempt, |error| match error {
        NftError::Open(source) => source.raw_os_error(),
        other => other.errno(),
    })
}
