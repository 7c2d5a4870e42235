//! The nf_tables back end: one table per job and router, owned by the job's netlink socket.
//!
//! ```text
//! table ip tsim_RUNID {            # flags owner: gone when the socket closes, SIGKILL included
//!   counter in, out, local
//!   set o0 … oN, l0 … lN { typeof tag; size 4096; flags dynamic }      # 4,096 services each
//!   # where ways are noted, the keys are longer, and there are sets w0 … wN (departure.rs)
//!   chain in    { hook prerouting  priority -2^31;   # probe? counter in }
//!   chain out   { hook postrouting priority 2^31-1;  # probe of shard k? add @ok; counter out; drop }
//!   chain local { hook input       priority 2^31-1;  # probe of shard k? add @lk; counter local; drop }
//!   chain copies { hook output     priority -2^31;   # probe? drop: a copy that TEE or dup made }
//! }
//! ```
//!
//! A new base chain comes *before* those of equal priority that are there already
//! (nf_hook_entries_grow()), so the last two see probes before connection tracking confirms them,
//! which happens at the same priority. Sets are sharded because dumps of sets grow quadratically
//! above 4,096 elements, and their elements carry no counters, because these get lost on the
//! packet path.

pub mod census;
pub mod counters;
mod departure;
pub mod held;
pub mod inventory;
pub mod list;
pub mod nature;
pub mod orphans;
pub mod plain;
mod probe;
mod render;
pub mod socket;
pub mod support;
pub mod trace;
pub mod transcript;
pub mod watch;
pub(super) mod wire;

pub use socket::{NftError, NftSocket};

use crate::{
    firewall::{
        Reading, Taps,
        taps::{Departed, Indexes, ProbeWays},
    },
    model::{Liveness, RunId},
    netlink::object,
    sys::nftnl::{EncodeError, Encoder, Family},
};

/// `NFT_TABLE_F_OWNER`, since Linux 5.12.
const TABLE_OWNER: u32 = 0x2;
/// How often an interrupted dump is read again.
const DUMP_ATTEMPTS: u32 = 5;

/// Messages and attributes that are read here, linux/netfilter/nf_tables.h.
mod kernel {
    pub(super) const GET_RULE: u16 = 7;
    pub(super) const GET_SET_ELEM: u16 = 13;
    pub(super) const GET_GENERATION: u16 = 16;
    pub(super) const GET_OBJECT: u16 = 19;
    pub(super) const TRACE: u16 = 17;
    pub(super) const SET_ELEM_LIST_TABLE: u16 = 1;
    pub(super) const SET_ELEM_LIST_SET: u16 = 2;
    pub(super) const SET_ELEM_LIST_ELEMENTS: u16 = 3;
    pub(super) const SET_ELEM_KEY: u16 = 1;
    pub(super) const DATA_VALUE: u16 = 1;
    pub(super) const OBJ_TABLE: u16 = 1;
    pub(super) const OBJ_NAME: u16 = 2;
    pub(super) const OBJ_DATA: u16 = 4;
    pub(super) const COUNTER_PACKETS: u16 = 2;
    pub(super) const GEN_ID: u16 = 1;
}

/// Whether the kernel takes the job's table away when the job dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// The table goes with the socket.
    Owned,
    /// The kernel knows no owner tables (before 5.12): a killed job leaves its table.
    Unowned,
}

/// The taps of one job in one router's nf_tables.
#[derive(Debug)]
pub struct NftTaps {
    socket: NftSocket,
    taps: Taps,
    family: Family,
    table: String,
    ownership: Ownership,
}

/// The name of the table that a job makes on each of its routers.
#[must_use]
pub fn table_name(run_id: &RunId) -> String {
    format!("tsim_{run_id}")
}

/// How the names of tables begin that tsim's jobs make.
const OWN: [&str; 3] = ["tsim_", trace::TRACE_TABLES, "tsimflow_"];

/// Whether a table is one that tsim makes: its taps, traces and counters.
#[must_use]
pub fn is_own(table: &str) -> bool {
    OWN.iter().any(|prefix| table.starts_with(prefix))
}

/// The family of tables that see packets of `family` only.
fn table_family(family: object::Family) -> Family {
    match family {
        object::Family::V4 => Family::Ip,
        object::Family::V6 => Family::Ip6,
    }
}

