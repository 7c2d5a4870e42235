//! Whose something is, and whether that process still lives.
//!
//! A pid alone names nobody: pids are reused, start anew at boot, and mean different processes in
//! different pid namespaces. With boot id, start time and pid namespace beside it, the pid names
//! one process for ever.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    sync::OnceLock,
};

use nix::{errno::Errno, sys::signal::kill, unistd::Pid};
use serde::{Deserialize, Serialize};

/// Where whoever is inside a keeper's namespaces finds who the keeper is; see [`crate::keeper`].
pub const KEEPER_FILE: &str = "/run/tsim-keeper.json";

/// One process, for ever.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// Process id; 0 where a record has none.
    #[serde(default)]
    pub pid: u32,
    /// `/proc/sys/kernel/random/boot_id`; absent in records of the Python system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`, proc_pid_stat(5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<u64>,
    /// Inode of the pid namespace that the pid belongs to, pid_namespaces(7).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_ns: Option<u64>,
    /// The keeper in whose namespaces the process is, see [`KeeperId`]; none for root's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<KeeperId>,
}

/// A keeper within one boot: its pid and start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeeperId {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
}

impl KeeperId {
    /// The keeper in whose namespaces the calling process is.
    fn current() -> io::Result<Option<Self>> {
        match fs::read(KEEPER_FILE) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// Names what the namespaces that the calling process makes belong to and do not outlive: this boot
/// of the machine (random(4)), and the keeper where there is one.
///
/// # Errors
/// When `/proc` or the keeper's file does not tell.
pub fn world() -> io::Result<String> {
    let own = Owner::current()?;
    let boot = own.boot_id.unwrap_or_default();
    Ok(match own.keeper {
        Some(KeeperId { pid, start_time }) => format!("{boot} keeper {pid}.{start_time}"),
        None => boot,
    })
}

/// The calling process, once it was asked for; a process that exists stays the same.
static OWN: OnceLock<Owner> = OnceLock::new();

/// Whether an owner lives. Only [`Liveness::Gone`] is a reason to take something away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// The very process is there.
    Alive,
    /// The very process is provably not there any more.
    Gone,
    /// It cannot be told: the record or the system does not say enough.
    Unknown,
}

impl Owner {
    /// The calling process.
    ///
    /// # Errors
    /// When `/proc` does not tell.
    pub fn current() -> io::Result<Self> {
        if let Some(own) = OWN.get() {
            return Ok(own.clone());
        }
        let pid = std::process::id();
        let stat = Stat::of(pid)?.ok_or(io::ErrorKind::InvalidData)?;
        let own = Self {
            pid,
            boot_id: Some(boot_id()?),
            start_time: Some(stat.start_time),
            pid_ns: Some(pid_ns()?),
            keeper: KeeperId::current()?,
        };
        Ok(OWN.get_or_init(|| own).clone())
    }

    /// Looks whether this process still lives.
    #[must_use]
    pub fn liveness(&self) -> Liveness {
        if OWN.get() == Some(self) {
            return Liveness::Alive;
        }
        let Ok(boot_id) = boot_id() else {
            return Liveness::Unknown;
        };
        if self.boot_id.as_ref().is_some_and(|b| *b != boot_id) {
            return Liveness::Gone;
        }
        let foreign = self.pid_ns.is_some() && pid_ns().ok() != self.pid_ns;
        let Some(pid) = i32::try_from(self.pid).ok().filter(|&p| p > 0 && !foreign) else {
            return Liveness::Unknown;
        };
        // With hidepid, /proc may hide a process that exists; kill(2) does not.
        match kill(Pid::from_raw(pid), None) {
            Err(Errno::ESRCH) => Liveness::Gone,
            _ => self.compare(Stat::of(self.pid)),
        }
    }

