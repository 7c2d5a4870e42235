//! `links.toml` beside the facts: what nothing else tells about the lab's wires.
//!
//! ```toml
//! # These interfaces are on one link. A router without facts may be named too: what is sent to it
//! # is then not known, where it would otherwise leave the lab.
//! [[link]]
//! ends = ["leaf1:swp1", "leaf2:swp1"]
//!
//! # Hosts of this subnet use this router, so that their packets enter there.
//! [[gateway]]
//! segment = "10.1.1.0/24"
//! router = "hq-gw"
//! ```

use std::{io, path::Path};

use ipnet::IpNet;
use serde::Deserialize;

use super::{
    facts::{self, FactsError, RouterFacts},
    topology::Origin,
};
use crate::model::RouterName;

/// The file's name.
const FILE: &str = "links.toml";
/// Largest file in bytes; ten thousand links have less.
const MAX: u64 = 4 << 20;

/// What `links.toml` says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Links {
    /// Links by their ends.
    #[serde(default)]
    pub link: Vec<Link>,
    /// What hosts use.
    #[serde(default)]
    pub gateway: Vec<Gateway>,
}

/// Interfaces that are on one link.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// `router:interface`, at least two.
    pub ends: Vec<String>,
}

/// The router that the hosts of a subnet use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// The subnet.
    pub segment: IpNet,
    /// The router; several lines for one subnet name several.
    pub router: RouterName,
}

impl Links {
    /// Reads the file beside the facts in `dir`; without one there is nothing to say.
    ///
    /// # Errors
    /// [`FactsError`] when it cannot be read, or names what `facts` do not have.
    pub fn load(dir: &Path, facts: &[RouterFacts]) -> Result<Self, FactsError> {
        let path = dir.join(FILE);
        let text = match facts::read_text(&path, MAX) {
            Err(FactsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            other => other?,
        };
        let wrong = |message| FactsError::Links {
            origin: Origin {
                file: path.display().to_string(),
                line: 0,
            },
            message,
        };
        let links: Self = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        links.check(facts).map_err(wrong)?;
        Ok(links)
    }

    /// Says what of this `facts` do not have. A router without facts may be an end of a link.
    fn check(&self, facts: &[RouterFacts]) -> Result<(), String> {
        for link in &self.link {
            if link.ends.len() < 2 {
                return Err(format!(
                    "`ends = {:?}`: a link has two ends or more",
                    link.ends
                ));
            }
            let mut known = false;
            for end in &link.ends {
                known |= check_end(end, facts)?;
            }
            if !known {
                return Err(format!(
                    "`ends = {:?}`: no facts of any of these routers",
                    link.ends
                ));
            }
        }
        for Gateway { segment, router } in &self.gateway {
            let Some(of) = facts.iter().find(|of| of.name == *router) else {
                return Err(format!(
                    "gateway of {segment}: no facts of a router {router}"
                ));
            };
            let mut nets = of.interfaces.iter().flat_map(|i| &i.addresses);
            if !nets.any(|address| address.local.trunc() == segment.trunc()) {
                return Err(format!(
                    "gateway of {segment}: {router} has no address in it"
                ));
            }
        }
        Ok(())
    }
}

/// Whether the facts have the end's router; it then must have the interface.
fn check_end(end: &str, facts: &[RouterFacts]) -> Result<bool, String> {
    let Some((router, interface)) = split(end) else {
        return Err(format!("`{end}` is no end: ROUTER:INTERFACE is allowed"));
    };
    let Some(of) = facts.iter().find(|of| of.name.as_str() == router) else {
        return Ok(false);
    };
    let names: Vec<&str> = of.interfaces.iter().map(|i| i.name.as_str()).collect();
    if names.contains(&interface) {
        return Ok(true);
    }
    Err(format!(
        "`{end}`: {router} has no interface {interface}; it has {}",
        names.join(", ")
    ))
}

/// Router and interface of an end.
pub(super) fn split(end: &str) -> Option<(&str, &str)> {
    let (router, interface) = end.split_once(':')?;
    (!router.is_empty() && !interface.is_empty()).then_some((router, interface))
}
