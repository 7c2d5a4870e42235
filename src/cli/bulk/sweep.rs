//! `tsim sweep`: any number of questions from a list, answers as JSON lines.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{How, services, write_json};
use crate::{
    bulk::answers::{Cell, QuestionKey, VERSION, VerdictCounts},
    cli::{Context, Exit, Failure, Run},
    model::{LabName, Service, fnv1a},
    run::quick::{Pair, sweep::Sweep as Sweeping},
    sched::job::{check_address, is_for_many},
};

const EXAMPLES: &str = "Examples:
  tsim sweep corp10 questions.txt -o answers.jsonl
  tsim sweep corp10 questions.txt -o answers.jsonl --resume
  generate | tsim sweep corp10 - > answers.jsonl

A question is a line `SOURCE DESTINATION SERVICES`, as in `10.1.1.100 10.2.1.50 22,@web`; `#` begins a \
comment. The first line of the answers says what was asked of which lab; then comes a line for each \
service, in the order of the questions, as it is known. Memory does not grow with their number. Routers are \
held for about half a second at a time, so detailed jobs get their turn. --resume goes on behind the last \
whole line of a file that an interrupted run left, of the same lab, questions and options. Exit code 0: everything arrives; 1: some \
does not; 3: some is not known.";

/// Ask any number of questions from a list; answers are JSON lines
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct SweepCommand {
    /// Lab to measure in
    lab: LabName,

    /// File with questions, or `-` for standard input
    questions: PathBuf,

    /// Write answers to this file instead of standard output
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    output: Option<PathBuf>,

    /// Go on where the file of answers ends
    #[arg(long, requires = "output")]
    resume: bool,

    #[command(flatten)]
    how: How,
}

/// The first line of the answers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    version: u32,
    kind: String,
    lab: LabName,
    /// When the lab was made.
    made: String,
    /// The options that verdicts depend on, as they were typed.
    #[serde(default)]
    options: String,
}

/// The answers that an interrupted run left.
#[derive(Debug, Default)]
struct Answered {
    counts: VerdictCounts,
    asked: QuestionSum,
}

/// A sum of questions in their order, by which answers are known for those of this list.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct QuestionSum(u64);

impl QuestionSum {
    fn add(&mut self, (source, destination, service): QuestionKey) {
        let text = format!("{} {source} {destination} {service}", self.0);
        self.0 = fnv1a(text.as_bytes());
    }
}

/// Leaves out the questions that are answered already.
struct Skip {
    left: u64,
    passed: QuestionSum,
    answered: QuestionSum,
}

impl Skip {
    /// What is left of a pair; none where the answers are of other questions.
    fn behind(&mut self, mut pair: Pair) -> Option<Pair> {
        let services = pair.services.len();
        let many = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(services);
        for service in pair.services.drain(..many) {
            self.passed.add((pair.source, pair.destination, service));
        }
        self.left -= many as u64;
        let last = many > 0 && self.left == 0;
        (!last || self.passed == self.answered).then_some(pair)
    }
}

impl Run for SweepCommand {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let total = self.check(context)?;
        let terms = self.how.terms(&self.lab, total, context)?;
        let mut sweep = Sweeping::open(terms, &context.config)?;
        let header = Header {
            version: VERSION,
            kind: "answers".to_owned(),
            lab: self.lab.clone(),
            made: sweep.lab().created_at.clone(),
            options: self.how.options(),
        };
        let asked = self.ask(context, &mut sweep, &header, total);
        let swept = sweep.close();
        for warning in &swept.warnings {
            tracing::warn!("{warning}");
        }
        let counts = asked?;
        Ok(counts.overall().into())
    }
}

