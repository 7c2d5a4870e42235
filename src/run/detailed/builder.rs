//! A detailed job as a program asks for it.

use std::{net::IpAddr, time::Duration};

use super::{DetailedError, DetailedJob, job, result::DetailedReport};
use crate::{
    config::Config,
    lab::trace::EntryName,
    model::{LabName, RunId, Service},
    run::{builder::QuestionOptions, progress::Progress, resolve::RouterChoice},
};

/// Whether each service gets from one address to another and back, proved with real connections.
///
/// It is asked for as a [`Quick`](crate::run::quick::Quick) job is.
#[derive(Debug)]
#[must_use = "nothing is asked before `run`"]
pub struct Detailed {
    question: QuestionOptions,
    timeout: Duration,
    patient: bool,
}

impl Detailed {
    /// Asks about `services` from `source` to `destination`, addresses of one family, in `lab`.
    pub fn new(lab: LabName, source: IpAddr, destination: IpAddr, services: Vec<Service>) -> Self {
        Self {
            question: QuestionOptions::new(lab, source, destination, services),
            timeout: Duration::from_secs(1),
            patient: false,
        }
    }

    /// How long to wait for an answer of which nothing is known; a second unless this is set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Wait that long for every answer, also where the trace shows that none can come.
    pub fn patient(mut self) -> Self {
        self.patient = true;
        self
    }

    /// Measures, and undoes everything that was done for it.
    ///
    /// # Errors
    /// [`DetailedError`]; everything was undone then, or the log says what is left.
    pub fn run(self, config: &Config) -> Result<DetailedReport, DetailedError> {
        let question = self.question;
        let (services, run_id) = (question.services()?, question.run_id()?);
        let job = DetailedJob {
            lab: question.lab,
            source: question.source,
            destination: question.destination,
            services,
            routers: question.routers,
            from: question.from,
            source_port: question.source_port,
            size: question.size,
            run_id,
            lock_timeout: question.lock_timeout.unwrap_or(config.lock_timeout),
            timeout: self.timeout,
            patient: self.patient,
            trust_facts: question.trust_facts,
            progress: None,
            out: None,
        };
        let progress = Progress::telling(question.on_progress.0, job::PHASES);
        job::run_telling(&job, config, progress).map(|answered| answered.report)
    }
}

crate::run::builder::setters!(Detailed);
