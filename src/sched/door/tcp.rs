//! Whose a TCP connection from this machine is, as /proc/net/tcp has it (proc_pid_net(5)).
//!
//! This counts connections and requests by user, so that one cannot use up the others'; no right
//! hangs on it.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
};

/// A connection that both ends still have. Of others the kernel shows root as the owner.
const ESTABLISHED: &str = "01";

/// The user at the other end; none when that is not on this machine, or is gone.
pub(super) fn owner(connection: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let here = SocketAddr::try_from(rustix::net::getsockname(connection)?)?;
    let Some(there) = rustix::net::getpeername(connection)? else {
        return Ok(None);
    };
    let there = SocketAddr::try_from(there)?;
    if !there.ip().is_loopback() {
        return Ok(None);
    }
    let table = match there {
        SocketAddr::V4(_) => "/proc/thread-self/net/tcp",
        SocketAddr::V6(_) => "/proc/thread-self/net/tcp6",
    };
    find(BufReader::new(File::open(table)?), there, here)
}

/// The other end's own socket is the one whose local address is `local`.
fn find(table: impl BufRead, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let (local, remote) = (written(local), written(remote));
    for line in table.lines() {
        let line = line?;
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        if let [_, from, to, state, _, _, _, uid, ..] = fields.as_slice()
            && (*from, *to, *state) == (&local, &remote, ESTABLISHED)
        {
            return Ok(uid.parse().ok());
        }
    }
    Ok(None)
}

/// As the table has an address: words of 32 bits as they lie in memory, in hexadecimal.
fn written(address: SocketAddr) -> String {
    let bytes = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (words, _) = bytes.as_chunks::<4>();
    let words = words.iter().map(|word| u32::from_ne_bytes(*word));
    let words: String = words.map(|word| format!("{word:08X}")).collect();
    format!("{words}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::fd::AsFd,
    };

    use super::*;

    #[test]
    fn connections_of_both_families_have_the_user_who_made_them() {
        let own = nix::unistd::geteuid().as_raw();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (connection, _) = listener.accept().unwrap();
            assert_eq!(owner(connection.as_fd()).unwrap(), Some(own), "{address}");
            drop(client);
            // Nobody's any more, which must not be taken for root's.
            assert_eq!(owner(connection.as_fd()).unwrap(), None, "{address}");
        }
    }
}