/// Runs the transaction that `render` makes for the given table flags: owned by the socket where
/// the kernel can do that.
fn make_tables(
    socket: &mut NftSocket,
    render: impl Fn(Encoder, u32) -> Result<Encoder, EncodeError>,
    what: &'static str,
) -> Result<Ownership, NftError> {
    let owned = render(socket.encoder(), TABLE_OWNER)?;
    match socket.transact(&owned, what) {
        Ok(()) => Ok(Ownership::Owned),
        Err(error) if owner_flag_refused(&error) => {
            // Nothing takes these away when their job dies, so they say whose they are, and the
            // next job that makes one here does it.
            orphans::sweep(socket, |owner| owner.liveness() == Liveness::Gone, false)?;
            let plain = render(socket.encoder().with_comment(orphans::mark()?), 0)?;
            socket.transact(&plain, what)?;
            Ok(Ownership::Unowned)
        }
        Err(error) => Err(error),
    }
}

impl NftTaps {
    /// Puts the taps of `taps` into the namespace of `socket`, in one transaction.
    ///
    /// # Errors
    /// [`NftError`]; nothing was changed then.
    pub fn install(mut socket: NftSocket, taps: Taps) -> Result<Self, NftError> {
        let table = table_name(&taps.run_id);
        let family = table_family(taps.family);
        let render = |batch, flags| render::transaction(batch, &taps, family, &table, flags);
        let ownership = make_tables(&mut socket, render, "installing taps")?;
        Ok(Self {
            socket,
            taps,
            family,
            table,
            ownership,
        })
    }

