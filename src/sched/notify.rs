//! Tells systemd how the service does, sd_notify(3): a datagram to the socket that systemd names
//! in `NOTIFY_SOCKET`, which is its protocol. Without systemd nothing happens.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// Sends `state`, e.g. `READY=1`. A service manager that does not listen is not our concern; it
/// is logged.
pub fn notify(state: &str) {
    let Some(name) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(name.as_bytes(), state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

fn send(name: &[u8], state: &str) -> io::Result<()> {
    let address = match name.split_first() {
        // An abstract name, unix(7).
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_socket_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let abstract_name = format!("tsim-test-{}", std::process::id());
        let sockets = [
            (
                path.as_os_str().as_bytes().to_vec(),
                UnixDatagram::bind(&path).unwrap(),
            ),
            (
                format!("@{abstract_name}").into_bytes(),
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(abstract_name).unwrap())
                    .unwrap(),
            ),
        ];
        for (name, socket) in sockets {
            send(&name, "READY=1").unwrap();
            let mut text = [0; 64];
            let count = socket.recv(&mut text).unwrap();
            assert_eq!(&text[..count], b"READY=1");
        }
        assert!(send(b"/nonexistent/s", "READY=1").is_err());
    }
}
