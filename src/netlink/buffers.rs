//! How much a socket may hold, in root's namespace and in a user's.
//!
//! `SO_SNDBUFFORCE` and `SO_RCVBUFFORCE` ask for `CAP_NET_ADMIN` in the first user namespace
//! (`sk_setsockopt()` in net/core/sock.c). Who lacks it gets what `net.core.wmem_max` and `rmem_max`
//! allow, 212,992 bytes by default, doubled like every such value. Nobody is told how much that is,
//! so the socket itself is asked then: whoever fills a buffer goes by what these functions return.

use std::{
    io,
    os::fd::AsFd,
    sync::atomic::{AtomicUsize, Ordering},
};

use nix::{
    errno::Errno,
    sys::socket::{getsockopt, setsockopt, sockopt},
};

/// What the kernel adds to a buffer's bookkeeping for one message (`netlink_sendmsg()` takes at
/// most `sk_sndbuf - 32` bytes).
const OVERHEAD: usize = 32;

/// The most that this process asks for; tests set it, to be like a user on any machine.
static MOST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// From now on no socket of this process gets more than `bytes`, before the kernel doubles it, and
/// none asks for more than an ordinary user may have.
pub fn limit(bytes: usize) {
    MOST.store(bytes, Ordering::Relaxed);
}

/// Asks for a send buffer of `bytes`, which the kernel doubles; returns the most bytes that one
/// call can send.
///
/// # Errors
/// When the kernel knows no such option.
pub(crate) fn send(socket: &impl AsFd, bytes: usize) -> io::Result<usize> {
    let most = MOST.load(Ordering::Relaxed);
    let forced = match most {
        usize::MAX => setsockopt(socket, sockopt::SndBufForce, &bytes),
        _ => Err(Errno::EPERM),
    };
    if forced == Err(Errno::EPERM) {
        setsockopt(socket, sockopt::SndBuf, &bytes.min(most))?;
        return Ok(getsockopt(socket, sockopt::SndBuf)?.saturating_sub(OVERHEAD));
    }
    forced?;
    Ok(doubled(bytes).saturating_sub(OVERHEAD))
}

/// Asks for a receive buffer of `bytes`, which the kernel doubles; returns what it holds, in the
/// kernel's way of counting, which is by whole allocations.
///
/// # Errors
/// When the kernel knows no such option.
pub(crate) fn receive(socket: &impl AsFd, bytes: usize) -> io::Result<usize> {
    let most = MOST.load(Ordering::Relaxed);
    let forced = match most {
        usize::MAX => setsockopt(socket, sockopt::RcvBufForce, &bytes),
        _ => Err(Errno::EPERM),
    };
    if forced == Err(Errno::EPERM) {
        setsockopt(socket, sockopt::RcvBuf, &bytes.min(most))?;
        return Ok(getsockopt(socket, sockopt::RcvBuf)?);
    }
    forced?;
    Ok(doubled(bytes))
}

/// What the kernel makes of a value that it takes as it is, `__sock_set_rcvbuf()`.
fn doubled(bytes: usize) -> usize {
    bytes.saturating_mul(2)
}
