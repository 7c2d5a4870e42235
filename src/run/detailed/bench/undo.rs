//! What measuring leaves in the router is taken out again, and what others changed meanwhile is
//! said.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
};

use super::{Bench, Measurement};
use crate::{
    firewall::nft::watch::{Changes, RulesetWatch},
    run::detailed::{Closing, DetailedError, site::Task},
};

/// Why connections of the job stay.
pub(super) fn stays(error: &io::Error) -> String {
    format!(
        "the job's connections stay in the router's connection tracking until they time out: \
         {error}"
    )
}

impl Measurement {
    /// Notes that the ruleset was changed during a first measurement, and perhaps during this one.
    pub(super) fn was_changed(&mut self, first: &Changes, second: &Changes) {
        if *second == Changes::None {
            self.notes.push(format!(
                "{first} changed during the measurement; the results are from after it"
            ));
            return;
        }
        let warning = format!(
            "{second} changed during the measurement and again when it was repeated: what is said \
             of its rules may be of different rules"
        );
        for (_, test) in &mut self.tests {
            test.warnings.push(warning.clone());
        }
        self.notes.push(warning);
    }
}

impl Bench<'_> {
    /// Ends the trace, and leaves no connection behind.
    pub(super) fn stop(&mut self) -> Result<(), DetailedError> {
        let addresses = self.own_addresses();
        if let Some(conntrack) = &mut self.conntrack
            && let Err(error) = conntrack.forget_new(&addresses)
        {
            self.result.notes.push(stays(&error));
        }
        let Some(watch) = self.watch.take() else {
            return Ok(());
        };
        let (sockets, stopped) = watch.into_tracer().stop();
        self.result.closing.push(Closing::Trace(sockets));
        stopped.map_err(self.setup.at(self.site))
    }

    /// Leaves no connection tracking entry that a later service or job could be answered by.
    pub(super) fn forget(&mut self, task: Task, client: Option<SocketAddr>, to: SocketAddr) {
        let addresses = self.own_addresses();
        let (Some(conntrack), Some(client)) = (&mut self.conntrack, client) else {
            return;
        };
        let forgotten = conntrack.forget(task.service.protocol, (client, to), &addresses);
        if let Err(error) = forgotten {
            self.result.notes.push(stays(&error));
            self.conntrack = None;
        }
    }

    /// The addresses between which the job's connections are.
    fn own_addresses(&self) -> HashSet<IpAddr> {
        let ends = [self.setup.source, self.setup.destination];
        ends.into_iter()
            .chain(self.site.target.sink.address())
            .collect()
    }

    /// What others changed in the ruleset while it was measured.
    pub(super) fn changes(&mut self) -> Result<Changes, DetailedError> {
        let Some(mut rulesets) = self.rulesets.take() else {
            return Ok(Changes::None);
        };
        let changes = RulesetWatch::changes(&mut rulesets);
        self.result.closing.push(Closing::Watch(rulesets));
        changes.map_err(self.setup.at(self.site))
    }
}
