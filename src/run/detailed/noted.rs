//! What a job notes of a router's connection tracking, for whoever comes after it if it is killed.

use std::net::IpAddr;

use super::{
    DetailedError, Setup,
    exceptions::KnownExceptions,
    site::{Station, StretchRound},
};
use crate::{
    firewall::conntrack::Conntrack,
    netns::NetnsId,
    registry::{NotedTraffic, RegistryError, TapNote},
};

/// A note that stands until it is struck.
#[derive(Debug)]
pub(super) struct NotedConnections(TapNote);

impl NotedConnections {
    /// Notes between whom connections will be, and what was there before. What does not fit into a
    /// note, no job has noted: a router of a lab has few connections while nobody measures. `client` is the
    /// source host's namespace, where all that it will have learned of paths is the job's.
    pub(super) fn begin(
        setup: &Setup<'_>,
        site: &StretchRound,
        station: &Station,
        (conntrack, exceptions): (Option<&Conntrack>, Option<&KnownExceptions>),
        client: Option<NetnsId>,
    ) -> Result<Option<Self>, DetailedError> {
        let Some(conntrack) = conntrack else {
            return Ok(None);
        };
        // Copies go with the job.
        if site.standins.is_some() {
            return Ok(None);
        }
        let ends: [Option<IpAddr>; 3] =
            [Some(site.from()), Some(site.to), site.target.sink.address()];
        let host = site.source.host().map(|host| host.id.clone());
        let noted = NotedTraffic {
            ends: ends.into_iter().flatten().collect(),
            known: conntrack.known(),
            no_exceptions: exceptions.is_some_and(KnownExceptions::are_none),
            client: host.zip(client),
        };
        let note = TapNote::of_connections(
            (setup.run_id, &station.router, station.netns.id()),
            &noted,
            setup.registry.owner(),
        );
        let Some(note) = note else { return Ok(None) };
        setup.registry.note_tap(&note)?;
        Ok(Some(Self(note)))
    }

    /// Nothing is left of what was noted.
    pub(super) fn strike(self, setup: &Setup<'_>) -> Result<(), RegistryError> {
        setup.registry.strike_tap(&self.0)
    }
}
