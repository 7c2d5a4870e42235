//! What to ask, where several commands take the same: addresses and services, the lab's networks, a
//! policy, the questions of a saved result.

use std::path::PathBuf;

use clap::Args;

use super::services;
use crate::{
    bulk::{
        addresses::{Addresses, Sides},
        answers::pairs,
        matrix,
    },
    cli::{Context, Failure},
    lab::LabState,
    run::quick::Pair,
};

/// Questions as typed.
#[derive(Debug, Args)]
pub(super) struct Questions {
    /// Sources: addresses, ranges (10.1.1.10-10.1.1.20) and networks (10.1.1.0/28), by commas
    #[arg(short = 's', long, value_name = "LIST", value_delimiter = ',')]
    source: Vec<Addresses>,

    /// Destinations, as the sources; they need no hosts
    #[arg(short = 'd', long, value_name = "LIST", value_delimiter = ',')]
    destination: Vec<Addresses>,

    /// The lab's end networks as sources and destinations, where none are given
    #[arg(long)]
    networks: bool,

    /// Services: as `tsim quick` takes them, groups (@web) and files (@FILE) included
    #[arg(short = 'P', long = "ports", value_name = "LIST")]
    services: Option<String>,

    /// Everything that this policy asks
    #[arg(long, value_name = "FILE", conflicts_with_all = ["source", "destination", "networks", "services"])]
    policy: Option<PathBuf>,

    /// As a scheduler asks: the policy is a file that `tsim submit` sent, with everything that it names
    #[arg(long, hide = true)]
    pub(super) sent: bool,
}

impl Questions {
    /// The questions, or none where nothing was said. `lab` has the end networks.
    pub(super) fn pairs(
        &self,
        lab: Option<&LabState>,
        context: &Context,
    ) -> Result<Option<Vec<Pair>>, Failure> {
        if let Some(path) = &self.policy {
            let policy = super::policy(path, self.sent, context)?;
            return Ok(Some(pairs(policy.questions())));
        }
        let Some(list) = &self.services else {
            if self.source.is_empty() && self.destination.is_empty() && !self.networks {
                return Ok(None);
            }
            return Err(Failure::usage("which services? -P is missing"));
        };
        let services = services(list, context)?;
        let lab = lab.filter(|_| self.networks);
        let ends = Sides::of(&self.source, &self.destination, lab);
        let pairs = matrix::pairs(&ends, &services).map_err(Failure::usage)?;
        match pairs.is_empty() {
            true => Err(Failure::usage(
                "no source and destination make a pair: give -s and -d, or --networks",
            )),
            false => Ok(Some(pairs)),
        }
    }
}
