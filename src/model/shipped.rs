//! The service groups that are shipped with tsim.

use std::{collections::BTreeMap, sync::OnceLock};

use serde::Deserialize;

use super::alike;

/// The groups that tsim ships, as TOML.
const SHIPPED: &str = include_str!("groups.toml");

/// One group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceGroup {
    /// What it is, in a few words.
    #[serde(default)]
    pub title: String,
    /// Its services as a list is typed.
    pub services: String,
}

/// All of them, by name.
pub(super) fn shipped() -> &'static BTreeMap<String, ServiceGroup> {
    static GROUPS: OnceLock<BTreeMap<String, ServiceGroup>> = OnceLock::new();
    // A unit test reads every one of them, so there is no other case.
    GROUPS.get_or_init(|| toml::from_str(SHIPPED).unwrap_or_default())
}

/// The list of the shipped group `name`.
pub(super) fn shipped_list(name: &str) -> Option<&'static str> {
    shipped().get(name).map(|group| group.services.as_str())
}

/// The shipped group that is most like `name`.
pub(super) fn shipped_alike(name: &str) -> Option<&'static str> {
    alike(name, shipped().keys().map(String::as_str))
}
