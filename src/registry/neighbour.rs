//! Leases of routers' neighbour entries: the records of `neighbor_leases.json`.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    model::{IfName, NameError, RouterId, RunId, text_in_json},
    netlink::object::{Mac, Neighbour},
    registry::{
        Collided, Lease, RegistryError,
        lease::{self, IsGone},
        table::Table,
    },
};

/// A neighbour entry; its text is `ROUTER|INTERFACE|ADDRESS`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NeighbourKey {
    /// The router that has the entry.
    pub router: RouterId,
    /// Its interface.
    pub interface: IfName,
    /// The neighbour's address.
    pub address: IpAddr,
}

impl fmt::Display for NeighbourKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}|{}|{}", self.router, self.interface, self.address)
    }
}

impl FromStr for NeighbourKey {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let refuse = || NameError {
            kind: "neighbour",
            value: text.to_owned(),
            reason: "it is not of the form LAB.ROUTER|INTERFACE|ADDRESS".to_owned(),
        };
        let mut parts = text.split('|');
        let mut next = || parts.next().ok_or_else(refuse);
        let key = Self {
            router: next()?.parse()?,
            interface: next()?.parse()?,
            address: next()?.parse().map_err(|_| refuse())?,
        };
        if parts.next().is_some() {
            Err(refuse())
        } else {
            Ok(key)
        }
    }
}

text_in_json!(NeighbourKey);

/// The leases of one neighbour entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NeighbourLeases {
    /// The router that has the entry.
    pub router: RouterId,
    /// Its interface.
    pub interface: IfName,
    /// The neighbour's address.
    pub neighbor_ip: IpAddr,
    /// Where the entry points while it is leased.
    pub mac_address: Mac,
    /// What was there before; put back with the last lease.
    #[serde(default)]
    pub before: Option<Neighbour>,
    /// Who uses it; at most one lease per job.
    pub leases: Vec<Lease>,
    /// Fields that tsim does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl NeighbourLeases {
    pub(crate) fn new(key: &NeighbourKey, mac: Mac, before: Option<Neighbour>) -> Self {
        Self {
            router: key.router.clone(),
            interface: key.interface.clone(),
            neighbor_ip: key.address,
            mac_address: mac,
            before,
            leases: Vec::new(),
            extra: Map::new(),
        }
    }

    /// Adds a lease. Leases of the dead do not keep the entry where it points, but what was there
    /// before them stays known.
    pub(crate) fn acquire(
        &mut self,
        key: &NeighbourKey,
        mac: Mac,
        new: Lease,
        liveness: IsGone<'_>,
    ) -> Result<Lease, RegistryError> {
        let others: Vec<Lease> = {
            lease::drop_gone(&mut self.leases, liveness);
            let others = self.leases.iter().filter(|l| l.run_id != new.run_id);
            others.cloned().collect()
        };
        if self.mac_address != mac && !others.is_empty() {
            return Err(RegistryError::Collision {
                subject: format!("neighbour {key}"),
                what: Collided::Neighbour(self.mac_address.to_string()),
                owner: names(&others),
            });
        }
        self.mac_address = mac;
        Ok(lease::acquire(&mut self.leases, new, liveness))
    }

    /// Removes a job's lease and those of the dead; returns how many are left.
    pub(crate) fn release(
        &mut self,
        key: &NeighbourKey,
        run_id: &RunId,
        liveness: IsGone<'_>,
    ) -> Result<usize, RegistryError> {
        let before = self.leases.len();
        self.leases.retain(|l| l.run_id != *run_id);
        if self.leases.len() == before {
            return Err(not_leased(key, run_id));
        }
        lease::drop_gone(&mut self.leases, liveness);
        Ok(self.leases.len())
    }
}

pub(crate) fn not_leased(key: &NeighbourKey, run_id: &RunId) -> RegistryError {
    RegistryError::NotFound(format!("a lease of neighbour {key} by {run_id}"))
}

fn names(leases: &[Lease]) -> String {
    let names: Vec<&str> = leases.iter().map(|l| l.run_id.as_str()).collect();
    names.join(", ")
}

/// All leased neighbour entries.
pub(crate) fn list(table: &Table) -> Result<Vec<(NeighbourKey, NeighbourLeases)>, RegistryError> {
    let parse = |entry: Result<(&str, NeighbourLeases), RegistryError>| {
        let (key, record) = entry?;
        let key = key.parse().map_err(|e| table.damaged(key, &e))?;
        Ok((key, record))
    };
    table.iter().map(parse).collect()
}
