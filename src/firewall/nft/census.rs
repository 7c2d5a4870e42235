//! What in a ruleset makes a plain measurement doubtful: rules that decide by more than the packet,
//! remember packets or take them away, and chains behind the last taps.
//!
//! Two dumps, read as attributes and not as text, so that a ruleset without such things costs a job
//! next to nothing. What is found here is only a reason to look closer.

use super::{
    DUMP_ATTEMPTS, NftError, NftSocket, counters::rule_place, inventory, is_own, kernel,
    nature::Nature, socket::Dumped, wire::Attributes,
};
use crate::{
    firewall::{
        RulePlace, TableFamily,
        place::HookPoint,
        rule::{ChangedSets, Rewritten, Rule, walk::Base},
    },
    netlink::object::Family,
};

/// linux/netfilter/nf_tables.h.
mod attr {
    pub(super) const RULE_TABLE: u16 = 1;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const HOOK_DEVICE: u16 = 3;
    pub(super) const HOOK_DEVICES: u16 = 4;
}

/// `NF_NETDEV_INGRESS` and `NF_NETDEV_EGRESS`, linux/netfilter.h.
const INGRESS: u32 = 0;
const EGRESS: u32 = 1;
const INPUT: u32 = 1;
const POSTROUTING: u32 = 4;

/// A chain that sees packets behind the last taps, or at a device's ingress, before the first ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaterChain {
    /// The chain; the handle is 0.
    pub place: RulePlace,
    /// The hook behind whose taps it stands, or ingress.
    pub hook: HookPoint,
    /// The devices whose egress or ingress it is; none where it stands at the hook itself.
    pub devices: Option<Vec<String>>,
    /// Whether it drops what no rule decides on.
    pub policy_drops: bool,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// Whether a rule decides by more than the packet, remembers or copies packets.
    pub volatile: bool,
    /// These rules with their places; one that nobody knows where the rules change all the time.
    pub open: Vec<(Option<RulePlace>, Rule)>,
    /// Whether a rule asks who sends a packet.
    pub asks_sender: bool,
    /// Whether a rule asks for a set that rules change.
    pub asks_changed_sets: bool,
    /// Chains behind the last taps, if they have rules or drop.
    pub behind: Vec<LaterChain>,
    /// Whether a chain with rules, or one that drops, sees packets before IP, also one of the family inet.
    pub at_ingress: bool,
    /// What rules may do with packets beside letting them through or not.
    pub nature: Nature,
    /// Rules that take packets away (`NF_STOLEN`), which not every kernel's trace shows.
    pub taking: Vec<RulePlace>,
}

impl Census {
    /// Whether nothing was found that makes a plain measurement doubtful, whoever sends.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let plain = Self {
            nature: self.nature,
            asks_sender: self.asks_sender,
            ..Self::default()
        };
        *self == plain
    }

    /// Looks through the chains and rules that packets of `family` may meet, tsim's own left out. Other
    /// routers may have `rewritten` some of what they ask for.
    ///
    /// # Errors
    /// [`NftError`].
    pub fn read(
        socket: &mut NftSocket,
        family: Family,
        rewritten: &Rewritten,
    ) -> Result<Self, NftError> {
        let mut census = Self::default();
        let what = "looking through chains";
        let all = TableFamily(0).0;
        for _ in 0..DUMP_ATTEMPTS {
            census.behind.clear();
            let mut at_ingress = false;
            let dumped =
                socket.dump_messages(inventory::kernel::GET_CHAIN, all, &[], what, |message| {
                    let (at, chain) = (family_of(message.body), message.attributes());
                    census.behind.extend(behind(at, chain, family));
                    at_ingress |= sees(at, family) && is_at_ingress(at, chain);
                })?;
            // One that was not seen may be there.
            census.at_ingress = at_ingress || dumped != Dumped::Whole;
            if dumped == Dumped::Whole {
                break;
            }
        }
        for _ in 0..RULE_ATTEMPTS {
            (census.volatile, census.asks_sender) = (false, false);
            census.taking.clear();
            census.open.clear();
            let (mut sets, mut asking) = (ChangedSets::default(), Vec::new());
            let dumped = socket.dump_messages(kernel::GET_RULE, all, &[], what, |message| {
                let (at, attributes) = (family_of(message.body), message.attributes());
                if let Some(mut read) = rule(attributes).filter(|_| sees(at, family)) {
                    read.leave_rewritten_open(rewritten);
                    census.nature |= Nature::of(attributes);
                    census.volatile |= read.is_volatile();
                    census.asks_sender |= read.tells_senders_apart();
                    sets.add(&read);
                    if read.asks_for_sets() {
                        asking.push(read.clone());
                    }
                    let place = || rule_place(at, attributes);
                    let taking = read.takes().then(place);
                    census.taking.extend(taking.flatten());
                    if read.is_volatile() || read.leaves_to_others() {
                        census.open.push((place(), read));
                    }
                }
            })?;
            census.asks_changed_sets = asking.iter().any(|rule| sets.are_asked_for_by(rule));
            if dumped == Dumped::Whole {
                return Ok(census);
            }
        }
        // It changes all the time; then a closer look cannot be wrong.
        census.volatile = true;
        census.open = vec![(None, Rule::unknown())];
        census.nature = Nature::ANYTHING;
        Ok(census)
    }
}

