//! Whether there are sets of ipset, asked without its tool (linux/netfilter/ipset/ip_set.h).

use std::io;

use super::{
    netfilter_socket,
    nft::wire::{HEADER, Messages, append, array},
};

/// `NFNL_SUBSYS_IPSET` and `IPSET_CMD_LIST`.
const LIST: u16 = 6 << 8 | 7;
/// `IPSET_ATTR_PROTOCOL`: one byte; that protocol every kernel speaks.
const PROTOCOL: (u16, u8) = (1, 6);
/// `IPSET_ATTR_FLAGS` and `IPSET_FLAG_LIST_SETNAME`: the names will do.
const FLAGS: (u16, u32) = (6, 1 << 1);
/// A dump comes in datagrams of at most this many bytes (netlink_dump()).
const BUFFER: usize = 32 << 10;

/// Whether the calling thread's namespace has sets.
///
/// # Errors
/// When that cannot be asked. A kernel without ipset can be, and has none.
pub fn has_sets_here() -> io::Result<bool> {
    let socket = netfilter_socket::connect_here()?;
    socket.send(&request(), 0)?;
    let mut buffer = Vec::with_capacity(BUFFER);
    socket.recv(&mut buffer, 0)?;
    for message in Messages(&buffer) {
        match i32::from(message.kind) {
            libc::NLMSG_DONE => return Ok(false),
            libc::NLMSG_ERROR => match array(message.body, 0).map(i32::from_ne_bytes) {
                // There is no such subsystem, nfnetlink_rcv_msg().
                Some(error) if error == -libc::EINVAL => return Ok(false),
                Some(error) => return Err(io::Error::from_raw_os_error(-error)),
                None => {}
            },
            _ => return Ok(true),
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

fn request() -> Vec<u8> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut bytes = (HEADER as u32 + 20).to_ne_bytes().to_vec();
    bytes.extend(LIST.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence and port; then the family, of which there has to be one.
    bytes.extend([0; 8]);
    bytes.extend([libc::AF_INET as u8, 0, 0, 0]);
    append(&mut bytes, PROTOCOL.0, &[PROTOCOL.1]);
    append(&mut bytes, FLAGS.0, &FLAGS.1.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_message_with_two_attributes() {
        let bytes = request();
        let message = Messages(&bytes).next().unwrap();
        assert_eq!((message.kind, bytes.len()), (LIST, 36));
        let attributes = message.attributes();
        assert_eq!(attributes.find(1), Some(&[6][..]));
        assert_eq!(attributes.be32(6), Some(2));
    }
}
