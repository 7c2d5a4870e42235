//! Notes: the packets that `NFLOG` rules pass to this process, over nfnetlink_log.
//!
//! The kernel puts packets together into messages and sends one when it is full or holds
//! [`THRESHOLD`] packets, and what it still has when its listener leaves the group; or it sends each
//! packet at once. A note that finds no room in the socket is lost, which the socket reports.
//! Layouts: linux/netfilter/nfnetlink_log.h.

use std::{io, ops::Range};

use netlink_sys::Socket;
use nix::errno::Errno;

use crate::{
    firewall::{
        layout, netfilter_socket,
        nft::wire::{Messages, WireMessage, array},
    },
    model::Protocol,
    netlink::buffers,
};

/// Packets per message.
const THRESHOLD: u32 = 128;
/// Bytes of each packet that are wanted: IPv6 header and the first 24 bytes of what follows.
const COPY: u32 = 64;
/// Least room in the socket, in bytes.
const ROOM_MIN: usize = 1 << 20;
/// Room for the messages of one read.
const BUFFER: usize = 64 * 1024;

mod kernel {
    pub(super) const MSG_PACKET: u16 = 0;
    pub(super) const MSG_CONFIG: u16 = 1;
    pub(super) const CFG_CMD: u16 = 1;
    pub(super) const CFG_MODE: u16 = 2;
    pub(super) const CFG_NLBUFSIZ: u16 = 3;
    pub(super) const CFG_QTHRESH: u16 = 5;
    pub(super) const CMD_BIND: u8 = 1;
    pub(super) const CMD_UNBIND: u8 = 2;
    pub(super) const COPY_PACKET: u8 = 2;
    pub(super) const ATTR_PACKET_HEADER: u16 = 1;
    pub(super) const ATTR_MARK: u16 = 2;
    pub(super) const ATTR_OUTDEV: u16 = 5;
    pub(super) const ATTR_PAYLOAD: u16 = 9;
    pub(super) const ATTR_PREFIX: u16 = 10;
}

/// How packets come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// Many in one message.
    Together,
    /// Each in a message of its own, which is there when the packet has gone its way.
    AtOnce,
}

impl Delivery {
    /// Packets per message, and the size of a message in bytes. A packet with its attributes takes
    /// about 200.
    fn limits(self) -> (u32, u32) {
        match self {
            Self::Together => (THRESHOLD, 32 * 1024),
            Self::AtOnce => (1, 512),
        }
    }

    /// Room in the socket per note, in bytes: kernel buffers are counted whole.
    pub(super) fn room(self) -> usize {
        match self {
            Self::Together => 512,
            Self::AtOnce => 2048,
        }
    }
}

/// One packet that a rule passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    /// The rule's `--nflog-prefix`, or what a trace says.
    pub(super) prefix: String,
    /// At which hook, `NF_INET_*`.
    pub(super) hook: u8,
    /// Number of the interface by which it leaves; 0 where it leaves by none.
    pub(super) oif: u32,
    /// Its firewall mark.
    pub(super) mark: u32,
    /// The packet from its IP header on, as far as it was asked for.
    pub(super) packet: Vec<u8>,
}

impl Note {
    /// The protocol and the tag of a probe.
    pub(super) fn tag(&self) -> Option<(Protocol, u32)> {
        let (protocol, transport) = self.transport()?;
        let tag = array(transport, layout::tag_offset(protocol) as usize)?;
        Some((protocol, u32::from_be_bytes(tag)))
    }

    /// The protocol, and what follows the IP header.
    pub(super) fn transport(&self) -> Option<(Protocol, &[u8])> {
        let packet = &self.packet;
        let (header, protocol) = match packet.first()? >> 4 {
            4 => (usize::from(packet[0] & 0xf) * 4, *packet.get(9)?),
            _ => (40, *packet.get(6)?),
        };
        Some((Protocol::of(protocol), packet.get(header..)?))
    }
}

/// A socket that receives one NFLOG group of one namespace.
#[derive(Debug)]
pub(super) struct Notes {
    socket: Socket,
    group: u16,
    delivery: Delivery,
    /// How many notes may wait.
    room: usize,
    sequence: u32,
    buffer: Vec<u8>,
    overrun: bool,
}

