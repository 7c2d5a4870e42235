//! The answer of a quick job as JSON, a line for each service.
//!
//! A job may have 65,535 services, most of which take the same way and end alike: what they have in
//! common is put into words once, and copied from line to line.

use std::{
    io::{self, Write},
    sync::Arc,
};

use serde::Serialize;

use super::{EndToEnd, Leg, QuickReport, RouterReport, ServiceReport};

/// Writes `report` as serde would, but for white space.
///
/// # Errors
/// When it cannot be written.
pub fn write(report: &QuickReport, out: &mut dyn Write) -> io::Result<()> {
    let QuickReport {
        source,
        destination,
        dscp,
        run_id,
        backend,
        scope,
        end_to_end,
        routers,
        warnings,
        timing_ms,
    } = report;
    let mut ends = Ends::default();
    let mut begins = "{";
    for (key, value) in [
        ("source", text(source)?),
        ("destination", text(destination)?),
        ("dscp", text(dscp)?),
        ("run_id", text(run_id)?),
        ("backend", text(backend)?),
        ("scope", text(scope)?),
    ] {
        write!(out, "{begins}\n  \"{key}\": {value}")?;
        begins = ",";
    }
    write!(out, ",\n  \"end_to_end\": ")?;
    list(out, "  ", end_to_end, |line, end| ends.write(line, end))?;
    write!(out, ",\n  \"routers\": ")?;
    list(out, "  ", routers, write_router)?;
    write!(out, ",\n  \"warnings\": ")?;
    list(out, "  ", warnings, append)?;
    write!(out, ",\n  \"timing_ms\": {}\n}}", text(timing_ms)?)
}

/// Writes a list with a line for each element, each of which is put together first.
fn list<'a, T>(
    out: &mut dyn Write,
    indent: &str,
    all: &'a [T],
    mut one: impl FnMut(&mut Vec<u8>, &'a T) -> io::Result<()>,
) -> io::Result<()> {
    let mut line = Vec::new();
    let mut begins = "[\n";
    for element in all {
        line.clear();
        for part in [begins, indent, "  "] {
            line.extend_from_slice(part.as_bytes());
        }
        one(&mut line, element)?;
        out.write_all(&line)?;
        begins = ",\n";
    }
    match all {
        [] => out.write_all(b"[]"),
        _ => write!(out, "\n{indent}]"),
    }
}

fn write_router(out: &mut Vec<u8>, router: &RouterReport) -> io::Result<()> {
    let head = RouterReport {
        name: router.name.clone(),
        iface_in: router.iface_in.clone(),
        iface_out: router.iface_out.clone(),
        next_hop: router.next_hop,
        on_way: router.on_way,
        bridged: router.bridged,
        services: Vec::new(),
    };
    // Its services come last.
    let head = text(&head)?;
    out.extend_from_slice(head.trim_end_matches("[]}").as_bytes());
    let mut last = Last::default();
    list(out, "    ", &router.services, |line, service| {
        let alike = |other: &&ServiceReport| {
            (other.protocol, other.result, other.reached)
                == (service.protocol, service.result, service.reached)
                && other.reason == service.reason
        };
        let rest = last.or(service, alike, |service| {
            let text = text(service)?;
            Ok(text.split_at(text.find(',').unwrap_or(0)).1.to_owned())
        })?;
        write_port(line, service.port)?;
        line.extend_from_slice(rest.as_bytes());
        Ok(())
    })?;
    out.write_all(b"}")
}

/// Verdicts from end to end as text.
#[derive(Default)]
struct Ends<'a> {
    /// What stands between port and way.
    middle: Last<'a, EndToEnd>,
    /// What stands before the destination port of each leg.
    legs: Vec<Last<'a, Leg>>,
}

impl<'a> Ends<'a> {
    fn write(&mut self, line: &mut Vec<u8>, end: &'a EndToEnd) -> io::Result<()> {
        let alike = |other: &&EndToEnd| {
            (other.protocol, other.result, other.end) == (end.protocol, end.result, end.end)
                && other.reason == end.reason
                && other.router == end.router
        };
        let middle = self.middle.or(end, alike, |end| {
            let no_way = EndToEnd {
                way: Vec::new(),
                reason: end.reason.clone(),
                router: end.router.clone(),
                ..*end
            };
            let text = text(&no_way)?;
            let text = text.trim_end_matches("]}");
            Ok(text.split_at(text.find(',').unwrap_or(0)).1.to_owned())
        })?;
        write_port(line, end.port)?;
        line.extend_from_slice(middle.as_bytes());
        if self.legs.len() < end.way.len() {
            self.legs.resize_with(end.way.len(), Last::default);
        }
        for (number, (leg, last)) in end.way.iter().zip(&mut self.legs).enumerate() {
            let alike = |other: &&Leg| {
                let same = (other.source, other.destination, other.sport)
                    == (leg.source, leg.destination, leg.sport);
                same && (Arc::ptr_eq(&other.hop, &leg.hop) || other.hop == leg.hop)
            };
            let before = last.or(leg, alike, |leg| {
                let text = text(leg)?;
                let digits = |c: char| c.is_ascii_digit() || c == '}';
                Ok(text.trim_end_matches(digits).to_owned())
            })?;
            if number > 0 {
                line.push(b',');
            }
            line.extend_from_slice(before.as_bytes());
            append(line, &leg.dport)?;
            line.push(b'}');
        }
        line.extend_from_slice(b"]}");
        Ok(())
    }
}

