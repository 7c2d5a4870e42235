//! What keeps an ordinary user from having namespaces, by name and with the remedy.

use std::{fmt, fs, io};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What the kernel was asked for when it refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedStep {
    /// A user namespace.
    User,
    /// That the user be its root.
    Map,
    /// A mount namespace.
    Mount,
    /// A network namespace.
    Network,
    /// A file system over `/run`, and in it what was there.
    Run,
    /// To go into namespaces that are there.
    Join,
    /// To take away what is mounted.
    Unmount,
    /// Settings of a namespace, below `/proc/sys/net`.
    Settings,
    /// The keeper's own files.
    Files,
}

impl fmt::Display for RefusedStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "make a user namespace",
            Self::Map => "become root of a user namespace",
            Self::Mount => "make a mount namespace",
            Self::Network => "make a network namespace",
            Self::Run => "make a private /run",
            Self::Join => "go into namespaces that are there",
            Self::Unmount => "unmount anything",
            Self::Settings => "change the settings of a network namespace",
            Self::Files => "write the keeper's files",
        })
    }
}

/// Something that a keeper needs was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("cannot {step}: {}{}", io::Error::from_raw_os_error(*.errno), remedy_text(.remedy.as_deref()))]
pub struct Obstacle {
    /// What was asked for.
    pub step: RefusedStep,
    /// The kernel's answer.
    pub errno: i32,
    /// What stands in the way, and what to do, where that is known.
    pub remedy: Option<String>,
}

fn remedy_text(remedy: Option<&str>) -> String {
    remedy.map(|text| format!("; {text}")).unwrap_or_default()
}

impl Obstacle {
    /// Finds out, from what the system says of itself, why `step` was refused.
    pub(super) fn new(step: RefusedStep, error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let remedy = remedy(step, errno, &|path| fs::read_to_string(path).ok());
        Self {
            step,
            errno,
            remedy: remedy.map(str::to_owned),
        }
    }
}

const NO_USER_NAMESPACES: &str = "this kernel has no user namespaces (CONFIG_USER_NS): run as root";
const MAX_USER: &str = "user.max_user_namespaces does not allow another: \
     sysctl user.max_user_namespaces=15000";
const MAX_MOUNT: &str = "user.max_mnt_namespaces does not allow another: \
     sysctl user.max_mnt_namespaces=15000";
const MAX_NETWORK: &str = "user.max_net_namespaces does not allow another: \
     sysctl user.max_net_namespaces=15000";
const DEBIAN: &str =
    "kernel.unprivileged_userns_clone is 0: sysctl kernel.unprivileged_userns_clone=1";
const UBUNTU: &str = "AppArmor restricts user namespaces (as Ubuntu does from 23.10 on): a profile \
     with `userns,` for tsim in /etc/apparmor.d, or \
     sysctl kernel.apparmor_restrict_unprivileged_userns=0";
const SECCOMP: &str = "a seccomp filter is in force, probably a container's: run the container with \
     a profile that allows unshare, setns, mount and umount2 (--security-opt seccomp=unconfined)";
const CONFINED: &str = "a security module confines this process, probably a container's: \
     run the container with --security-opt apparmor=unconfined or label=disable";
const CHROOT: &str = "if this process is in a chroot(2), it may not";
const PROC: &str = "/proc/sys is read-only here, as container engines make it: \
     run the container with --security-opt systempaths=unconfined (docker) or --security-opt \
     unmask=ALL (podman)";