/// How often rules are dumped until no change of the ruleset falls into the dump. Every job that
/// puts taps in or takes them out is such a change, and a job that gives up here has to call its
/// verdicts UNKNOWN behind the first router; so many more attempts than [`DUMP_ATTEMPTS`].
const RULE_ATTEMPTS: usize = 200;

/// The base chains that packets of `family` may meet, tsim's own left out.
///
/// # Errors
/// [`NftError`].
pub fn bases(socket: &mut NftSocket, family: Family) -> Result<Vec<Base>, NftError> {
    let what = "listing base chains";
    for _ in 0..DUMP_ATTEMPTS {
        let mut bases = Vec::new();
        let all = TableFamily(0).0;
        let dumped =
            socket.dump_messages(inventory::kernel::GET_CHAIN, all, &[], what, |message| {
                let at = family_of(message.body);
                bases.extend(base(at, message.attributes()).filter(|_| sees(at, family)));
            })?;
        if dumped == Dumped::Whole {
            return Ok(bases);
        }
    }
    Err(NftError::Interrupted(what))
}

fn base(at: TableFamily, attributes: Attributes<'_>) -> Option<Base> {
    let chain = inventory::chain(attributes)?;
    let hook = chain.hook?;
    // `NF_INET_*`; of a device, `NF_NETDEV_INGRESS` is 0.
    let point = match (at, hook.number) {
        (TableFamily::NETDEV, 0) | (_, 5) => HookPoint::Ingress,
        // Chains of a device's egress are the last ones.
        (TableFamily::NETDEV, _) => HookPoint::Postrouting,
        (_, 0) => HookPoint::Prerouting,
        (_, INPUT) => HookPoint::Input,
        (_, 2) => HookPoint::Forward,
        (_, 3) => HookPoint::Output,
        _ => HookPoint::Postrouting,
    };
    (!is_own(&chain.table)).then_some(Base {
        hook: point,
        priority: match (at, point) {
            (TableFamily::NETDEV, HookPoint::Postrouting) => i32::MAX,
            _ => hook.priority,
        },
        policy_drops: chain.policy_drops,
        place: RulePlace {
            family: at,
            table: chain.table,
            chain: chain.name,
            handle: 0,
        },
    })
}

/// The family in `struct nfgenmsg`.
fn family_of(body: &[u8]) -> TableFamily {
    TableFamily(body.first().copied().unwrap_or_default())
}

/// Whether tables of the family `table` see packets of `family` that are routed.
fn sees(table: TableFamily, family: Family) -> bool {
    let own = match family {
        Family::V4 => TableFamily::IP,
        Family::V6 => TableFamily::IP6,
    };
    [own, TableFamily::INET, TableFamily::NETDEV].contains(&table)
}

/// Whether a chain of the router's sees packets before IP, and does anything with them.
fn is_at_ingress(at: TableFamily, attributes: Attributes<'_>) -> bool {
    let idle = |chain: &inventory::InventoryChain| chain.used == 0 && !chain.policy_drops;
    let busy = inventory::chain(attributes).is_some_and(|chain| !idle(&chain));
    busy && base(at, attributes).is_some_and(|base| base.hook == HookPoint::Ingress)
}

