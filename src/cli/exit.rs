//! Exit codes: what each means, and which error means which, for every command. The only place.
//!
//! A name of something that there is none of (a lab, a router, a host, a job) is a wrong argument
//! wherever it is typed. What a machine refuses, or what is not had in time, is not the asker's
//! fault.

use std::{fmt, io};

use crate::{
    config::{ConfigError, NoPlace},
    keeper::KeeperError,
    lab::{LabError, hosts::HostError, trace::TraceError},
    model::WithCauses,
    registry::RegistryError,
    run::{detailed::DetailedError, quick::QuickError, report::Verdict, resolve::ResolveError},
    sched::{admission::NotAdmitted, client::ClientError, queue::SubmitError, spool::SpoolError},
};

/// How a command ended; the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything asked for was done; for a job: every service arrives.
    Ok = 0,
    /// The answer is no: a job found at least one NO (and no UNKNOWN).
    SomeNo = 1,
    /// Wrong arguments or configuration; nothing was changed.
    Usage = 2,
    /// The answer is not known: a job found at least one UNKNOWN.
    SomeUnknown = 3,
    /// It could not run: rights, kernel, lab, a lock that was not had in time.
    CannotRun = 4,
}

/// The table of exit codes, for people: README and man pages have the same.
pub const TABLE: [(&str, &str); 6] = [
    ("0", "done; for a job: every service arrives"),
    (
        "1",
        "the answer is no: a job found a NO, a trace does not arrive, facts lack something, a router has drifted",
    ),
    (
        "2",
        "wrong arguments or configuration, or no such lab, router, host, job; nothing was changed",
    ),
    (
        "3",
        "the answer is not known: a job found an UNKNOWN, the ways of a trace disagree",
    ),
    (
        "4",
        "could not run, or not to its end: rights, kernel, lab, a lock not had in time",
    ),
    ("130, 143", "ended by SIGINT, SIGTERM"),
];

/// The table of exit codes as `--help` has it.
pub const EXIT_CODES: &str = "Exit codes:
  0  done; for a job: every service arrives
  1  the answer is no: a job found a NO, a trace does not arrive, facts lack something, a router has drifted
  2  wrong arguments or configuration, or no such lab, router, host, job; nothing was changed
  3  the answer is not known: a job found an UNKNOWN, the ways of a trace disagree
  4  could not run, or not to its end: rights, kernel, lab, a lock not had in time
  130, 143  ended by SIGINT, SIGTERM";

impl From<Verdict> for Exit {
    /// The exit code of a job whose verdicts amount to this one.
    fn from(overall: Verdict) -> Self {
        match overall {
            Verdict::Yes => Self::Ok,
            Verdict::No => Self::SomeNo,
            Verdict::Unknown => Self::SomeUnknown,
        }
    }
}

/// A command that failed: the error and the exit code that it means.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What went wrong, with its causes.
    pub error: Box<dyn std::error::Error + Send + Sync>,
}

impl Failure {
    /// Wrong arguments or configuration.
    pub fn usage(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self {
            exit: Exit::Usage,
            error: error.into(),
        }
    }

    /// It could not run.
    pub fn cannot_run(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self {
            exit: Exit::CannotRun,
            error: error.into(),
        }
    }
}

impl fmt::Display for Failure {
    /// The error and its causes on one line, outermost first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        WithCauses(&*self.error).fmt(f)
    }
}

/// Whose fault an error is.
trait Fault: std::error::Error + Send + Sync + 'static {
    /// Whether what was typed or written into a file is wrong, rather than the machine.
    fn is_asked_wrong(&self) -> bool;
}

/// These and no others become failures by themselves; a new kind of error gets its line here.
macro_rules! failures {
    ($($error:ty),+ $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                if Fault::is_asked_wrong(&error) {
                    Self::usage(error)
                } else {
                    Self::cannot_run(error)
                }
            }
        }
    )+};
}

