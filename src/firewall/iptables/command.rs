//! `iptables-restore` and `iptables-save` of one variant and family, run in a router.

use std::{fmt, process::ExitStatus, sync::Arc, time::Duration};

use super::{
    IptablesError,
    identity::{MadeByTaps, by_codes},
    save::IptablesSave,
    turn::IptablesTurn,
};
use crate::{
    fault,
    firewall::{Notebook, TapSite},
    netlink::object::Family,
    netns::{
        NetnsFd,
        tool::{Printed, ToolError, Tools},
    },
};

/// How long `iptables-legacy-restore` waits for its lock, in seconds. The lock is one for all
/// network namespaces of a machine.
const LOCK_WAIT_SECONDS: &str = "20";
/// `RESOURCE_PROBLEM`, xtables.h: the lock was not free, or somebody changed the table meanwhile.
const EXIT_RESOURCE: i32 = 4;
/// How often a payload is sent again because somebody changed the table meanwhile.
const ATTEMPTS: u32 = 5;

/// A variant of iptables: which part of the kernel holds its rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// nf_tables.
    Nft,
    /// ip_tables and ip6_tables.
    Legacy,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        })
    }
}

/// The tools of one variant and family in one router.
#[derive(Debug, Clone)]
pub(super) struct Iptables {
    pub(super) variant: Variant,
    pub(super) family: Family,
    netns: Arc<NetnsFd>,
    tools: Tools,
    notes: Option<Arc<dyn Notebook>>,
    patience: Duration,
}

impl Iptables {
    pub(super) fn new(variant: Variant, family: Family, site: TapSite<'_>) -> Self {
        Self {
            variant,
            family,
            netns: Arc::clone(site.netns),
            tools: site.tools.clone(),
            notes: site.notes.cloned(),
            patience: site.patience,
        }
    }

    /// What all its tools' names begin with, such as `ip6tables-nft`.
    fn family_of_tools(&self) -> String {
        let family = match self.family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{family}-{}", self.variant)
    }

    /// The file name of a tool, such as `ip6tables-nft-save`.
    pub(super) fn tool(&self, what: &str) -> String {
        format!("{}-{what}", self.family_of_tools())
    }

