//! Tags: what makes a probe recognisable behind a router that rewrote everything else.
//!
//! Ports and addresses do not survive NAT, DSCP does not survive a router that marks. The TCP
//! sequence number, the first bytes of a UDP payload, the IPv4 identification and the IPv6 flow
//! label survive DNAT, SNAT and DSCP, TTL and MSS rewriting. A probe carries:
//!
//! ```text
//! tag  (TCP sequence number or UDP payload, 32 bits)
//!   31      26 25       17 16                    0
//!  +----------+-----------+-----------------------+
//!  | DSCP     | random    | index of the service  |
//!  +----------+-----------+-----------------------+
//! mark (IPv4 identification, 16 bits; IPv6 flow label, 20 bits): random
//! ```
//!
//! Jobs that run at once hold different DSCP values, so their tags differ for certain; an ordinary
//! packet matches all of it with a chance below 2⁻³⁰.

use crate::model::{Dscp, service::ServiceLimits};

/// Bits of a tag that say which service it is.
const INDEX_BITS: u32 = 17;
const INDEX_MASK: u32 = (1 << INDEX_BITS) - 1;
/// Random bits between the DSCP and the index.
const RANDOM_BITS: u32 = 32 - 6 - INDEX_BITS;

// Every service of both protocols has an index of its own.
const _: () = assert!(ServiceLimits::ALL <= 1 << INDEX_BITS);

/// The tags of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagSpace {
    base: u32,
    mark: u32,
}

impl TagSpace {
    /// The tags of the job that holds `dscp`, with `random` bits that no earlier job used.
    #[must_use]
    pub fn new(dscp: Dscp, random: u64) -> Self {
        let job = u32::from(dscp.get()) << (32 - 6);
        let salt = (random as u32 & ((1 << RANDOM_BITS) - 1)) << INDEX_BITS;
        // An identification or label of 0 would be filled in by the sending kernel.
        let mark = ((random >> 32) as u32 & 0xf_ffff) | 1;
        Self {
            base: job | salt,
            mark,
        }
    }

    /// More tags of the same job, with other random bits: none of them is one of these.
    #[must_use]
    pub fn anew(self, random: u64) -> Self {
        let other = Self::new(self.dscp(), random);
        let base = if other.base == self.base {
            other.base ^ (1 << INDEX_BITS)
        } else {
            other.base
        };
        Self { base, ..other }
    }

    /// The DSCP value that the job holds.
    #[must_use]
    pub fn dscp(self) -> Dscp {
        Dscp::new((self.base >> (32 - 6)) as u8).unwrap_or(Dscp::DEFAULT)
    }

    /// The tag of the service with this index, which must be below 2¹⁷.
    #[must_use]
    pub fn tag(self, index: u32) -> u32 {
        debug_assert!(index <= INDEX_MASK);
        self.base | (index & INDEX_MASK)
    }

    /// The index that `tag` stands for, if the tag is this job's.
    #[must_use]
    pub fn index(self, tag: u32) -> Option<u32> {
        (tag & !INDEX_MASK == self.base).then_some(tag & INDEX_MASK)
    }

    /// The IPv4 identification of the job's probes.
    #[must_use]
    pub fn ipv4_id(self) -> u16 {
        self.mark as u16
    }

    /// The IPv6 flow label of the job's probes, 20 bits.
    #[must_use]
    pub fn flow_label(self) -> u32 {
        self.mark
    }

    /// The tag bits that all probes of the job share, and the mask that selects them.
    #[must_use]
    pub fn prefix(self) -> (u32, u32) {
        (self.base, !INDEX_MASK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_jobs_with_different_dscp_never_meet() {
        let a = TagSpace::new(Dscp::new(32).unwrap(), u64::MAX);
        let b = TagSpace::new(Dscp::new(33).unwrap(), u64::MAX);
        for index in [0, 1, 131_069] {
            assert_eq!(a.index(a.tag(index)), Some(index));
            assert_eq!(b.index(a.tag(index)), None);
        }
    }

    #[test]
    fn more_tags_of_a_job_are_others() {
        let tags = TagSpace::new(Dscp::new(40).unwrap(), 5);
        for random in [5, 6] {
            let more = tags.anew(random);
            assert_eq!(more.index(tags.tag(3)), None);
            assert_eq!(more.tag(0) >> 26, 40);
        }
    }

    #[test]
    fn the_mark_is_never_zero() {
        let tags = TagSpace::new(Dscp::DEFAULT, 0);
        assert!(tags.ipv4_id() != 0 && tags.flow_label() != 0);
        assert!(TagSpace::new(Dscp::DEFAULT, u64::MAX).flow_label() < 1 << 20);
    }
}
