//! Removing taps: of the own job, and of jobs that are dead.

use super::{
    IptablesError,
    command::{Iptables, Variant},
    identity::{Identity, MadeByTaps, Mark, PARTS, by_codes},
    render,
    save::IptablesSave,
};
use crate::{
    fault,
    firewall::{
        TapSite,
        nft::{NftError, NftSocket},
    },
    netlink::object::Family,
    sys::nftnl,
};

/// How often removing is tried while others change the same tables.
const ATTEMPTS: u32 = 5;

/// What was removed.
#[derive(Debug)]
pub struct Cleared {
    /// Whose taps there were.
    pub dead: Vec<Identity>,
    /// Nothing stayed of what came into being with the taps: nobody else uses it.
    pub all: bool,
}

/// Removes the taps of the jobs that `is_dead` says are provably dead, and what came into being with
/// them, be it by their own marks or as a dead job has `noted`; nothing else.
///
/// # Errors
/// [`IptablesError`].
pub fn sweep(
    (variant, family): (Variant, Family),
    site: TapSite<'_>,
    noted: &[String],
    is_dead: impl Fn(&Identity) -> bool,
) -> Result<Cleared, IptablesError> {
    let iptables = Iptables::new(variant, family, site);
    let _turn = iptables.turn()?;
    let save = iptables.save(None)?;
    let mut dead: Vec<Identity> = Vec::new();
    let mut made = by_codes(noted);
    for mark in marks(&save) {
        let known = dead.contains(&mark.identity);
        if known || is_dead(&mark.identity) {
            made.extend(mark.made);
            if !known {
                dead.push(mark.identity);
            }
        }
    }
    if !dead.is_empty() {
        remove_marked(&iptables, Some(save), |mark| dead.contains(&mark.identity))?;
    }
    let all = remove_made(&iptables, &made)?;
    Ok(Cleared { dead, all })
}

/// The comments of all jobs' taps.
pub(super) fn marks(save: &IptablesSave) -> impl Iterator<Item = Mark> {
    let rules = save.tables.values().flat_map(|table| &table.rules);
    rules.filter_map(|rule| Mark::parse(&rule.comment()?))
}

/// Removes marked rules. `save` may be out of date; then the tables are looked at again.
pub(super) fn remove_marked(
    iptables: &Iptables,
    mut save: Option<IptablesSave>,
    doomed: impl Fn(&Mark) -> bool,
) -> Result<(), IptablesError> {
    let mut attempt = 1;
    loop {
        let seen = match save.take() {
            Some(seen) => seen,
            None => iptables.save(None)?,
        };
        let Some(payload) = render::removal(&seen, &doomed) else {
            return Ok(());
        };
        match iptables.restore(&payload) {
            Ok(()) => return Ok(()),
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Err(_) => attempt += 1,
        }
    }
}

/// Removes tables and chains that came into being with taps and that nobody uses. Returns whether
/// that was all of them.
pub(super) fn remove_made(
    iptables: &Iptables,
    made: &[&'static MadeByTaps],
) -> Result<bool, IptablesError> {
    // With the legacy variant a table stays once it is there.
    if iptables.variant == Variant::Legacy || made.is_empty() {
        return Ok(true);
    }
    let what = "removing tables and chains that nobody uses";
    fault::step("iptables.remove_made").map_err(|source| NftError::Send { what, source })?;
    let mut socket = iptables.inside(NftSocket::open_here)??;
    let family = match iptables.family {
        Family::V4 => nftnl::Family::Ip,
        Family::V6 => nftnl::Family::Ip6,
    };
    // Chains before their tables.
    let chains = PARTS.iter().filter(|part| part.chain.is_some());
    let tables = PARTS.iter().filter(|part| part.chain.is_none());
    let parts = chains.chain(tables).filter(|part| made.contains(part));
    let parts: Vec<&MadeByTaps> = parts.collect();
    // All at once, for each change waits for packets on their way. If one is in use, each alone.
    let mut all = true;
    if delete_unused(&mut socket, family, &parts)?.is_some() {
        for part in parts {
            all &= delete_unused(&mut socket, family, &[part])? != Some(libc::EBUSY);
        }
    }
    Ok(all)
}

/// Deletes all of `parts`; or none, and says why, when one is in use or not there.
fn delete_unused(
    socket: &mut NftSocket,
    family: nftnl::Family,
    parts: &[&MadeByTaps],
) -> Result<Option<i32>, NftError> {
    let mut batch = socket.encoder();
    batch.begin();
    for part in parts {
        batch.delete_unused(family, part.table, part.chain)?;
    }
    batch.end();
    match socket.transact(&batch, "removing tables and chains that nobody uses") {
        Ok(()) => Ok(None),
        Err(error) => match error.errno() {
            why @ Some(libc::EBUSY | libc::ENOENT) => Ok(why),
            _ => Err(error),
        },
    }
}