impl Notes {
    /// Listens, in the calling thread's namespace, to the first of `groups` that nobody listens
    /// to, with room for `expected` notes.
    pub(super) fn open_here(
        groups: Range<u16>,
        delivery: Delivery,
        expected: usize,
    ) -> io::Result<Self> {
        let socket = netfilter_socket::connect_here()?;
        let room = expected.saturating_mul(delivery.room()).max(ROOM_MIN);
        let room = buffers::receive(&socket, room)? / delivery.room();
        let mut notes = Self {
            socket,
            group: groups.start,
            delivery,
            room,
            sequence: 0,
            buffer: Vec::with_capacity(BUFFER),
            overrun: false,
        };
        let mut taken = Errno::EBUSY.into();
        for group in groups {
            notes.group = group;
            match notes.listen() {
                // Somebody else's group, as nfulnl_recv_config() puts it.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EPERM)) => taken = e,
                other => return other.map(|()| notes),
            }
        }
        Err(taken)
    }

    /// How many notes may wait before the next are lost.
    pub(super) fn room(&self) -> usize {
        self.room
    }

    /// The group that is listened to.
    pub(super) fn group(&self) -> u16 {
        self.group
    }

    fn listen(&mut self) -> io::Result<()> {
        let (packets, bytes) = self.delivery.limits();
        // `struct nfulnl_msg_config_mode`: range, mode, padding.
        let mut mode = COPY.to_be_bytes().to_vec();
        mode.extend([kernel::COPY_PACKET, 0]);
        let mut configure = |attribute, value: &[u8]| self.configure(attribute, value, &mut |_| ());
        configure(kernel::CFG_CMD, &[kernel::CMD_BIND])?;
        configure(kernel::CFG_MODE, &mode)?;
        configure(kernel::CFG_NLBUFSIZ, &bytes.to_be_bytes())?;
        configure(kernel::CFG_QTHRESH, &packets.to_be_bytes())
    }

    /// Sets one thing of the group. Notes that come before the kernel's answer go to `each`.
    fn configure(
        &mut self,
        attribute: u16,
        value: &[u8],
        each: &mut dyn FnMut(Note),
    ) -> io::Result<()> {
        self.sequence += 1;
        let request = config(self.group, self.sequence, attribute, value);
        self.socket.send(&request, 0)?;
        // The kernel answers within sendmsg, so the answer is there, behind the notes.
        let mut answer = None;
        while self.receive()? {
            for message in Messages(&self.buffer) {
                let ours = message.sequence == self.sequence;
                if ours && i32::from(message.kind) == libc::NLMSG_ERROR {
                    answer = array(message.body, 0).map(i32::from_ne_bytes);
                } else if let Some(note) = note(&message) {
                    each(note);
                }
            }
        }
        match answer {
            Some(0) => Ok(()),
            Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
            None => Err(Errno::ENODATA.into()),
        }
    }

    /// Takes every note there is, those that the kernel still holds included, and gives each to
    /// `each`; false when some were lost. Packets that come meanwhile may be missed.
    pub(super) fn take_all(&mut self, each: &mut dyn FnMut(Note)) -> io::Result<bool> {
        let whole = self.drain(each)?;
        self.configure(kernel::CFG_CMD, &[kernel::CMD_UNBIND], each)?;
        self.listen()?;
        Ok(whole && !std::mem::take(&mut self.overrun))
    }

    /// Takes all notes that are there and gives each to `each`; false when some were lost.
    pub(super) fn drain(&mut self, each: &mut dyn FnMut(Note)) -> io::Result<bool> {
        while self.receive()? {
            Messages(&self.buffer)
                .filter_map(|m| note(&m))
                .for_each(&mut *each);
        }
        Ok(!std::mem::take(&mut self.overrun))
    }

    /// Reads one datagram into the buffer; false when none waits.
    fn receive(&mut self) -> io::Result<bool> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(_) => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                // Some were lost. Those that are there can still be read.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => self.overrun = true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl Drop for Notes {
    /// Frees the group at once. Closing the socket would do, but a process that is just being
    /// started elsewhere in this program holds a copy of it until its exec.
    fn drop(&mut self) {
        // Where this fails the kernel frees the group with the socket.
        let _ = self.configure(kernel::CFG_CMD, &[kernel::CMD_UNBIND], &mut |_| ());
    }
}

fn note(message: &WireMessage<'_>) -> Option<Note> {
    let packet = (libc::NFNL_SUBSYS_ULOG as u16) << 8 | kernel::MSG_PACKET;
    if message.kind != packet {
        return None;
    }
    let attributes = message.attributes();
    // `struct nfulnl_msg_packet_hdr`: protocol, hook, padding.
    let header = attributes.find(kernel::ATTR_PACKET_HEADER);
    Some(Note {
        oif: attributes.be32(kernel::ATTR_OUTDEV).unwrap_or(0),
        mark: attributes.be32(kernel::ATTR_MARK).unwrap_or(0),
        hook: header.and_then(|h| h.get(2)).copied().unwrap_or(u8::MAX),
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
