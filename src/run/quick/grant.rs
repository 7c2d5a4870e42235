//! What a job has to do with others: the DSCP value that it holds, and its part of the registry.

use super::{DscpChoice, QuickError, Terms, client_port::random, note::TapNotes};
use crate::{
    config::Config,
    model::Dscp,
    registry::{Holding, JobType, RegistryManager},
    run::undo::UndoError,
};

/// How a job stands to other jobs.
#[derive(Debug)]
pub(super) enum Grant {
    /// It takes a DSCP value, leases and locks.
    Registered(Holding),
    /// It takes nothing from anybody and hopes that nobody else is there.
    Alone(Dscp),
}

impl Grant {
    /// Looks whether the job may have the DSCP value that it asks for. Nothing is taken yet.
    pub(super) fn open(terms: &Terms, config: &Config) -> Result<Self, QuickError> {
        let wanted = match terms.dscp {
            DscpChoice::Auto => None,
            DscpChoice::Value(dscp) => Some(dscp),
        };
        if let Some(dscp) = wanted.filter(|&dscp| !config.dscp.contains(dscp)) {
            return Err(QuickError::DscpRange {
                dscp,
                range: config.dscp,
            });
        }
        if terms.use_registry {
            let registry = RegistryManager::open(config)?;
            let run_id = terms.run_id.clone();
            let holding = Holding::new(registry, run_id, JobType::Quick, wanted);
            return Ok(Self::Registered(holding));
        }
        let chance = random()? as usize % config.dscp.count();
        let any = config.dscp.iter().nth(chance).unwrap_or(Dscp::DEFAULT);
        Ok(Self::Alone(wanted.unwrap_or(any)))
    }

    /// Where its taps are noted, for others who look there.
    pub(super) fn notes(&self, terms: &Terms) -> Option<TapNotes> {
        let Self::Registered(holding) = self else {
            return None;
        };
        Some(TapNotes {
            registry: holding.registry().clone(),
            lab: terms.lab.clone(),
            run_id: terms.run_id.clone(),
        })
    }

    /// The job's DSCP value, which is taken now if it was not before.
    pub(super) fn dscp(&mut self) -> Result<Dscp, QuickError> {
        match self {
            Self::Registered(holding) => Ok(holding.take_dscp()?),
            Self::Alone(dscp) => Ok(*dscp),
        }
    }

    /// Gives the value back, if it is held still.
    pub(super) fn give_back(&mut self) -> Option<UndoError> {
        let Self::Registered(holding) = self else {
            return None;
        };
        let dscp = holding.dscp()?;
        let source = holding.release_dscp().err()?;
        Some(UndoError {
            what: format!("DSCP {dscp}"),
            source: source.into(),
        })
    }
}
