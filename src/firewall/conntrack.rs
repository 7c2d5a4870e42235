//! Forgetting connections: entries and expectations of a namespace's connection tracking, by
//! ctnetlink (linux/netfilter/nfnetlink_conntrack.h).
//!
//! What is to go is named as the kernel itself named it in a dump, by tuple, zone and id: a tuple
//! alone means the entry of zone 0, and says ENOENT where the entry is in another one.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
};

use netlink_sys::Socket;

use super::nft::wire::{Attributes, HEADER, Messages, WireMessage, append, array};
use crate::{
    firewall::netfilter_socket,
    model::{Protocol, fnv1a},
};

/// `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_EXP_GET`.
const GET: u16 = 1;
/// `IPCTNL_MSG_CT_DELETE` and `IPCTNL_MSG_EXP_DELETE`.
const DELETE: u16 = 2;
/// `IPCTNL_MSG_CT_GET_STATS`.
const GET_STATS: u16 = 5;
/// `CTA_STATS_GLOBAL_ENTRIES`.
const STATS_ENTRIES: u16 = 1;
/// Length of `struct nfgenmsg`.
const FAMILY: usize = 4;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
/// `CTA_PROTO_ICMP_ID`, `_TYPE` and `_CODE`, and those of ICMPv6.
const PROTO_ICMP: [u16; 3] = [4, 5, 6];
const PROTO_ICMPV6: [u16; 3] = [7, 8, 9];
/// A dump comes in datagrams of at most this many bytes (netlink_dump()).
const BUFFER: usize = 32 * 1024;

/// The two tables of connection tracking, and what their attributes are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Table {
    /// Connections: `CTA_TUPLE_ORIG`, `CTA_ZONE`, `CTA_ID`.
    Connections,
    /// Connections that helpers expect: `CTA_EXPECT_TUPLE`, `CTA_EXPECT_ZONE`, `CTA_EXPECT_ID`.
    Expectations,
}

impl Table {
    /// `NFNL_SUBSYS_CTNETLINK`, `NFNL_SUBSYS_CTNETLINK_EXP`.
    fn message(self, message: u16) -> u16 {
        let subsystem = match self {
            Self::Connections => 1,
            Self::Expectations => 2,
        };
        subsystem << 8 | message
    }

    fn tuple(self) -> u16 {
        match self {
            Self::Connections => 1,
            Self::Expectations => 2,
        }
    }

    /// `CTA_TUPLE_REPLY`: what answers look like.
    fn reply(self) -> Option<u16> {
        match self {
            Self::Connections => Some(2),
            Self::Expectations => None,
        }
    }

    fn zone(self) -> u16 {
        match self {
            Self::Connections => 18,
            Self::Expectations => 7,
        }
    }

    fn id(self) -> u16 {
        match self {
            Self::Connections => 12,
            Self::Expectations => 5,
        }
    }
}

/// One entry: what tells it from all others, as the kernel wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    table: Table,
    family: u8,
    tuple: Vec<u8>,
    zone: Option<Vec<u8>>,
    id: Option<Vec<u8>>,
    /// What is told of the answers; it tells no entries apart.
    reply: Vec<u8>,
}

impl Entry {
    fn of(table: Table, message: &WireMessage<'_>) -> Option<Self> {
        let attributes = message.attributes();
        let copy = |kind| attributes.find(kind).map(<[u8]>::to_vec);
        Some(Self {
            table,
            family: *message.body.first()?,
            tuple: copy(table.tuple())?,
            zone: copy(table.zone()),
            id: copy(table.id()),
            reply: table.reply().and_then(copy).unwrap_or_default(),
        })
    }

    /// Whether one of the tuple's addresses is among these.
    fn concerns(&self, addresses: &HashSet<IpAddr>) -> bool {
        ends(&self.tuple).any(|end| addresses.contains(&end))
    }

