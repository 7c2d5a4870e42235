//! Waiting in a tokio task until a descriptor is readable, or otherwise ready.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use tokio::io::{
    Interest,
    unix::{AsyncFd, AsyncFdReadyGuard},
};

/// A descriptor that tasks wait for; closed when dropped.
#[derive(Debug)]
pub struct Readable(AsyncFd<OwnedFd>);

impl Readable {
    /// Registers `fd` with the runtime that this is called in.
    ///
    /// # Errors
    /// When epoll(7) does not take the descriptor.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Self::with_interest(fd, Interest::READABLE)
    }

    /// As [`Readable::new`], for other events.
    ///
    /// # Errors
    /// As [`Readable::new`].
    pub fn with_interest(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        // SAFETY: the AsyncFd owns the only handle of this OwnedFd, which always names the same
        // descriptor and closes it only when dropped, after the AsyncFd deregistered it. Nothing
        // here hands out the descriptor by value.
        let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
        Ok(Self(registered?))
    }

    /// Sleeps until one of the events of `interest` is there. Drop the guard to keep the
    /// readiness, or clear it to sleep until the next event.
    ///
    /// # Errors
    /// When the runtime shuts down.
    pub async fn ready(&self, interest: Interest) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.0.ready(interest).await
    }

    /// Sleeps until the descriptor is readable, and stays so.
    ///
    /// # Errors
    /// When the runtime shuts down.
    pub async fn wait(&self) -> io::Result<()> {
        // Dropping the guard keeps the readiness: what is readable once is so for ever.
        self.0.readable().await.map(drop)
    }

    /// Sleeps until the descriptor becomes readable: what was readable before this was last
    /// called must have been read.
    ///
    /// # Errors
    /// When the runtime shuts down.
    pub async fn wait_anew(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        ready.clear_ready();
        Ok(())
    }

    /// Sleeps until `read` no longer fails with `EAGAIN`, and returns what it did.
    ///
    /// # Errors
    /// What `read` fails with, or when the runtime shuts down.
    pub async fn read<T>(&self, mut read: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            let mut ready = self.0.readable().await?;
            // Would block: the guard forgets the readiness, and the next turn sleeps again.
            if let Ok(done) = ready.try_io(|_| read()) {
                return done;
            }
        }
    }
}

impl AsFd for Readable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
