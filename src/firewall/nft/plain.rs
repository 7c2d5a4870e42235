//! Plain rulesets, remembered from one job to the next.
//!
//! A census reads all rules of a router. Where it finds none that makes a measurement doubtful, the
//! next job need not read them again as long as they are the same. nf_tables counts its transactions
//! (the ruleset's generation), those of jobs' taps, too. So each job writes down the generation that it
//! leaves behind, if nobody but jobs changed anything since its census; if the next job finds that
//! generation, the rules are those that were read.
//!
//! ```text
//! <labs_dir>/<lab>/plain     entries of 32 bytes, each at the place that its namespace has
//! ```
//!
//! An entry is of the namespace with one number ([`netns_cookie`]), which the kernel gives to no
//! other until it boots. Its sum includes the kernel's boot and the program that looked, so that an
//! entry of another boot or of another build of tsim is none, as is one that is damaged or that
//! another process wrote a part of. A lost entry costs a census.
//!
//! [`netns_cookie`]: crate::sys::socket_option::netns_cookie

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
};

use super::{
    NftError, NftSocket,
    census::Census,
    generation,
    nature::Nature,
    watch::{RulesetChanges, RulesetWatch},
};
use crate::{
    firewall::rule::Rewritten,
    model::{fnv1a, owner::boot_id},
    netlink::object::Family,
    registry::medium::Directory,
};

/// The name of the file beside what is kept of a lab.
const FILE: &str = "plain";
/// So many namespaces have a place; of two with the same place the later one has it.
const PLACES: u64 = 4096;
/// Bytes from one entry to the next; the last eight are not used.
const STRIDE: u64 = 32;
/// Bytes of an entry: the namespace's number, the generation, the family, what the rules do, and the sum.
const ENTRY: usize = 24;
const SUMMED: usize = 16;

/// The plain rulesets of a lab's routers.
#[derive(Debug)]
pub struct PlainRulesets {
    file: File,
    /// What the sums of entries begin with.
    seed: Vec<u8>,
}

/// A namespace's rules for one family, at one generation.
#[derive(Debug, Clone, Copy)]
struct Ruleset {
    netns: u64,
    family: Family,
    generation: u32,
}

impl PlainRulesets {
    /// Those that are remembered in a lab's directory; none where that is not possible.
    #[must_use]
    pub fn beside(lab: &Directory) -> Option<Self> {
        let unable = |error: &dyn std::fmt::Display| {
            tracing::debug!("plain rulesets are not remembered: {error}");
        };
        let seed = seed().inspect_err(|error| unable(error)).ok()?;
        let file = lab.record_file(FILE).inspect_err(|error| unable(error));
        Some(Self {
            file: file.ok()?,
            seed,
        })
    }

    /// The census of the rules that `socket` talks to: the remembered one, or a new one.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn census(&self, socket: &mut NftSocket, family: Family) -> Result<Census, NftError> {
        match self.remembered(socket, family) {
            Some(census) => Ok(census),
            None => Census::read(socket, family, &Rewritten::default()),
        }
    }

    /// Remembers `census`, if it found the rules plain and `watch`, which was there before it, has
    /// heard of no change.
    pub fn remember(
        &self,
        census: &Census,
        family: Family,
        (socket, watch): (&mut NftSocket, &mut RulesetWatch),
    ) {
        if !census.is_plain() {
            return;
        }
        // In this order: the generation may be that of a transaction that the watch hears of a moment
        // later, when it is over.
        let Some(ruleset) = Ruleset::now(socket, family) else {
            return;
        };
        let unchanged = socket.settle().and_then(|()| watch.changes());
        if matches!(unchanged, Ok(RulesetChanges::None))
            && let Err(error) = self.write(ruleset, census)
        {
            tracing::debug!("a plain ruleset is not remembered: {error}");
        }
    }

    /// The entry is read first: where there is none, mostly because the rules are not plain, the kernel need
    /// not be asked for the generation.
    fn remembered(&self, socket: &mut NftSocket, family: Family) -> Option<Census> {
        let netns = socket.netns_cookie().ok()?;
        let (then, census) = self.find(netns, family)?;
        (generation(socket).ok()? == then).then_some(census)
    }

    /// The generation at which the rules of a namespace were plain, and their census.
    fn find(&self, netns: u64, family: Family) -> Option<(u32, Census)> {
        let mut entry = [0; ENTRY];
        let at = place(netns, family);
        self.file.read_exact_at(&mut entry, at).ok()?;
        let [.., a, b, c, d] = *entry.first_chunk::<12>()?;
        let ruleset = Ruleset {
            netns,
            family,
            generation: u32::from_le_bytes([a, b, c, d]),
        };
        let census = Census {
            nature: Nature::of_bits(entry[13] >> 1),
            asks_sender: entry[13] & 1 == 1,
            ..Census::default()
        };
        (entry == self.entry(ruleset, &census)).then_some((ruleset.generation, census))
    }

    fn write(&self, ruleset: Ruleset, census: &Census) -> io::Result<()> {
        let entry = self.entry(ruleset, census);
        self.file
            .write_all_at(&entry, place(ruleset.netns, ruleset.family))
    }

    fn entry(&self, ruleset: Ruleset, census: &Census) -> [u8; ENTRY] {
        let mut entry = [0; ENTRY];
        entry[..8].copy_from_slice(&ruleset.netns.to_le_bytes());
        entry[8..12].copy_from_slice(&ruleset.generation.to_le_bytes());
        entry[12] = u8::from(ruleset.family == Family::V6);
        entry[13] = census.nature.bits() << 1 | u8::from(census.asks_sender);
        let summed = [self.seed.as_slice(), &entry[..SUMMED]].concat();
        entry[SUMMED..].copy_from_slice(&fnv1a(&summed).to_le_bytes());
        entry
    }
}

