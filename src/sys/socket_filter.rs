//! Filters of sockets, in the kernel: classic BPF, as socket(7) has it under `SO_ATTACH_FILTER`.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use libc::{BPF_ABS, BPF_B, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, sock_filter, sock_fprog};

/// Bytes of a datagram, each with its offset.
pub type Pattern = Vec<(u32, u8)>;

/// Keeps datagrams that have all bytes of one of `patterns` from the socket: they take none of its room. One that
/// is too short to be compared is kept out as well, as the kernel ends a filter that reads beyond
/// the end.
///
/// # Errors
/// When the kernel refuses the filter, for one with more than 4,096 instructions.
pub fn keep_out(socket: &impl AsFd, patterns: &[Pattern]) -> io::Result<()> {
    let mut program = compile(patterns);
    let program = sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies as many instructions as `len` says, and there are so many; the
    // vector lives until the end of this function.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<sock_fprog>() as libc::socklen_t,
        )
    };
    nix::errno::Errno::result(result)?;
    Ok(())
}

/// Per pattern: load and compare byte after byte, go on with the next pattern where one differs, and
/// let nothing through where none does.
fn compile(patterns: &[Pattern]) -> Vec<sock_filter> {
    let mut program = Vec::new();
    for pattern in patterns {
        for (at, (offset, byte)) in pattern.iter().enumerate() {
            // Two instructions for each byte that is left, and the return.
            let behind = 2 * (pattern.len() - at - 1) + 1;
            let differs = u8::try_from(behind).unwrap_or(u8::MAX);
            program.push(instruction(BPF_LD | BPF_B | BPF_ABS, *offset, 0));
            let compare = BPF_JMP | BPF_JEQ | BPF_K;
            program.push(instruction(compare, u32::from(*byte), differs));
        }
        program.push(instruction(BPF_RET | BPF_K, 0, 0));
    }
    program.push(instruction(BPF_RET | BPF_K, u32::MAX, 0));
    program
}

/// One instruction; `jf` is how many it skips where a comparison fails.
fn instruction(code: u32, k: u32, jf: u8) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn only_what_fits_a_whole_pattern_is_kept_out() {
        let (near, far) = UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let patterns = [
            vec![(0, b'a'), (1, b'b'), (2, b'c')],
            vec![(1, b'w'), (4, b'z')],
        ];
        keep_out(&near, &patterns).unwrap();
        for text in ["abc..", "abd..", "vw..z", "zyxwv", "vwxya"] {
            // A datagram that is kept out is an error to a sender on the same machine.
            let _ = far.send(text.as_bytes());
        }
        let mut got = Vec::new();
        let mut room = [0; 16];
        while let Ok(length) = near.recv(&mut room) {
            got.push(String::from_utf8_lossy(&room[..length]).into_owned());
        }
        assert_eq!(got, ["abd..", "zyxwv", "vwxya"]);
    }
}
