//! Source ports of probes, drawn as clients draw theirs.

use std::io;

use super::QuickError;

/// Linux's range for clients, net.ipv4.ip_local_port_range: rules may look at it.
const FIRST_PORT: u16 = 32_768;
const PORTS: u16 = 28_232;

/// A source port that no earlier run is likely to have used, so that no entry of connection
/// tracking answers in a rule's place.
pub(super) fn fresh_port() -> Result<u16, QuickError> {
    Ok(FIRST_PORT + (random()? % u64::from(PORTS)) as u16)
}

/// The `number`th source port behind `port`, within the same range.
pub(super) fn port_behind(port: u16, number: u16) -> u16 {
    let at = u32::from(port.saturating_sub(FIRST_PORT)) + u32::from(number);
    FIRST_PORT + (at % u32::from(PORTS)) as u16
}

pub(super) fn random() -> Result<u64, QuickError> {
    getrandom::u64().map_err(|e| QuickError::System {
        what: "draw random numbers",
        source: io::Error::other(e.to_string()),
    })
}
