//! Kernel objects as text, in the words of ip(8), for messages.

use std::fmt::{self, Display, Formatter};

use ipnet::IpNet;

use super::object::{
    Address, Family, Neighbour, NextHop, PolicyRule, PortRange, Route, RouteKind, RuleAction,
};

/// Writes ` key value` where there is a value.
fn option(f: &mut Formatter<'_>, key: &str, value: Option<impl Display>) -> fmt::Result {
    value.map_or(Ok(()), |value| write!(f, " {key} {value}"))
}

impl Display for Family {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.peer {
            Some(peer) => write!(f, "{} peer {peer}", self.local.addr()),
            None => write!(f, "{}", self.local),
        }
    }
}

impl Display for RouteKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unicast => "unicast",
            Self::Local => "local",
            Self::Broadcast => "broadcast",
            Self::Blackhole => "blackhole",
            Self::Unreachable => "unreachable",
            Self::Prohibit => "prohibit",
            Self::Throw => "throw",
        })
    }
}

impl Display for NextHop {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        option(f, "via", self.via)?;
        option(f, "dev", self.dev.as_ref())?;
        if self.onlink {
            f.write_str(" onlink")?;
        }
        Ok(())
    }
}

impl Display for Route {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.kind != RouteKind::Unicast {
            write!(f, "{} ", self.kind)?;
        }
        write!(f, "{}", self.destination)?;
        let tos = (self.tos != 0).then(|| format!("{:#04x}", self.tos));
        option(f, "tos", tos)?;
        let many = self.next_hops.len() > 1;
        for hop in &self.next_hops {
            if many {
                f.write_str(" nexthop")?;
            }
            write!(f, "{hop}")?;
            option(f, "weight", many.then_some(hop.weight))?;
        }
        option(f, "table", (self.table != Self::MAIN).then_some(self.table))?;
        option(f, "metric", self.metric)?;
        option(f, "src", self.source)
    }
}

impl Display for PortRange {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl Display for RuleAction {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(table) => write!(f, "lookup {table}"),
            Self::Goto(priority) => write!(f, "goto {priority}"),
            Self::Nop => f.write_str("nop"),
            Self::Blackhole => f.write_str("blackhole"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Prohibit => f.write_str("prohibit"),
        }
    }
}

/// A host's prefix without its length, as ip(8) prints it.
fn prefix(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

impl Display for PolicyRule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.priority)?;
        if self.invert {
            f.write_str(" not")?;
        }
        match self.from {
            Some(from) => write!(f, " from {}", prefix(from))?,
            None => f.write_str(" from all")?,
        }
        option(f, "to", self.to.map(prefix))?;
        option(f, "tos", self.tos.map(|tos| format!("{tos:#04x}")))?;
        let mark = |(mark, mask): (u32, u32)| match mask {
            u32::MAX => format!("{mark:#x}"),
            _ => format!("{mark:#x}/{mask:#x}"),
        };
        option(f, "fwmark", self.fwmark.map(mark))?;
        option(f, "iif", self.iif.as_ref())?;
        option(f, "oif", self.oif.as_ref())?;
        option(f, "ipproto", self.ip_proto)?;
        option(f, "sport", self.sport)?;
        option(f, "dport", self.dport)?;
        write!(f, " {}", self.action)?;
        option(f, "suppress_prefixlength", self.suppress_prefix_len)
    }
}

impl Display for Neighbour {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.address, self.dev)?;
        option(f, "lladdr", self.mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_and_routes_read_as_ip_prints_them() {
        let rule = PolicyRule {
            from: Some("10.0.0.0/8".parse().unwrap()),
            to: Some("192.0.2.1/32".parse().unwrap()),
            fwmark: Some((1, 0xff)),
            dport: Some(PortRange {
                first: 80,
                last: 90,
            }),
            ..PolicyRule::new(Family::V4, 100, RuleAction::Table(7))
        };
        assert_eq!(
            rule.to_string(),
            "100: from 10.0.0.0/8 to 192.0.2.1 fwmark 0x1/0xff dport 80-90 lookup 7"
        );
        let route = Route {
            table: 100,
            metric: Some(5),
            ..Route::via(
                "10.2.0.0/16".parse().unwrap(),
                "10.1.1.1".parse().unwrap(),
                "eth0".parse().unwrap(),
            )
        };
        assert_eq!(
            route.to_string(),
            "10.2.0.0/16 via 10.1.1.1 dev eth0 table 100 metric 5"
        );
    }
}