    /// Whether the kernel removes the taps if this process dies.
    #[must_use]
    pub fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// Reads what the taps saw so far.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn read(&mut self) -> Result<Reading, NftError> {
        let mut reading = Reading::default();
        self.read_counters(&mut reading)?;
        let mut foreign = 0;
        if self.taps.note_ways {
            self.read_ways(&mut reading, &mut foreign)?;
        } else {
            reading.out = self.read_sets('o', &mut foreign)?;
            reading.local = self.read_sets('l', &mut foreign)?;
        }
        if self.taps.note_arrivals {
            reading.arrived = Some(self.read_sets('i', &mut foreign)?);
        }
        reading.foreign = foreign;
        Ok(reading)
    }

    /// Removes the taps. The socket is returned: closing it waits for the kernel to settle
    /// (10 to 16 ms), so the caller closes it when nobody waits any more.
    ///
    /// # Errors
    /// [`NftError`]; closing the socket removes an owned table even then.
    pub fn remove(mut self) -> (NftSocket, Result<(), NftError>) {
        let result = self.delete_table();
        (self.socket, result)
    }

    fn delete_table(&mut self) -> Result<(), NftError> {
        let mut batch = self.socket.encoder();
        batch.begin();
        batch.delete_table(self.family, &self.table)?;
        batch.end();
        match self.socket.transact(&batch, "removing taps") {
            // Already gone is what was wanted.
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    fn read_counters(&mut self, reading: &mut Reading) -> Result<(), NftError> {
        let family = self.family as u16 as u8;
        let select = [(kernel::OBJ_TABLE, self.table.as_str())];
        self.socket.dump(
            kernel::GET_OBJECT,
            family,
            &select,
            "reading counters",
            |object| {
                let packets = object
                    .nested(kernel::OBJ_DATA)
                    .and_then(|d| d.be64(kernel::COUNTER_PACKETS));
                let packets = packets.unwrap_or(0);
                match object.text(kernel::OBJ_NAME) {
                    Some("in") => reading.packets_in = packets,
                    Some("out") => reading.packets_out = packets,
                    Some("local") => reading.packets_local = packets,
                    Some("unmarked") => reading.unmarked = packets,
                    _ => {}
                }
            },
        )?;
        Ok(())
    }

    /// The services in the sets whose names begin with `prefix`.
    fn read_sets(&mut self, prefix: char, foreign: &mut usize) -> Result<Indexes, NftError> {
        let mut present = Indexes::new(self.taps.services);
        for shard in 0..render::shards(self.taps.services) {
            self.read_set(&format!("{prefix}{shard}"), &mut present, foreign)?;
        }
        Ok(present)
    }

    fn read_set(
        &mut self,
        set: &str,
        present: &mut Indexes,
        foreign: &mut usize,
    ) -> Result<(), NftError> {
        self.read_keys(set, foreign, |index, _| _ = present.insert(index))
    }

    /// What the sets of the last taps say of how probes left.
    fn read_ways(&mut self, reading: &mut Reading, foreign: &mut usize) -> Result<(), NftError> {
        let (family, services) = (self.family, self.taps.services);
        let mut ways = Departures::new(services);
        for shard in 0..render::shards(services) {
            for (prefix, present) in [('o', &mut reading.out), ('l', &mut reading.local)] {
                if shard == 0 {
                    *present = Indexes::new(services);
                }
                self.read_keys(&format!("{prefix}{shard}"), foreign, |index, key| {
                    present.insert(index);
                    ways.packet(index, departure::packet(family, key).map(|(_, left)| left));
                })?;
            }
            let mut strangers = 0;
            self.read_keys(&format!("w{shard}"), &mut strangers, |index, key| {
                ways.way(index, |left| departure::add_way(family, key, left));
            })?;
        }
        reading.ways = Some(ways.into_ways());
        Ok(())
    }

    /// Gives `each` the index and the key of every element of `set` that is one of a probe.
    fn read_keys(
        &mut self,
        set: &str,
        foreign: &mut usize,
        mut each: impl FnMut(u32, &[u8]),
    ) -> Result<(), NftError> {
        let what = "reading a set of probes";
        let (tags, family) = (self.taps.tags, self.family as u16 as u8);
        let services = self.taps.services;
        for _ in 0..DUMP_ATTEMPTS {
            let mut strangers = 0;
            let select = [
                (kernel::SET_ELEM_LIST_TABLE, self.table.as_str()),
                (kernel::SET_ELEM_LIST_SET, set),
            ];
            let dumped = self
                .socket
                .dump(kernel::GET_SET_ELEM, family, &select, what, |list| {
                    for key in elements(list) {
                        let index = departure::tag(key).and_then(|tag| tags.index(tag));
                        match index.filter(|&index| index < services) {
                            Some(index) => each(index, key),
                            None => strangers += 1,
                        }
                    }
                })?;
            // Elements are only ever added, so what an interrupted dump showed stays true.
            if dumped == socket::Dumped::Whole {
                *foreign += strangers;
                return Ok(());
            }
        }
        Err(NftError::Interrupted(what))
    }
}

/// The generation of a namespace's ruleset; it changes with every transaction of anybody.
///
/// # Errors
/// [`NftError`].
pub fn generation(socket: &mut NftSocket) -> Result<u32, NftError> {
    socket.get(
        kernel::GET_GENERATION,
        0,
        &[],
        "reading the ruleset's generation",
        |attributes| attributes.be32(kernel::GEN_ID),
    )
}

/// How probes left, put together from two sets.
struct Departures {
    ways: ProbeWays,
    /// Headers by index, and whether the way was added.
    known: Vec<Option<(Departed, bool)>>,
}

impl Departures {
    fn new(services: u32) -> Self {
        Self {
            ways: ProbeWays::new(services),
            known: vec![None; services as usize],
        }
    }

    /// Takes the headers of a probe. An interrupted dump shows some twice.
    fn packet(&mut self, index: u32, left: Option<Departed>) {
        let known = self.known.get_mut(index as usize);
        match (known, left) {
            (Some(known @ None), Some(left)) => *known = Some((left, false)),
            (Some(Some((before, _))), Some(left)) if *before == left => {}
            _ => self.several(index),
        }
    }

    /// Takes the way of a probe.
    fn way(&mut self, index: u32, add: impl FnOnce(&mut Departed) -> Option<()>) {
        let Some(Some((left, added))) = self.known.get_mut(index as usize) else {
            return self.several(index);
        };
        let before = *left;
        if add(left).is_none() || (*added && *left != before) {
            self.several(index);
        } else {
            *added = true;
        }
    }

    fn several(&mut self, index: u32) {
        let why = "the router sent more than one packet for it, and not all alike";
        self.ways.doubt(index, why.to_owned());
    }

    fn into_ways(self) -> ProbeWays {
        let mut ways = self.ways;
        for (index, known) in (0..).zip(self.known) {
            if let Some((left, _)) = known {
                ways.insert(index, left);
            }
        }
        ways
    }
}

/// The keys in one message of a set's dump.
fn elements(list: wire::Attributes<'_>) -> impl Iterator<Item = &[u8]> {
    let nested = list.nested(kernel::SET_ELEM_LIST_ELEMENTS);
    nested.into_iter().flatten().filter_map(|(_, element)| {
        wire::Attributes(element)
            .nested(kernel::SET_ELEM_KEY)?
            .find(kernel::DATA_VALUE)
    })
}

/// Whether the kernel refused the table itself, as one before 5.12 does with the owner flag.
fn owner_flag_refused(error: &NftError) -> bool {
    let NftError::Refused { nth: 1, source, .. } = error else {
        return false;
    };
    matches!(source.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}
