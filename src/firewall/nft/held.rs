//! What the kernel holds of a ruleset, as bytes that are the same as long as the ruleset is.
//!
//! The ruleset's generation will not do: every job's taps advance it. Counters, and what else
//! packets change, are left out, and so is what tsim's own jobs put in.

use super::{DUMP_ATTEMPTS, NftError, NftSocket, is_own, kernel, socket::Dumped, wire::Attributes};

/// linux/netfilter/nf_tables.h.
mod attr {
    /// The table's name, in chains, rules, sets and objects.
    pub(super) const TABLE: u16 = 1;
    pub(super) const CHAIN_USE: u16 = 6;
    pub(super) const CHAIN_COUNTERS: u16 = 8;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
    pub(super) const META_KEY: u16 = 2;
    pub(super) const QUOTA_CONSUMED: u16 = 4;
    pub(super) const SET_NAME: u16 = 2;
    pub(super) const SET_FLAGS: u16 = 3;
    pub(super) const OBJ_TYPE: u16 = 3;
    pub(super) const OBJ_DATA: u16 = 4;
    pub(super) const OBJ_USE: u16 = 5;
}

const GET_CHAIN: u16 = 4;
const GET_SET: u16 = 10;
/// `NFT_SET_ANONYMOUS`: it belongs to one rule, which is printed with its elements.
const ANONYMOUS: u32 = 1;
/// `NFT_OBJECT_COUNTER`, `NFT_OBJECT_QUOTA`.
const COUNTER: u32 = 1;
const QUOTA: u32 = 2;

/// What a namespace's nf_tables hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeldTables {
    /// Chains, rules, the sets of single rules with their elements, and named objects.
    pub bytes: Vec<u8>,
    /// Whether rules ask for interfaces by number, so that their text depends on the names.
    pub interfaces: bool,
}

/// Reads what the namespace of `socket` holds; none where it changes all the time.
///
/// # Errors
/// [`NftError`].
pub fn held(socket: &mut NftSocket) -> Result<Option<HeldTables>, NftError> {
    for _ in 0..DUMP_ATTEMPTS {
        let mut held = HeldTables::default();
        if read(socket, &mut held)? == Dumped::Whole {
            return Ok(Some(held));
        }
    }
    Ok(None)
}

fn read(socket: &mut NftSocket, held: &mut HeldTables) -> Result<Dumped, NftError> {
    let what = "reading what the kernel holds";
    let mut whole = true;
    let mut sets: Vec<(u8, String, String)> = Vec::new();
    for message in [GET_CHAIN, kernel::GET_RULE, GET_SET, kernel::GET_OBJECT] {
        let dumped = socket.dump_messages(message, 0, &[], what, |found| {
            let family = found.body.first().copied().unwrap_or_default();
            let attributes = found.attributes();
            let table = attributes.text(attr::TABLE).unwrap_or_default();
            if is_own(table) {
                return;
            }
            held.bytes.extend([message as u8, family]);
            match message {
                GET_CHAIN => held.chain(attributes),
                kernel::GET_RULE => held.rule(attributes),
                GET_SET => {
                    if attributes.be32(attr::SET_FLAGS).unwrap_or_default() & ANONYMOUS != 0 {
                        let name = attributes.text(attr::SET_NAME).unwrap_or_default();
                        sets.push((family, table.to_owned(), name.to_owned()));
                    }
                }
                _ => held.object(attributes),
            }
        })?;
        whole &= dumped == Dumped::Whole;
    }
    for (family, table, set) in sets {
        let select = [
            (kernel::SET_ELEM_LIST_TABLE, table.as_str()),
            (kernel::SET_ELEM_LIST_SET, set.as_str()),
        ];
        let dumped = socket.dump(kernel::GET_SET_ELEM, family, &select, what, |elements| {
            held.bytes.push(family);
            held.without(elements, &[]);
        })?;
        whole &= dumped == Dumped::Whole;
    }
    Ok(if whole {
        Dumped::Whole
    } else {
        Dumped::Interrupted
    })
}

impl HeldTables {
    fn attribute(&mut self, kind: u16, payload: &[u8]) {
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((payload.len() as u32).to_ne_bytes());
        self.bytes.extend(payload);
    }

    pub(super) fn without(&mut self, attributes: Attributes<'_>, left_out: &[u16]) {
        for (kind, payload) in attributes.filter(|(kind, _)| !left_out.contains(kind)) {
            self.attribute(kind, payload);
        }
    }

    pub(super) fn chain(&mut self, attributes: Attributes<'_>) {
        self.without(attributes, &[attr::CHAIN_USE, attr::CHAIN_COUNTERS]);
    }

    pub(super) fn rule(&mut self, attributes: Attributes<'_>) {
        self.without(attributes, &[attr::RULE_EXPRESSIONS]);
        let list = attributes.nested(attr::RULE_EXPRESSIONS);
        for (_, expression) in list.into_iter().flatten() {
            let expression = Attributes(expression);
            let name = expression.text(attr::EXPR_NAME).unwrap_or_default();
            let data = expression.find(attr::EXPR_DATA).unwrap_or_default();
            self.attribute(attr::EXPR_NAME, name.as_bytes());
            match name {
                "counter" | "last" => {}
                "quota" => self.without(Attributes(data), &[attr::QUOTA_CONSUMED]),
                _ => self.attribute(attr::EXPR_DATA, data),
            }
            // `NFT_META_IIF` and `NFT_META_OIF`.
            let key = Attributes(data).be32(attr::META_KEY);
            self.interfaces |= name == "meta" && matches!(key, Some(4 | 5));
        }
    }

    pub(super) fn object(&mut self, attributes: Attributes<'_>) {
        self.without(attributes, &[attr::OBJ_DATA, attr::OBJ_USE]);
        let data = attributes.nested(attr::OBJ_DATA).unwrap_or(Attributes(&[]));
        match attributes.be32(attr::OBJ_TYPE) {
            Some(COUNTER) => {}
            Some(QUOTA) => self.without(data, &[attr::QUOTA_CONSUMED]),
            _ => self.without(data, &[]),
        }
    }
}
