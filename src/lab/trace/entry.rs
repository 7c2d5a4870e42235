//! A place where a packet is about to be routed, and its name on the command line.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::model::{IfName, NameError, RouterName, text_in_json};

/// A packet about to be routed: in which router, and where it came in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// The router.
    pub router: RouterName,
    /// The interface that it came in by; none where the router itself sends it.
    pub iface_in: Option<IfName>,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.iface_in {
            Some(interface) => write!(f, "{}:{interface}", self.router),
            None => write!(f, "{} itself", self.router),
        }
    }
}

/// Where a question's packet enters the lab, as the user names it: `ROUTER` or
/// `ROUTER:INTERFACE`.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct EntryName {
    /// The router.
    pub router: RouterName,
    /// The interface; without one it is the router's that faces the source.
    pub interface: Option<IfName>,
}

/// Text that names no entry.
#[derive(Debug, Error)]
#[error("`{text}` is no entry: ROUTER or ROUTER:INTERFACE is allowed")]
pub struct EntryNameError {
    text: String,
    #[source]
    source: NameError,
}

impl FromStr for EntryName {
    type Err = EntryNameError;

    /// Neither name has a colon.
    fn from_str(text: &str) -> Result<Self, EntryNameError> {
        let refuse = |source| EntryNameError {
            text: text.to_owned(),
            source,
        };
        let (router, interface) = match text.split_once(':') {
            Some((router, interface)) => (router, Some(interface)),
            None => (text, None),
        };
        Ok(Self {
            router: RouterName::new(router).map_err(refuse)?,
            interface: interface.map(IfName::new).transpose().map_err(refuse)?,
        })
    }
}

text_in_json!(EntryName);

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.interface {
            Some(interface) => write!(f, "{}:{interface}", self.router),
            None => write!(f, "{}", self.router),
        }
    }
}

impl From<RouterName> for EntryName {
    fn from(router: RouterName) -> Self {
        Self {
            router,
            interface: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_router_or_one_of_its_interfaces() {
        for (text, router, interface) in [
            ("gw", "gw", None),
            ("gw:eth0", "gw", Some("eth0")),
            ("gw.b:eth0.1", "gw.b", Some("eth0.1")),
        ] {
            let name: EntryName = text.parse().unwrap();
            assert_eq!(name.router.as_str(), router);
            assert_eq!(name.interface.as_ref().map(IfName::as_str), interface);
            assert_eq!(name.to_string(), text);
        }
        for bad in [
            "",
            ":eth0",
            "gw:",
            "a/b",
            "gw:a/b",
            "gw:an-interface-too-long",
        ] {
            let error = bad.parse::<EntryName>().unwrap_err().to_string();
            assert!(error.contains("ROUTER:INTERFACE"), "{bad}: {error}");
        }
    }
}
