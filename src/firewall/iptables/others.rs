//! What else looks at packets in a router: chains of nf_tables that iptables does not show.

use super::{
    IptablesError,
    command::{Iptables, Variant},
    place::{self, HOOK_INPUT, Spot, TapPlace},
    save::IptablesSave,
};
use crate::{
    firewall::{
        Support,
        nft::{
            NftSocket,
            inventory::{Inventory, support_here},
        },
    },
    netlink::object::Family,
    sys::nftnl,
};

/// `NFPROTO_INET`, linux/netfilter.h.
const NFPROTO_INET: u8 = 1;

/// What else looks at packets in a router: chains of nf_tables that iptables does not show.
pub(super) struct Others {
    variant: Variant,
    pub(super) own: Inventory,
    inet: Inventory,
}

impl Others {
    pub(super) fn look(iptables: &Iptables) -> Result<Self, IptablesError> {
        let variant = iptables.variant;
        let family = match iptables.family {
            Family::V4 => nftnl::Family::Ip,
            Family::V6 => nftnl::Family::Ip6,
        };
        iptables.inside(|| {
            let (mut own, mut inet) = (Inventory::default(), Inventory::default());
            // A kernel without nf_tables has no such chains.
            if !matches!(support_here(), Support::No(_)) {
                let mut socket = NftSocket::open_here()?;
                own = Inventory::read(&mut socket, family as u16 as u8)?;
                inet = Inventory::read(&mut socket, NFPROTO_INET)?;
            }
            Ok(Self { variant, own, inet })
        })?
    }

    /// Where local probes end. Chains of nf_tables sit in between the tables of iptables, so if
    /// there are any, only the last table will do.
    pub(super) fn place_local(&self, before: &IptablesSave) -> TapPlace {
        let place = place::local(before);
        if place.table != "security" && self.behind(HOOK_INPUT, place.table).is_some() {
            return TapPlace {
                table: "security",
                spot: Spot::Head,
            };
        }
        place
    }

    /// A chain that may stop packets behind a tap in `table`, in words.
    pub(super) fn behind(&self, hook: u32, table: &str) -> Option<String> {
        let own = self
            .own
            .chains
            .iter()
            .filter(|chain| !self.is_iptables(&chain.table));
        let chains = own.chain(&self.inet.chains).filter(|chain| {
            // Another job's taps discard nothing but their own probes.
            !chain.table.starts_with("tsim_") && (chain.used > 0 || chain.policy_drops)
        });
        let mut behind = chains.filter_map(|chain| {
            let at = chain.hook.filter(|at| at.number == hook)?;
            (at.priority >= priority(table)).then(|| {
                let (table, name) = (&chain.table, &chain.name);
                format!(
                    "nf_tables chain {table} {name} (priority {}) comes behind iptables, which \
                     cannot see what it does; the nft back end can",
                    at.priority
                )
            })
        });
        behind.next()
    }

    /// Whether iptables shows what is in this table.
    fn is_iptables(&self, table: &str) -> bool {
        let tables = ["raw", "mangle", "nat", "filter", "security"];
        self.variant == Variant::Nft && tables.contains(&table)
    }
}

/// Where a table sits in its hooks: `NF_IP_PRI_*`, linux/netfilter_ipv4.h.
fn priority(table: &str) -> i32 {
    match table {
        "raw" => -300,
        "mangle" => -150,
        "filter" => 0,
        _ => 50,
    }
}
