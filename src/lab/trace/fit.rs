//! Whether a trace is of the question that is asked.

use std::net::IpAddr;

use super::Trace;
use crate::model::{LabName, Service};

impl Trace {
    /// What the trace is of, where that is not what is asked: it says by which routers one packet
    /// goes in one lab, and nothing about others.
    #[must_use]
    pub fn of_another(
        &self,
        lab: &LabName,
        source: IpAddr,
        destination: IpAddr,
        services: &[Service],
    ) -> Option<String> {
        let packet = &self.packet;
        let asked = |service: &Service| {
            packet
                .protocol
                .is_none_or(|protocol| protocol == service.protocol)
                && packet
                    .destination_port
                    .is_none_or(|port| port == service.port)
        };
        if self.lab != *lab {
            Some(format!("lab {}, not {lab}", self.lab))
        } else if packet.source != source {
            Some(format!("source {}, not {source}", packet.source))
        } else if packet.destination != destination {
            let other = packet.destination;
            Some(format!("destination {other}, not {destination}"))
        } else if !services.iter().any(asked) {
            let protocol = packet
                .protocol
                .map_or_else(String::new, |p| format!("/{p}"));
            let port = packet.destination_port.unwrap_or(0);
            Some(format!("port {port}{protocol}, which is not asked for"))
        } else {
            None
        }
    }
}
