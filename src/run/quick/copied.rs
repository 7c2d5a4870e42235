//! Probes that a router stops when a copy of them is under way (TEE, `dup`).
//!
//! The taps count no copies. Most of them go to somebody who only listens, and say nothing of the probe; one
//! that goes to the destination itself, or to a router that may send it on, gets there in the probe's place.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    firewall::rule::words,
    lab::Lab,
    run::{explain::Explained, packet::Headers, report::Verdict},
};

/// The addresses of a lab's routers.
#[derive(Debug)]
pub(super) struct Copies(BTreeSet<IpAddr>);

impl Copies {
    pub(super) fn within(lab: &Lab) -> Self {
        let interfaces = lab.routers.iter().flat_map(|router| &router.interfaces);
        let all = interfaces.flat_map(|interface| &interface.addresses);
        Self(all.map(|own| own.local.addr()).collect())
    }

    /// What to say of a probe that was stopped, if a copy of it may get where it goes.
    pub(super) fn told(
        &self,
        headers: &Headers,
        explained: &Explained,
        (verdict, reason): &(Verdict, String),
    ) -> Option<(Verdict, String)> {
        let rule = explained.copied.as_ref()?;
        let to = rule.text.as_deref().and_then(gateway);
        let matters = to.is_none_or(|to| to == headers.destination || self.0.contains(&to));
        (*verdict == Verdict::No && matters).then(|| {
            let why = format!("a copy that {rule} sends may get there; it is {reason} itself");
            (Verdict::Unknown, why)
        })
    }
}

/// To whom a rule sends copies, `--gateway ADDRESS` of iptables and `dup to ADDRESS` of nft(8); none where
/// that is computed.
fn gateway(text: &str) -> Option<IpAddr> {
    let words = words(text);
    let mut pairs = words.windows(2);
    let to = pairs.find_map(|pair| match pair {
        ["--gateway" | "to", address] => Some(*address),
        _ => None,
    });
    to?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_of_copies_is_read() {
        let address = "10.2.0.9".parse().ok();
        for (text, to) in [
            ("-A PREROUTING -p tcp -j TEE --gateway 10.2.0.9", address),
            ("tcp dport 80 dup to 10.2.0.9 device \"eth1\"", address),
            (
                "tcp dport 80 dup to ip daddr map { 10.2.0.9 : 10.2.0.8 }",
                None,
            ),
        ] {
            assert_eq!(gateway(text), to, "{text}");
        }
    }
}
