//! The kernel side of the registry's neighbour leases.

use std::collections::{HashMap, hash_map::Entry};

use crate::{
    fault,
    model::RouterId,
    netlink::{
        Netlink, NetlinkError,
        object::{Mac, Neighbour},
    },
    netns::{NetnsDir, NetnsError},
    registry::{KernelError, NeighbourKernel, NeighbourKey},
};

/// `NUD_STALE`, linux/neighbour.h: usable, and confirmed anew with the next packet.
const NUD_STALE: u16 = 0x04;
/// `NUD_NOARP`: valid without confirmation, until the kernel needs its place.
const NUD_NOARP: u16 = 0x40;
/// `NUD_PERMANENT`: valid until somebody deletes it.
const NUD_PERMANENT: u16 = 0x80;

/// Sets neighbour entries of any router when the registry asks. It opens a router when it is
/// first asked for, and keeps it open: hold it no longer than one job.
#[derive(Debug)]
pub struct LabNeighbours {
    dir: NetnsDir,
    routers: HashMap<RouterId, Netlink>,
}

impl LabNeighbours {
    /// Nothing is opened yet.
    #[must_use]
    pub fn new(dir: &NetnsDir) -> Self {
        Self {
            dir: dir.clone(),
            routers: HashMap::new(),
        }
    }

    fn router(&mut self, router: &RouterId) -> Result<&mut Netlink, KernelError> {
        match self.routers.entry(router.clone()) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(free) => {
                let netns = self.dir.open(&router.netns())?;
                Ok(free.insert(Netlink::open(&netns)?))
            }
        }
    }

    fn restore(
        &mut self,
        key: &NeighbourKey,
        before: Option<&Neighbour>,
    ) -> Result<(), KernelError> {
        let netlink = self.router(&key.router)?;
        fault::step("neighbour.restore")?;
        let mut batch = netlink.batch(key.router.to_string());
        match before.and_then(as_it_can_be_set) {
            Some(before) => batch.replace_neighbour(&before),
            None => batch.delete_neighbour(&key.interface, key.address),
        };
        Ok(batch.send()?)
    }
}

/// An entry that was learned comes back as one to be confirmed, for whether it still holds is not
/// known. One that had no address yet is none.
fn as_it_can_be_set(before: &Neighbour) -> Option<Neighbour> {
    before.mac?;
    let kept = before.state & (NUD_PERMANENT | NUD_NOARP);
    let state = if kept == 0 { NUD_STALE } else { kept };
    Some(Neighbour {
        state,
        ..before.clone()
    })
}

impl NeighbourKernel for LabNeighbours {
    fn neighbour(&mut self, key: &NeighbourKey) -> Result<Option<Neighbour>, KernelError> {
        let netlink = self.router(&key.router)?;
        Ok(netlink.neighbour(&key.interface, key.address)?)
    }

    fn set_neighbour(&mut self, key: &NeighbourKey, mac: Mac) -> Result<(), KernelError> {
        let neighbour = Neighbour {
            dev: key.interface.clone(),
            address: key.address,
            mac: Some(mac),
            state: NUD_PERMANENT,
        };
        let netlink = self.router(&key.router)?;
        fault::step("neighbour.set")?;
        let mut batch = netlink.batch(key.router.to_string());
        batch.replace_neighbour(&neighbour);
        Ok(batch.send()?)
    }

    fn restore_neighbour(
        &mut self,
        key: &NeighbourKey,
        before: Option<&Neighbour>,
    ) -> Result<(), KernelError> {
        match self.restore(key, before) {
            Err(error) if is_gone(&error) => Ok(()),
            other => other,
        }
    }
}

/// Whether there is no such router or interface any more, and so no entry either.
fn is_gone(error: &KernelError) -> bool {
    matches!(
        error.downcast_ref(),
        Some(NetnsError::NotFound { .. } | NetnsError::NotANamespace { .. })
    ) || matches!(error.downcast_ref(), Some(NetlinkError::NoInterface { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_learned_comes_back_unconfirmed_and_what_was_set_as_it_was() {
        let before = |state, mac| Neighbour {
            dev: "eth0".parse().unwrap(),
            address: "192.0.2.1".parse().unwrap(),
            mac,
            state,
        };
        let mac = Some(Mac([2, 0, 0, 0, 0, 1]));
        let state = |found: u16| as_it_can_be_set(&before(found, mac)).map(|n| n.state);
        let (reachable, delay, failed) = (0x02, 0x08, 0x20);
        assert_eq!(state(NUD_PERMANENT), Some(NUD_PERMANENT));
        assert_eq!(state(NUD_NOARP), Some(NUD_NOARP));
        assert_eq!(state(reachable), Some(NUD_STALE));
        assert_eq!(state(delay), Some(NUD_STALE));
        assert_eq!(as_it_can_be_set(&before(failed, None)), None);
    }
}
