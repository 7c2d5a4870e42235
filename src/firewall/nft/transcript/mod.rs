//! All tables of a namespace, taken over into another one as the kernel tells of them.
//!
//! What the kernel says of an object in a dump is what it takes to make one: the expressions of a rule, the
//! elements of a set, the devices of a chain come in the attributes that they are made by
//! (linux/netfilter/nf_tables.h). So nobody has to put rules into words and read these again, which
//! takes longest and loses what nft(8) and iptables-save have no words for. What was made is read back and
//! compared.

mod elements;
mod xtables;

use std::collections::{BTreeSet, HashSet};

use super::{
    DUMP_ATTEMPTS, NftError, NftSocket, TABLE_OWNER, generation,
    held::HeldTables,
    is_own,
    socket::Dumped,
    wire::{Attributes, WireMessage, append},
};
use crate::sys::nftnl::Encoder;

/// `NFT_MSG_GET*`, linux/netfilter/nf_tables.h. The message that makes such an object is the one before.
mod get {
    pub(super) const TABLE: u16 = 1;
    pub(super) const CHAIN: u16 = 4;
    pub(super) const RULE: u16 = 7;
    pub(super) const SET: u16 = 10;
    pub(super) const ELEMENTS: u16 = 13;
    pub(super) const OBJECT: u16 = 19;
    pub(super) const FLOWTABLE: u16 = 23;
}

/// In the order in which one may refer to the other: elements to chains and objects, rules to all.
const KINDS: [u16; 6] = [
    get::TABLE,
    get::CHAIN,
    get::OBJECT,
    get::FLOWTABLE,
    get::SET,
    get::RULE,
];

/// linux/netfilter/nf_tables.h.
mod attr {
    /// The table's own name, and the table's name in all that is in one.
    pub(super) const TABLE: u16 = 1;
    pub(super) const TABLE_FLAGS: u16 = 2;
    pub(super) const CHAIN_FLAGS: u16 = 10;
    pub(super) const SET_NAME: u16 = 2;
    pub(super) const SET_FLAGS: u16 = 3;
    pub(super) const SET_ID: u16 = 10;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
}

/// `NFT_CHAIN_BINDING`: a chain without a name of its own, in the rule that jumps there.
const CHAIN_BINDING: u32 = 4;