impl SweepCommand {
    fn ask(
        &self,
        context: &Context,
        sweep: &mut Sweeping<'_>,
        header: &Header,
        total: Option<u64>,
    ) -> Result<VerdictCounts, Failure> {
        let (mut out, done) = self.open_output(header)?;
        let mut counts = done.counts;
        let before = counts.yes + counts.no + counts.unknown;
        let mut failed = None;
        let mut skip = Skip {
            left: before,
            passed: QuestionSum::default(),
            answered: done.asked,
        };
        let pairs = Questions::open(&self.questions, context)?;
        let pairs = pairs.map_while(|pair| match pair {
            Ok(pair) => {
                let rest = skip.behind(pair);
                if rest.is_none() {
                    failed = Some(self.of_others(before));
                }
                rest
            }
            Err(failure) => {
                failed = Some(failure);
                None
            }
        });
        let mut meter = self.how.meter(total)?;
        let asked = sweep.ask(
            pairs,
            &mut |answer| {
                counts.add(answer.end.result);
                write_json(&mut out, &Cell::from(answer))
            },
            &mut |now| meter.at(before + now),
        );
        let flushed = out.flush();
        meter.finish();
        asked?;
        flushed?;
        if let Some(failure) = failed {
            return Err(failure);
        }
        if skip.left > 0 {
            return Err(self.of_others(before));
        }
        if counts == VerdictCounts::default() {
            let name = self.questions.display();
            return Err(Failure::usage(format!("{name} has no question")));
        }
        Ok(counts)
    }

    /// That the answers that there are, so many, are not those to the first questions.
    fn of_others(&self, answers: u64) -> Failure {
        let shown = self.output.as_deref().unwrap_or(Path::new("-")).display();
        let questions = self.questions.display();
        Failure::usage(format!(
            "{shown} cannot be gone on with: its {answers} answers are of other questions than the first of {questions}"
        ))
    }

    /// Reads all questions of a file before any is put: a wrong line changes nothing. What comes by a
    /// pipe can be read once only.
    fn check(&self, context: &Context) -> Result<Option<u64>, Failure> {
        if self.questions == Path::new("-") {
            return Ok(None);
        }
        let mut total = 0;
        for pair in Questions::open(&self.questions, context)? {
            total += pair?.services.len() as u64;
        }
        Ok(Some(total))
    }

    /// Where answers go, and how many of each kind are there already.
    fn open_output(
        &self,
        header: &Header,
    ) -> Result<(BufWriter<Box<dyn Write>>, Answered), Failure> {
        let Some(path) = &self.output else {
            let mut out: BufWriter<Box<dyn Write>> = BufWriter::new(Box::new(io::stdout()));
            write_json(&mut out, header)?;
            return Ok((out, Answered::default()));
        };
        let shown = path.display();
        let failed = |e| Failure::cannot_run(format!("cannot write {shown}: {e}"));
        if !self.resume {
            let file = File::create(path).map_err(failed)?;
            let mut out: BufWriter<Box<dyn Write>> = BufWriter::new(Box::new(file));
            write_json(&mut out, header)?;
            return Ok((out, Answered::default()));
        }
        let open = OpenOptions::new().read(true).write(true).open(path);
        let mut file = open.map_err(failed)?;
        let (done, end) = answered(&mut file, header)
            .map_err(|why| Failure::usage(format!("{shown} cannot be gone on with: {why}")))?;
        file.set_len(end).map_err(failed)?;
        file.seek(SeekFrom::Start(end)).map_err(failed)?;
        Ok((BufWriter::new(Box::new(file)), done))
    }
}

