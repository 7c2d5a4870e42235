//! Capabilities of this process, capabilities(7).

use super::{Area, Check, check};
use crate::firewall::Support;

/// Names and bit numbers, linux/capability.h.
const CAPABILITIES: [(&str, u32); 5] = [
    ("cap_sys_admin", 21),
    ("cap_net_admin", 12),
    ("cap_net_raw", 13),
    ("cap_dac_override", 1),
    ("cap_sys_resource", 24),
];

pub(super) fn checks() -> Vec<Check> {
    let effective = std::fs::read_to_string("/proc/thread-self/status")
        .ok()
        .and_then(|status| effective(&status));
    let one = |(name, bit)| {
        let support = match effective {
            Some(set) if set & (1u64 << bit) != 0 => Support::Yes,
            Some(_) => Support::No("not in the effective set".to_owned()),
            None => Support::Unknown("/proc/thread-self/status does not say".to_owned()),
        };
        check(Area::Rights, name, support, String::new())
    };
    CAPABILITIES.map(one).into()
}

/// The effective set in proc_pid_status(5).
fn effective(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read_not_the_permitted_one() {
        let status = "Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t0000000000003000\n";
        assert_eq!(effective(status), Some(0x3000));
        assert_eq!(effective("Name:\tx\n"), None);
    }
}