/// What the rules, chains and tables of jobs carry.
const OURS: &[u8] = b"TSIM_";
const OUR_TABLES: &[u8] = b"TSIM_KSMS=";
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`, in whose tables taps of iptables are.
const IPTABLES: [u8; 2] = [2, 10];

/// What a dump says of each kind beside what it takes to make one: uses, numbers that the kernel gives
/// (linux/netfilter/nf_tables.h).
fn only_told(kind: u16) -> &'static [u16] {
    match kind {
        // `NFTA_TABLE_USE`, `NFTA_TABLE_HANDLE`.
        get::TABLE => &[3, 4],
        // `NFTA_CHAIN_HANDLE`, `NFTA_CHAIN_USE`.
        get::CHAIN => &[2, 6],
        // `NFTA_RULE_HANDLE`, `NFTA_RULE_POSITION`.
        get::RULE => &[3, 6],
        // `NFTA_OBJ_USE`, `NFTA_OBJ_HANDLE`.
        get::OBJECT => &[5, 6],
        // `NFTA_FLOWTABLE_USE`, `NFTA_FLOWTABLE_HANDLE`.
        get::FLOWTABLE => &[4, 5],
        // `NFTA_SET_HANDLE`, `NFTA_SET_TYPE` (the back end's name), `NFTA_SET_COUNT`.
        get::SET => &[16, 19, 20],
        _ => &[],
    }
}

/// One message that makes something.
#[derive(Debug, Clone)]
struct Object {
    /// The message that asks for such objects.
    kind: u16,
    family: u8,
    /// The attributes as they are sent.
    attributes: Vec<u8>,
}

/// What the kernel tells of all tables of a namespace, those of jobs left out.
#[derive(Debug, Clone, Default)]
pub struct Transcript {
    objects: Vec<Object>,
    /// Names of tables that belong to jobs, with their families.
    left_out: Vec<(u8, String)>,
}

/// The family and table of a set, and its name.
type SetName<'a> = (u8, Option<&'a str>, Option<&'a str>);
/// Kind, family and attributes of an object.
type Settled = (u16, u8, Vec<u8>);

/// Why something cannot be taken over by messages alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Beyond;

impl Transcript {
    /// Reads all tables of the namespace of `socket`. None where something means another thing elsewhere
    /// or cannot be sent as it was read (a match by the number of a set of ipset, a chain without a name), or where
    /// the tables change all the time.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn read(socket: &mut NftSocket) -> Result<Option<Self>, NftError> {
        for _ in 0..DUMP_ATTEMPTS {
            let before = generation(socket)?;
            let mut read = Self::default();
            let mut whole = true;
            for kind in KINDS {
                match read.add(socket, kind)? {
                    Ok(dumped) => whole &= dumped == Dumped::Whole,
                    Err(Beyond) => return Ok(None),
                }
            }
            if whole && generation(socket)? == before {
                return Ok(Some(read));
            }
        }
        Ok(None)
    }

    /// Whether there is nothing to make.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Makes all of it in the namespace of `socket`, in one transaction, where no table may be. False where what
    /// is there now differs: then the namespace is to be emptied.
    ///
    /// # Errors
    /// [`NftError`]; nothing was made then, or it could not be read.
    pub fn make(&self, socket: &mut NftSocket) -> Result<bool, NftError> {
        if self.is_empty() {
            return Ok(true);
        }
        let mut batch = socket.encoder();
        batch.begin();
        for object in &self.objects {
            object.encode(&mut batch);
        }
        batch.end();
        socket.transact(&batch, "making the tables of another namespace")?;
        let made = Self::read(socket)?;
        Ok(made.is_some_and(|made| made.settled() == self.settled()))
    }

    /// Adds all objects of a kind.
    fn add(
        &mut self,
        socket: &mut NftSocket,
        kind: u16,
    ) -> Result<Result<Dumped, Beyond>, NftError> {
        let what = "reading tables to take them over";
        let mut beyond = false;
        let from = self.objects.len();
        let dumped = socket.dump_messages(kind, 0, &[], what, |message| {
            beyond |= self.take(kind, message).is_err();
        });
        let mut dumped = match dumped {
            // A kernel without these has none of them.
            Err(NftError::Refused { .. }) if kind == get::FLOWTABLE => {
                return Ok(Ok(Dumped::Whole));
            }
            other => other?,
        };
        if kind == get::SET {
            for at in from..self.objects.len() {
                let set = self.objects.get(at).cloned();
                let Some((read, elements)) =
                    set.map(|set| elements::read(&set, socket)).transpose()?
                else {
                    continue;
                };
                if read == Dumped::Interrupted {
                    dumped = read;
                }
                self.objects.extend(elements);
            }
        }
        Ok(if beyond { Err(Beyond) } else { Ok(dumped) })
    }

    /// Takes an object of a dump.
    fn take(&mut self, kind: u16, message: &WireMessage<'_>) -> Result<(), Beyond> {
        let family = message.body.first().copied().unwrap_or_default();
        let attributes = message.attributes();
        let table = attributes.text(attr::TABLE).ok_or(Beyond)?;
        if kind == get::TABLE {
            let owned = attributes.be32(attr::TABLE_FLAGS).unwrap_or_default() & TABLE_OWNER != 0;
            if owned || is_own(table) || holds(message.body, OUR_TABLES) {
                self.left_out.push((family, table.to_owned()));
            }
        }
        let is_here = |(other, name): &(u8, String)| *other == family && name == table;
        if self.left_out.iter().any(is_here) {
            return Ok(());
        }
        if holds(message.body, OURS) {
            // A tap, or a jump there. Elsewhere nobody but the user has such words.
            return match IPTABLES.contains(&family) && [get::CHAIN, get::RULE].contains(&kind) {
                true => Ok(()),
                false => Err(Beyond),
            };
        }
        let mut object = Object {
            kind,
            family,
            attributes: without(attributes.0, only_told(kind)),
        };
        match kind {
            get::CHAIN if flags(attributes, attr::CHAIN_FLAGS) & CHAIN_BINDING != 0 => {
                return Err(Beyond);
            }
            get::RULE => {
                let expressions = attributes.nested(attr::RULE_EXPRESSIONS);
                let compat = xtables::compat(family, expressions.unwrap_or(Attributes(&[])))?;
                object.attributes.extend(compat);
            }
            get::SET => {
                attributes.text(attr::SET_NAME).ok_or(Beyond)?;
                // What rules of the same transaction could call it by; names do.
                let number = u32::try_from(self.objects.len()).map_err(|_| Beyond)?;
                append(&mut object.attributes, attr::SET_ID, &number.to_be_bytes());
            }
            _ => {}
        }
        self.objects.push(object);
        Ok(())
    }

    /// What does not change while packets pass: objects in their order, and elements in any.
    fn settled(&self) -> (Vec<Settled>, BTreeSet<(SetName<'_>, Vec<u8>)>) {
        let (lists, objects): (Vec<&Object>, Vec<&Object>) = self
            .objects
            .iter()
            .partition(|object| object.kind == get::ELEMENTS);
        let changing: HashSet<SetName<'_>> = objects
            .iter()
            .filter(|o| o.changes())
            .map(|o| o.set())
            .collect();
        let lists = lists
            .into_iter()
            .filter(|list| !changing.contains(&list.set()));
        let elements = lists.flat_map(|list| elements::settled(list).map(|e| (list.set(), e)));
        (
            objects.iter().map(|object| object.settled()).collect(),
            elements.collect(),
        )
    }
}

impl Object {
    fn encode(&self, batch: &mut Encoder) {
        let create = libc::NLM_F_CREATE as u16;
        let flags = match self.kind {
            get::RULE => create | libc::NLM_F_APPEND as u16,
            get::ELEMENTS => create,
            _ => create | libc::NLM_F_EXCL as u16,
        };
        batch.raw(self.kind - 1, self.family, flags, &self.attributes);
    }

    fn told(&self) -> Attributes<'_> {
        Attributes(&self.attributes)
    }

    /// The set that this is, or whose elements these are.
    fn set(&self) -> SetName<'_> {
        let told = self.told();
        (
            self.family,
            told.text(attr::TABLE),
            told.text(attr::SET_NAME),
        )
    }

    /// Whether it is a set whose elements come and go.
    fn changes(&self) -> bool {
        self.kind == get::SET && flags(self.told(), attr::SET_FLAGS) & elements::CHANGING != 0
    }

    fn settled(&self) -> Settled {
        let (mut held, told) = (HeldTables::default(), self.told());
        match self.kind {
            get::CHAIN => held.chain(told),
            get::RULE => held.rule(told),
            get::OBJECT => held.object(told),
            get::SET => held.without(told, &[attr::SET_ID]),
            _ => held.without(told, &[]),
        }
        (self.kind, self.family, held.bytes)
    }
}

fn flags(attributes: Attributes<'_>, kind: u16) -> u32 {
    attributes.be32(kind).unwrap_or_default()
}

fn holds(bytes: &[u8], words: &[u8]) -> bool {
    bytes.windows(words.len()).any(|part| part == words)
}

/// Attributes as they are, but for some.
fn without(mut bytes: &[u8], left_out: &[u16]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(bytes.len());
    let mut attributes = Attributes(bytes);
    while let Some((kind, _)) = attributes.next() {
        let rest = attributes.0.len();
        let (whole, behind) = bytes.split_at(bytes.len() - rest);
        if !left_out.contains(&kind) {
            kept.extend_from_slice(whole);
            kept.resize(kept.len().next_multiple_of(4), 0);
        }
        bytes = behind;
    }
    kept
}
