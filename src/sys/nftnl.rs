//! libnftnl: nf_tables objects encoded as netlink messages.
//!
//! The library allocates an object, takes its attributes one by one and writes one message; the
//! functions here do that in one call each, from plain values, into one contiguous buffer. Nothing
//! of libnftnl outlives a call, no message is sent from here, and nothing is parsed here.
//!
//! Attribute meanings: linux/netfilter/nf_tables.h.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, NulError, c_char},
    ptr::NonNull,
};

use nftnl_sys as ffi;
use thiserror::Error;

/// Room for one message. The largest that is made here, a rule of a dozen expressions, needs less
/// than 1 KiB.
const MESSAGE_MAX: usize = 8 * 1024;

/// Address family of a table (`NFPROTO_*`, linux/netfilter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Family {
    /// IPv4.
    Ip = 2,
    /// Ingress and egress of one device.
    Netdev = 5,
    /// IPv6.
    Ip6 = 10,
}

/// Where a base chain sees packets (`NF_INET_*`, linux/netfilter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Hook {
    /// Before routing.
    Prerouting = 0,
    /// On the way to a local socket.
    Input = 1,
    /// Between two interfaces.
    Forward = 2,
    /// On the way from a local socket.
    Output = 3,
    /// On the way out again.
    Postrouting = 4,
}

/// What a verdict expression does with the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum VerdictCode {
    /// Discard it.
    Drop = 0,
    /// Let it go on to the next chain of the hook.
    Accept = 1,
}

/// A header that payload offsets count from (`NFT_PAYLOAD_*_HEADER`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Header {
    /// The Ethernet header.
    Link = 0,
    /// The IP header.
    Network = 1,
    /// The TCP or UDP header.
    Transport = 2,
}

/// Packet meta data (`NFT_META_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Meta {
    /// The packet's firewall mark, four bytes in the machine's order.
    Mark = 3,
    /// Number of the outgoing interface, four bytes in the machine's order.
    Oif = 5,
    /// Number of the incoming interface, four bytes in the machine's order.
    Iif = 4,
    /// Whether the packet is traced, one byte.
    NfTrace = 12,
    /// Transport protocol number, one byte.
    L4Proto = 16,
}

/// What a packet's route says (`NFT_RT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum RouteKey {
    /// The IPv4 address of the next hop: the gateway, or the destination.
    NextHop4 = 1,
    /// The IPv6 address of the next hop.
    NextHop6 = 2,
}

/// The register that every expression here works on (`NFT_REG_1`): 16 bytes.
const REG: u32 = 1;
/// The first of the 32-bit registers (`NFT_REG32_00`); it is where [`REG`] begins.
const REG32: u32 = 8;

