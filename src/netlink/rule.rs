//! Policy rules: ip-rule(8).

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, IpProtocol, RouteNetlinkMessage,
    rule::{
        RuleAction as Action, RuleAttribute, RuleFlags, RuleHeader, RuleMessage, RulePortRange,
    },
};

use super::{
    Batch, Netlink, NetlinkError,
    object::{Family, PolicyRule, PortRange, RuleAction},
};
use crate::model::IfName;

/// What the kernel lists as suppressed prefix length where none is.
const SUPPRESS_NONE: u32 = u32::MAX;

fn ports(range: PortRange) -> RulePortRange {
    RulePortRange {
        start: range.first,
        end: range.last,
    }
}

fn message(rule: &PolicyRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header = RuleHeader {
        family: rule.family.into(),
        src_len: rule.from.map_or(0, |net| net.prefix_len()),
        dst_len: rule.to.map_or(0, |net| net.prefix_len()),
        tos: rule.tos.unwrap_or(0),
        ..RuleHeader::default()
    };
    if rule.invert {
        message.header.flags |= RuleFlags::Invert;
    }
    message.attributes = selectors(rule);
    set_action(&mut message, &rule.action);
    message
}

/// What a packet must be like for `rule`, beside the lengths of its prefixes.
fn selectors(rule: &PolicyRule) -> Vec<RuleAttribute> {
    let network = |net: IpNet| (net.prefix_len() > 0).then(|| net.network());
    let name = |name: &IfName| name.to_string();
    let optional = [
        rule.from.and_then(network).map(RuleAttribute::Source),
        rule.to.and_then(network).map(RuleAttribute::Destination),
        rule.fwmark.map(|(mark, _)| RuleAttribute::FwMark(mark)),
        rule.fwmark.map(|(_, mask)| RuleAttribute::FwMask(mask)),
        rule.iif.as_ref().map(name).map(RuleAttribute::Iifname),
        rule.oif.as_ref().map(name).map(RuleAttribute::Oifname),
        rule.ip_proto
            .map(IpProtocol::from)
            .map(RuleAttribute::IpProtocol),
        rule.sport.map(ports).map(RuleAttribute::SourcePortRange),
        rule.dport
            .map(ports)
            .map(RuleAttribute::DestinationPortRange),
        rule.suppress_prefix_len
            .map(RuleAttribute::SuppressPrefixLen),
    ];
    let mut attributes = vec![RuleAttribute::Priority(rule.priority)];
    attributes.extend(optional.into_iter().flatten());
    attributes
}

fn set_action(message: &mut RuleMessage, action: &RuleAction) {
    message.header.action = match *action {
        RuleAction::Table(table) => {
            match u8::try_from(table) {
                Ok(small) => message.header.table = small,
                Err(_) => message.attributes.push(RuleAttribute::Table(table)),
            }
            Action::ToTable
        }
        RuleAction::Goto(priority) => {
            message.attributes.push(RuleAttribute::Goto(priority));
            Action::Goto
        }
        RuleAction::Nop => Action::Nop,
        RuleAction::Blackhole => Action::Blackhole,
        RuleAction::Unreachable => Action::Unreachable,
        RuleAction::Prohibit => Action::Prohibit,
    };
}

