//! Elements of sets.

use super::{Object, append, attr, flags, get, without};
use crate::firewall::nft::{NftError, NftSocket, kernel, socket::Dumped, wire::Attributes};

/// linux/netfilter/nf_tables.h.
mod element {
    pub(super) const KEY: u16 = 1;
    pub(super) const FLAGS: u16 = 3;
    /// How long it stays, and the counters and limits that it carries.
    pub(super) const CHANGING: [u16; 3] = [5, 7, 11];
}

/// `NFT_SET_INTERVAL`, `NFT_SET_CONCAT`.
const INTERVAL: u32 = 0x4;
const CONCAT: u32 = 0x80;
/// `NFT_SET_TIMEOUT` and `NFT_SET_EVAL`: elements go by themselves, or rules add them.
pub(super) const CHANGING: u32 = 0x10 | 0x20;
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;
/// Bytes of elements in one message: the length of an attribute has 16 bits.
const MESSAGE: usize = 32 << 10;

/// The elements of a set, in messages that add them.
pub(super) fn read(
    set: &Object,
    socket: &mut NftSocket,
) -> Result<(Dumped, Vec<Object>), NftError> {
    let (_, Some(table), Some(name)) = set.set() else {
        return Ok((Dumped::Whole, Vec::new()));
    };
    let select = [
        (kernel::SET_ELEM_LIST_TABLE, table),
        (kernel::SET_ELEM_LIST_SET, name),
    ];
    let what = "reading elements to take them over";
    let mut elements: Vec<Vec<u8>> = Vec::new();
    let dumped = socket.dump(kernel::GET_SET_ELEM, set.family, &select, what, |list| {
        let list = list.nested(kernel::SET_ELEM_LIST_ELEMENTS);
        elements.extend(each(list).map(<[u8]>::to_vec));
    })?;
    if flags(set.told(), attr::SET_FLAGS) & (INTERVAL | CONCAT) == INTERVAL {
        // Where an interval begins has to be there before its end is added; the kernel tells from the
        // highest to the lowest.
        elements.sort_by(|a, b| order(a).cmp(&order(b)));
    }
    let mut messages = Vec::new();
    let mut list = Vec::new();
    for element in elements {
        if list.len() + element.len() > MESSAGE {
            messages.push(message(set, &std::mem::take(&mut list)));
        }
        append(&mut list, 1, &element);
    }
    if !list.is_empty() {
        messages.push(message(set, &list));
    }
    Ok((dumped, messages))
}

/// The payloads of a list of elements.
fn each<'a>(list: Option<Attributes<'a>>) -> impl Iterator<Item = &'a [u8]> {
    list.into_iter().flatten().map(|(_, element)| element)
}

/// By key; what ends there comes before what begins there.
fn order(element: &[u8]) -> (Option<&[u8]>, bool) {
    let element = Attributes(element);
    let key = element.nested(element::KEY);
    let ends = flags(element, element::FLAGS) & INTERVAL_END != 0;
    (key.and_then(|key| key.find(kernel::DATA_VALUE)), !ends)
}

fn message(set: &Object, list: &[u8]) -> Object {
    let mut attributes = Vec::with_capacity(list.len() + 64);
    for kind in [attr::TABLE, attr::SET_NAME] {
        append(
            &mut attributes,
            kind,
            set.told().find(kind).unwrap_or_default(),
        );
    }
    let nested = kernel::SET_ELEM_LIST_ELEMENTS | libc::NLA_F_NESTED as u16;
    append(&mut attributes, nested, list);
    Object {
        kind: get::ELEMENTS,
        family: set.family,
        attributes,
    }
}

/// The elements of such a message, without what changes while packets pass.
pub(super) fn settled(message: &Object) -> impl Iterator<Item = Vec<u8>> {
    let list = message.told().nested(kernel::SET_ELEM_LIST_ELEMENTS);
    each(list).map(|element| without(element, &element::CHANGING))
}
