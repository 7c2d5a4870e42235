//! `tsim matrix`: all pairs of addresses by services.

use clap::Args;

use super::{How, Output, services};
use crate::{
    bulk::{
        addresses::{Addresses, Sides},
        answers::Answers,
        ask::ask,
        matrix,
        policy::write,
    },
    cli::{Context, Exit, Failure, Run},
    lab::Lab,
    model::LabName,
    run::quick::Pair,
};

const EXAMPLES: &str = "Examples:
  tsim matrix corp10 -s 10.1.1.100,10.2.1.50 -d 10.3.10.50,10.3.20.60 -P ssh,https,@dns
  tsim matrix corp10 --networks -P ssh,https,ping
  tsim matrix corp10 -s 10.1.1.100-10.1.1.109 -d 10.2.1.0/28 -P @web -o matrix.html -o matrix.json
  tsim matrix corp10 --networks -P @windows --format markdown

Every address of a range or network is asked about. --networks takes the networks of the lab in which one \
router alone has an interface, each by the lowest address that no router has: what is said of it is said \
of that address. Exit code 0: everything arrives; 1: some does not; 3: some is not known.";

/// Ask about all pairs of sources and destinations at once: a truth table of services
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct Matrix {
    /// Lab to measure in
    lab: LabName,

    /// Sources: addresses, ranges (10.1.1.10-10.1.1.20) and networks (10.1.1.0/28), by commas
    #[arg(
        short = 's',
        long,
        value_name = "LIST",
        value_delimiter = ',',
        required_unless_present = "networks"
    )]
    source: Vec<Addresses>,

    /// Destinations, as the sources; they need no hosts
    #[arg(
        short = 'd',
        long,
        value_name = "LIST",
        value_delimiter = ',',
        required_unless_present = "networks"
    )]
    destination: Vec<Addresses>,

    /// The lab's end networks as sources and destinations, where none are given
    #[arg(long)]
    networks: bool,

    /// Services: as `tsim quick` takes them, groups (@web) and files (@FILE) included
    #[arg(short = 'P', long = "ports", value_name = "LIST")]
    services: String,

    #[command(flatten)]
    how: How,

    #[command(flatten)]
    output: Output,
}

impl Run for Matrix {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        self.output.check(true)?;
        let services = services(&self.services, context)?;
        let lab = Lab::open(&context.config, &self.lab)?;
        let lab = Some(&*lab).filter(|_| self.networks);
        let ends = Sides::of(&self.source, &self.destination, lab);
        let pairs = matrix::pairs(&ends, &services).map_err(Failure::usage)?;
        if pairs.is_empty() {
            return Err(Failure::usage(
                "no source and destination make a pair: they are one and the same, or of two families",
            ));
        }
        let answers = self.ask(context, pairs)?;
        self.output.write(
            context,
            &answers,
            &matrix::document(&answers, &ends.names),
            Some(&write::of_answers(&answers, &ends.names)),
        )?;
        Ok(answers.counts.overall().into())
    }
}

impl Matrix {
    fn ask(&self, context: &Context, pairs: Vec<Pair>) -> Result<Answers, Failure> {
        let total = pairs.iter().map(|pair| pair.services.len() as u64).sum();
        let terms = self.how.terms(&self.lab, Some(total), context)?;
        let mut meter = self.how.meter(Some(total))?;
        let answers = ask(&context.config, terms, pairs, "matrix", &mut |done| {
            meter.at(done);
        });
        meter.finish();
        Ok(answers?)
    }
}
