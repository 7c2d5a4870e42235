//! The DSCP value that a job holds, and how it stands to other jobs.

use super::{DscpChoice, QuickError, QuickJob, random, session::Session};
use crate::{
    config::Config,
    model::{Dscp, RouterId},
    registry::{JobInfo, JobType, RegistryManager, Scope, Wait},
    run::{caretaker::Caretaker, interrupt::Interrupt, undo::UndoError},
};

/// A DSCP value in a job's hands.
#[derive(Debug)]
pub(super) struct Grant {
    registry: Option<RegistryManager>,
    dscp: Dscp,
}

impl Grant {
    /// Takes the value that the job asks for, or a free one.
    pub(super) fn take(job: &QuickJob, config: &Config) -> Result<Self, QuickError> {
        let wanted = match job.dscp {
            DscpChoice::Auto => None,
            DscpChoice::Value(dscp) => Some(dscp),
        };
        if let Some(dscp) = wanted.filter(|&dscp| !config.dscp.contains(dscp)) {
            return Err(QuickError::DscpRange {
                dscp,
                range: config.dscp,
            });
        }
        if job.use_registry {
            let registry = RegistryManager::open(config)?;
            let granted = registry.allocate_dscp(&job.run_id, None, wanted)?;
            return Ok(Self {
                registry: Some(registry),
                dscp: granted.dscp,
            });
        }
        let chance = random()? as usize % config.dscp.count();
        let any = config.dscp.iter().nth(chance).unwrap_or(Dscp::DEFAULT);
        Ok(Self {
            registry: None,
            dscp: wanted.unwrap_or(any),
        })
    }

    pub(super) fn dscp(&self) -> Dscp {
        self.dscp
    }

    /// Removes what dead jobs left on `routers`; what could not be removed is returned in words.
    pub(super) fn reconcile(
        &self,
        job: &QuickJob,
        routers: &[RouterId],
        caretaker: &mut Caretaker,
    ) -> Result<Vec<String>, QuickError> {
        let Some(registry) = &self.registry else {
            return Ok(Vec::new());
        };
        let scope = Scope::Touching {
            routers: routers.to_vec(),
            hosts: Vec::new(),
        };
        let report = registry.reconcile(&job.run_id, &scope, caretaker, false)?;
        for action in &report.actions {
            tracing::info!("reconcile: {action}");
        }
        Ok(report.failures)
    }

    /// How the job that holds this value works with others.
    pub(super) fn session(&self, job: &QuickJob, interrupt: &Interrupt) -> Session {
        match &self.registry {
            None => Session::Alone,
            Some(registry) => Session::Registered {
                registry: registry.clone(),
                info: JobInfo {
                    run_id: job.run_id.clone(),
                    job_type: JobType::Quick,
                    dscp: Some(self.dscp),
                },
                wait: Wait::at_most(job.lock_timeout).or_until(interrupt.cancel().clone()),
            },
        }
    }

    /// Gives the value back.
    pub(super) fn give_back(self, job: &QuickJob) -> Option<UndoError> {
        let released = self.registry?.release_dscp(&job.run_id);
        let source = released.err()?;
        Some(UndoError {
            what: format!("DSCP {}", self.dscp),
            source: source.into(),
        })
    }
}