fn behind(at: TableFamily, attributes: Attributes<'_>, family: Family) -> Option<LaterChain> {
    let chain = inventory::chain(attributes)?;
    let hook = chain.hook?;
    let egress = at == TableFamily::NETDEV && hook.number == EGRESS;
    let last = at != TableFamily::NETDEV && hook.priority == i32::MAX;
    let ingress = at == TableFamily::NETDEV && hook.number == INGRESS;
    let hook_point = match hook.number {
        _ if egress => HookPoint::Postrouting,
        _ if ingress => HookPoint::Ingress,
        POSTROUTING if last => HookPoint::Postrouting,
        INPUT if last => HookPoint::Input,
        _ => return None,
    };
    let idle = chain.used == 0 && !chain.policy_drops;
    if idle || is_own(&chain.table) || !sees(at, family) {
        return None;
    }
    Some(LaterChain {
        hook: hook_point,
        devices: (egress || ingress).then(|| devices(attributes)),
        policy_drops: chain.policy_drops,
        place: RulePlace {
            family: at,
            table: chain.table,
            chain: chain.name,
            handle: 0,
        },
    })
}

/// The devices that a chain of the family netdev is attached to.
fn devices(chain: Attributes<'_>) -> Vec<String> {
    let Some(hook) = chain.nested(inventory::kernel::CHAIN_HOOK) else {
        return Vec::new();
    };
    let listed = hook.nested(attr::HOOK_DEVICES).into_iter().flatten();
    let listed = listed.filter_map(|(_, name)| std::str::from_utf8(name).ok());
    let all = hook.text(attr::HOOK_DEVICE).into_iter().chain(listed);
    all.map(|name| name.trim_end_matches('\0').to_owned())
        .collect()
}

