//! Hosts: the records of `hosts.json` and the rules for registering them.

use std::{borrow::Cow, net::IpAddr};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    model::{HostId, IfName, LabName, RouterId, RunId},
    netlink::object::Mac,
    registry::{Collided, Owner, RegistryError, table::Table, time},
};

/// Who removes a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ManagedBy {
    /// It goes with its last lease.
    Job,
    /// It stays until an operator removes it.
    #[default]
    Operator,
}

/// A host to be registered and made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSpec {
    /// Its name; also that of its namespace.
    pub id: HostId,
    /// The router whose segment it joins; of the same lab.
    pub router: RouterId,
    /// That router's interface.
    pub interface: IfName,
    /// The host's address.
    pub address: IpNet,
    /// The router's address that the default route points at.
    pub gateway: Option<IpAddr>,
    /// The host's hardware address.
    pub mac: Mac,
    /// It stands for somebody else's address: the destination host of a detailed job. It is
    /// reached through a leased neighbour entry only, so several may have one address.
    pub stands_in: bool,
}

/// A registered host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Address and prefix length.
    pub primary_ip: IpNet,
    /// The router.
    pub connected_to: RouterId,
    /// The lab.
    pub lab: LabName,
    /// The hardware address.
    pub mac_address: Mac,
    /// The router's interface.
    pub router_interface: IfName,
    /// Where the default route points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_ip: Option<IpAddr>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// The same in seconds since the epoch.
    pub registered_at_timestamp: f64,
    /// Who removes it.
    #[serde(default)]
    pub managed_by: ManagedBy,
    /// It is registered and not yet made. (A host that a job manages has no lease then either.)
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub creating: bool,
    /// It stands for somebody else's address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stands_in: bool,
    /// The job that registered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by_run: Option<RunId>,
    /// The process that registered it.
    #[serde(default)]
    pub created_by: Owner,
    /// Fields that tsim does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl HostRecord {
    /// What the host was made from, for making it anew.
    #[must_use]
    pub fn spec(&self, id: &HostId) -> HostSpec {
        HostSpec {
            id: id.clone(),
            router: self.connected_to.clone(),
            interface: self.router_interface.clone(),
            address: self.primary_ip,
            gateway: self.gateway_ip,
            mac: self.mac_address,
            stands_in: self.stands_in,
        }
    }

    fn new(spec: &HostSpec, by: &Registrant, now: Timestamp) -> Self {
        Self {
            primary_ip: spec.address,
            connected_to: spec.router.clone(),
            lab: spec.id.lab.clone(),
            mac_address: spec.mac,
            router_interface: spec.interface.clone(),
            gateway_ip: spec.gateway,
            created_at: time::text(now),
            registered_at_timestamp: time::seconds(now),
            managed_by: by.managed_by,
            creating: by.managed_by == ManagedBy::Operator,
            stands_in: spec.stands_in,
            created_by_run: Some(by.run_id.clone()),
            created_by: by.owner.clone(),
            extra: Map::new(),
        }
    }
}

/// On whose behalf a host is registered.
#[derive(Debug, Clone)]
pub(crate) struct Registrant {
    pub(crate) managed_by: ManagedBy,
    pub(crate) run_id: RunId,
    pub(crate) owner: Owner,
}

/// A member that every record of this program has, and no other program's.
const OURS: &str = "\"managed_by\"";

/// The part of a record that may collide; read in place.
#[derive(Deserialize)]
struct Keys<'a> {
    #[serde(borrow)]
    primary_ip: Cow<'a, str>,
    #[serde(borrow)]
    connected_to: Cow<'a, str>,
    #[serde(borrow, default)]
    mac_address: Option<Cow<'a, str>>,
    #[serde(default)]
    stands_in: bool,
}

/// Registers `spec` if neither its name, its address on this router, nor its MAC in this lab is
/// taken. An address is not taken by a host that stands in for its owner.
pub(crate) fn register(
    hosts: &mut Table,
    spec: &HostSpec,
    by: &Registrant,
    now: Timestamp,
) -> Result<(), RegistryError> {
    let key = spec.id.to_string();
    let router = spec.router.to_string();
    let mac = spec.mac.to_string();
    let lab = format!("{}@", spec.id.lab);
    let ip = spec.address.addr();
    let collision = |what, owner: &str| RegistryError::Collision {
        subject: format!("host {key}"),
        what,
        owner: format!("host {owner}"),
    };
    if hosts.contains(&key) {
        return Err(collision(Collided::Name, &key));
    }
    let ip_text = ip.to_string();
    // Records that this program wrote spell addresses in one way; only those that have one of
    // these texts in them need a closer look.
    let may_collide =
        |text: &str| text.contains(&ip_text) || text.contains(&mac) || !text.contains(OURS);
    for (other, text) in hosts.texts().filter(|(_, text)| may_collide(text)) {
        let keys: Keys<'_> = serde_json::from_str(text).map_err(|e| hosts.damaged(other, &e))?;
        let may_share = spec.stands_in || keys.stands_in;
        if !may_share && keys.connected_to == router && address(&keys.primary_ip) == Some(ip) {
            return Err(collision(
                Collided::Address(format!("{ip} on {router}")),
                other,
            ));
        }
        let same_mac = |m: &str| m.eq_ignore_ascii_case(&mac);
        if other.starts_with(&lab) && keys.mac_address.as_deref().is_some_and(same_mac) {
            return Err(collision(Collided::Mac(mac), other));
        }
    }
    hosts.put(&key, &HostRecord::new(spec, by, now))
}

fn address(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.parse().ok()
}

/// The error for a host that is not registered.
pub(crate) fn not_found(host: &HostId) -> RegistryError {
    RegistryError::NotFound(format!("host {host}"))
}

/// All hosts, by name.
pub(crate) fn list(hosts: &Table) -> Result<Vec<(HostId, HostRecord)>, RegistryError> {
    let parse = |entry: Result<(&str, HostRecord), RegistryError>| {
        let (key, record) = entry?;
        let id = key.parse().map_err(|e| hosts.damaged(key, &e))?;
        Ok((id, record))
    };
    hosts.iter().map(parse).collect()
}

/// Checks that a host that is registered already is the one that `spec` asks for.
pub(crate) fn check_same(record: &HostRecord, spec: &HostSpec) -> Result<(), RegistryError> {
    let same = record.connected_to == spec.router
        && record.router_interface == spec.interface
        && record.primary_ip == spec.address
        && record.mac_address == spec.mac;
    if same {
        Ok(())
    } else {
        Err(RegistryError::Collision {
            subject: format!("host {}", spec.id),
            what: Collided::Name,
            owner: format!(
                "a host with {} ({}) on {} of {}",
                record.primary_ip, record.mac_address, record.router_interface, record.connected_to
            ),
        })
    }
}