    /// The parts that other jobs have noted.
    pub(super) fn noted_by_others(&self) -> Result<Vec<&'static MadeByTaps>, IptablesError> {
        let Some(notes) = &self.notes else {
            return Ok(Vec::new());
        };
        let noted = notes.of_others(&self.family_of_tools());
        Ok(by_codes(&noted.map_err(IptablesError::Notebook)?))
    }

    /// Notes that the job's taps are about to be made, and `made` with them.
    pub(super) fn note(&self, made: &[&'static MadeByTaps]) -> Result<(), IptablesError> {
        let Some(notes) = &self.notes else {
            return Ok(());
        };
        let made = made.iter().map(|part| part.code.to_owned()).collect();
        let noted = notes.note(&self.family_of_tools(), made);
        noted.map_err(IptablesError::Notebook)
    }

    /// Strikes the note: nothing of it is left.
    pub(super) fn strike(&self) -> Result<(), IptablesError> {
        let Some(notes) = &self.notes else {
            return Ok(());
        };
        let struck = notes.strike(&self.family_of_tools());
        struck.map_err(IptablesError::Notebook)
    }

    /// Runs `work` in the router's namespace.
    pub(super) fn inside<T: Send>(
        &self,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, IptablesError> {
        Ok(self.netns.enter(work)?)
    }

    /// Waits until no other job installs or removes taps in this router.
    pub(super) fn turn(&self) -> Result<IptablesTurn, IptablesError> {
        IptablesTurn::wait(&self.netns, self.patience)?.map_err(IptablesError::Turn)
    }

    fn run(&self, what: &str, args: &[&str], input: &str) -> Result<Printed, IptablesError> {
        let tool = self.tool(what);
        let printed = self.inside(|| self.tools.run(&tool, args, input.as_bytes()))?;
        Ok(printed?)
    }

    /// All tables with their counters, or only one. With the legacy variant, naming a table
    /// brings it into being.
    pub(super) fn save(&self, table: Option<&str>) -> Result<IptablesSave, IptablesError> {
        let mut args = vec!["-c"];
        args.extend(table.map(|name| ["-t", name]).iter().flatten());
        let printed = self.run("save", &args, "")?;
        Ok(IptablesSave::parse(&String::from_utf8_lossy(
            &printed.stdout,
        )))
    }

    /// Puts a payload into force, table by table.
    pub(super) fn restore(&self, payload: &str) -> Result<(), IptablesError> {
        let args: &[&str] = match self.variant {
            Variant::Nft => &["--noflush"],
            Variant::Legacy => &["--noflush", "-w", LOCK_WAIT_SECONDS],
        };
        fault::step("iptables.restore").map_err(|source| ToolError::Start {
            tool: self.tool("restore"),
            step: "start",
            source,
        })?;
        let mut attempt = 1;
        loop {
            let error = match self.run("restore", args, payload) {
                Ok(_) => return Ok(()),
                Err(error) => explain(error, payload),
            };
            let busy = matches!(error, IptablesError::Busy { .. });
            // A payload of several tables may be half in force by now, so it cannot be repeated.
            if !busy || attempt == ATTEMPTS || payload.matches("COMMIT").count() > 1 {
                return Err(error);
            }
            attempt += 1;
        }
    }

    /// Whether the tool is installed.
    pub(super) fn find(&self, what: &str) -> Result<(), ToolError> {
        self.tools.find(&self.tool(what)).map(drop)
    }
}

/// Turns a tool's failure into what it means.
fn explain(error: IptablesError, payload: &str) -> IptablesError {
    let IptablesError::Tool(ToolError::Failed {
        tool,
        status,
        stderr,
    }) = error
    else {
        return error;
    };
    if status.code() == Some(EXIT_RESOURCE) {
        return if stderr.contains("xtables lock") {
            IptablesError::Locked {
                tool,
                seconds: LOCK_WAIT_SECONDS,
            }
        } else {
            IptablesError::Busy { tool, stderr }
        };
    }
    refused(tool, status, stderr, payload)
}

fn refused(tool: String, status: ExitStatus, stderr: String, payload: &str) -> IptablesError {
    let number = line_number(&stderr);
    let line = number.and_then(|n| payload.lines().nth(n.checked_sub(1)?));
    let at = match (number, line) {
        (Some(number), Some(line)) => format!(" at line {number} ({line})"),
        _ => String::new(),
    };
    IptablesError::Refused {
        tool,
        status,
        at,
        stderr,
    }
}

/// The line that the tool complains about: `line 7 failed`, `Error occurred at line: 7`.
fn line_number(stderr: &str) -> Option<usize> {
    stderr.split("line").skip(1).find_map(|rest| {
        let rest = rest.trim_start_matches([':', ' ']);
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn failed(code: i32, stderr: &str) -> IptablesError {
        IptablesError::Tool(ToolError::Failed {
            tool: "iptables-legacy-restore".to_owned(),
            status: ExitStatus::from_raw(code << 8),
            stderr: stderr.to_owned(),
        })
    }

    #[test]
    fn a_refusal_names_the_line_of_the_payload() {
        let payload = "*mangle\n-N a\n-A a -m nosuch\nCOMMIT\n";
        for stderr in [
            "iptables-restore v1.8.9 (legacy): Couldn't load match `nosuch'\n\
             Error occurred at line: 3\nTry `iptables-restore -h'",
            "iptables-restore: line 3 failed\n",
            "ip6tables-nft-restore: \nline 3: RULE_APPEND failed (No such file or directory)",
        ] {
            let error = explain(failed(2, stderr), payload).to_string();
            assert!(error.contains("line 3 (-A a -m nosuch)"), "{error}");
        }
    }

    #[test]
    fn a_table_that_is_not_there_is_said_with_the_remedy() {
        let stderr = "modprobe: ERROR: could not insert 'ip_tables': Operation not permitted\n\
            iptables-restore v1.8.9 (legacy): iptables-restore: unable to initialize table 'mangle'\n\n\
            Error occurred at line: 1";
        let error = explain(failed(2, stderr), "*mangle\nCOMMIT\n").to_string();
        assert!(error.contains("modprobe -a iptable_raw"), "{error}");
    }

    #[test]
    fn a_taken_lock_and_a_changed_table_are_told_apart() {
        let lock = "Another app is currently holding the xtables lock; still 0s";
        let error = explain(failed(4, lock), "");
        assert!(matches!(error, IptablesError::Locked { .. }), "{error}");
        let error = explain(failed(4, "Resource temporarily unavailable."), "");
        assert!(matches!(error, IptablesError::Busy { .. }), "{error}");
        let error = explain(failed(1, ""), "");
        assert!(matches!(error, IptablesError::Refused { .. }), "{error}");
    }
}
