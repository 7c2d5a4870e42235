//! Notes: the packets that `NFLOG` rules pass to this process, over nfnetlink_log.
//!
//! The kernel puts packets together into messages and sends one when it is full, when it holds
//! [`THRESHOLD`] packets, or [`FLUSH`] after its first. A note that finds no room in the socket is
//! lost; who reads knows from the rules' counters how many there must be.
//! Layouts: linux/netfilter/nfnetlink_log.h.

use std::{io, os::fd::AsFd, time::Duration};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};

use crate::firewall::nft::wire::{Messages, array};

/// Packets per message.
const THRESHOLD: u32 = 128;
/// Longest wait of a packet for others, in hundredths of a second.
const FLUSH: u32 = 1;
/// Size of a message in bytes; one packet with its attributes takes about 200.
const MESSAGE: u32 = 32 * 1024;
/// Bytes of each packet that are wanted: IPv6 header and the first 24 bytes of what follows.
const COPY: u32 = 64;
/// Room in the socket per expected note, in bytes: kernel buffers are counted whole.
const ROOM_PER_NOTE: usize = 512;
/// Least room in the socket, in bytes.
const ROOM_MIN: usize = 1 << 20;
/// How long nothing may come before what is missing counts as lost: many times [`FLUSH`].
const PATIENCE: Duration = Duration::from_millis(500);

mod kernel {
    pub(super) const MSG_PACKET: u16 = 0;
    pub(super) const MSG_CONFIG: u16 = 1;
    pub(super) const CFG_CMD: u16 = 1;
    pub(super) const CFG_MODE: u16 = 2;
    pub(super) const CFG_NLBUFSIZ: u16 = 3;
    pub(super) const CFG_TIMEOUT: u16 = 4;
    pub(super) const CFG_QTHRESH: u16 = 5;
    pub(super) const CMD_BIND: u8 = 1;
    pub(super) const COPY_PACKET: u8 = 2;
    pub(super) const ATTR_PAYLOAD: u16 = 9;
    pub(super) const ATTR_PREFIX: u16 = 10;
}

/// One packet that a rule passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    /// First letter of the rule's `--nflog-prefix`, or the whole prefix as text of traces.
    pub(super) prefix: String,
    /// The packet from its IP header on, as far as it was asked for.
    pub(super) packet: Vec<u8>,
}

/// A socket that receives one NFLOG group of one namespace.
#[derive(Debug)]
pub(super) struct Notes {
    socket: Socket,
    group: u16,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Notes {
    /// Listens, in the calling thread's namespace, to the first group from `from` on that nobody
    /// listens to, with room for `expected` notes.
    pub(super) fn open_here(from: u16, attempts: u16, expected: usize) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let room = expected.saturating_mul(ROOM_PER_NOTE).max(ROOM_MIN);
        setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &room)?;
        let mut notes = Self {
            socket,
            group: from,
            sequence: 0,
            buffer: Vec::with_capacity(2 * MESSAGE as usize),
        };
        for group in from..from.saturating_add(attempts.max(1)) {
            notes.group = group;
            match notes.listen() {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
                other => return other.map(|()| notes),
            }
        }
        Err(Errno::EBUSY.into())
    }

    /// The group that is listened to.
    pub(super) fn group(&self) -> u16 {
        self.group
    }

    fn listen(&mut self) -> io::Result<()> {
        // `struct nfulnl_msg_config_mode`: range, mode, padding.
        let mut mode = COPY.to_be_bytes().to_vec();
        mode.extend([kernel::COPY_PACKET, 0]);
        self.configure(kernel::CFG_CMD, &[kernel::CMD_BIND])?;
        self.configure(kernel::CFG_MODE, &mode)?;
        self.configure(kernel::CFG_NLBUFSIZ, &MESSAGE.to_be_bytes())?;
        self.configure(kernel::CFG_TIMEOUT, &FLUSH.to_be_bytes())?;
        self.configure(kernel::CFG_QTHRESH, &THRESHOLD.to_be_bytes())
    }

    fn configure(&mut self, attribute: u16, value: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let request = config(self.group, self.sequence, attribute, value);
        self.socket.send(&request, 0)?;
        // The kernel answers within sendmsg; notes of this group may come before the answer.
        while self.receive()? {
            for message in Messages(&self.buffer) {
                let answer = i32::from(message.kind) == libc::NLMSG_ERROR
                    && message.sequence == self.sequence;
                if answer {
                    let errno = array(message.body, 0).map_or(0, |b| -i32::from_ne_bytes(b));
                    return match errno {
                        0 => Ok(()),
                        errno => Err(io::Error::from_raw_os_error(errno)),
                    };
                }
            }
        }
        Err(Errno::ENODATA.into())
    }

    /// Takes `count` notes and gives each to `each`. Fewer come when notes were lost; how many
    /// came is returned.
    pub(super) fn take(&mut self, count: u64, mut each: impl FnMut(Note)) -> io::Result<u64> {
        let mut taken = 0;
        while taken < count {
            if self.receive()? {
                for note in Messages(&self.buffer).filter_map(|m| note(&m)) {
                    taken += 1;
                    each(note);
                }
            } else if !self.wait()? {
                break;
            }
        }
        Ok(taken)
    }

    /// Waits until there is something to receive; false when nothing came for too long.
    fn wait(&self) -> io::Result<bool> {
        let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::NONE);
        loop {
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Err(Errno::EINTR) => {}
                other => return Ok(other? > 0),
            }
        }
    }

    /// Reads one datagram into the buffer; false when none waits.
    fn receive(&mut self) -> io::Result<bool> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(_) => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                // Some were lost. Those that are there can still be read, and the count tells.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

fn note(message: &crate::firewall::nft::wire::Message<'_>) -> Option<Note> {
    let packet = (libc::NFNL_SUBSYS_ULOG as u16) << 8 | kernel::MSG_PACKET;
    if message.kind != packet {
        return None;
    }
    let attributes = message.attributes();
    Some(Note {
        prefix: attributes
            .text(kernel::ATTR_PREFIX)
            .unwrap_or_default()
            .to_owned(),
        packet: attributes
            .find(kernel::ATTR_PAYLOAD)
            .unwrap_or_default()
            .to_vec(),
    })
}

/// A message that sets one thing of a group, with a request for an ACK.
fn config(group: u16, sequence: u32, attribute: u16, value: &[u8]) -> Vec<u8> {
    let kind = (libc::NFNL_SUBSYS_ULOG as u16) << 8 | kernel::MSG_CONFIG;
    let length = 4 + value.len();
    let total = 16 + 4 + length.next_multiple_of(4);
    let mut bytes = Vec::with_capacity(total);
    bytes.extend_from_slice(&(total as u32).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    // `struct nfgenmsg`: any family, version 0, and the group as resource id.
    bytes.extend_from_slice(&[libc::AF_UNSPEC as u8, 0]);
    bytes.extend_from_slice(&group.to_be_bytes());
    bytes.extend_from_slice(&(length as u16).to_ne_bytes());
    bytes.extend_from_slice(&attribute.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(total, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_message_is_laid_out_as_the_kernel_reads_it() {
        #[rustfmt::skip]
        let golden = [
            28, 0, 0, 0,  1, 4,  5, 0,  9, 0, 0, 0,  0, 0, 0, 0, // nlmsghdr
            0, 0, 0x40, 0x74, // nfgenmsg
            5, 0, 1, 0, 1, 0, 0, 0, // bind
        ];
        assert_eq!(
            config(0x4074, 9, kernel::CFG_CMD, &[kernel::CMD_BIND]),
            golden
        );
    }
}
