//! Sockets to netfilter's subsystems, each under a port id drawn at random.
//!
//! The kernel's own choice of a port id, the process's id, will not do. When a socket closes, its
//! id is free before the subsystems remove what belongs to that id (`netlink_release()`), which
//! nf_tables does when it has its turn (`nft_rcv_nl_event()`) and nfnetlink_log alike. A socket that
//! got the same id meanwhile loses its owner tables, or its log group.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;

/// How many port ids are tried: one in a thousand million is taken.
const ATTEMPTS: u32 = 8;

/// Opens a socket in the calling thread's network namespace.
pub(crate) fn open_here() -> io::Result<Socket> {
    bind(Socket::new(NETLINK_NETFILTER)?, 0)
}

/// Opens one that hears of what a multicast group is told, below 32, and does with it what `prepare` needs to be
/// done before.
pub(super) fn listen_here(
    group: u32,
    prepare: impl FnOnce(&Socket) -> io::Result<()>,
) -> io::Result<Socket> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    prepare(&socket)?;
    bind(socket, 1 << (group - 1))
}

fn bind(mut socket: Socket, groups: u32) -> io::Result<Socket> {
    let mut taken = io::Error::from(Errno::EADDRINUSE);
    for _ in 0..ATTEMPTS {
        match socket.bind(&SocketAddr::new(random_port()?, groups)) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => taken = error,
            other => return other.map(|()| socket),
        }
    }
    Err(taken)
}

/// Opens one that talks to the kernel only.
pub(crate) fn connect_here() -> io::Result<Socket> {
    let socket = open_here()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// From 2^30 to 2^31: above every process id (2^22 at most), and below the ids that the kernel turns
/// to when a process's id is taken (netlink_autobind()).
fn random_port() -> io::Result<u32> {
    let random = getrandom::u32().map_err(|e| io::Error::other(e.to_string()))?;
    Ok(1 << 30 | random >> 2)
}