    /// All addresses that its packets have, in both directions.
    fn ends(&self) -> impl Iterator<Item = IpAddr> + '_ {
        ends(&self.tuple).chain(ends(&self.reply))
    }

    /// A number in its place that fits into a note (FNV-1a). That two of the few entries of a router have
    /// the same one of 64 bits is possible, and then the newer one stays until it times out.
    fn digest(&self) -> u64 {
        fnv1a(&self.removal())
    }

    fn removal(&self) -> Vec<u8> {
        let mut attributes = attribute(NESTED | self.table.tuple(), &self.tuple);
        for (kind, value) in [(self.table.zone(), &self.zone), (self.table.id(), &self.id)] {
            attributes.extend(value.iter().flat_map(|value| attribute(kind, value)));
        }
        let kind = self.table.message(DELETE);
        request(kind, libc::NLM_F_ACK, self.family, &attributes)
    }
}

/// The addresses of a tuple.
fn ends(tuple: &[u8]) -> impl Iterator<Item = IpAddr> + '_ {
    let ip = Attributes(tuple).nested(TUPLE_IP);
    let all = ip.into_iter().flatten();
    all.filter_map(|(kind, bytes)| match kind {
        IP_V4_SRC | IP_V4_DST => Some(IpAddr::from(array::<4>(bytes, 0)?)),
        IP_V6_SRC | IP_V6_DST => Some(IpAddr::from(array::<16>(bytes, 0)?)),
        _ => None,
    })
}

/// A socket to the connection tracking of the namespace in which it was opened, and the entries
/// that were there then.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
    buffer: Vec<u8>,
    /// The digests of the entries.
    before: HashSet<u64>,
    /// How many connections there were.
    count: u32,
}

impl Conntrack {
    /// Opens a socket in the calling thread's network namespace and notes what is there.
    ///
    /// # Errors
    /// When the kernel gives none, or has no ctnetlink (nf_conntrack_netlink).
    pub fn open_here() -> io::Result<Self> {
        let mut new = Self {
            socket: netfilter_socket::connect_here()?,
            buffer: Vec::with_capacity(BUFFER),
            before: HashSet::new(),
            count: 0,
        };
        new.count = new.count()?;
        new.before = new.entries()?.iter().map(Entry::digest).collect();
        Ok(new)
    }

    /// Opens a socket in the calling thread's network namespace of which it is known what was there
    /// at an earlier time: [`Self::known`] of then.
    ///
    /// # Errors
    /// As [`Self::open_here`].
    pub fn open_here_since(known: &[u64]) -> io::Result<Self> {
        let mut new = Self::open_here()?;
        new.before = known.iter().copied().collect();
        Ok(new)
    }

    /// What was there when this was opened, a number for each entry; the same in every process.
    #[must_use]
    pub fn known(&self) -> Vec<u64> {
        let mut known: Vec<u64> = self.before.iter().copied().collect();
        known.sort_unstable();
        known
    }

