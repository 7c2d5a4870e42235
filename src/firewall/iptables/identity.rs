//! Who put a rule there: the comment that every rule of a job carries, and the names of its
//! chains.
//!
//! ```text
//! TSIM_KSMS=RUNID:o:dscp=33:pid=4711:start=90210:boot=6b1c…:ns=4026531836:made=m+mi
//!           job   point     the owner, as far as it is known        parts that no user had made
//! TSIM_RUNID_o              a chain; TSIM_h0123456789abcdef_o where the run id is too long
//! ```

use std::fmt::Write;

use crate::model::{Dscp, Owner, RunId, fnv1a};

/// Longest name of a chain: `XT_EXTENSION_MAXNAMELEN` (29, linux/netfilter/x_tables.h) without
/// the closing NUL.
const CHAIN_NAME_MAX: usize = 28;
/// What the names of all our chains begin with.
const CHAIN_PREFIX: &str = "TSIM_";
/// What all our comments begin with, as in the Python system.
const COMMENT_PREFIX: &str = "TSIM_KSMS=";
/// Longest comment: `XT_MAX_COMMENT_LEN` (256, linux/netfilter/xt_comment.h) without the NUL.
const COMMENT_MAX: usize = 255;

/// The process that owns taps: pid, start time, boot and pid namespace name one for ever.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct OwnerMark {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot, proc_pid_stat(5).
    pub start_time: Option<u64>,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: Option<String>,
    /// Inode of the pid namespace.
    pub pid_ns: Option<u64>,
}

impl From<&Owner> for OwnerMark {
    fn from(owner: &Owner) -> Self {
        Self {
            pid: owner.pid,
            start_time: owner.start_time,
            boot_id: owner.boot_id.clone(),
            pid_ns: owner.pid_ns,
        }
    }
}

impl From<&OwnerMark> for Owner {
    fn from(mark: &OwnerMark) -> Self {
        Self {
            pid: mark.pid,
            boot_id: mark.boot_id.clone(),
            start_time: mark.start_time,
            pid_ns: mark.pid_ns,
            keeper: None,
        }
    }
}

/// A job whose taps were found in a router.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The job.
    pub run_id: RunId,
    /// The DSCP that it held.
    pub dscp: Dscp,
    /// Its process.
    pub owner: OwnerMark,
}

/// A comment of ours, read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) identity: Identity,
    /// The point that the rule belongs to.
    pub(super) point: char,
    /// Tables and built-in chains that no user had made.
    pub(super) made: Vec<&'static MadeByTaps>,
}

/// A table, or a built-in chain of it, that installing taps may bring into being.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MadeByTaps {
    /// How a comment and a note name it.
    pub(super) code: &'static str,
    pub(super) table: &'static str,
    pub(super) chain: Option<&'static str>,
}

/// All of them.
pub(super) const PARTS: [MadeByTaps; 8] = [
    part("r", "raw", None),
    part("rp", "raw", Some("PREROUTING")),
    part("m", "mangle", None),
    part("mp", "mangle", Some("PREROUTING")),
    part("mi", "mangle", Some("INPUT")),
    part("mo", "mangle", Some("POSTROUTING")),
    part("s", "security", None),
    part("si", "security", Some("INPUT")),
];

const fn part(code: &'static str, table: &'static str, chain: Option<&'static str>) -> MadeByTaps {
    MadeByTaps { code, table, chain }
}

/// The parts of these names.
pub(super) fn by_codes(codes: &[impl AsRef<str>]) -> Vec<&'static MadeByTaps> {
    let find = |code: &_| {
        PARTS
            .iter()
            .find(|part| part.code == AsRef::<str>::as_ref(code))
    };
    codes.iter().filter_map(find).collect()
}

impl Mark {
    /// The comment as text.
    pub(super) fn comment(&self) -> String {
        let Identity {
            run_id,
            dscp,
            owner,
        } = &self.identity;
        let mut text = format!(
            "{COMMENT_PREFIX}{run_id}:{}:dscp={dscp}:pid={}",
            self.point, owner.pid
        );
        let mut add = |name: &str, value: &str| {
            // What does not fit is left out: an owner that is not fully known is never "dead".
            if text.len() + name.len() + value.len() + 2 <= COMMENT_MAX {
                // Writing to a String cannot fail.
                let _ = write!(text, ":{name}={value}");
            }
        };
        if let Some(start) = owner.start_time {
            add("start", &start.to_string());
        }
        if let Some(boot_id) = owner.boot_id.as_deref().filter(|id| is_plain(id)) {
            add("boot", boot_id);
        }
        if let Some(pid_ns) = owner.pid_ns {
            add("ns", &pid_ns.to_string());
        }
        if !self.made.is_empty() {
            let codes: Vec<_> = self.made.iter().map(|part| part.code).collect();
            add("made", &codes.join("+"));
        }
        text
    }

