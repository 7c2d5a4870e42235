//! What the kernel holds of a table of iptables-legacy, as bytes.

use std::{io, os::fd::AsFd};

use super::socket_option::get;

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`, linux/netfilter_ipv4/ip_tables.h; those of
/// ip6_tables are the same, below `SOL_IPV6`.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// Where the entries begin behind name and size in `struct ipt_get_entries`, aligned as they are.
const ENTRIES: usize = 40;
/// More than a table may have here.
const MOST: u32 = 64 << 20;

/// Length of `struct ipt_getinfo` and `struct ip6t_getinfo`: the name, twelve numbers, and last the
/// size of the entries.
const INFO: usize = 32 + 13 * 4;

/// The entries of a table, behind what the kernel was told to find them by.
#[derive(Debug)]
pub struct Entries(Vec<u8>);

impl Entries {
    /// The entries alone, one behind the other.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.0.get_mut(ENTRIES..).unwrap_or_default()
    }
}

/// The entries of the table `name` as ip_tables or ip6_tables (`v6`) hand them out, through a raw
/// socket in the namespace that is asked; none where it changed meanwhile.
///
/// # Errors
/// When the kernel has no such table, or refuses.
pub fn entries(socket: &impl AsFd, v6: bool, name: &str) -> io::Result<Option<Entries>> {
    let level = if v6 { libc::SOL_IPV6 } else { libc::SOL_IP };
    let mut title = [0; 32];
    let end = title.len() - 1;
    for (to, from) in title.iter_mut().take(end).zip(name.bytes()) {
        *to = from;
    }
    let mut info = vec![0; INFO];
    info[..title.len()].copy_from_slice(&title);
    get(socket, level, GET_INFO, &mut info)?;
    // The size is the last number.
    let size = info
        .last_chunk::<4>()
        .copied()
        .map_or(0, u32::from_ne_bytes);
    if size > MOST {
        return Ok(None);
    }
    let mut bytes = vec![0; ENTRIES + size as usize];
    bytes[..title.len()].copy_from_slice(&title);
    bytes[title.len()..title.len() + 4].copy_from_slice(&size.to_ne_bytes());
    match get(socket, level, GET_ENTRIES, &mut bytes) {
        Ok(()) => Ok(Some(Entries(bytes))),
        // Another size by now.
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(None),
        Err(error) => Err(error),
    }
}