/// `read` reads a file of `/proc`, none where there is none.
fn remedy(
    step: RefusedStep,
    errno: i32,
    read: &dyn Fn(&str) -> Option<String>,
) -> Option<&'static str> {
    let value = |path: &str| read(path).map(|text| text.trim().to_owned());
    let is = |path: &str, wanted: &str| value(path).as_deref() == Some(wanted);
    match (step, errno) {
        (RefusedStep::Files, _) => return None,
        (RefusedStep::User, libc::ENOSPC | libc::EUSERS) => return Some(MAX_USER),
        (RefusedStep::Mount, libc::ENOSPC | libc::EUSERS) => return Some(MAX_MOUNT),
        (RefusedStep::Network, libc::ENOSPC | libc::EUSERS) => return Some(MAX_NETWORK),
        (RefusedStep::User, libc::EINVAL) => return Some(NO_USER_NAMESPACES),
        (RefusedStep::Settings, libc::EROFS) => return Some(PROC),
        _ => {}
    }
    // Both are about who makes a user namespace, which whoever joins one does not.
    if step != RefusedStep::Join {
        if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
            return Some(DEBIAN);
        }
        // Ubuntu's restriction lets the namespace be made, and denies everything in it.
        if is(
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
        ) {
            return Some(UBUNTU);
        }
    }
    let status = value("/proc/self/status").unwrap_or_default();
    // proc_pid_status(5): 2 is a filter.
    let filtered = status.lines().any(|line| {
        let mode = line.strip_prefix("Seccomp:");
        mode.is_some_and(|mode| mode.trim() == "2")
    });
    if filtered {
        return Some(SECCOMP);
    }
    match value("/proc/self/attr/current").as_deref() {
        None | Some("" | "unconfined" | "kernel") => {}
        Some(_) => return Some(CONFINED),
    }
    (step == RefusedStep::User && errno == libc::EPERM).then_some(CHROOT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(step: RefusedStep, errno: i32, files: &[(&str, &str)]) -> Option<&'static str> {
        remedy(step, errno, &|path| {
            let file = files.iter().find(|(name, _)| path.ends_with(name));
            file.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn each_restriction_is_called_by_its_name() {
        let debian = [("unprivileged_userns_clone", "0\n")];
        let ubuntu = [("apparmor_restrict_unprivileged_userns", "1\n")];
        let container = [("status", "Name:\ttsim\nSeccomp:\t2\nSeccomp_filters:\t1\n")];
        let selinux = [("attr/current", "system_u:system_r:container_t:s0\0")];
        for (step, errno, files, want) in [
            (
                RefusedStep::User,
                libc::ENOSPC,
                &[][..],
                "max_user_namespaces=",
            ),
            (
                RefusedStep::Network,
                libc::ENOSPC,
                &[],
                "max_net_namespaces=",
            ),
            (RefusedStep::User, libc::EINVAL, &[], "CONFIG_USER_NS"),
            (
                RefusedStep::User,
                libc::EPERM,
                &debian,
                "unprivileged_userns_clone=1",
            ),
            (RefusedStep::Run, libc::EACCES, &ubuntu, "apparmor_restrict"),
            (
                RefusedStep::User,
                libc::EPERM,
                &container,
                "seccomp=unconfined",
            ),
            (
                RefusedStep::Join,
                libc::ENOSYS,
                &[debian[0], container[0]],
                "seccomp=unconfined",
            ),
            (RefusedStep::Run, libc::EACCES, &selinux, "label=disable"),
            (RefusedStep::Settings, libc::EROFS, &[], "systempaths"),
        ] {
            let text = with(step, errno, files).unwrap();
            assert!(text.contains(want), "{step:?} {errno}: {text}");
        }
    }

    #[test]
    fn nothing_is_made_up() {
        let free = [
            ("unprivileged_userns_clone", "1"),
            ("apparmor_restrict_unprivileged_userns", "0"),
            ("status", "Seccomp:\t0\n"),
            ("attr/current", "unconfined\n"),
        ];
        assert_eq!(with(RefusedStep::Run, libc::EIO, &free), None);
        let error = io::Error::from_raw_os_error(libc::ENOENT);
        let text = Obstacle::new(RefusedStep::Files, &error).to_string();
        assert!(
            text.starts_with("cannot write the keeper's files: No such file"),
            "{text}"
        );
    }
}
