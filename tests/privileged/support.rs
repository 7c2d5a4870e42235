//! What every privileged test uses: unique names, namespaces that go when the test ends, and a
//! look at whether anything was left behind.

use std::{
    fs,
    os::fd::AsRawFd,
    process::{self, Child},
    sync::atomic::{AtomicUsize, Ordering},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockType, bind, recv, setsockopt,
            sockopt::ReceiveTimeout,
        },
        time::TimeVal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tsim::{
    model::{IfName, LabName, NetnsName},
    netlink::Netlink,
    netns::{NetnsDir, NetnsFd},
};

/// The process id of a child, as nix takes it.
pub(crate) fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Returns when the child has stopped at the step that it was told to stop at.
pub(crate) fn await_stop(child: &Child) {
    let status = waitpid(pid(child), Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
}

/// A lab name that no other test and no other process has, nor begins with.
pub(crate) fn lab_name() -> LabName {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    LabName::new(format!("t{}x{number:04}", process::id())).unwrap()
}

pub(crate) fn ifname(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

/// Namespaces under one lab name; all of that name are deleted in the end, and the test fails if
/// the kernel does not let one go.
pub(crate) struct Bed {
    pub(crate) dir: NetnsDir,
    pub(crate) lab: LabName,
}

impl Bed {
    pub(crate) fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "privileged tests must run as root"
        );
        Self {
            dir: NetnsDir::default(),
            lab: lab_name(),
        }
    }

    /// The full name of the namespace `name` of this test.
    pub(crate) fn name(&self, name: &str) -> NetnsName {
        NetnsName::new(format!("{}.{name}", self.lab)).unwrap()
    }

    pub(crate) fn netns(&self, name: &str) -> NetnsFd {
        self.dir.create(&self.name(name)).unwrap()
    }

    /// The namespaces of this test that exist.
    pub(crate) fn left(&self) -> Vec<NetnsName> {
        let mine = |name: &NetnsName| {
            let rest = name.as_str().strip_prefix(self.lab.as_str());
            rest.is_some_and(|rest| rest.starts_with(['.', '@', ':']))
        };
        let all = self.dir.list().unwrap();
        all.into_iter().filter(mine).collect()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // A second panic would end all tests. What the first one was about may be in the way.
        if std::thread::panicking() && self.dir.list().is_err() {
            return;
        }
        let errors: Vec<String> = self
            .left()
            .iter()
            .filter_map(|name| self.dir.delete(name).err())
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty() || std::thread::panicking(), "{errors:?}");
    }
}

/// The mounts whose mount point contains `text`.
pub(crate) fn mounts(text: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let point = |line: &str| line.split(' ').nth(4).unwrap_or_default().to_owned();
    let points = table.lines().map(point);
    points.filter(|point| point.contains(text)).collect()
}

/// Waits until `netns` has the links `want`, as [`await_links_that`] does.
pub(crate) fn await_links(netns: &NetnsFd, want: &[IfName]) {
    await_links_that(netns, &format!("{want:?}"), |have| have == want);
}

/// Waits until the links of `netns` are as wanted, at most ten seconds after the last change there: the
/// kernel frees what was in a deleted namespace by itself.
pub(crate) fn await_links_that(netns: &NetnsFd, want: &str, are: impl Fn(&[IfName]) -> bool) {
    let events = netns
        .socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::empty(),
            None,
        )
        .unwrap();
    let links = u32::try_from(libc::RTMGRP_LINK).unwrap();
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, links)).unwrap();
    setsockopt(&events, ReceiveTimeout, &TimeVal::new(10, 0)).unwrap();
    let mut netlink = Netlink::open(netns).unwrap();
    loop {
        // Only names: the rest of a link's state may lag behind (linkwatch).
        let have: Vec<IfName> = netlink
            .links()
            .unwrap()
            .into_iter()
            .map(|l| l.name)
            .collect();
        if are(&have) {
            return;
        }
        let event = recv(events.as_raw_fd(), &mut [0; 8192], MsgFlags::empty());
        // ENOBUFS: there were more events than the socket could keep. EINTR: a signal to the process,
        // such as glibc's when another test's thread changes its user, came to this thread.
        let missed = matches!(event, Err(Errno::ENOBUFS | Errno::EINTR));
        assert!(
            event.is_ok() || missed,
            "{event:?}; {have:?} instead of {want}"
        );
    }
}