/// The whole lines of answers in a file with this header, and where they end.
fn answered(file: &mut File, header: &Header) -> Result<(Answered, u64), String> {
    let mut reader = BufReader::new(file);
    let mut line = String::new();
    let mut end = 0;
    let mut done = Answered::default();
    let mut first = true;
    loop {
        line.clear();
        let read = reader.read_line(&mut line).map_err(|e| e.to_string())?;
        if read == 0 || !line.ends_with('\n') {
            break;
        }
        if first {
            let found: Header = serde_json::from_str(&line)
                .map_err(|_| "its first line is not that of `tsim sweep`".to_owned())?;
            if found.options != header.options {
                return Err(format!(
                    "it was asked with the options `{}`, and not with `{}`",
                    found.options, header.options
                ));
            }
            if found != *header {
                return Err(format!(
                    "it is of lab {} made {}, and this is lab {} made {}",
                    found.lab, found.made, header.lab, header.made
                ));
            }
            first = false;
        } else {
            let cell: Cell =
                serde_json::from_str(&line).map_err(|e| format!("a damaged line: {e}"))?;
            done.counts.add(cell.end.result);
            done.asked.add(cell.key());
        }
        end += read as u64;
    }
    match first {
        true => Err("it is empty".to_owned()),
        false => Ok((done, end)),
    }
}

/// The questions of a file, read one after the other.
struct Questions<'a> {
    lines: io::Lines<Box<dyn BufRead>>,
    number: usize,
    name: String,
    context: &'a Context,
    /// Lists that follow each other are mostly the same.
    last: Option<(String, bool, Vec<Service>)>,
}

impl<'a> Questions<'a> {
    fn open(path: &Path, context: &'a Context) -> Result<Self, Failure> {
        let (name, reader): (String, Box<dyn BufRead>) = if path == Path::new("-") {
            let stdin = io::stdin().lock();
            ("standard input".to_owned(), Box::new(stdin))
        } else {
            let name = path.display().to_string();
            let file = File::open(path)
                .map_err(|e| Failure::usage(format!("cannot read the questions {name}: {e}")))?;
            (name, Box::new(BufReader::new(file)))
        };
        Ok(Self {
            lines: reader.lines(),
            number: 0,
            name,
            context,
            last: None,
        })
    }

    fn refuse(&self, why: impl std::fmt::Display) -> Failure {
        Failure::usage(format!("{}:{}: {why}", self.name, self.number))
    }

    fn pair(&mut self, line: &str) -> Result<Pair, Failure> {
        let mut words = line.split_whitespace();
        let mut address = |what: &str| -> Result<IpAddr, Failure> {
            let word = words.next();
            let word = word.ok_or_else(|| self.refuse(format!("the {what} is missing")))?;
            word.parse()
                .map_err(|_| self.refuse(format!("{what} {word:?} is no address")))
        };
        let (source, destination) = (address("source")?, address("destination")?);
        let list = words.collect::<Vec<_>>().join(" ");
        if source.is_ipv4() != destination.is_ipv4() {
            return Err(self.refuse("source and destination are of two families"));
        }
        check_address("source", source).map_err(|error| self.refuse(error))?;
        if !is_for_many(destination) {
            check_address("destination", destination).map_err(|error| self.refuse(error))?;
        }
        if source == destination {
            return Err(self.refuse("packets to oneself pass no router"));
        }
        Ok(Pair {
            source,
            destination,
            services: self.list(list, source.is_ipv6())?,
        })
    }

    fn list(&mut self, list: String, v6: bool) -> Result<Vec<Service>, Failure> {
        if let Some((known, family, services)) = &self.last
            && *known == list
            && *family == v6
        {
            return Ok(services.clone());
        }
        let found = services(&list, self.context).map_err(|failure| self.refuse(failure))?;
        let found = found.into_iter().map(|service| service.in_family(v6));
        let found: Result<Vec<Service>, _> = found.collect();
        let found = found.map_err(|error| self.refuse(error))?;
        self.last = Some((list, v6, found.clone()));
        Ok(found)
    }
}

impl Iterator for Questions<'_> {
    type Item = Result<Pair, Failure>;
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.number += 1;
            let line = match self.lines.next()? {
                Ok(line) => line,
                Err(error) => return Some(Err(self.refuse(error))),
            };
            let line = match self.number {
                1 => line.trim_start_matches('\u{feff}'),
                _ => &line,
            };
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                return Some(self.pair(line));
            }
        }
    }
}
