//! Capabilities of this process, capabilities(7).

use rustix::thread::{CapabilitySet, capabilities};

use super::{Area, Check, check};
use crate::firewall::Support;

const CAPABILITIES: [(&str, CapabilitySet); 5] = [
    ("cap_sys_admin", CapabilitySet::SYS_ADMIN),
    ("cap_net_admin", CapabilitySet::NET_ADMIN),
    ("cap_net_raw", CapabilitySet::NET_RAW),
    ("cap_dac_override", CapabilitySet::DAC_OVERRIDE),
    ("cap_sys_resource", CapabilitySet::SYS_RESOURCE),
];

pub(super) fn checks() -> Vec<Check> {
    let effective = capabilities(None).map(|sets| sets.effective);
    let one = |(name, capability)| {
        let support = match effective {
            Ok(set) if set.contains(capability) => Support::Yes,
            Ok(_) => Support::No("not in the effective set".to_owned()),
            Err(error) => Support::Unknown(error.to_string()),
        };
        check(Area::Rights, name, support, String::new())
    };
    CAPABILITIES.map(one).into()
}