    fn compare(&self, found: io::Result<Option<Stat>>) -> Liveness {
        match (found, self.start_time) {
            // A zombie has closed its files; one with threads left is a process whose first
            // thread has ended.
            (Ok(Some(stat)), _) if stat.state == 'Z' && stat.threads <= 1 => Liveness::Gone,
            (Ok(Some(stat)), Some(start)) if stat.start_time == start => Liveness::Alive,
            (Ok(Some(_)), Some(_)) => Liveness::Gone,
            _ => Liveness::Unknown,
        }
    }
}

/// What `/proc/PID/stat` says, proc_pid_stat(5).
struct Stat {
    state: char,
    threads: u64,
    start_time: u64,
}

impl Stat {
    fn of(pid: u32) -> io::Result<Option<Self>> {
        Ok(Self::parse(&read_proc(&format!("/proc/{pid}/stat"))?))
    }

    /// The command name stands in parentheses and may hold anything, `)` and spaces included.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        Some(Self {
            state: fields.next()?.chars().next()?,    // field 3
            threads: fields.nth(16)?.parse().ok()?,   // field 20
            start_time: fields.nth(1)?.parse().ok()?, // field 22
        })
    }
}

/// One for as long as the kernel runs.
///
/// # Errors
/// When /proc cannot be read.
pub(crate) fn boot_id() -> io::Result<String> {
    static BOOT: OnceLock<String> = OnceLock::new();
    if let Some(known) = BOOT.get() {
        return Ok(known.clone());
    }
    let read = read_proc("/proc/sys/kernel/random/boot_id")?;
    Ok(BOOT.get_or_init(|| read.trim_end().to_owned()).clone())
}

/// One for as long as the process lives.
fn pid_ns() -> io::Result<u64> {
    static PID_NS: OnceLock<u64> = OnceLock::new();
    if let Some(known) = PID_NS.get() {
        return Ok(*known);
    }
    let inode = fs::metadata("/proc/self/ns/pid")?.ino();
    Ok(*PID_NS.get_or_init(|| inode))
}

/// The text of a file in `/proc` that is below a page: one read(2) gives it whole.
fn read_proc(path: &str) -> io::Result<String> {
    let mut text = vec![0; 4096];
    let length = fs::File::open(path)?.read(&mut text)?;
    text.truncate(length);
    String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_process_is_alive_and_its_like_is_not() {
        let me = Owner::current().unwrap();
        assert_eq!(me.liveness(), Liveness::Alive);
        // The pid was reused: same pid, other start time.
        let earlier = Owner {
            start_time: me.start_time.map(|t| t - 1),
            ..me.clone()
        };
        assert_eq!(earlier.liveness(), Liveness::Gone);
        let before_reboot = Owner {
            boot_id: Some("00000000-0000-0000-0000-000000000000".to_owned()),
            ..me.clone()
        };
        assert_eq!(before_reboot.liveness(), Liveness::Gone);
        let elsewhere = Owner {
            pid_ns: Some(1),
            ..me.clone()
        };
        assert_eq!(elsewhere.liveness(), Liveness::Unknown);
    }

    #[test]
    fn a_pid_alone_proves_only_absence() {
        let pid_only = |pid| Owner {
            pid,
            boot_id: None,
            start_time: None,
            pid_ns: None,
            keeper: None,
        };
        assert_eq!(pid_only(std::process::id()).liveness(), Liveness::Unknown);
        assert_eq!(pid_only(0).liveness(), Liveness::Unknown);
        assert_eq!(pid_only(u32::MAX).liveness(), Liveness::Unknown);
        // Above the largest pid that the kernel gives, PID_MAX_LIMIT.
        assert_eq!(pid_only(1 << 30).liveness(), Liveness::Gone);
    }

    #[test]
    fn a_zombie_is_gone_unless_threads_are_left() {
        let owner = Owner {
            pid: 7,
            boot_id: None,
            start_time: Some(9),
            pid_ns: None,
            keeper: None,
        };
        let stat = |state, threads| {
            Ok(Some(Stat {
                state,
                threads,
                start_time: 9,
            }))
        };
        assert_eq!(owner.compare(stat('Z', 1)), Liveness::Gone);
        assert_eq!(owner.compare(stat('Z', 2)), Liveness::Alive);
        assert_eq!(owner.compare(stat('T', 1)), Liveness::Alive);
    }

    #[test]
    fn a_command_name_cannot_forge_the_fields() {
        let text = "7 (a) Z 1 (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 3 18 99 20";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.threads, stat.start_time), ('S', 3, 99));
    }
}
