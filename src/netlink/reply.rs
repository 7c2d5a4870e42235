//! What rtnetlink sends back.

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;

use super::{error::ext_ack, requests::ALIGN};

/// `NLM_F_CAPPED`, linux/netlink.h: of the request that failed there is the header only.
const CAPPED: u16 = 0x100;
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

/// The messages in one datagram; none in place of one that is no reply to `port`, where that counts.
pub(super) fn messages(
    bytes: &[u8],
    port: Option<u32>,
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
        if port.is_some() && to.map(u32::from_ne_bytes) != port {
            return Some(Ok(None));
        }
        Some(
            KernelMessage::deserialize(message)
                .map(Some)
                .map_err(|e| e.to_string()),
        )
    })
}

/// What a message with these flags says of its request.
pub(super) fn reply(flags: u16, payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Reply> {
    match payload {
        NetlinkPayload::InnerMessage(object) => Some(Reply::Object(Box::new(object))),
        NetlinkPayload::Error(error) => Some(match error.code {
            None => Reply::Done,
            Some(code) => Reply::Refused(
                Errno::from_raw(-code.get()),
                explanation(flags, &error.header).and_then(ext_ack),
            ),
        }),
        _ => None,
    }
}

/// The attributes of an error, which come behind its request, or behind the header of that alone.
fn explanation(flags: u16, request: &[u8]) -> Option<&[u8]> {
    let length = match flags & CAPPED {
        0 => u32::from_ne_bytes(*request.first_chunk()?) as usize,
        _ => HEADER_BYTES,
    };
    request.get(length.next_multiple_of(ALIGN)..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_errno_and_explanation() {
        // NLMSG_ERROR as Linux 6.18 sent it for a route with a gateway that is not on a link, with the header
        // of the request, and with all of it.
        for (flags, body) in [(3, 0), (2, 22)] {
            let mut error = vec![0; 16];
            error[4..8].copy_from_slice(&[2, 0, 0, flags]);
            error.extend((-(Errno::ENETUNREACH as i32)).to_ne_bytes());
            let request = u32::try_from(HEADER_BYTES).unwrap() + 22;
            error.extend(request.to_ne_bytes());
            error.extend([0; HEADER_BYTES - 4]);
            error.extend(vec![9; usize::next_multiple_of(body, ALIGN)]);
            error.extend([11, 0, 1, 0]);
            error.extend(b"no way\0\0");
            let length = u32::try_from(error.len()).unwrap();
            error[..4].copy_from_slice(&length.to_ne_bytes());
            let message = messages(&error, None).next().unwrap().unwrap().unwrap();
            let (header, payload) = message.into_parts();
            match reply(header.flags, payload) {
                Some(Reply::Refused(Errno::ENETUNREACH, Some(text))) => assert_eq!(text, "no way"),
                other => panic!("{other:?}"),
            }
        }
    }
}
