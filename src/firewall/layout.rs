//! Where in what follows the IP header a probe has its tag and its ports, by protocol.
//!
//! ```text
//! TCP     ports 0   sequence number 4
//! UDP     ports 0   payload 8
//! SCTP    ports 0   initiate tag of INIT 16 (RFC 9260 section 3.3.2; the verification tag, at 4, is 0)
//! ICMP    identifier and sequence number 4   payload, or originate timestamp, 8
//! ESP     SPI 0     payload 8
//! GRE     key 4     payload 8
//! others  payload 0 and 4
//! ```
//!
//! What stands in for ports where a protocol has none (the identifier of ICMP, an SPI, payload) is
//! what tells one probe from the next on their way, and what of it a router may change.

use crate::model::Protocol;

/// Where the tag is, four bytes.
#[must_use]
pub fn tag_offset(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Tcp | Protocol::Gre | Protocol::Other(_) => 4,
        Protocol::Udp | Protocol::Icmp | Protocol::Icmpv6 | Protocol::Esp => 8,
        Protocol::Sctp => 16,
    }
}

/// Where source and destination port are, or what stands in for them, four bytes.
#[must_use]
pub fn ports_offset(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Tcp | Protocol::Udp | Protocol::Sctp | Protocol::Esp | Protocol::Other(_) => 0,
        Protocol::Icmp | Protocol::Icmpv6 => 4,
        Protocol::Gre => 8,
    }
}
