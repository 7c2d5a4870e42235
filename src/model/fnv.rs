//! The hash for names that outlive a process.

/// Fowler, Noll and Vo's FNV-1a of 64 bits, for names and sums that several releases and processes must
/// agree on: what `std` hashes with may change from one release to the next. It spreads what differs by
/// chance; whoever wants to can make two texts collide.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By draft-eastlake-fnv, appendix C.
    #[test]
    fn it_is_the_published_one() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