/// The rule in `message`; none when tsim does not know its action or its family.
fn from_message(message: &RuleMessage) -> Option<PolicyRule> {
    let header = &message.header;
    let family = match header.family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let mut table = u32::from(header.table);
    let (mut target, mut mark, mut mask) = (0, None, u32::MAX);
    let mut rule = PolicyRule::new(family, 0, RuleAction::Nop);
    rule.invert = header.flags.contains(RuleFlags::Invert);
    rule.tos = (header.tos != 0).then_some(header.tos);
    let net = |address: &IpAddr, length| IpNet::new(*address, length).ok();
    let range = |range: &RulePortRange| PortRange {
        first: range.start,
        last: range.end,
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Source(address) => rule.from = net(address, header.src_len),
            RuleAttribute::Destination(address) => rule.to = net(address, header.dst_len),
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => mask = *value,
            RuleAttribute::Iifname(name) => rule.iif = IfName::new(name.as_str()).ok(),
            RuleAttribute::Oifname(name) => rule.oif = IfName::new(name.as_str()).ok(),
            RuleAttribute::IpProtocol(proto) => rule.ip_proto = Some((*proto).into()),
            RuleAttribute::SourcePortRange(ports) => rule.sport = Some(range(ports)),
            RuleAttribute::DestinationPortRange(ports) => rule.dport = Some(range(ports)),
            RuleAttribute::SuppressPrefixLen(length) if *length != SUPPRESS_NONE => {
                rule.suppress_prefix_len = Some(*length);
            }
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Goto(priority) => target = *priority,
            _ => {}
        }
    }
    rule.fwmark = mark.map(|mark| (mark, mask));
    rule.action = match header.action {
        Action::ToTable => RuleAction::Table(table),
        Action::Goto => RuleAction::Goto(target),
        Action::Nop => RuleAction::Nop,
        Action::Blackhole => RuleAction::Blackhole,
        Action::Unreachable => RuleAction::Unreachable,
        Action::Prohibit => RuleAction::Prohibit,
        _ => return None,
    };
    Some(rule)
}

impl Batch<'_> {
    /// Adds `rule`; the same rule a second time is an error.
    pub fn add_rule(&mut self, rule: &PolicyRule) -> &mut Self {
        self.push(
            format_args!("to add {} rule {rule}", rule.family),
            NLM_F_CREATE | NLM_F_EXCL,
            |_| Ok(RouteNetlinkMessage::NewRule(message(rule))),
        )
    }

    /// Deletes the first rule that has all that `rule` says. The kernel takes what `rule` does
    /// not say for anything.
    pub fn delete_rule(&mut self, rule: &PolicyRule) -> &mut Self {
        let what = format!("to delete {} rule {rule}", rule.family);
        self.push(what, 0, |_| Ok(RouteNetlinkMessage::DelRule(message(rule))))
    }
}

impl Netlink {
    /// The policy rules of one family in the order of their priority, the kernel's own included.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel refuses the list.
    pub fn rules(&mut self, family: Family) -> Result<Vec<PolicyRule>, NetlinkError> {
        let mut request = RuleMessage::default();
        request.header.family = family.into();
        let what = format!("to list the {family} rules of namespace {}", self.netns());
        let list = self.dump(&what, &RouteNetlinkMessage::GetRule(request))?;
        let read = |message: &RouteNetlinkMessage| match message {
            RouteNetlinkMessage::NewRule(message) => from_message(message),
            _ => None,
        };
        Ok(list.iter().filter_map(read).collect())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A rule with every selector.
    pub(crate) fn full(family: Family, from: &str, to: &str) -> PolicyRule {
        PolicyRule {
            invert: true,
            from: Some(from.parse().unwrap()),
            to: Some(to.parse().unwrap()),
            fwmark: Some((0x10, 0xff)),
            tos: Some(0x10),
            iif: Some("eth0".parse().unwrap()),
            oif: Some("eth1".parse().unwrap()),
            ip_proto: Some(6),
            sport: Some(PortRange { first: 1, last: 9 }),
            dport: Some(PortRange {
                first: 80,
                last: 80,
            }),
            suppress_prefix_len: Some(0),
            ..PolicyRule::new(family, 100, RuleAction::Table(70_000))
        }
    }

    #[test]
    fn rules_survive_the_way_through_a_message() {
        let mut rules = vec![
            full(Family::V4, "10.0.0.0/8", "192.0.2.1/32"),
            full(Family::V6, "2001:db8::/32", "2001:db8::1/128"),
        ];
        for action in [
            RuleAction::Table(254),
            RuleAction::Goto(200),
            RuleAction::Nop,
            RuleAction::Blackhole,
            RuleAction::Unreachable,
            RuleAction::Prohibit,
        ] {
            rules.push(PolicyRule::new(Family::V4, 7, action));
        }
        rules.extend(PolicyRule::kernel_defaults(Family::V6));
        for rule in rules {
            assert_eq!(from_message(&message(&rule)).unwrap(), rule);
        }
    }
}
