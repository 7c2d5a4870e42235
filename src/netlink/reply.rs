//! What rtnetlink sends back.

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;

use super::{error::ext_ack, requests::ALIGN};

/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;

/// A parsed message of the kernel.
pub(super) type KernelMessage = NetlinkMessage<RouteNetlinkMessage>;

/// What came back for one request.
#[derive(Debug)]
pub(super) enum Reply {
    /// `NLMSG_ERROR` with 0: done.
    Done,
    /// `NLMSG_ERROR`: refused.
    Refused(Errno, Option<String>),
    /// An object.
    Object(Box<RouteNetlinkMessage>),
}

/// The messages in one datagram; none in place of one that is no reply to `port`.
pub(super) fn messages(
    bytes: &[u8],
    port: u32,
) -> impl Iterator<Item = Result<Option<KernelMessage>, String>> + '_ {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = rest.first_chunk().map(|field| u32::from_ne_bytes(*field))? as usize;
        if length < HEADER_BYTES || length > rest.len() {
            let have = std::mem::take(&mut rest).len();
            return Some(Err(format!("message of {length} bytes in {have} bytes")));
        }
        let (message, _) = rest.split_at(length);
        rest = rest
            .get(length.next_multiple_of(ALIGN)..)
            .unwrap_or_default();
        let to = message.get(12..16).and_then(|field| field.try_into().ok());
        if to.map(u32::from_ne_bytes) != Some(port) {
            return Some(Ok(None));
        }
        Some(
            KernelMessage::deserialize(message)
                .map(Some)
                .map_err(|e| e.to_string()),
        )
    })
}

pub(super) fn reply(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Reply> {
    match payload {
        NetlinkPayload::InnerMessage(object) => Some(Reply::Object(Box::new(object))),
        NetlinkPayload::Error(error) => Some(match error.code {
            None => Reply::Done,
            // The request's header comes first; its body is left out (`NETLINK_CAP_ACK`).
            Some(code) => Reply::Refused(
                Errno::from_raw(-code.get()),
                error.header.get(HEADER_BYTES..).and_then(ext_ack),
            ),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_errno_and_explanation() {
        // NLMSG_ERROR as Linux 6.18 sent it for a route with a gateway that is not on a link.
        let mut error = vec![0; 16];
        error[4..8].copy_from_slice(&[2, 0, 0, 3]);
        error.extend((-(Errno::ENETUNREACH as i32)).to_ne_bytes());
        error.extend([0; HEADER_BYTES]);
        error.extend([11, 0, 1, 0]);
        error.extend(b"no way\0\0");
        let length = u32::try_from(error.len()).unwrap();
        error[..4].copy_from_slice(&length.to_ne_bytes());
        let message = messages(&error, 0).next().unwrap().unwrap().unwrap();
        match reply(message.into_parts().1) {
            Some(Reply::Refused(Errno::ENETUNREACH, Some(text))) => assert_eq!(text, "no way"),
            other => panic!("{other:?}"),
        }
    }
}