impl Ruleset {
    /// What `socket` talks to now; none where the kernel does not tell.
    fn now(socket: &mut NftSocket, family: Family) -> Option<Self> {
        Some(Self {
            netns: socket.netns_cookie().ok()?,
            family,
            generation: generation(socket).ok()?,
        })
    }
}

/// Where the entry of a namespace's rules for a family begins in the file.
fn place(netns: u64, family: Family) -> u64 {
    let number = netns.wrapping_mul(2) + u64::from(family == Family::V6);
    number % PLACES * STRIDE
}

/// What tells this boot of the kernel and this build of tsim from others.
fn seed() -> io::Result<Vec<u8>> {
    let program = fs::metadata("/proc/self/exe")?;
    let boot = boot_id()?;
    let numbers = [
        program.dev(),
        program.ino(),
        program.size(),
        program.mtime().cast_unsigned(),
        program.mtime_nsec().cast_unsigned(),
    ];
    let numbers = numbers.into_iter().flat_map(u64::to_le_bytes);
    Ok(boot.into_bytes().into_iter().chain(numbers).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULESET: Ruleset = Ruleset {
        netns: 4711,
        family: Family::V4,
        generation: 7,
    };

    fn rulesets() -> PlainRulesets {
        PlainRulesets {
            file: tempfile::tempfile().unwrap(),
            seed: b"boot".to_vec(),
        }
    }

    fn censuses() -> impl Iterator<Item = Census> {
        (0..32).map(|bits| Census {
            nature: Nature::of_bits(bits >> 1),
            asks_sender: bits & 1 == 1,
            ..Census::default()
        })
    }

    #[test]
    fn what_is_remembered_is_found_with_its_generation() {
        let rulesets = rulesets();
        let found = |ruleset: Ruleset| rulesets.find(ruleset.netns, ruleset.family);
        assert_eq!(found(RULESET), None);
        for (generation, census) in (7..).zip(censuses()) {
            let ruleset = Ruleset {
                generation,
                ..RULESET
            };
            rulesets.write(ruleset, &census).unwrap();
            assert_eq!(found(RULESET), Some((generation, census)));
        }
        for other in [
            Ruleset {
                family: Family::V6,
                ..RULESET
            },
            Ruleset {
                netns: 4712,
                ..RULESET
            },
            // At the same place.
            Ruleset {
                netns: 4711 + PLACES / 2,
                ..RULESET
            },
        ] {
            assert_eq!(found(other), None, "{other:?}");
        }
    }

    #[test]
    fn what_is_damaged_or_of_another_boot_or_build_is_none() {
        let rulesets = rulesets();
        let at = place(RULESET.netns, RULESET.family);
        let find = |rulesets: &PlainRulesets| rulesets.find(RULESET.netns, RULESET.family);
        let census = censuses().last().unwrap();
        rulesets.write(RULESET, &census).unwrap();
        let whole = rulesets.entry(RULESET, &census);
        for byte in 0..ENTRY {
            let mut damaged = whole;
            damaged[byte] ^= 4;
            rulesets.file.write_all_at(&damaged, at).unwrap();
            assert_eq!(find(&rulesets), None, "{byte}");
        }
        rulesets.file.write_all_at(&whole, at).unwrap();
        let later = PlainRulesets {
            file: rulesets.file.try_clone().unwrap(),
            seed: b"next".to_vec(),
        };
        assert_eq!(find(&later), None);
        assert_eq!(find(&rulesets), Some((RULESET.generation, census)));
    }
}