/// One step of a rule. Values pass from step to step in one register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr<'a> {
    /// Load meta data.
    LoadMeta(Meta),
    /// Load `len` bytes at `offset` bytes into a header.
    LoadPayload {
        /// The header.
        header: Header,
        /// Offset in bytes.
        offset: u32,
        /// Length in bytes, at most 16.
        len: u32,
    },
    /// Load what the route says.
    LoadRoute(RouteKey),
    /// Load as this expression does, so many 32-bit words further on: what was loaded before and
    /// this are one key then.
    Behind(u32, &'a Expr<'a>),
    /// Load a constant.
    LoadData(&'a [u8]),
    /// Keep only the bits of the mask.
    Mask(&'a [u8]),
    /// Go on only if the register equals this.
    Equal(&'a [u8]),
    /// Add the register to this set; go on also when it is there already.
    AddToSet {
        /// The set's name.
        name: &'a str,
        /// Its id within the batch.
        id: u32,
    },
    /// Count the packet in this named counter.
    Count(&'a str),
    /// Store the register into meta data.
    SetMeta(Meta),
    /// Decide.
    Verdict(VerdictCode),
}

/// A set of fixed-size keys that rules may add to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set<'a> {
    /// Name, unique in its table.
    pub name: &'a str,
    /// Id within the batch.
    pub id: u32,
    /// Key type as nft(8) numbers it; a wrong one makes the user's `nft list` abort.
    pub key_type: u32,
    /// Key length in bytes.
    pub key_len: u32,
    /// Most elements; the kernel sizes its hash table by this.
    pub size: u32,
}

/// A message could not be encoded.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// A name with a NUL byte in it.
    #[error("a name in an nf_tables object contains a NUL byte")]
    Nul(#[from] NulError),
    /// libnftnl could not allocate.
    #[error("libnftnl could not allocate a {0}")]
    Alloc(&'static str),
    /// A comment of more than 254 bytes.
    #[error("a table's comment is too long")]
    Comment,
}

/// Encodes messages one after the other into one buffer, ready for one `sendmsg`.
#[derive(Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
    sequence: u32,
    /// Where the last message begins.
    last: usize,
    /// What tables say of themselves.
    comment: Option<String>,
}

/// `NFT_MSG_*`, linux/netfilter/nf_tables.h.
mod message {
    pub(super) const NEW_TABLE: u16 = 0;
    pub(super) const DEL_TABLE: u16 = 2;
    pub(super) const NEW_CHAIN: u16 = 3;
    pub(super) const DEL_CHAIN: u16 = 5;
    pub(super) const NEW_RULE: u16 = 6;
    pub(super) const NEW_SET: u16 = 9;
    pub(super) const NEW_OBJECT: u16 = 18;
}

/// `NFT_SET_EVAL`: rules may update the set.
const SET_EVAL: u32 = 0x20;
/// `NFT_OBJECT_COUNTER`.
const OBJECT_COUNTER: u32 = 1;
/// `NF_NETDEV_INGRESS`, linux/netfilter.h.
const NETDEV_INGRESS: u32 = 0;
/// `NF_ACCEPT`, the policy of our base chains.
const POLICY_ACCEPT: u32 = 1;
/// `NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL`, and for rules `NLM_F_APPEND` in place of `EXCL`.
const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
const APPEND: u16 = (libc::NLM_F_CREATE | libc::NLM_F_APPEND) as u16;
/// `NLM_F_NONREC`, linux/netlink.h: refuse to delete what has something in it.
const ONLY_UNUSED: u16 = 0x100;

/// A comment as nft(8) keeps it with an object: type (`NFTNL_UDATA_TABLE_COMMENT`, libnftnl/udata.h),
/// length, text, NUL.
fn user_data(comment: &str) -> Result<Vec<u8>, EncodeError> {
    let text = CString::new(comment)?.into_bytes_with_nul();
    let length = u8::try_from(text.len()).map_err(|_| EncodeError::Comment)?;
    Ok([&[0, length], text.as_slice()].concat())
}

/// A chain object of this name in a table.
fn named_chain(table: &str, name: &str) -> Result<Owned<ffi::nftnl_chain>, EncodeError> {
    let (table, name) = (CString::new(table)?, CString::new(name)?);
    // SAFETY: no arguments; null is checked by `Owned`.
    let chain = Owned::new(
        "chain",
        unsafe { ffi::nftnl_chain_alloc() },
        ffi::nftnl_chain_free,
    )?;
    // SAFETY: the object is live; strings are copied by the library.
    unsafe {
        let chain = chain.as_ptr();
        ffi::nftnl_chain_set_str(chain, ffi::NFTNL_CHAIN_TABLE as u16, table.as_ptr());
        ffi::nftnl_chain_set_str(chain, ffi::NFTNL_CHAIN_NAME as u16, name.as_ptr());
    }
    Ok(chain)
}

/// Owns one libnftnl object and frees it.
struct Owned<T> {
    object: NonNull<T>,
    free: unsafe extern "C" fn(*const T),
}

impl<T> Owned<T> {
    fn new(
        what: &'static str,
        object: *mut T,
        free: unsafe extern "C" fn(*const T),
    ) -> Result<Self, EncodeError> {
        let object = NonNull::new(object).ok_or(EncodeError::Alloc(what))?;
        Ok(Self { object, free })
    }

    fn as_ptr(&self) -> *mut T {
        self.object.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the object came from the `*_alloc` that belongs to `free`, is not null, and
        // nothing else holds it: payload builders copy what they need.
        unsafe { (self.free)(self.object.as_ptr()) }
    }
}

impl Encoder {
    /// An empty buffer whose first message gets sequence number `first`.
    #[must_use]
    pub fn new(first: u32) -> Self {
        Self {
            bytes: Vec::with_capacity(MESSAGE_MAX),
            sequence: first,
            last: 0,
            comment: None,
        }
    }

    /// Gives each table from here on this comment, which nft(8) shows. At most 254 bytes.
    #[must_use]
    pub fn with_comment(mut self, comment: String) -> Self {
        self.comment = Some(comment);
        self
    }

    /// What was encoded so far.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The sequence number that the next message will get.
    #[must_use]
    pub fn next_sequence(&self) -> u32 {
        self.sequence
    }

    /// Opens the transaction.
    pub fn begin(&mut self) {
        self.marker(libc::NFNL_MSG_BATCH_BEGIN);
    }

    /// Closes the transaction. The ACK is asked for on the message before, because kernels before
    /// 6.10 do not acknowledge batch markers.
    pub fn end(&mut self) {
        if let Some(flags) = self.bytes.get_mut(self.last + 6..self.last + 8) {
            let asked = u16::from_ne_bytes([flags[0], flags[1]]) | libc::NLM_F_ACK as u16;
            flags.copy_from_slice(&asked.to_ne_bytes());
        }
        self.marker(libc::NFNL_MSG_BATCH_END);
    }

    /// A transaction without a message. Nobody acknowledges it.
    pub fn nothing(&mut self) {
        self.marker(libc::NFNL_MSG_BATCH_BEGIN);
        self.marker(libc::NFNL_MSG_BATCH_END);
    }

    /// A batch marker: `struct nfgenmsg` with the subsystem as resource id (nfnetlink.h).
    fn marker(&mut self, kind: libc::c_int) {
        self.last = self.bytes.len();
        let length: u32 = 20;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&(kind as u16).to_ne_bytes());
        self.bytes
            .extend_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes
            .extend_from_slice(&(libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes());
        self.sequence += 1;
    }

    /// A message whose attributes are encoded already: `kind` is one of `NFT_MSG_*`, `family` of
    /// `NFPROTO_*`, `flags` what `NLM_F_REQUEST` is joined by.
    pub fn raw(&mut self, kind: u16, family: u8, flags: u16, attributes: &[u8]) {
        self.last = self.bytes.len();
        let length = (20 + attributes.len()) as u32;
        let kind = ((libc::NFNL_SUBSYS_NFTABLES as u16) << 8) | kind;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&[family, 0, 0, 0]);
        self.bytes.extend_from_slice(attributes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.sequence += 1;
    }

    /// A table. `flags` are `NFT_TABLE_F_*`.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn table(&mut self, family: Family, name: &str, flags: u32) -> Result<(), EncodeError> {
        let name = CString::new(name)?;
        // SAFETY: no arguments; null is checked by `Owned`.
        let table = Owned::new(
            "table",
            unsafe { ffi::nftnl_table_alloc() },
            ffi::nftnl_table_free,
        )?;
        // SAFETY: the object is live; the string is copied by the library.
        unsafe {
            ffi::nftnl_table_set_str(table.as_ptr(), ffi::NFTNL_TABLE_NAME as u16, name.as_ptr());
            ffi::nftnl_table_set_u32(table.as_ptr(), ffi::NFTNL_TABLE_FLAGS as u16, flags);
        }
        if let Some(comment) = &self.comment {
            let data = user_data(comment)?;
            // SAFETY: the object is live; the library copies as many bytes as are said here.
            unsafe {
                ffi::nftnl_table_set_data(
                    table.as_ptr(),
                    ffi::NFTNL_TABLE_USERDATA as u16,
                    data.as_ptr().cast(),
                    data.len() as u32,
                );
            }
        }
        self.message(message::NEW_TABLE, family, CREATE, |header| {
            // SAFETY: `header` heads MESSAGE_MAX writable bytes.
            unsafe { ffi::nftnl_table_nlmsg_build_payload(header, table.as_ptr()) }
        });
        Ok(())
    }

    /// Deletes a table with everything in it.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn delete_table(&mut self, family: Family, name: &str) -> Result<(), EncodeError> {
        self.delete_table_with(family, name, 0)
    }

    /// Deletes a table, or a chain of it, that nobody uses; the kernel refuses with `EBUSY` while
    /// there is anything in it.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn delete_unused(
        &mut self,
        family: Family,
        table: &str,
        chain: Option<&str>,
    ) -> Result<(), EncodeError> {
        let Some(chain) = chain else {
            return self.delete_table_with(family, table, ONLY_UNUSED);
        };
        let chain = named_chain(table, chain)?;
        self.message(message::DEL_CHAIN, family, ONLY_UNUSED, |header| {
            // SAFETY: `header` heads MESSAGE_MAX writable bytes.
            unsafe { ffi::nftnl_chain_nlmsg_build_payload(header, chain.as_ptr()) }
        });
        Ok(())
    }

    fn delete_table_with(
        &mut self,
        family: Family,
        name: &str,
        flags: u16,
    ) -> Result<(), EncodeError> {
        let name = CString::new(name)?;
        // SAFETY: no arguments; null is checked by `Owned`.
        let table = Owned::new(
            "table",
            unsafe { ffi::nftnl_table_alloc() },
            ffi::nftnl_table_free,
        )?;
        // SAFETY: the object is live; the string is copied by the library.
        unsafe {
            ffi::nftnl_table_set_str(table.as_ptr(), ffi::NFTNL_TABLE_NAME as u16, name.as_ptr());
        }
        self.message(message::DEL_TABLE, family, flags, |header| {
            // SAFETY: `header` heads MESSAGE_MAX writable bytes.
            unsafe { ffi::nftnl_table_nlmsg_build_payload(header, table.as_ptr()) }
        });
        Ok(())
    }

    /// A base chain of type filter with policy accept.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn base_chain(
        &mut self,
        family: Family,
        table: &str,
        name: &str,
        hook: Hook,
        priority: i32,
    ) -> Result<(), EncodeError> {
        let at = (hook as u32, priority);
        self.filter_chain(family, (table, name), at, None)
    }

    /// A chain that sees what comes in on one device, before everything else that nf_tables or IP
    /// does with it. The table is one of [`Family::Netdev`].
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn ingress_chain(
        &mut self,
        table: &str,
        name: &str,
        device: &str,
        priority: i32,
    ) -> Result<(), EncodeError> {
        let at = (NETDEV_INGRESS, priority);
        self.filter_chain(Family::Netdev, (table, name), at, Some(device))
    }

    /// A chain of type filter with policy accept, `at` a hook with a priority, of one device or of
    /// all.
    fn filter_chain(
        &mut self,
        family: Family,
        (table, name): (&str, &str),
        (hook, priority): (u32, i32),
        device: Option<&str>,
    ) -> Result<(), EncodeError> {
        let device = device.map(CString::new).transpose()?;
        let chain = named_chain(table, name)?;
        // SAFETY: the object is live; strings are copied by the library.
        unsafe {
            let chain = chain.as_ptr();
            ffi::nftnl_chain_set_str(chain, ffi::NFTNL_CHAIN_TYPE as u16, c"filter".as_ptr());
            if let Some(device) = &device {
                ffi::nftnl_chain_set_str(chain, ffi::NFTNL_CHAIN_DEV as u16, device.as_ptr());
            }
            ffi::nftnl_chain_set_u32(chain, ffi::NFTNL_CHAIN_HOOKNUM as u16, hook);
            ffi::nftnl_chain_set_s32(chain, ffi::NFTNL_CHAIN_PRIO as u16, priority);
            ffi::nftnl_chain_set_u32(chain, ffi::NFTNL_CHAIN_POLICY as u16, POLICY_ACCEPT);
        }
        self.message(message::NEW_CHAIN, family, CREATE, |header| {
            // SAFETY: `header` heads MESSAGE_MAX writable bytes.
            unsafe { ffi::nftnl_chain_nlmsg_build_payload(header, chain.as_ptr()) }
        });
        Ok(())
    }

    /// A set that rules may add to.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn set(&mut self, family: Family, table: &str, set: Set<'_>) -> Result<(), EncodeError> {
        let (table, name) = (CString::new(table)?, CString::new(set.name)?);
        // SAFETY: no arguments; null is checked by `Owned`.
        let object = Owned::new(
            "set",
            unsafe { ffi::nftnl_set_alloc() },
            ffi::nftnl_set_free,
        )?;
        // SAFETY: the object is live; strings are copied by the library.
        unsafe {
            let object = object.as_ptr();
            ffi::nftnl_set_set_str(object, ffi::NFTNL_SET_TABLE as u16, table.as_ptr());
            ffi::nftnl_set_set_str(object, ffi::NFTNL_SET_NAME as u16, name.as_ptr());
            ffi::nftnl_set_set_u32(object, ffi::NFTNL_SET_ID as u16, set.id);
            ffi::nftnl_set_set_u32(object, ffi::NFTNL_SET_FLAGS as u16, SET_EVAL);
            ffi::nftnl_set_set_u32(object, ffi::NFTNL_SET_KEY_TYPE as u16, set.key_type);
            ffi::nftnl_set_set_u32(object, ffi::NFTNL_SET_KEY_LEN as u16, set.key_len);
            ffi::nftnl_set_set_u32(object, ffi::NFTNL_SET_DESC_SIZE as u16, set.size);
        }
        self.message(message::NEW_SET, family, CREATE, |header| {
            // SAFETY: `header` heads MESSAGE_MAX writable bytes.
            unsafe { ffi::nftnl_set_nlmsg_build_payload(header, object.as_ptr()) }
        });
        Ok(())
    }

    /// A named counter, at zero.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn counter(&mut self, family: Family, table: &str, name: &str) -> Result<(), EncodeError> {
        let (table, name) = (CString::new(table)?, CString::new(name)?);
        // SAFETY: no arguments; null is checked by `Owned`.
        let object = Owned::new(
            "counter",
            unsafe { ffi::nftnl_obj_alloc() },
            ffi::nftnl_obj_free,
        )?;
        // SAFETY: the object is live; strings are copied by the library.
        unsafe {
            let object = object.as_ptr();
            ffi::nftnl_obj_set_str(object, ffi::NFTNL_OBJ_TABLE as u16, table.as_ptr());
            ffi::nftnl_obj_set_str(object, ffi::NFTNL_OBJ_NAME as u16, name.as_ptr());
            ffi::nftnl_obj_set_u32(object, ffi::NFTNL_OBJ_TYPE as u16, OBJECT_COUNTER);
        }
        self.message(message::NEW_OBJECT, family, CREATE, |header| {
            // SAFETY: `header` heads MESSAGE_MAX writable bytes.
            unsafe { ffi::nftnl_obj_nlmsg_build_payload(header, object.as_ptr()) }
        });
        Ok(())
    }

    /// A rule at the end of a chain.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn rule(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
        exprs: &[Expr<'_>],
    ) -> Result<(), EncodeError> {
        let (table, chain) = (CString::new(table)?, CString::new(chain)?);
        // SAFETY: no arguments; null is checked by `Owned`.
        let rule = Owned::new(
            "rule",
            unsafe { ffi::nftnl_rule_alloc() },
            ffi::nftnl_rule_free,
        )?;
        // SAFETY: the object is live; strings are copied by the library.
        unsafe {
            ffi::nftnl_rule_set_str(rule.as_ptr(), ffi::NFTNL_RULE_TABLE as u16, table.as_ptr());
            ffi::nftnl_rule_set_str(rule.as_ptr(), ffi::NFTNL_RULE_CHAIN as u16, chain.as_ptr());
        }
        for expr in exprs {
            let expr = encode(expr)?;
            // SAFETY: both are live; the rule takes ownership of the expression and frees it.
            unsafe { ffi::nftnl_rule_add_expr(rule.as_ptr(), expr.as_ptr()) }
        }
        self.message(message::NEW_RULE, family, APPEND, |header| {
            // SAFETY: `header` heads MESSAGE_MAX writable bytes.
            unsafe { ffi::nftnl_rule_nlmsg_build_payload(header, rule.as_ptr()) }
        });
        Ok(())
    }

    /// Appends one message: its header, then what `payload` writes behind it.
    fn message(
        &mut self,
        kind: u16,
        family: Family,
        flags: u16,
        payload: impl FnOnce(*mut libc::nlmsghdr),
    ) {
        let mut scratch = Scratch([0; MESSAGE_MAX]);
        let kind = ((libc::NFNL_SUBSYS_NFTABLES as u16) << 8) | kind;
        // SAFETY: the pointer heads MESSAGE_MAX writable bytes, aligned as a header must be.
        let header = unsafe {
            let head = scratch.0.as_mut_ptr().cast::<c_char>();
            ffi::nftnl_nlmsg_build_hdr(head, kind, family as u16, flags, self.sequence)
        };
        payload(header.cast());
        let [a, b, c, d, ..] = scratch.0;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        self.last = self.bytes.len();
        self.bytes
            .extend_from_slice(&scratch.0[..length.next_multiple_of(4)]);
        self.sequence += 1;
    }
}

