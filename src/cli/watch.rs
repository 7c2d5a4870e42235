//! `tsim watch`: follows a job until it is over.

use std::io::{self, Write};

use clap::Args;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::Serialize;

use super::{
    Context, Exit, Failure, Run, complete,
    jobs::{exit_of, no_job},
};
use crate::{
    model::{RunId, printable},
    sched::{
        answer::{Answer, End},
        job::{FinishedJob, Status},
        progress::Reader,
        queue,
        runner::PROGRESS,
        spool::Spool,
    },
};

const EXAMPLES: &str = "Examples:
  tsim watch change-4711
  tsim watch change-4711; tsim result change-4711     the whole result, YES or not

A NO is exit code 1: `&&` would show the result only if every service arrives.";

/// Follows a job until it is over; the exit code is that of its verdicts
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Watch {
    /// The job
    #[arg(add = complete::jobs())]
    run_id: RunId,
}

/// Where the job stands; one line of output.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Seen {
    run_id: RunId,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The verdicts from end to end, once it is done.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ends: Vec<End>,
}

impl Run for Watch {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        let spool = Spool::open(&context.config)?;
        let mut follower = Follower::new(spool, self.run_id)?;
        let mut shown = None;
        loop {
            let (seen, over) = follower.look()?;
            if shown.as_ref() != Some(&seen) {
                show(context, &seen)?;
                shown = Some(seen);
            }
            match over {
                Some(job) if job.status == Status::Done => return Ok(exit_of(&job)),
                Some(_) => return Ok(Exit::CannotRun),
                None => follower.wait()?,
            }
        }
    }
}

fn show(context: &Context, seen: &Seen) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if context.json {
        serde_json::to_writer(&mut out, seen)?;
        return writeln!(out);
    }
    write!(out, "{} {}", seen.run_id, seen.status)?;
    if let Some(position) = seen.position {
        write!(out, " number {position}")?;
    }
    if let (Some(percent), Some(phase)) = (seen.percent, &seen.phase) {
        write!(out, " {percent:3} % {phase}")?;
    }
    if let Some(reason) = &seen.reason {
        write!(out, ": {reason}")?;
    }
    writeln!(out)?;
    for end in &seen.ends {
        let text = printable(&end.text);
        writeln!(out, "{:7} {} {text}", end.result, end.services)?;
    }
    Ok(())
}

/// Looks at a job's files, and sleeps until they change.
struct Follower {
    spool: Spool,
    run_id: RunId,
    inotify: Inotify,
    queue: queue::Reader,
    progress: Option<Reader>,
}

impl Follower {
    fn new(spool: Spool, run_id: RunId) -> Result<Self, Failure> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).map_err(io::Error::from)?;
        for (dir, flags) in [
            (spool.queue_dir(), AddWatchFlags::IN_MOVED_TO),
            (spool.runs_dir(), AddWatchFlags::IN_CREATE),
        ] {
            inotify.add_watch(dir, flags).map_err(io::Error::from)?;
        }
        Ok(Self {
            spool,
            run_id,
            inotify,
            queue: queue::Reader::default(),
            progress: None,
        })
    }

    fn look(&mut self) -> Result<(Seen, Option<FinishedJob>), Failure> {
        let mut seen = Seen {
            run_id: self.run_id.clone(),
            status: Status::Queued,
            position: None,
            percent: None,
            phase: None,
            reason: None,
            ends: Vec::new(),
        };
        // Where it comes from first: a job that moves meanwhile is then not missed.
        let jobs = self.queue.read(&self.spool)?;
        if let Some(job) = self.spool.finished(&self.run_id)? {
            seen.status = job.status;
            seen.reason.clone_from(&job.reason);
            if job.status == Status::Done {
                // What cannot be shown here is said by `tsim result`; the exit code is right.
                let answer = Answer::read(&self.spool, &self.run_id);
                seen.ends = answer.map(|answer| answer.head.ends).unwrap_or_default();
            }
            return Ok((seen, Some(job)));
        }
        if jobs.running.iter().any(|job| job.run_id == self.run_id) {
            seen.status = Status::Running;
            if let Some(line) = self.progress()? {
                (seen.percent, seen.phase) = line;
            }
        } else {
            seen.position = jobs.position(&self.run_id);
            if seen.position.is_none() {
                return Err(no_job(&self.spool, &self.run_id)?);
            }
        }
        Ok((seen, None))
    }

    fn progress(&mut self) -> io::Result<Option<(Option<u8>, Option<String>)>> {
        if self.progress.is_none() {
            // Watch first, look afterwards: what is made in between wakes the next wait.
            let dir = self.spool.run_dir(&self.run_id);
            let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY;
            let _ = self.inotify.add_watch(&dir, flags);
            let file = self.spool.run_file(&self.run_id, PROGRESS);
            self.progress = file.ok().flatten().map(Reader::new);
        }
        let Some(reader) = &mut self.progress else {
            return Ok(None);
        };
        reader.read()?;
        let line = reader.last();
        Ok(line.map(|line| (Some(line.percent), Some(line.phase.clone()))))
    }

    fn wait(&self) -> io::Result<()> {
        loop {
            match self.inotify.read_events() {
                Err(nix::errno::Errno::EINTR) => {}
                other => return Ok(other.map(drop)?),
            }
        }
    }
}
