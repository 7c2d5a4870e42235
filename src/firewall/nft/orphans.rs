//! Tables that outlived their job, on kernels that know no owner tables.
//!
//! ```text
//! table ip tsimtrace_RUNID { comment "TSIM_KSMS=pid=4711:start=90210:boot=6b1c…:ns=4026531836" }
//! ```
//!
//! The comment names one process for ever. A table that has none, or that of a process that cannot
//! be looked up, stays: a name alone proves nothing. Kernels before 5.10 keep no comment.

use super::{
    DUMP_ATTEMPTS, NftError, NftSocket,
    socket::Dumped,
    wire::{Attributes, WireMessage},
};
use crate::{model::Owner, sys::nftnl::Family};

/// What all our comments begin with.
const PREFIX: &str = "TSIM_KSMS=";

/// linux/netfilter/nf_tables.h.
mod kernel {
    pub(super) const GET_TABLE: u16 = 1;
    pub(super) const TABLE_NAME: u16 = 1;
    pub(super) const TABLE_USERDATA: u16 = 6;
}

/// What a table says of this process.
pub(super) fn mark() -> Result<String, NftError> {
    Owner::current()
        .map(|o| comment(&o))
        .map_err(NftError::Process)
}

fn comment(owner: &Owner) -> String {
    let start = owner.start_time.unwrap_or_default();
    let boot = owner.boot_id.as_deref().unwrap_or_default();
    let pid_ns = owner.pid_ns.unwrap_or_default();
    format!(
        "{PREFIX}pid={}:start={start}:boot={boot}:ns={pid_ns}",
        owner.pid
    )
}

/// The process that a comment names; none when it is not ours, or does not say everything.
fn parse(comment: &str) -> Option<Owner> {
    let fields = comment.strip_prefix(PREFIX)?;
    let field = |name: &str| {
        let mut fields = fields.split(':').filter_map(|field| field.split_once('='));
        fields.find(|(n, _)| *n == name).map(|(_, value)| value)
    };
    Some(Owner {
        pid: field("pid")?.parse().ok()?,
        start_time: Some(field("start")?.parse().ok()?),
        boot_id: Some(field("boot")?.to_owned()),
        pid_ns: Some(field("ns")?.parse().ok()?),
        keeper: None,
    })
}

/// Removes the tables of owners of whom `is_gone` says that they are provably gone, in the
/// namespace of `socket`, and returns their names; with `dry_run` they stay.
///
/// # Errors
/// [`NftError`]; some may be gone then.
pub fn sweep(
    socket: &mut NftSocket,
    is_gone: impl Fn(&Owner) -> bool,
    dry_run: bool,
) -> Result<Vec<String>, NftError> {
    let mut dead = marked(socket)?;
    dead.retain(|table| is_gone(&table.owner));
    for table in dead.iter().filter(|_| !dry_run) {
        remove(socket, table)?;
    }
    Ok(dead.into_iter().map(|table| table.name).collect())
}

struct Marked {
    family: Family,
    name: String,
    owner: Owner,
}

/// The tables that say whose they are.
fn marked(socket: &mut NftSocket) -> Result<Vec<Marked>, NftError> {
    let what = "listing tables";
    for _ in 0..DUMP_ATTEMPTS {
        let mut found = Vec::new();
        let dumped = socket.dump_messages(kernel::GET_TABLE, 0, &[], what, |message| {
            found.extend(read(message));
        })?;
        if dumped == Dumped::Whole {
            return Ok(found);
        }
    }
    Err(NftError::Interrupted(what))
}

fn read(message: &WireMessage<'_>) -> Option<Marked> {
    // The families that our tables are of.
    let families = [Family::Ip, Family::Ip6, Family::Netdev];
    let family = *message.body.first()?;
    let attributes = message.attributes();
    Some(Marked {
        family: families
            .into_iter()
            .find(|f| *f as u16 == u16::from(family))?,
        name: attributes.text(kernel::TABLE_NAME)?.to_owned(),
        owner: parse(comment_of(attributes)?)?,
    })
}

/// Type, length, text and NUL, as nft(8) keeps a comment.
fn comment_of(table: Attributes<'_>) -> Option<&str> {
    let [0, length, text @ ..] = table.find(kernel::TABLE_USERDATA)? else {
        return None;
    };
    let text = text.get(..usize::from(*length))?.strip_suffix(&[0])?;
    std::str::from_utf8(text).ok()
}

fn remove(socket: &mut NftSocket, table: &Marked) -> Result<(), NftError> {
    let mut batch = socket.encoder();
    batch.begin();
    batch.delete_table(table.family, &table.name)?;
    batch.end();
    match socket.transact(&batch, "removing a dead job's table") {
        // Another job was quicker.
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_names_its_owner_and_nobody_else() {
        let me = Owner::current().unwrap();
        assert_eq!(parse(&comment(&me)), Some(me));
        for stranger in [
            "",
            "made by hand",
            "pid=1:start=2:boot=b:ns=3",
            "TSIM_KSMS=pid=1",
            "TSIM_KSMS=pid=x:start=2:boot=b:ns=3",
            "TSIM_KSMS=pid=1:start=2:ns=3",
        ] {
            assert_eq!(parse(stranger), None, "{stranger}");
        }
    }

    #[test]
    fn the_longest_comment_fits() {
        let longest = Owner {
            pid: u32::MAX,
            boot_id: Some("6b1c2f3a-0d5e-4f7a-9b8c-1a2b3c4d5e6f".to_owned()),
            start_time: Some(u64::MAX),
            pid_ns: Some(u64::MAX),
            keeper: None,
        };
        assert!(comment(&longest).len() <= 254);
    }
}
