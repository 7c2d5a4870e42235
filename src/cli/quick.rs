//! `tsim-quick`: the quick job's command line.

use clap::{Args, Parser};

use super::{
    CommandLine, Context, EXIT_CODES, Exit, Failure, Global, Run,
    bulk::Files,
    complete, matrix,
    question::{Explain, TypedQuestion, layout},
};
use crate::{
    bulk::one,
    firewall::backend::BackendChoice,
    lab::trace::EntryName,
    model::Dscp,
    run::{
        quick::{self, DscpChoice, QuickJob},
        report::json,
    },
    sys::heap,
};

const EXAMPLES: &str = "Examples:
  tsim-quick --lab corp10 -s 10.1.1.100 -d 10.2.1.50 -P 22,80,443/tcp,53/udp
  tsim-quick --lab corp10 -s 10.1.1.100 -d 10.2.1.50 -P all/tcp --routers hq-gw,br-gw --json
  tsim-quick --lab corp10 -s 10.1.1.100 -d 10.2.1.50 -P @web,ssh -o report.html -o report.xml
  tsim trace --lab corp10 -s 10.1.1.100 -d 10.2.1.50 --json > path.json
  tsim-quick --lab corp10 -s 10.1.1.100 -d 10.2.1.50 -P https --trace path.json";

/// Measures which services get through each router: YES, NO or UNKNOWN, with the reason.
#[derive(Debug, Parser)]
#[command(name = "tsim-quick", version, after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub struct TsimQuick {
    #[command(flatten)]
    global: Global,

    #[command(flatten)]
    asked: QuickArgs,
}

/// Measures which services get through each router: YES, NO or UNKNOWN, with the reason
///
/// The same as the program `tsim-quick`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct QuickArgs {
    #[command(flatten)]
    question: TypedQuestion,

    /// Router, or its interface, where the packets enter the lab [default: wherever they may]
    #[arg(long, value_name = "ROUTER[:INTERFACE]", add = complete::routers())]
    from: Option<EntryName>,

    /// DSCP value that tells this job from others: a number, or `auto` for a free one
    #[arg(long, value_name = "N", default_value = "auto")]
    dscp: DscpChoice,

    /// DSCP that the routers' own rules see in the probes
    #[arg(long, value_name = "N", default_value = "0")]
    probe_dscp: Dscp,

    /// Source port of the probes [default: one that was not used before]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    sport: Option<u16>,

    /// Whether to find out what stops a blocked service, and what else a verdict depends on
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    explain: Explain,

    /// What measures: auto, nft, iptables-nft or iptables-legacy
    #[arg(long, value_name = "NAME", default_value_t)]
    backend: BackendChoice,

    #[command(flatten)]
    files: Files,

    /// Work without leases and locks; nothing else may use the lab meanwhile
    #[arg(long)]
    no_registry: bool,

    /// Let probes go on behind the last tap, for comparison with a packet capture
    #[arg(long, hide = true, value_name = "SEED")]
    pass_on: Option<u64>,
}

impl CommandLine for TsimQuick {
    fn global(&self) -> &Global {
        &self.global
    }
}

impl Run for TsimQuick {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        self.asked.run(context)
    }
}

impl Run for QuickArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        heap::keep();
        self.files.check(false)?;
        let (job, files) = self.resolve(context)?;
        let answered = quick::run(&job, &context.config)?;
        let report = &answered.report;
        files.write_answer(context, &job.lab, report, |lab| one::document(report, lab))?;
        context.print_either(
            |out| json::write(report, out),
            |out| matrix::print(out, report, layout(context)),
        )?;
        let exit = report.overall().into();
        if !answered.closing.is_empty() {
            context.close_last(answered);
        }
        Ok(exit)
    }
}

impl QuickArgs {
    fn resolve(self, context: &Context) -> Result<(QuickJob, Files), Failure> {
        let asked = self.question.resolve(context)?;
        let job = QuickJob {
            lab: asked.lab,
            source: asked.source,
            destination: asked.destination,
            services: asked.services,
            routers: asked.routers,
            from: self.from,
            dscp: self.dscp,
            run_id: asked.run_id,
            probe_dscp: self.probe_dscp,
            source_port: self.sport,
            size: asked.size,
            lock_timeout: context.config.lock_timeout,
            explain: self.explain.into(),
            backend: self.backend,
            trust_facts: asked.trust_facts,
            use_registry: context.config.use_registry && !self.no_registry,
            progress: asked.progress,
            pass_on: self.pass_on,
        };
        Ok((job, self.files))
    }
}
