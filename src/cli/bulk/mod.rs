//! The commands that ask in bulk, and what they share: how to ask, and where to write.

pub(super) mod check;
pub(super) mod diff;
pub(super) mod matrix;
mod questions;
pub(super) mod show;
pub(super) mod sweep;
pub(super) mod what_if;

use std::{
    fs,
    io::{self, BufWriter, IsTerminal, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;
use serde::Serialize;

use super::{
    Context, Failure,
    question::{self, Explain},
};
use crate::{
    bulk::{
        answers::{LabIdentity, VERSION},
        document::Document,
        policy::{Policy, PolicyText},
        render::{self, Format, Layout},
    },
    firewall::backend::BackendChoice,
    lab::{self, Lab, trace::EntryName},
    model::{
        Dscp, LabName, PrintableJson, Protocol, RunId, Service, ServiceLimits, parse_services,
    },
    run::{
        interrupt::Interrupt,
        progress::{Phase, Progress},
        quick::{self, DscpChoice, RouterChoice, Terms},
    },
};

/// How to ask, as typed.
#[derive(Debug, Args)]
pub(super) struct How {
    /// Router, or its interface, where the packets enter the lab [default: wherever they may]
    #[arg(long, value_name = "ROUTER[:INTERFACE]")]
    from: Option<EntryName>,

    /// Give verdicts also where the lab lacks something of the facts that can change them, and say
    /// what; without, they are UNKNOWN
    #[arg(long)]
    trust_facts: bool,

    /// What measures: auto, nft, iptables-nft or iptables-legacy
    #[arg(long, value_name = "NAME", default_value_t)]
    backend: BackendChoice,

    /// DSCP that the routers' own rules see in the probes
    #[arg(long, value_name = "N", default_value = "0")]
    probe_dscp: Dscp,

    /// Name of this run [default: a new one]
    #[arg(long, value_name = "ID")]
    run_id: Option<RunId>,

    /// Whether to find out what stops a blocked service [default: always, or where more than 4,096
    /// questions are asked auto: for some of them]
    #[arg(long, value_name = "WHEN")]
    explain: Option<Explain>,

    /// DSCP value that a scheduler has allocated to this run
    #[arg(long, value_name = "N", hide = true)]
    dscp: Option<Dscp>,

    /// Append progress to this file as JSON lines
    #[arg(long, value_name = "FILE")]
    progress: Option<PathBuf>,
}

impl How {
    /// The options that verdicts depend on, as they are typed.
    pub(super) fn options(&self) -> String {
        let from = self.from.as_ref().map(|from| format!("--from {from}"));
        let trust = self.trust_facts.then(|| "--trust-facts".to_owned());
        let dscp =
            (self.probe_dscp != Dscp::DEFAULT).then(|| format!("--probe-dscp {}", self.probe_dscp));
        let all = from.into_iter().chain(trust).chain(dscp);
        all.collect::<Vec<_>>().join(" ")
    }

    /// The terms for so many questions put to `lab`.
    pub(super) fn terms(
        &self,
        lab: &LabName,
        questions: Option<u64>,
        context: &Context,
    ) -> Result<Terms, Failure> {
        let few = questions.is_some_and(|questions| questions <= FEW);
        let explain = if few { Explain::Always } else { Explain::Auto };
        Interrupt::watch().map_err(Failure::cannot_run)?;
        let run_id = self.run_id.clone().map_or_else(quick::new_run_id, Ok);
        Ok(Terms {
            lab: lab.clone(),
            routers: RouterChoice::Trace,
            from: self.from.clone(),
            dscp: self.dscp.map_or(DscpChoice::Auto, DscpChoice::Value),
            run_id: run_id.map_err(Failure::cannot_run)?,
            probe_dscp: self.probe_dscp,
            size: None,
            source_port: None,
            lock_timeout: context.config.lock_timeout,
            explain: self.explain.unwrap_or(explain).into(),
            backend: self.backend,
            trust_facts: self.trust_facts,
            use_registry: true,
            pass_on: None,
        })
    }

    /// Whether so many questions are all answered with reasons.
    fn explains_all(&self, questions: u64) -> bool {
        self.explain.is_some() || questions <= FEW
    }

    /// Tells how far it is, of `total` questions.
    pub(super) fn meter(&self, total: Option<u64>) -> Result<Meter, Failure> {
        let progress = Progress::new(self.progress.as_deref(), PHASES);
        Ok(Meter {
            progress: progress.map_err(Failure::cannot_run)?,
            terminal: io::stderr().is_terminal(),
            began: Instant::now(),
            total,
        })
    }
}

/// So many questions are answered with reasons in a few seconds.
const FEW: u64 = 4096;

const PHASES: &[Phase] = &[("asking", 1)];

/// Says how far it is: on a terminal, and in a file.
pub(super) struct Meter {
    progress: Progress,
    terminal: bool,
    began: Instant,
    total: Option<u64>,
}

impl Meter {
    /// `done` questions are answered.
    pub(super) fn at(&mut self, done: u64) {
        if let Some(total) = self.total {
            let part = |number| usize::try_from(number).unwrap_or(usize::MAX);
            self.progress.part(part(done), part(total));
        }
        if self.terminal {
            let seconds = self.began.elapsed().as_secs_f64();
            let of = self
                .total
                .map(|total| format!(" of {total}"))
                .unwrap_or_default();
            let rate = done as f64 / seconds.max(0.001);
            // Back to the start of the line, and clear it.
            let text = format!("\r\x1b[K{done}{of} questions, {rate:.0} a second");
            let _ = write!(io::stderr(), "{text}");
        }
    }

    pub(super) fn finish(mut self) {
        self.progress.finish();
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// Files to write, as typed.
#[derive(Debug, Args)]
pub(super) struct Files {
    /// Write the report to this file, too, as its name ends: .txt, .json, .md, .xml (JUnit), .html,
    /// and of a matrix .toml (a policy that says the same); may be repeated
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl Files {
    /// Refuses names that say nothing that can be written, before anything is measured.
    /// `makes_policy`: whether a policy can be.
    pub(super) fn check(&self, makes_policy: bool) -> Result<(), Failure> {
        for file in &self.files {
            if matches!(kind_of(file)?, Kind::Policy) && !makes_policy {
                let name = file.display();
                let text = format!("-o {name}: `tsim matrix` alone makes a policy");
                return Err(Failure::usage(text));
            }
        }
        Ok(())
    }

    /// Writes those of a job's answer, of which `document` makes a report.
    pub(super) fn write_answer(
        &self,
        context: &Context,
        lab: &LabName,
        value: &impl Serialize,
        document: impl FnOnce(LabIdentity) -> Document,
    ) -> Result<(), Failure> {
        if self.files.is_empty() {
            return Ok(());
        }
        let topology = lab::topology_of(&context.config, lab)?;
        let lab = Lab::open(&context.config, lab)?;
        let document = document(LabIdentity::of(&lab, &topology));
        self.write(value, &document, None, question::layout(context).width)
    }

    /// Writes them; `value` is the report's JSON, and `policy` the policy that says the same, where
    /// there is one.
    fn write(
        &self,
        value: &impl Serialize,
        document: &Document,
        policy: Option<&str>,
        width: usize,
    ) -> Result<(), Failure> {
        let layout = Layout {
            width,
            colour: false,
        };
        for file in &self.files {
            let kind = kind_of(file)?;
            let written = replace_file(file, |out| match (kind, policy) {
                (Kind::Report(format), _) => one(out, format, value, document, layout),
                (Kind::Policy, Some(policy)) => out.write_all(policy.as_bytes()),
                (Kind::Policy, None) => Err(io::Error::other("only a matrix makes a policy")),
            });
            written.map_err(|e| {
                Failure::cannot_run(format!("cannot write {}: {e}", file.display()))
            })?;
        }
        Ok(())
    }
}

/// Where to write, as typed.
#[derive(Debug, Args)]
pub(super) struct Output {
    #[command(flatten)]
    files: Files,

    /// What to print: text, json, markdown, junit or html [default: text, or json with --json]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
}

impl Output {
    /// As [`Files::check`].
    pub(super) fn check(&self, makes_policy: bool) -> Result<(), Failure> {
        self.files.check(makes_policy)
    }

    /// Prints and writes a report; `value` is its JSON, and `policy` the policy that says the same,
    /// where there is one.
    pub(super) fn write(
        &self,
        context: &Context,
        value: &impl Serialize,
        document: &Document,
        policy: Option<&str>,
    ) -> Result<(), Failure> {
        let default = if context.json {
            Format::Json
        } else {
            Format::Text
        };
        let format = self.format.unwrap_or(default);
        let terminal = question::layout(context);
        let layout = Layout {
            width: terminal.width,
            colour: terminal.colour,
        };
        self.files.write(value, document, policy, layout.width)?;
        let mut out = BufWriter::new(io::stdout().lock());
        let written = one(&mut out, format, value, document, layout).and_then(|()| out.flush());
        match written {
            // The reader has seen enough (`tsim … | head`).
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }
}

/// Writes a file aside and renames it: a reader sees the old one or the new one.
fn replace_file(
    file: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let dir = match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut new = tempfile::Builder::new().prefix(".tsim-").tempfile_in(dir)?;
    {
        let mut out = BufWriter::new(new.as_file_mut());
        write(&mut out)?;
        out.flush()?;
    }
    // As a file that was there may be read, or else as reports are.
    let mode = fs::metadata(file).map(|there| there.permissions());
    let mode = mode.unwrap_or_else(|_| PermissionsExt::from_mode(0o644));
    new.as_file().set_permissions(mode)?;
    new.persist(file)?;
    Ok(())
}

fn one(
    out: &mut dyn Write,
    format: Format,
    value: &impl Serialize,
    document: &Document,
    layout: Layout,
) -> io::Result<()> {
    if format == Format::Json {
        return write_json(out, value);
    }
    render::write(out, document, format, layout)
}

/// One line of JSON.
fn write_json(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    let mut json = PrintableJson::new(&mut *out);
    serde_json::to_writer(&mut json, value).map_err(io::Error::from)?;
    writeln!(json.finish()?)
}

/// What a file is to hold.
#[derive(Clone, Copy)]
enum Kind {
    Report(Format),
    Policy,
}

fn kind_of(file: &Path) -> Result<Kind, Failure> {
    let name = file.to_string_lossy();
    if name.ends_with(".toml") {
        return Ok(Kind::Policy);
    }
    Format::of_file(&name).map(Kind::Report).ok_or_else(|| {
        Failure::usage(format!(
            "-o {name}: .txt, .json, .md, .xml and .html are allowed, and of a matrix .toml"
        ))
    })
}

/// The services of a list with groups and files.
pub(super) fn services(list: &str, context: &Context) -> Result<Vec<Service>, Failure> {
    let groups = &context.config.groups;
    let list = groups
        .expand(list, Some(Path::new("")))
        .map_err(Failure::usage)?;
    let limits = ServiceLimits {
        max_services: context.config.services.max_services,
    };
    parse_services(&list, Protocol::Tcp, limits).map_err(Failure::usage)
}

/// Reads a policy; one that was `sent` names nothing outside its file.
fn policy(path: &Path, sent: bool, context: &Context) -> Result<Policy, Failure> {
    let groups = &context.config.groups;
    if !sent {
        return Policy::load(path, groups).map_err(Failure::usage);
    }
    let shown = path.display();
    let text = fs::read_to_string(path)
        .map_err(|e| Failure::cannot_run(format!("cannot read {shown}: {e}")))?;
    let text: PolicyText = serde_json::from_str(&text)
        .map_err(|e| Failure::usage(format!("{shown} is no policy that was sent: {e}")))?;
    Policy::of_text(&text, groups).map_err(Failure::usage)
}

/// Refuses a result of another version.
fn known_version(version: u32, path: &Path) -> Result<(), Failure> {
    match version {
        VERSION => Ok(()),
        other => Err(Failure::usage(format!(
            "{}: version {other} is not known; {VERSION} is",
            path.display()
        ))),
    }
}