/// The rule as the kernel holds it; none where it is one of tsim's own.
fn rule(attributes: Attributes<'_>) -> Option<Rule> {
    let foreign = attributes
        .text(attr::RULE_TABLE)
        .is_some_and(|table| !is_own(table));
    let expressions = attributes.nested(attr::RULE_EXPRESSIONS);
    foreign.then(|| Rule::of_expressions(expressions.unwrap_or(Attributes(&[]))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = 4 + payload.len();
        let mut bytes = (length as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(length.next_multiple_of(4), 0);
        bytes
    }

    /// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
    const EXPRESSION: (u16, u16) = (1, 2);
    /// `NFTA_META_KEY`.
    const META_KEY: u16 = 2;
    /// `NFTA_MATCH_NAME` and `NFTA_TARGET_NAME`.
    const XT_NAME: u16 = 1;

    fn rule_bytes(table: &str, expressions: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let one = |(name, data): &(&str, Vec<u8>)| {
            let mut inner = attribute(EXPRESSION.0, format!("{name}\0").as_bytes());
            inner.extend(attribute(EXPRESSION.1, data));
            attribute(1, &inner)
        };
        let list: Vec<u8> = expressions.iter().flat_map(one).collect();
        let mut bytes = attribute(attr::RULE_TABLE, format!("{table}\0").as_bytes());
        bytes.extend(attribute(attr::RULE_EXPRESSIONS, &list));
        bytes
    }

    fn drop_verdict() -> Vec<u8> {
        // `NFTA_IMMEDIATE_DATA` with `NFTA_DATA_VERDICT`, whose code is `NF_DROP`.
        attribute(2, &attribute(2, &attribute(1, &[0; 4])))
    }

    fn volatile(expressions: &[(&str, Vec<u8>)]) -> bool {
        let bytes = rule_bytes("fw", expressions);
        rule(Attributes(&bytes)).unwrap().is_volatile()
    }

    #[test]
    fn a_rule_is_volatile_if_it_decides_by_more_than_the_packet() {
        let limit = || ("limit", Vec::new());
        assert!(volatile(&[limit(), ("immediate", drop_verdict())]));
        assert!(!volatile(&[limit(), ("log", Vec::new())]));
        assert!(!volatile(&[("immediate", drop_verdict())]));
        let hour = attribute(META_KEY, &32u32.to_be_bytes());
        assert!(volatile(&[("meta", hour), ("immediate", drop_verdict())]));
        let mark = attribute(META_KEY, &3u32.to_be_bytes());
        assert!(!volatile(&[("meta", mark), ("immediate", drop_verdict())]));
        assert!(volatile(&[("dynset", Vec::new())]));
        let xt = |name: &str| attribute(XT_NAME, format!("{name}\0").as_bytes());
        assert!(volatile(&[
            ("match", xt("statistic")),
            ("target", xt("DNAT"))
        ]));
        assert!(!volatile(&[("match", xt("limit")), ("target", xt("LOG"))]));
        assert!(volatile(&[("target", xt("SET"))]));
        let own = rule_bytes("tsim_r1", &[("dynset", Vec::new())]);
        assert_eq!(rule(Attributes(&own)), None);
    }

    #[test]
    fn rules_that_take_packets_away_are_found() {
        let takes = |expressions: &[_]| {
            let bytes = rule_bytes("fw", expressions);
            let rule = rule(Attributes(&bytes)).unwrap();
            (rule.takes(), rule.is_volatile())
        };
        assert_eq!(takes(&[("synproxy", Vec::new())]), (true, false));
        assert_eq!(takes(&[("fwd", Vec::new())]), (true, false));
        let target = attribute(XT_NAME, b"SYNPROXY\0");
        assert_eq!(takes(&[("target", target)]), (true, false));
        assert!(!takes(&[("immediate", drop_verdict())]).0);
    }

    fn chain(table: &str, number: u32, priority: i32, used: u32, device: Option<&str>) -> Vec<u8> {
        let mut hook = attribute(inventory::kernel::HOOK_NUMBER, &number.to_be_bytes());
        hook.extend(attribute(
            inventory::kernel::HOOK_PRIORITY,
            &priority.to_be_bytes(),
        ));
        if let Some(device) = device {
            let name = attribute(1, format!("{device}\0").as_bytes());
            hook.extend(attribute(attr::HOOK_DEVICES, &name));
        }
        let mut bytes = attribute(
            inventory::kernel::CHAIN_TABLE,
            format!("{table}\0").as_bytes(),
        );
        bytes.extend(attribute(inventory::kernel::CHAIN_NAME, b"c\0"));
        bytes.extend(attribute(inventory::kernel::CHAIN_HOOK, &hook));
        bytes.extend(attribute(inventory::kernel::CHAIN_USE, &used.to_be_bytes()));
        bytes
    }

    #[test]
    fn chains_that_no_tap_sees_are_found() {
        let found = |at, chain: &[u8]| behind(at, Attributes(chain), Family::V4);
        let last = chain("fw", POSTROUTING, i32::MAX, 1, None);
        let one = found(TableFamily::INET, &last).unwrap();
        assert_eq!((one.hook, one.devices), (HookPoint::Postrouting, None));
        assert_eq!(found(TableFamily::IP6, &last), None);
        let before = chain("fw", POSTROUTING, i32::MAX - 1, 1, None);
        assert_eq!(found(TableFamily::IP, &before), None);
        let taps = chain("tsim_r1", POSTROUTING, i32::MAX, 1, None);
        assert_eq!(found(TableFamily::IP, &taps), None);
        let empty = chain("fw", POSTROUTING, i32::MAX, 0, None);
        assert_eq!(found(TableFamily::IP, &empty), None);
        let egress = chain("edge", EGRESS, 0, 2, Some("out"));
        let one = found(TableFamily::NETDEV, &egress).unwrap();
        assert_eq!(one.devices, Some(vec!["out".to_owned()]));
        let ingress = chain("edge", 0, 0, 2, Some("in"));
        let one = found(TableFamily::NETDEV, &ingress).unwrap();
        assert_eq!(one.hook, HookPoint::Ingress);
        assert_eq!(one.devices, Some(vec!["in".to_owned()]));
    }

    #[test]
    fn chains_before_ip_are_found_also_of_inet() {
        /// `NF_INET_INGRESS`.
        const INET_INGRESS: u32 = 5;
        let netdev = chain("edge", INGRESS, 0, 2, Some("in"));
        assert!(is_at_ingress(TableFamily::NETDEV, Attributes(&netdev)));
        let inet = chain("edge", INET_INGRESS, 0, 1, Some("in"));
        assert!(is_at_ingress(TableFamily::INET, Attributes(&inet)));
        for other in [
            (TableFamily::NETDEV, chain("edge", EGRESS, 0, 2, Some("in"))),
            (
                TableFamily::NETDEV,
                chain("edge", INGRESS, 0, 0, Some("in")),
            ),
            (
                TableFamily::NETDEV,
                chain("tsim_r1", INGRESS, 0, 2, Some("in")),
            ),
            (TableFamily::INET, chain("edge", 0, 0, 2, None)),
        ] {
            assert!(!is_at_ingress(other.0, Attributes(&other.1)), "{other:?}");
        }
    }
}