failures!(
    ClientError,
    ConfigError,
    DetailedError,
    HostError,
    KeeperError,
    LabError,
    NoPlace,
    NotAdmitted,
    QuickError,
    RegistryError,
    SpoolError,
    SubmitError,
    TraceError,
    io::Error,
);

impl Fault for ConfigError {
    fn is_asked_wrong(&self) -> bool {
        true
    }
}

impl Fault for ClientError {
    fn is_asked_wrong(&self) -> bool {
        use hyper::StatusCode;
        let wrong = [
            StatusCode::BAD_REQUEST,
            StatusCode::NOT_FOUND,
            StatusCode::CONFLICT,
        ];
        matches!(self, Self::Refused { status, .. } if wrong.contains(status))
    }
}

impl Fault for LabError {
    fn is_asked_wrong(&self) -> bool {
        matches!(
            self,
            Self::Facts(_) | Self::Strict(_) | Self::NotFound { .. } | Self::NoRouter { .. }
        )
    }
}

impl Fault for TraceError {
    fn is_asked_wrong(&self) -> bool {
        !matches!(self, Self::Sockets(_) | Self::Netlink(_))
    }
}

impl Fault for HostError {
    fn is_asked_wrong(&self) -> bool {
        matches!(
            self,
            Self::OtherLab { .. }
                | Self::PrefixLength { .. }
                | Self::NoInterface { .. }
                | Self::NoSegment { .. }
                | Self::NoWay { .. }
                | Self::RouterAddress { .. }
        )
    }
}

impl Fault for ResolveError {
    fn is_asked_wrong(&self) -> bool {
        match self {
            Self::Lab(error) => error.is_asked_wrong(),
            Self::Trace(error) => error.is_asked_wrong(),
            Self::HostSpec(error) => error.is_asked_wrong(),
            _ => false,
        }
    }
}

impl Fault for QuickError {
    fn is_asked_wrong(&self) -> bool {
        match self {
            Self::DscpRange { .. } | Self::Question(_) => true,
            Self::Lab(error) => error.is_asked_wrong(),
            Self::Resolve(error) => error.is_asked_wrong(),
            _ => false,
        }
    }
}

impl Fault for DetailedError {
    fn is_asked_wrong(&self) -> bool {
        match self {
            Self::Lab(error) => error.is_asked_wrong(),
            Self::Resolve(error) => error.is_asked_wrong(),
            Self::Trace(error) => error.is_asked_wrong(),
            _ => false,
        }
    }
}

impl Fault for SubmitError {
    fn is_asked_wrong(&self) -> bool {
        matches!(
            self,
            Self::Taken { .. } | Self::UserFull { .. } | Self::UserSpent { .. }
        )
    }
}

impl Fault for NotAdmitted {
    fn is_asked_wrong(&self) -> bool {
        match self {
            // The API calls a lab that is half made the asker's fault, too: nothing can be asked.
            Self::Lab(error) => error.is_asked_wrong(),
            other => Self::is_asked_wrong(other),
        }
    }
}

impl Fault for RegistryError {
    fn is_asked_wrong(&self) -> bool {
        false
    }
}

impl Fault for SpoolError {
    fn is_asked_wrong(&self) -> bool {
        false
    }
}

impl Fault for KeeperError {
    fn is_asked_wrong(&self) -> bool {
        false
    }
}

impl Fault for NoPlace {
    fn is_asked_wrong(&self) -> bool {
        false
    }
}

impl Fault for io::Error {
    fn is_asked_wrong(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_and_documents_have_the_table_and_no_other() {
        let lines = TABLE.map(|(code, meaning)| format!("  {code}  {meaning}"));
        assert_eq!(EXIT_CODES, format!("Exit codes:\n{}", lines.join("\n")));
        let rows = TABLE.map(|(code, meaning)| format!("| {code} | {meaning} |"));
        let document = include_str!("../../README.md");
        let table = format!("| code | meaning |\n|---|---|\n{}\n", rows.join("\n"));
        assert!(document.contains(&table), "the README needs\n{table}");
    }
}
