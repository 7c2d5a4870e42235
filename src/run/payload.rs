//! What follows the IP header of probes that are neither TCP nor UDP: each looks like the first
//! packet that a Linux client would send, and carries its tag where
//! [`layout`](crate::firewall::layout) says.

use crate::{
    firewall::layout::{ports_offset, tag_offset},
    model::Protocol,
};

/// Header of INIT with its parameters, RFC 9260 section 3.3.2: the supported address types, one
/// each as Linux sends them, are left out.
const SCTP_LENGTH: usize = SCTP_HEADER + 20;
const SCTP_HEADER: usize = 12;
/// The parameter of INIT that makes it longer, RFC 4820 section 4.
const SCTP_PADDING: u16 = 0x8005;
/// ping(8) sends 56 bytes behind the header of 8.
const ICMP_LENGTH: usize = 8 + 56;
/// SPI, sequence number, and 32 bytes that are encrypted.
const ESP_LENGTH: usize = 8 + 32;
/// Header with a key (RFC 2890), and 28 bytes of an empty datagram in it.
const GRE_LENGTH: usize = 8 + 28;
const OTHER_LENGTH: usize = 32;

/// INIT is the first chunk of an association.
const INIT: u8 = 1;
/// What Linux asks for: receive window in bytes, streams out and in.
const SCTP_WINDOW: u32 = 106_496;
const SCTP_STREAMS: [u16; 2] = [10, u16::MAX];
/// GRE with a key, and IPv4 in it.
const GRE_KEY_IPV4: [u8; 4] = [0x20, 0, 0x08, 0];

/// How many bytes follow the IP header.
pub(super) fn length(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Sctp => SCTP_LENGTH,
        Protocol::Icmp | Protocol::Icmpv6 => ICMP_LENGTH,
        Protocol::Esp => ESP_LENGTH,
        Protocol::Gre => GRE_LENGTH,
        Protocol::Tcp | Protocol::Udp | Protocol::Other(_) => OTHER_LENGTH,
    }
}

/// Fills `bytes`, which hold what an earlier probe of the same protocol had. `checksum` is that of
/// the internet (RFC 1071), over a pseudo header as well where it is told so.
pub(super) fn fill(
    bytes: &mut [u8],
    protocol: Protocol,
    (source_port, destination_port): (u16, u16),
    tag: u32,
    checksum: impl Fn(&[u8], bool) -> u16,
) {
    let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
    let ports = ports_offset(protocol) as usize;
    put(ports, &source_port.to_be_bytes());
    put(ports + 2, &destination_port.to_be_bytes());
    put(tag_offset(protocol) as usize, &tag.to_be_bytes());
    match protocol {
        Protocol::Icmp | Protocol::Icmpv6 => {
            // The type stands in for the destination port, and does as the sequence number, too.
            put(0, &[destination_port as u8, 0, 0, 0]);
            let sum = checksum(bytes, protocol == Protocol::Icmpv6);
            bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        Protocol::Sctp => fill_sctp(bytes, tag),
        Protocol::Esp => put(4, &1u32.to_be_bytes()),
        Protocol::Gre => put(0, &GRE_KEY_IPV4),
        Protocol::Tcp | Protocol::Udp | Protocol::Other(_) => {}
    }
}

/// Fills in what follows the verification tag of an INIT: all of the packet is this chunk, as another
/// behind it would make connection tracking call the packet invalid.
fn fill_sctp(bytes: &mut [u8], tag: u32) {
    let after = |header: usize| u16::try_from(bytes.len() - header).unwrap_or(u16::MAX);
    let (chunk, padding) = (after(SCTP_HEADER), after(SCTP_LENGTH));
    let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
    put(8, &[0; 4]);
    put(12, &[INIT, 0]);
    put(14, &chunk.to_be_bytes());
    put(20, &SCTP_WINDOW.to_be_bytes());
    put(24, &SCTP_STREAMS[0].to_be_bytes());
    put(26, &SCTP_STREAMS[1].to_be_bytes());
    // The first transmission sequence number may be the tag itself.
    put(28, &tag.to_be_bytes());
    if padding >= 4 {
        put(SCTP_LENGTH, &SCTP_PADDING.to_be_bytes());
        put(SCTP_LENGTH + 2, &padding.to_be_bytes());
    }
    let sum = crc32c(bytes);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
}

/// The checksum of SCTP, RFC 9260 appendix A: CRC32c (Castagnoli), bits in reverse.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let step = |crc: u32, _| (crc >> 1) ^ (POLYNOMIAL & (0u32.wrapping_sub(crc & 1)));
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), step);
    !bytes.iter().fold(u32::MAX, byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_sctp_is_the_castagnoli_one() {
        // RFC 3720 appendix B.4 gives these.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn an_init_has_its_tag_where_the_taps_look() {
        let mut bytes = vec![0; length(Protocol::Sctp)];
        fill(
            &mut bytes,
            Protocol::Sctp,
            (40_000, 36_412),
            0x0102_0304,
            |_, _| 0,
        );
        assert_eq!(bytes[0..8], [0x9c, 0x40, 0x8e, 0x3c, 0, 0, 0, 0]);
        assert_eq!(bytes[12..20], [1, 0, 0, 20, 1, 2, 3, 4]);
        let sum = bytes[8..12].to_vec();
        bytes[8..12].fill(0);
        assert_eq!(crc32c(&bytes).to_le_bytes(), sum[..]);
    }

    /// What follows a chunk is the next one to the kernel, and of the length 0 it is none.
    #[test]
    fn a_long_init_is_one_chunk() {
        for length in [32, 33, 35, 36, 1480, 65_495] {
            let mut bytes = vec![0; length];
            let ports = (40_000, 36_412);
            fill(&mut bytes, Protocol::Sctp, ports, 0x0102_0304, |_, _| 0);
            let word = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
            assert_eq!((bytes[12], word(14)), (INIT, length - 12));
            if length >= 36 {
                assert_eq!((word(32), word(34)), (0x8005, length - 32));
            }
        }
    }

    #[test]
    fn tags_and_what_stands_in_for_ports_never_overlap() {
        for number in 0..=u8::MAX {
            let protocol = Protocol::of(number);
            let (tag, ports) = (tag_offset(protocol), ports_offset(protocol));
            assert!(tag.abs_diff(ports) >= 4, "{protocol}");
            assert!(
                tag.max(ports) as usize + 4 <= length(protocol),
                "{protocol}"
            );
        }
    }
}