/// Where one message is built.
#[repr(align(8))]
struct Scratch([u8; MESSAGE_MAX]);

/// One expression; the rule that it is added to owns and frees it.
fn encode(expr: &Expr<'_>) -> Result<NonNull<ffi::nftnl_expr>, EncodeError> {
    encode_into(REG, expr)
}

/// The same with another register to load into.
fn encode_into(to: u32, expr: &Expr<'_>) -> Result<NonNull<ffi::nftnl_expr>, EncodeError> {
    let builder = match expr {
        Expr::Behind(words, expr) => return encode_into(REG32 + words, expr),
        Expr::LoadMeta(key) => Builder::new(c"meta")?
            .u32(ffi::NFTNL_EXPR_META_KEY, *key as u32)
            .u32(ffi::NFTNL_EXPR_META_DREG, to),
        Expr::LoadRoute(key) => Builder::new(c"rt")?
            .u32(ffi::NFTNL_EXPR_RT_KEY, *key as u32)
            .u32(ffi::NFTNL_EXPR_RT_DREG, to),
        Expr::SetMeta(key) => Builder::new(c"meta")?
            .u32(ffi::NFTNL_EXPR_META_KEY, *key as u32)
            .u32(ffi::NFTNL_EXPR_META_SREG, REG),
        Expr::LoadPayload {
            header,
            offset,
            len,
        } => Builder::new(c"payload")?
            .u32(ffi::NFTNL_EXPR_PAYLOAD_DREG, to)
            .u32(ffi::NFTNL_EXPR_PAYLOAD_BASE, *header as u32)
            .u32(ffi::NFTNL_EXPR_PAYLOAD_OFFSET, *offset)
            .u32(ffi::NFTNL_EXPR_PAYLOAD_LEN, *len),
        Expr::LoadData(data) => Builder::new(c"immediate")?
            .u32(ffi::NFTNL_EXPR_IMM_DREG, REG)
            .data(ffi::NFTNL_EXPR_IMM_DATA, data),
        Expr::Mask(mask) => Builder::new(c"bitwise")?
            .u32(ffi::NFTNL_EXPR_BITWISE_SREG, REG)
            .u32(ffi::NFTNL_EXPR_BITWISE_DREG, REG)
            .u32(ffi::NFTNL_EXPR_BITWISE_LEN, mask.len() as u32)
            .data(ffi::NFTNL_EXPR_BITWISE_MASK, mask)
            .data(ffi::NFTNL_EXPR_BITWISE_XOR, &vec![0; mask.len()]),
        Expr::Equal(data) => Builder::new(c"cmp")?
            .u32(ffi::NFTNL_EXPR_CMP_SREG, REG)
            .u32(ffi::NFTNL_EXPR_CMP_OP, libc::NFT_CMP_EQ as u32)
            .data(ffi::NFTNL_EXPR_CMP_DATA, data),
        Expr::AddToSet { name, id } => Builder::new(c"dynset")?
            .u32(ffi::NFTNL_EXPR_DYNSET_OP, libc::NFT_DYNSET_OP_ADD as u32)
            .u32(ffi::NFTNL_EXPR_DYNSET_SREG_KEY, REG)
            .name(ffi::NFTNL_EXPR_DYNSET_SET_NAME, name)?
            .u32(ffi::NFTNL_EXPR_DYNSET_SET_ID, *id),
        Expr::Count(name) => Builder::new(c"objref")?
            .u32(ffi::NFTNL_EXPR_OBJREF_IMM_TYPE, OBJECT_COUNTER)
            .name(ffi::NFTNL_EXPR_OBJREF_IMM_NAME, name)?,
        Expr::Verdict(verdict) => Builder::new(c"immediate")?
            .u32(ffi::NFTNL_EXPR_IMM_DREG, libc::NFT_REG_VERDICT as u32)
            .u32(ffi::NFTNL_EXPR_IMM_VERDICT, *verdict as i32 as u32),
    };
    Ok(builder.finish())
}

