//! The iptables back end, for both variants and families: rules in chains of the job's own, and
//! the probes themselves as notes of where they came.
//!
//! ```text
//! raw or mangle  PREROUTING   first rule: probe? → TSIM_RUNID_i   note, count
//! mangle         POSTROUTING  first or last: probe? → TSIM_RUNID_o   note, count, discard
//! mangle or security  INPUT   first or last: probe? → TSIM_RUNID_l   note, count, discard
//! ```
//!
//! Where a tap stands so that nothing behind it can change what it says, [`place`] works out.
//! Installing takes two tools (`iptables-save`, `iptables-restore`), reading one `iptables-save`
//! (with the legacy variant one per table that holds a tap), removing one `iptables-restore`.
//!
//! Unlike an nf_tables owner table, these taps outlive a job that is killed. Every rule carries
//! the job's identity, so [`sweep`] can tell whose they are; and before anything is made, the job
//! notes what will be, tables and chains included ([`Notebook`](super::Notebook)). With the legacy variant a table that
//! was never looked into comes into being with the first rule and stays, empty, as long as the
//! namespace does: `mangle`, and `security` where the router's own rules decide in INPUT.

mod command;
mod departure;
pub mod feature;
mod identity;
mod notes;
mod others;
mod place;
mod program;
mod removal;
mod render;
mod save;
pub mod step;
pub(super) mod tables;
mod taps;
pub mod trace;
mod turn;

use std::{io, process::ExitStatus};

use thiserror::Error;

pub(crate) use self::program::BUILT_IN;
pub use self::{
    command::Variant,
    identity::{Identity, OwnerMark},
    removal::{Cleared, sweep},
    render::Matcher,
    taps::IptablesTaps,
};
use self::{identity::Mark, save::RuleSave};
use crate::{
    firewall::{NotebookError, nft::NftError},
    netns::{
        NetnsError,
        tool::{ToolError, with_remedy},
    },
};

/// Whether a rule is a tap of any job.
fn is_ours(rule: &RuleSave) -> bool {
    rule.comment().is_some_and(|c| Mark::parse(&c).is_some())
}

/// The iptables back end failed.
#[derive(Debug, Error)]
pub enum IptablesError {
    /// The router's namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A tool could not be run, or failed to print.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The payload was refused.
    #[error("{tool} refused the rules{at} ({status}): {}", with_remedy(.stderr))]
    Refused {
        /// The tool.
        tool: String,
        /// How it ended.
        status: ExitStatus,
        /// The line of the payload, where the tool names one.
        at: String,
        /// The tool's own words.
        stderr: String,
    },
    /// The lock that `iptables-legacy` takes was not free.
    #[error("{tool} waited {seconds} s for the xtables lock; another iptables holds it")]
    Locked {
        /// The tool.
        tool: String,
        /// How long it waited.
        seconds: &'static str,
    },
    /// Somebody changed the table at the same time, again and again.
    #[error("{tool} found the table changed at every attempt: {}", .stderr.trim())]
    Busy {
        /// The tool.
        tool: String,
        /// The tool's own words.
        stderr: String,
    },
    /// The kernel or the tool has nothing that recognises a probe.
    #[error("no match recognises probes: {}", .0.iter().map(|(m, why)| format!("{}: {why}", m.as_str())).collect::<Vec<_>>().join("; "))]
    NoMatcher(Vec<(Matcher, String)>),
    /// The lock on the router's namespace could not be taken.
    #[error("cannot lock the router's network namespace")]
    Turn(#[source] io::Error),
    /// The socket for notes failed.
    #[error("cannot {step} NFLOG notes")]
    Notes {
        /// What was being done.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Notes found no room in the socket.
    #[error("more probes came than there was room for; which ones is not known (NFLOG)")]
    Overrun,
    /// Notes were lost: the kernel counted more probes than it passed on.
    #[error("the kernel counted {counted} probes and passed on {noted} (NFLOG)")]
    NotesLost {
        /// By the rules' counters.
        counted: u64,
        /// By the socket.
        noted: u64,
    },
    /// Somebody removed a tap.
    #[error("the tap {chain} is gone from table {table}: somebody removed it")]
    Gone {
        /// Its chain.
        chain: String,
        /// The table.
        table: &'static str,
    },
    /// What is about to be made could not be noted, or the note not be struck.
    #[error("cannot note the taps")]
    Notebook(#[source] NotebookError),
    /// nf_tables, which is asked what else looks at packets, failed.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Undoing an installation that had failed did not work either.
    #[error("{failed}; and what was installed could not be removed: {undo}")]
    Undo {
        /// Why the installation failed.
        failed: Box<Self>,
        /// Why undoing failed.
        undo: Box<Self>,
    },
}