/// The last of several that were put into words, which the next ones are mostly like.
struct Last<'a, T> {
    of: Option<&'a T>,
    text: String,
}

impl<T> Default for Last<'_, T> {
    fn default() -> Self {
        Self {
            of: None,
            text: String::new(),
        }
    }
}

impl<'a, T> Last<'a, T> {
    /// The text of the last one where that is `alike`, or else that of `new`.
    fn or(
        &mut self,
        new: &'a T,
        alike: impl Fn(&&'a T) -> bool,
        text: impl FnOnce(&T) -> io::Result<String>,
    ) -> io::Result<&str> {
        if self.of.as_ref().is_none_or(|last| !alike(last)) {
            self.text = text(new)?;
            self.of = Some(new);
        }
        Ok(&self.text)
    }
}

/// Begins the object of a service: the port comes first.
fn write_port(line: &mut Vec<u8>, port: u16) -> io::Result<()> {
    line.extend_from_slice(b"{\"port\":");
    append(line, &port)
}

fn append(out: &mut Vec<u8>, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(out, value).map_err(io::Error::from)
}

fn text(value: &impl Serialize) -> io::Result<String> {
    serde_json::to_string(value).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{IfName, Protocol, RouterName},
        run::report::{EndKind, LegHop, Timing, Verdict, VerdictScope},
    };

    fn leg(router: &str, dport: u16, nat: bool) -> Leg {
        Leg {
            hop: Arc::new(LegHop {
                router: RouterName::new(router).unwrap(),
                iface_in: Some(IfName::new("eth1").unwrap()),
                iface_out: (dport != 7).then(|| IfName::new("eth2").unwrap()),
                next_hop: None,
                bridged: (dport == 7).then_some(Verdict::Yes),
            }),
            source: "10.0.0.1".parse().unwrap(),
            destination: if nat { "2001:db8::7" } else { "10.0.1.1" }
                .parse()
                .unwrap(),
            sport: if nat { 1024 } else { 40_000 },
            dport,
        }
    }

    fn end(port: u16, protocol: Protocol) -> EndToEnd {
        let (yes, nat) = (!port.is_multiple_of(3), port.is_multiple_of(5));
        let way = ["a", "b", "c"].map(|router| leg(router, port, nat));
        EndToEnd {
            port,
            protocol,
            result: if yes { Verdict::Yes } else { Verdict::No },
            // What looks like JSON within a text is none.
            reason: (!yes).then(|| format!("rule \"way\":[]}},{port}").into()),
            router: (!nat).then(|| RouterName::new("b").unwrap()),
            end: EndKind::Stopped,
            way: way.into_iter().take(usize::from(port % 4)).collect(),
        }
    }

    fn report() -> QuickReport {
        let ports = (1..40).map(|port| (port, Protocol::Tcp));
        let services = ports.chain([(0, Protocol::Icmp), (65_535, Protocol::Udp)]);
        let row = |(port, protocol): (u16, Protocol)| ServiceReport {
            port,
            protocol,
            result: Verdict::Unknown,
            reason: (port % 7 < 3).then(|| "a \u{202e} ,\"b\"".into()),
            reached: port != 9,
        };
        let router = |name: &str, on_way, services| RouterReport {
            name: RouterName::new(name).unwrap(),
            iface_in: None,
            iface_out: Some(IfName::new("lo").unwrap()),
            next_hop: Some("fe80::1".parse().unwrap()),
            on_way,
            bridged: !on_way,
            services,
        };
        QuickReport {
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.1.1".parse().unwrap(),
            dscp: crate::model::Dscp::new(32).unwrap(),
            run_id: crate::model::RunId::new("r").unwrap(),
            backend: "nft".to_owned(),
            scope: VerdictScope::Named,
            end_to_end: services.clone().map(|(port, of)| end(port, of)).collect(),
            routers: vec![
                router("a", true, services.map(row).collect()),
                router("b", false, Vec::new()),
            ],
            warnings: vec!["one".to_owned(), "]}".to_owned()],
            timing_ms: Timing {
                total: 1.5,
                ..Timing::default()
            },
        }
    }

    fn written(report: &QuickReport) -> String {
        let mut text = Vec::new();
        write(report, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn it_is_what_serde_writes_to_the_last_key() {
        let whole = report();
        let settled = QuickReport {
            end_to_end: vec![end(4, Protocol::Tcp)],
            routers: Vec::new(),
            warnings: Vec::new(),
            ..report()
        };
        for report in [whole, settled] {
            // Only what stands between the values is another: no text here has a line break.
            let text = written(&report);
            let packed: String = text.lines().map(str::trim_start).collect();
            let plain = serde_json::to_string(&report).unwrap();
            assert_eq!(packed.replace("\": ", "\":"), plain);
            assert_eq!(serde_json::from_str::<QuickReport>(&text).unwrap(), report);
        }
    }

    #[test]
    fn each_service_has_a_line_of_its_own() {
        let text = written(&report());
        let line = r#"    {"port":2,"protocol":"tcp","result":"YES","router":"b","end":"stopped","way":[{"#;
        assert_eq!(text.lines().filter(|l| l.starts_with(line)).count(), 1);
        let row = r#"      {"port":3,"protocol":"tcp","result":"UNKNOWN"},"#;
        assert!(text.lines().any(|line| line == row), "{text}");
    }
}
