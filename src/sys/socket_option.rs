//! Options of sockets that neither nix nor rustix has: those of iptables-legacy, and the cookie of a
//! namespace.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// `SO_NETNS_COOKIE`, asm-generic/socket.h, since Linux 5.14.
const NETNS_COOKIE: libc::c_int = 71;

/// The number of the network namespace that a socket belongs to. The kernel gives no number twice
/// until it boots, other than that of the namespace's inode.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 5.14.
pub fn netns_cookie(socket: &impl AsFd) -> io::Result<u64> {
    let mut cookie = [0; 8];
    get(socket, libc::SOL_SOCKET, NETNS_COOKIE, &mut cookie)?;
    Ok(u64::from_ne_bytes(cookie))
}

/// Reads an option into `bytes`, whose length the kernel checks.
///
/// # Errors
/// What getsockopt(2) says.
pub(super) fn get(
    socket: &impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    bytes: &mut [u8],
) -> io::Result<()> {
    let mut length = bytes.len() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `bytes` is writable memory of `length` bytes, borrowed for the length of the call, and
    // the kernel writes no more than that many.
    let result = unsafe {
        libc::getsockopt(
            fd,
            level,
            option,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
