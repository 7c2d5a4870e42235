//! Ending a process whose sockets take long to close.
//!
//! Closing a netlink socket that owned a table waits until the kernel has settled its removal, 8 to
//! 16 ms, though nothing is left to do: a whole quick job takes less. A process that exits closes
//! what it has open before its parent learns of the end. So the last descriptors are left to a
//! child that does nothing but close them and end.
#![allow(unsafe_code)]

use std::process;

use nix::unistd::{ForkResult, close, fork};

/// Ends this process with `code`, at once. What it has open is closed a moment later, by a child
/// that first lets go of standard input, output and error, so that nobody waits for it there.
///
/// Call this when every lock is free and everything is undone: to others, the descriptors are
/// open for as long as the child takes. If there can be no child, this process closes them.
pub fn exit_leaving_descriptors(code: i32) -> ! {
    // SAFETY: other threads may hold any lock at this moment, also that of the allocator. The
    // child calls nothing but close(2) and _exit(2), which are async-signal-safe
    // (signal-safety(7)).
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            for standard in 0..3 {
                // It may have been closed before.
                let _ = close(standard);
            }
            // SAFETY: ends the process without running anything of it.
            unsafe { libc::_exit(0) }
        }
        Ok(ForkResult::Parent { .. }) | Err(_) => process::exit(code),
    }
}