    /// Removes what came since to several namespaces that packets passed one after the other: entries
    /// with one of `addresses`, and with those that another of them had its packets translated to.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget_all(all: &mut [Self], mut addresses: HashSet<IpAddr>) -> io::Result<()> {
        loop {
            let known = addresses.len();
            for one in &mut *all {
                for entry in one.new_entries()? {
                    if entry.ends().any(|end| addresses.contains(&end)) {
                        addresses.extend(entry.ends());
                    }
                }
            }
            if addresses.len() == known {
                break;
            }
        }
        all.iter_mut()
            .try_for_each(|one| one.forget_new(&addresses))
    }

    /// Forgets the connection that began with a packet with these ends. One that is not known is
    /// success. Afterwards no entry is left that came since this was opened and has one of
    /// `addresses`, in whatever zone, as far as the number of entries shows; [`Self::forget_new`]
    /// looks closely.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget(
        &mut self,
        protocol: Protocol,
        (source, destination): (SocketAddr, SocketAddr),
        addresses: &HashSet<IpAddr>,
    ) -> io::Result<()> {
        if let Some(request) = by_tuple(protocol, source, destination) {
            self.acknowledged(&request)?;
        }
        // A dump goes through every bucket of the machine's table, milliseconds for a large one.
        if self.count()? > self.count {
            self.forget_new(addresses)?;
        }
        Ok(())
    }

    /// Removes the entries and expectations that came since this was opened and have one of
    /// `addresses`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget_new(&mut self, addresses: &HashSet<IpAddr>) -> io::Result<()> {
        let mut now = self.new_entries()?;
        now.retain(|entry| entry.concerns(addresses));
        // Expectations go with the connection that they belong to.
        now.sort_by_key(|entry| entry.table == Table::Connections);
        now.iter()
            .try_for_each(|entry| self.acknowledged(&entry.removal()))
    }

    fn new_entries(&mut self) -> io::Result<Vec<Entry>> {
        let mut now = self.entries()?;
        now.retain(|entry| !self.before.contains(&entry.digest()));
        Ok(now)
    }

    /// How many connections the namespace has, in all zones.
    fn count(&mut self) -> io::Result<u32> {
        let kind = Table::Connections.message(GET_STATS);
        let request = request(kind, 0, libc::AF_UNSPEC as u8, &[]);
        let mut count = None;
        self.ask(&request, |message| {
            count = message.attributes().be32(STATS_ENTRIES);
            true
        })?;
        count.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn entries(&mut self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        if self.count()? == 0 {
            // Expectations have a connection that they belong to.
            return Ok(entries);
        }
        for table in [Table::Connections, Table::Expectations] {
            let kind = table.message(GET);
            let request = request(kind, libc::NLM_F_DUMP, libc::AF_UNSPEC as u8, &[]);
            self.ask(&request, |message| {
                entries.extend(Entry::of(table, message));
                false
            })?;
        }
        Ok(entries)
    }

    /// Sends a request that is acknowledged; that there is no such entry is success.
    fn acknowledged(&mut self, request: &[u8]) -> io::Result<()> {
        match self.ask(request, |_| false) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Sends a request and reads replies until one of them says that it is the last, or `take` does.
    fn ask(
        &mut self,
        request: &[u8],
        mut take: impl FnMut(&WireMessage<'_>) -> bool,
    ) -> io::Result<()> {
        self.socket.send(request, 0)?;
        loop {
            self.buffer.clear();
            // The kernel answered while the request was sent, or goes on as its answer is read.
            self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT)?;
            for message in Messages(&self.buffer) {
                match i32::from(message.kind) {
                    libc::NLMSG_ERROR => return outcome(&message),
                    libc::NLMSG_DONE => return Ok(()),
                    _ if take(&message) => return Ok(()),
                    _ => {}
                }
            }
        }
    }
}

/// What `struct nlmsgerr` says.
fn outcome(message: &WireMessage<'_>) -> io::Result<()> {
    match array(message.body, 0).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A request to delete the entry of zone 0 that began with such a packet; none for protocols whose
/// tuples depend on more than addresses and ports.
fn by_tuple(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Option<Vec<u8>> {
    let (family, ip) = match (source, destination) {
        (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
            let source = attribute(IP_V4_SRC, &source.ip().octets());
            let destination = attribute(IP_V4_DST, &destination.ip().octets());
            (libc::AF_INET, [source, destination].concat())
        }
        (source, destination) => {
            let octets = |end: SocketAddr| match end.ip() {
                IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
                IpAddr::V6(a) => a.octets(),
            };
            let source = attribute(IP_V6_SRC, &octets(source));
            let destination = attribute(IP_V6_DST, &octets(destination));
            (libc::AF_INET6, [source, destination].concat())
        }
    };
    let (client, service) = (source.port(), destination.port());
    let mut ports = attribute(PROTO_NUM, &[protocol.number()]);
    let mut add = |kind, value: &[u8]| ports.extend(attribute(kind, value));
    match protocol {
        Protocol::Tcp | Protocol::Udp | Protocol::Sctp => {
            add(PROTO_SRC_PORT, &client.to_be_bytes());
            add(PROTO_DST_PORT, &service.to_be_bytes());
        }
        Protocol::Icmp | Protocol::Icmpv6 => {
            let [id, kind, code] = match protocol {
                Protocol::Icmp => PROTO_ICMP,
                _ => PROTO_ICMPV6,
            };
            add(id, &client.to_be_bytes());
            add(kind, &[u8::try_from(service).ok()?]);
            add(code, &[0]);
        }
        Protocol::Esp | Protocol::Gre | Protocol::Other(_) => return None,
    }
    let tuple = [
        attribute(NESTED | TUPLE_IP, &ip),
        attribute(NESTED | TUPLE_PROTO, &ports),
    ];
    let table = Table::Connections;
    let tuple = attribute(NESTED | table.tuple(), &tuple.concat());
    let kind = table.message(DELETE);
    Some(request(kind, libc::NLM_F_ACK, family as u8, &tuple))
}

fn request(kind: u16, flags: i32, family: u8, attributes: &[u8]) -> Vec<u8> {
    let flags = (libc::NLM_F_REQUEST | flags) as u16;
    let length = (HEADER + FAMILY + attributes.len()) as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence and port; `struct nfgenmsg` with the family.
    bytes.extend([0; 8]);
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    append(&mut bytes, kind, payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let bytes = by_tuple(
            Protocol::Tcp,
            "10.0.0.1:40000".parse().unwrap(),
            "10.0.0.2:443".parse().unwrap(),
        )
        .unwrap();
        #[rustfmt::skip]
        let golden = [
            72, 0, 0, 0,  2, 1,  5, 0,  0, 0, 0, 0,  0, 0, 0, 0, // nlmsghdr
            2, 0, 0, 0, // nfgenmsg
            52, 0, 1, 0x80,
            20, 0, 1, 0x80, 8, 0, 1, 0, 10, 0, 0, 1, 8, 0, 2, 0, 10, 0, 0, 2,
            28, 0, 2, 0x80, 5, 0, 1, 0, 6, 0, 0, 0,
            6, 0, 2, 0, 0x9c, 0x40, 0, 0, 6, 0, 3, 0, 0x01, 0xbb, 0, 0,
        ];
        assert_eq!(bytes, golden);
    }

    #[test]
    fn an_entry_is_removed_by_the_tuple_zone_and_id_that_the_kernel_told() {
        let tuple = by_tuple(
            Protocol::Udp,
            "10.0.0.1:40000".parse().unwrap(),
            "10.0.0.2:53".parse().unwrap(),
        )
        .unwrap();
        let told = [
            tuple[HEADER + FAMILY..].to_vec(),
            attribute(3, &[0; 4]), // CTA_STATUS
            attribute(12, &[1, 2, 3, 4]),
            attribute(18, &[0, 7]),
        ];
        let told = request(0x100, 0, libc::AF_INET as u8, &told.concat());
        let message = Messages(&told).next().unwrap();
        let entry = Entry::of(Table::Connections, &message).unwrap();
        let removal = entry.removal();
        let removal = Messages(&removal).next().unwrap();
        assert_eq!((removal.kind, removal.flags), (0x102, 5));
        assert_eq!(removal.body[0], libc::AF_INET as u8);
        let (sent, heard) = (removal.attributes(), message.attributes());
        for kind in [1, 12, 18] {
            assert!(sent.find(kind).is_some(), "{kind}");
            assert_eq!(sent.find(kind), heard.find(kind), "{kind}");
        }
        assert_eq!(sent.find(3), None);
        let is = |address: &str| entry.concerns(&HashSet::from([address.parse().unwrap()]));
        assert!(is("10.0.0.1") && is("10.0.0.2") && !is("10.0.0.3"));
    }
}
