//! A quick job as a program asks for it.

use std::{net::IpAddr, time::Duration};

use super::{DscpChoice, ExplainMode, PHASES, QuickError, QuickJob, RouterChoice, run_telling};
use crate::{
    config::Config,
    firewall::backend::BackendChoice,
    lab::trace::EntryName,
    model::{Dscp, LabName, RunId, Service},
    run::{builder::QuestionOptions, progress::Progress, report::QuickReport},
};

/// Which services get from one address to another: asked with one probe each, in milliseconds.
///
/// ```no_run
/// # use tsim::{config::{Config, Places}, run::quick::Quick};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let services = Vec::new();
/// let report = Quick::new("corp10".parse()?, "10.1.1.100".parse()?, "10.2.1.200".parse()?, services)
///     .source_port(40_000)
///     .on_progress(|percent, phase| eprintln!("{percent:3} % {phase}"))
///     .run(&Config::load(None, &Places::of_user()?)?)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "nothing is asked before `run`"]
pub struct Quick {
    question: QuestionOptions,
    explain: ExplainMode,
    probe_dscp: Dscp,
}

impl Quick {
    /// Asks about `services` from `source` to `destination`, addresses of one family, in `lab`.
    pub fn new(lab: LabName, source: IpAddr, destination: IpAddr, services: Vec<Service>) -> Self {
        Self {
            question: QuestionOptions::new(lab, source, destination, services),
            explain: ExplainMode::Auto,
            probe_dscp: Dscp::DEFAULT,
        }
    }

    /// When to look for the rules that stop services; for up to 1,000 of a router unless this is set.
    pub fn explain(mut self, when: ExplainMode) -> Self {
        self.explain = when;
        self
    }

    /// The DSCP value that the routers' own rules see in the probes; 0 unless this is set.
    pub fn probe_dscp(mut self, dscp: Dscp) -> Self {
        self.probe_dscp = dscp;
        self
    }

    /// Measures, and undoes everything that was done for it.
    ///
    /// # Errors
    /// [`QuickError`]; everything was undone then, or the log says what is left.
    pub fn run(self, config: &Config) -> Result<QuickReport, QuickError> {
        let question = self.question;
        let (services, run_id) = (question.services()?, question.run_id()?);
        let job = QuickJob {
            lab: question.lab,
            source: question.source,
            destination: question.destination,
            services,
            routers: question.routers,
            from: question.from,
            dscp: DscpChoice::Auto,
            run_id,
            probe_dscp: self.probe_dscp,
            size: question.size,
            source_port: question.source_port,
            lock_timeout: question.lock_timeout.unwrap_or(config.lock_timeout),
            explain: self.explain,
            backend: BackendChoice::default(),
            trust_facts: question.trust_facts,
            use_registry: config.use_registry,
            progress: None,
            pass_on: None,
        };
        let progress = Progress::telling(question.on_progress.0, PHASES);
        run_telling(&job, config, progress).map(|answered| answered.report)
    }
}

crate::run::builder::setters!(Quick);