/// Sets the attributes of one expression.
struct Builder(Owned<ffi::nftnl_expr>);

impl Builder {
    fn new(kind: &CStr) -> Result<Self, EncodeError> {
        // SAFETY: the string ends in NUL; null (an unknown kind) is checked by `Owned`.
        let expr = unsafe { ffi::nftnl_expr_alloc(kind.as_ptr()) };
        Ok(Self(Owned::new("expression", expr, ffi::nftnl_expr_free)?))
    }

    fn u32(self, attribute: u32, value: u32) -> Self {
        // SAFETY: the object is live.
        unsafe { ffi::nftnl_expr_set_u32(self.0.as_ptr(), attribute as u16, value) }
        self
    }

    fn data(self, attribute: u32, data: &[u8]) -> Self {
        // SAFETY: the object is live; the bytes are copied by the library.
        unsafe {
            let (start, len) = (data.as_ptr().cast(), data.len() as u32);
            ffi::nftnl_expr_set(self.0.as_ptr(), attribute as u16, start, len);
        }
        self
    }

    fn name(self, attribute: u32, name: &str) -> Result<Self, EncodeError> {
        let name = CString::new(name)?;
        // SAFETY: the object is live; the string is copied by the library.
        unsafe {
            ffi::nftnl_expr_set_str(self.0.as_ptr(), attribute as u16, name.as_ptr());
        }
        Ok(self)
    }

    /// Hands the expression over to whoever frees it.
    fn finish(self) -> NonNull<ffi::nftnl_expr> {
        let object = self.0.object;
        std::mem::forget(self.0);
        object
    }
}
