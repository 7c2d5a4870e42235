//! Ending a process whose sockets take long to close.
//!
//! Closing a netlink socket that owned a table waits until the kernel has settled its removal, 8 to
//! 16 ms, though nothing is left to do: a whole quick job takes less. A process that exits closes
//! what it has open before its parent learns of the end. So the last descriptors are left to a
//! child that does nothing but close them, when others close theirs, and end.
#![allow(unsafe_code)]

use std::{
    os::fd::{AsRawFd, RawFd},
    process,
};

use nix::unistd::close;
use rustix::process::{PidfdFlags, getpid, pidfd_open};

/// What the child runs on: it calls a few functions of the C library.
const STACK: usize = 64 << 10;

/// Ends this process with `code`, at once. What it has open is closed a moment later, by a child
/// that first lets go of standard input, output and error, so that nobody waits for it there.
///
/// Call this when every lock is free and everything is undone: to others, the descriptors are
/// open for as long as the child takes. If there can be no child, this process closes them.
pub fn exit_leaving_descriptors(code: i32) -> ! {
    // Of two processes that have a socket open, the last one to close it waits. So the child stays
    // until this process has closed everything, which its pidfd tells (pidfd_open(2), Linux 5.3).
    if let Ok(parent) = pidfd_open(getpid(), PidfdFlags::empty()) {
        // Never freed: the child is on it when this function is long left.
        let stack = Vec::leak(vec![0_u128; STACK / size_of::<u128>()]);
        let top = stack.as_mut_ptr_range().end;
        let pidfd = std::ptr::without_provenance_mut(parent.as_raw_fd() as usize);
        // SAFETY: the stack is the child's alone, and grows down from its end, which is aligned. The child
        // has the same memory and descriptors of its own, so that no page table is copied: that took longer
        // than all that this process does at its end. Both go on side by side: the child calls nothing but
        // close(2), poll(2), clock_gettime(2) and _exit(2), which are async-signal-safe (signal-safety(7)),
        // take no lock and use nothing of this thread's but errno, which nobody reads from here on; and the
        // memory stays until both have ended. Should this fail, nobody is on the stack.
        unsafe { libc::clone(outlive, top.cast(), libc::CLONE_VM | libc::SIGCHLD, pidfd) };
    }
    process::exit(code)
}

/// Waits until the process that `pidfd`, a number, stands for has ended and others close their sockets, too, and
/// ends.
extern "C" fn outlive(pidfd: *mut libc::c_void) -> i32 {
    for standard in 0..3 {
        // It may have been closed before.
        let _ = close(standard);
    }
    let mut ended = libc::pollfd {
        fd: pidfd.addr() as RawFd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one descriptor is announced, and there is one. An error ends the wait early, which
    // only means that the parent may have to wait.
    unsafe { libc::poll(&raw mut ended, 1, -1) };
    wait_for_others();
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(0) }
}

/// How often processes close what was left to them, in milliseconds; a part of a second.
const TICK_MS: libc::c_long = 250;

/// Waits until the next moment at which all such processes close what they have.
///
/// Closing a netfilter socket, the kernel holds the lock of the namespace's rulesets until what was removed
/// before is settled, and other jobs on the router wait with their transactions. It has nothing to settle
/// where that is some time ago, or where another one that closes has just waited for it: so all close
/// at once, and seldom.
fn wait_for_others() {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the time is written into `now`; an error leaves the beginning of a second there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let past = now.tv_nsec / 1_000_000 % TICK_MS;
    // SAFETY: no descriptor is announced and there is none: poll(2) is a sleep that signal-safety(7) has. A
    // signal ends it early, which only costs others time.
    unsafe { libc::poll(std::ptr::null_mut(), 0, (TICK_MS - past) as i32) };
}
