//! Processes that go on with this program's code, without exec(2).
#![allow(unsafe_code)]

use std::{fs, io, marker::PhantomData};

use nix::unistd::{ForkResult, fork};
use rustix::process::Pid;

/// The only thread of its process: who holds this starts no other.
#[derive(Debug)]
pub struct OnlyThread(PhantomData<*const ()>);

/// Which of the two processes goes on here.
#[derive(Debug)]
pub enum Forked {
    /// The one that forked, with the child's number.
    Parent(Pid),
    /// The child.
    Child,
}

impl OnlyThread {
    /// Call it first thing in a process that starts no thread.
    ///
    /// # Errors
    /// When there is another thread already, or `/proc` does not tell.
    pub fn claim() -> io::Result<Self> {
        match fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(Self(PhantomData)),
            _ => Err(io::Error::other("the process has more than one thread")),
        }
    }

    /// Starts a child that goes on from here, fork(2), with all that this process has in memory and
    /// open.
    ///
    /// # Errors
    /// When the system has no room for another process.
    pub fn fork(&self) -> io::Result<Forked> {
        // SAFETY: what makes fork(2) dangerous is another thread, which the child would lack: a lock
        // that it holds would be held for ever. There is none, by `claim`, so the child may do
        // whatever this process may, starting threads included.
        let forked = unsafe { fork() }?;
        Ok(match forked {
            ForkResult::Child => Forked::Child,
            ForkResult::Parent { child } => {
                let pid = Pid::from_raw(child.as_raw());
                Forked::Parent(pid.ok_or(io::ErrorKind::InvalidData)?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_many_threads_is_not_forked() {
        // The test's thread is one beside the harness's.
        assert!(OnlyThread::claim().is_err());
    }
}
