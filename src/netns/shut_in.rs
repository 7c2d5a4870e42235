//! Shuts in the programs that load rulesets: they work for root on data from strangers.
//!
//! The work is done on a thread of its own, and what is taken from that thread is taken from the
//! programs that it starts:
//!
//! | what | how |
//! |---|---|
//! | a mount namespace | `/run` is a file system of its own (`xtables.lock` is there); names are looked up in files, and those are empty (nsswitch.conf(5), hosts(5)) |
//! | files | landlock(7), Linux 5.13: programs and libraries may be read and run, nothing written but `/run` and `/dev/null`; no TCP (6.7), no signals or abstract sockets to the outside (6.12) |
//! | capabilities(7) | all but `CAP_NET_ADMIN` and `CAP_NET_RAW`, for good |
//! | system calls | [`crate::sys::seccomp`], set by [`Tools::locked`](super::tool::Tools::locked): no new process, no socket but netlink and raw ones, no mount, no namespace |
//!
//! Landlock and seccomp are used where the kernel has them; `tsim doctor` says what is missing.
//! Nobody relies on them alone: only what a saved ruleset can contain reaches a loader at all.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Compatible, LandlockStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities,
    },
};
use thiserror::Error;

/// The newest version of Landlock that the rules below were written for, Linux 6.15.
const KNOWN: ABI = ABI::V7;

/// The version of Landlock that has all of what is used here that matters: it keeps signals and
/// abstract sockets inside, Linux 6.12.
pub const WANTED_LANDLOCK: i32 = 6;

/// What every program reads, beside the directories of the tools: libraries, and tables of names
/// that stand in rules (services, protocols, marks, connection labels).
const READ: [&str; 17] = [
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/bin",
    "/sbin",
    "/nix/store",
    "/gnu/store",
    "/proc",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/nsswitch.conf",
    "/etc/protocols",
    "/etc/services",
    "/etc/iproute2",
    "/etc/xtables",
    "/etc/ethertypes",
];

/// What may be written.
const WRITE: [&str; 2] = ["/run", "/dev/null"];

/// Where names are looked up, and what it says instead.
const NAMES: [(&str, &str); 3] = [
    ("/etc/nsswitch.conf", "hosts: files\n"),
    ("/etc/hosts", ""),
    ("/etc/resolv.conf", ""),
];

/// Work could not be shut in, and was not begun.
#[derive(Debug, Error)]
pub enum ShutInError {
    /// A system call failed.
    #[error("cannot {step} for the programs that load rulesets")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Landlock is there and refused the rules.
    #[error("cannot restrict the programs that load rulesets to their files")]
    Landlock(#[source] RulesetError),
    /// The work panicked.
    #[error("a thread that loads rulesets panicked")]
    Panicked,
}

fn step(step: &'static str) -> impl Fn(io::Error) -> ShutInError {
    move |source| ShutInError::Step { step, source }
}

/// Runs `work`, which starts programs in `tool_dirs`, shut in, in the network namespace of the
/// calling thread.
///
/// # Errors
/// [`ShutInError`] when something that this kernel has cannot be used.
pub fn shut_in<T: Send>(
    tool_dirs: &[PathBuf],
    work: impl FnOnce() -> T + Send,
) -> Result<T, ShutInError> {
    let named = || thread::Builder::new().name("loader".to_owned());
    thread::scope(|scope| {
        let inside = || {
            own_mounts()?;
            own_files(tool_dirs)?;
            few_capabilities().map_err(|errno| step("give up capabilities")(errno.into()))?;
            Ok(work())
        };
        let thread = named()
            .spawn_scoped(scope, inside)
            .map_err(step("start a thread"))?;
        thread.join().unwrap_or(Err(ShutInError::Panicked))
    })
}

/// The version of Landlock that the running kernel has; none where it has none.
#[must_use]
pub fn landlock_version() -> Option<i32> {
    let probe = || {
        let ruleset = Ruleset::default().handle_access(AccessFs::from_all(ABI::V1));
        let created = ruleset.and_then(Ruleset::create).ok()?;
        match created.restrict_self().ok()?.landlock {
            LandlockStatus::Available {
                effective_abi,
                kernel_abi,
            } => Some(kernel_abi.unwrap_or(effective_abi as i32)),
            _ => None,
        }
    };
    // The restriction stays with the thread.
    thread::spawn(probe).join().ok().flatten()
}

/// Leaves the calling thread in a mount namespace where `/run` is empty and no name is known.
fn own_mounts() -> Result<(), ShutInError> {
    let none = None::<&str>;
    let fail = |what: &'static str| move |errno: nix::Error| step(what)(errno.into());
    unshare(CloneFlags::CLONE_NEWNS).map_err(fail("make a mount namespace"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).map_err(fail("make mounts private"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = Some("mode=755,size=1m");
    mount(Some("tmpfs"), "/run", Some("tmpfs"), flags, options).map_err(fail("mount /run"))?;
    for (at, (file, content)) in NAMES.into_iter().enumerate() {
        let own = format!("/run/names.{at}");
        fs::write(&own, content).map_err(step("write a file in /run"))?;
        // resolv.conf may be a link to what was in /run.
        if Path::new(file).exists() {
            mount(Some(own.as_str()), file, none, MsFlags::MS_BIND, none)
                .map_err(fail("replace the files that names are looked up in"))?;
        }
    }
    Ok(())
}

/// Restricts the calling thread to the files that loading takes.
fn own_files(tool_dirs: &[PathBuf]) -> Result<(), ShutInError> {
    let run = AccessFs::from_read(KNOWN);
    let write = AccessFs::from_all(KNOWN) & !BitFlags::from(AccessFs::Execute);
    // Not as configured: a link among them may lead into /run, which is another here.
    let dirs = tool_dirs.iter().filter_map(|dir| dir.canonicalize().ok());
    let restrict = || {
        Ruleset::default()
            .set_compatibility(landlock::CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(KNOWN))?
            .handle_access(AccessNet::from_all(KNOWN))?
            .scope(Scope::from_all(KNOWN))?
            .create()?
            .add_rules(path_beneath_rules(READ, run))?
            .add_rules(path_beneath_rules(dirs, run))?
            .add_rules(path_beneath_rules(WRITE, write))?
            .restrict_self()
    };
    restrict().map(drop).map_err(ShutInError::Landlock)
}

/// Takes all capabilities from the calling thread, and from what it starts, but those that the
/// kernel asks for when it is given rules.
fn few_capabilities() -> Result<(), Errno> {
    let kept = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW;
    for capability in CapabilitySet::all().difference(kept).iter() {
        match remove_capability_from_bounding_set(capability) {
            // An older kernel has fewer.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno),
    }
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets)
}