    /// Reads a comment; none when it is not ours.
    pub(super) fn parse(comment: &str) -> Option<Self> {
        let mut fields = comment.strip_prefix(COMMENT_PREFIX)?.split(':');
        let run_id = RunId::new(fields.next()?).ok()?;
        let mut letters = fields.next()?.chars();
        let point = letters.next().filter(|_| letters.as_str().is_empty())?;
        let (mut dscp, mut owner, mut made) = (None, OwnerMark::default(), Vec::new());
        for (name, value) in fields.filter_map(|field| field.split_once('=')) {
            match name {
                "dscp" => dscp = Some(Dscp::new(value.parse().ok()?).ok()?),
                "pid" => owner.pid = value.parse().ok()?,
                "start" => owner.start_time = Some(value.parse().ok()?),
                "boot" => owner.boot_id = Some(value.to_owned()),
                "ns" => owner.pid_ns = Some(value.parse().ok()?),
                "made" => made = by_codes(&value.split('+').collect::<Vec<_>>()),
                _ => {}
            }
        }
        let dscp = dscp?;
        let identity = Identity {
            run_id,
            dscp,
            owner,
        };
        Some(Self {
            identity,
            point,
            made,
        })
    }
}

/// Whether `text` is safe within a comment of ours.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// The chain of `run_id` at a point.
pub(super) fn chain_name(run_id: &RunId, point: char) -> String {
    let name = format!("{CHAIN_PREFIX}{run_id}_{point}");
    if name.len() <= CHAIN_NAME_MAX {
        return name;
    }
    // A collision of two jobs is refused by the kernel (`-N` of a chain that exists), not mixed up.
    format!(
        "{CHAIN_PREFIX}h{:016x}_{point}",
        fnv1a(run_id.as_str().as_bytes())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(run_id: &str) -> Mark {
        Mark {
            identity: Identity {
                run_id: RunId::new(run_id).unwrap(),
                dscp: Dscp::new(33).unwrap(),
                owner: OwnerMark {
                    pid: 4_294_967_295,
                    start_time: Some(u64::MAX),
                    boot_id: Some("6b1c2f3a-0d5e-4f7a-9b8c-1a2b3c4d5e6f".to_owned()),
                    pid_ns: Some(4_026_531_836),
                },
            },
            point: 'o',
            made: PARTS.iter().collect(),
        }
    }

    #[test]
    fn a_comment_reads_back() {
        let mark = mark("job.1");
        let text = mark.comment();
        assert!(text.starts_with("TSIM_KSMS=job.1:o:dscp=33:pid=4294967295:start="));
        assert_eq!(Mark::parse(&text), Some(mark));
    }

    #[test]
    fn the_longest_comment_fits() {
        let mut long = mark(&"r".repeat(64));
        long.identity.owner.pid_ns = Some(u64::MAX);
        let text = long.comment();
        assert!(text.len() <= COMMENT_MAX, "{}", text.len());
        assert_eq!(Mark::parse(&text), Some(long));
    }

    #[test]
    fn comments_of_others_are_not_ours() {
        for text in [
            "",
            "TSIM_KSMS=",
            "TSIM_KSMS=r1",
            "TSIM_KSMS=r1:out:dscp=33",
            "TSIM_KSMS=r1:o",
            "TSIM_KSMS=r1:o:dscp=64",
            "TSIM_KSMS=../x:o:dscp=1",
            "x TSIM_KSMS=r1:o:dscp=33",
        ] {
            assert_eq!(Mark::parse(text), None, "{text}");
        }
    }

    #[test]
    fn chain_names_fit_whatever_the_run_id() {
        let name = |id: &str| chain_name(&RunId::new(id).unwrap(), 'o');
        assert_eq!(name("r1"), "TSIM_r1_o");
        assert_eq!(name(&"r".repeat(21)).len(), CHAIN_NAME_MAX);
        let long = name(&"r".repeat(22));
        assert!(
            long.len() <= CHAIN_NAME_MAX && long.starts_with("TSIM_h"),
            "{long}"
        );
        assert_ne!(long, name(&"r".repeat(23)));
    }
}
