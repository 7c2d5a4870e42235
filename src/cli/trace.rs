//! `tsim trace`: the way of a packet through a lab, as its routers route it.

use std::net::IpAddr;

use clap::Args;

use super::{Context, Exit, Failure, Run, complete};
use crate::{
    lab::{
        Lab,
        sockets::RouterSockets,
        trace::{EntryName, TracePacket, Wiring, trace},
    },
    model::{LabName, Protocol, Service, ServiceError, ServiceLimits, parse_services},
    netns::NetnsDir,
};

const EXAMPLES: &str = "Examples:
  tsim trace --lab corp -s 10.1.1.5 -d 10.9.0.7
  tsim trace --lab corp -s 10.1.1.5 -d 10.9.0.7 --dport https --json > way.json
  tsim-quick --lab corp -s 10.1.1.5 -d 10.9.0.7 -P 443/tcp --trace way.json
  tsim trace --lab corp -s 8.8.8.8 -d 10.9.0.7 --from hq-gw:isp2

Every step is a look-up in the router's own tables: policy rules, forwarding and rp_filter count, \
firewalls do not.

Exit codes of trace:
  0  the packet arrives, or leaves the lab
  1  it does not; the last router says why
  2  wrong arguments
  3  the facts do not tell, or the ways that it may take disagree
  4  could not run: rights, lab";

/// Show the way of a packet through the routers of a lab
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct TraceArgs {
    /// The lab
    #[arg(long, value_name = "NAME", add = complete::labs())]
    lab: LabName,
    /// Source address
    #[arg(short, long, value_name = "ADDRESS")]
    source: IpAddr,
    /// Destination address
    #[arg(short, long, value_name = "ADDRESS")]
    destination: IpAddr,
    /// Where it enters the lab [default: everywhere that it may]
    #[arg(long, value_name = "ROUTER[:INTERFACE]", add = complete::routers())]
    from: Option<EntryName>,
    /// Transport protocol, tcp or udp, for policy rules that look at it
    #[arg(long, value_name = "NAME")]
    proto: Option<Protocol>,
    /// Destination port, or the name of a service; without --proto its protocol, or else TCP
    #[arg(long, value_name = "PORT", value_parser = port)]
    dport: Option<Service>,
    /// Source port
    #[arg(long, value_name = "PORT", value_parser = port)]
    sport: Option<Service>,
    /// Firewall mark that the packet has in every router
    #[arg(long, value_name = "NUMBER", default_value_t = 0, value_parser = number)]
    mark: u32,
    /// TOS octet
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    tos: u8,
}

/// A port, by number or by the name of a service.
fn port(text: &str) -> Result<Service, String> {
    let limits = ServiceLimits { max_services: 1 };
    match parse_services(text, Protocol::Tcp, limits).as_deref() {
        Ok([service]) if service.protocol.has_ports() => Ok(*service),
        Err(error @ (ServiceError::Port(_) | ServiceError::Unknown { .. })) => {
            Err(error.to_string())
        }
        _ => Err("one port is wanted: a number or a service's name".to_owned()),
    }
}

/// A number as ip-rule(8) writes marks: decimal, or hexadecimal with `0x`.
fn number(text: &str) -> Result<u32, String> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    }
    .map_err(|_| "0 to 4294967295 are allowed, also as 0x…".to_owned())
}

impl Run for TraceArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let lab = Lab::open(&context.config, &self.lab)?;
        let of_port = self.dport.or(self.sport).map(|service| service.protocol);
        let packet = TracePacket {
            protocol: self.proto.or(of_port),
            source_port: self.sport.map(|service| service.port),
            destination_port: self.dport.map(|service| service.port),
            mark: self.mark,
            tos: self.tos,
            ..TracePacket::new(self.source, self.destination)
        };
        let mut sockets = RouterSockets::new(&NetnsDir::default(), &self.lab);
        let wiring = Wiring::from(&*lab);
        let trace = trace(&wiring, &mut sockets, &packet, self.from.as_ref())?;
        context.print(&trace, |out| trace.write_text(out))?;
        Ok(match trace.arrives() {
            Some(true) => Exit::Ok,
            Some(false) => Exit::SomeNo,
            None => Exit::SomeUnknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_decimal_or_hexadecimal() {
        assert_eq!(number("16"), Ok(16));
        assert_eq!(number("0x10"), Ok(16));
        assert_eq!(number("0xffffffff"), Ok(u32::MAX));
        for bad in ["", "0x", "-1", "4294967296", "ten"] {
            assert!(number(bad).is_err(), "{bad}");
        }
    }
}
