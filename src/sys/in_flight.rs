//! Waiting until what a socket has sent was taken in by the next IP layer on its way.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    thread,
    time::{Duration, Instant},
};

/// Without progress for so long, and in so many looks, packets are taken to be held, by the source's
/// own ARP for example. A virtual machine may stand still for longer than that: then the time is
/// over after a look or two, and nobody had the processor meanwhile.
const PATIENCE: Duration = Duration::from_millis(500);
const LOOKS: u32 = 300;
/// There is no event for an empty send buffer: poll(2) tells of one that is half empty.
const PAUSE: Duration = Duration::from_micros(100);

/// Waits until every packet that was sent through `socket`, a raw one, was worked through by the
/// IP layer that it came to, or lost on the way.
///
/// Usually that is so when sendmmsg(2) returns: the sending thread carries packets through all
/// namespaces itself. But the kernel leaves them to ksoftirqd when there are many (`MAX_SOFTIRQ_TIME`
/// in kernel/softirq.c), or to another processor (RPS). They count as unsent until `ip_rcv_core()`
/// takes them in.
pub fn wait(socket: BorrowedFd<'_>) {
    let Ok(mut left @ 1..) = unsent(socket) else {
        return;
    };
    let (mut progress, mut looks) = (Instant::now(), 0);
    while left > 0 && (progress.elapsed() < PATIENCE || looks < LOOKS) {
        thread::sleep(PAUSE);
        looks += 1;
        match unsent(socket) {
            Ok(now) if now < left => (left, progress, looks) = (now, Instant::now(), 0),
            Ok(_) => {}
            Err(_) => return,
        }
    }
    wait_for_processors();
}

/// Bytes that the socket is charged for, with the kernel's overhead: `SIOCOUTQ`, raw(7).
fn unsent(socket: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int to where the third argument points.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    nix::errno::Errno::result(result)?;
    Ok(bytes)
}

/// Waits until every processor has ended what it was about with a packet, which it does as a
/// reader of RCU: that is what membarrier(2)'s `GLOBAL` waits for.
fn wait_for_processors() {
    // SAFETY: takes no pointer. It fails where the kernel does not have it, which is as well as
    // nothing: there is no other way.
    let _ = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
}
