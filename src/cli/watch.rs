//! `tsim watch`: follows a job until it is over.

use std::io::{self, Write};

use clap::Args;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{
    Context, Exit, Failure, Run,
    ask::ServerArgs,
    complete,
    jobs::no_job,
    result::{exit_of, finished},
};
use crate::{
    model::{RunId, printable},
    sched::{
        client::Client,
        job::{FinishedJob, Status},
        leader,
        progress::ProgressReader,
        queue,
        runner::PROGRESS,
        spool::Spool,
        stand::{self, Stand},
    },
};

const EXAMPLES: &str = "Examples:
  tsim watch change-4711
  tsim watch change-4711; tsim result change-4711     the whole result, YES or not

A NO is exit code 1: `&&` would show the result only if every service arrives.";

/// Follows a job until it is over; the exit code is that of its verdicts
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct WatchArgs {
    /// The job
    #[arg(add = complete::jobs())]
    run_id: RunId,
    #[command(flatten)]
    pub(super) at: ServerArgs,
}

impl Run for WatchArgs {
    fn run(self, context: &Context) -> Result<Exit, Failure> {
        if let Some(client) = &context.client {
            return ask(context, client, &self.run_id);
        }
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

/// Follows the job by what the scheduler says. One that ends meanwhile leaves its jobs running, and
/// the next one knows them.
fn ask(context: &Context, client: &Client, run_id: &RunId) -> Result<Exit, Failure> {
    let mut last = None;
    client.lines(&format!("/jobs/{run_id}/watch"), |line| {
        let stand: Stand = serde_json::from_str(line)?;
        last = Some(stand.status);
        show(context, &stand)
    })?;
    match last {
        Some(Status::Done) => Ok(exit_of(&finished(client, run_id)?)),
        Some(status) if status.is_final() => Ok(Exit::CannotRun),
        _ => Err(Failure::cannot_run(format!(
            "the scheduler ended before job {run_id} did"
        ))),
    }
}

fn show(context: &Context, stand: &Stand) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if context.json {
        return writeln!(out, "{}", stand.line()?);
    }
    write!(out, "{} {}", stand.run_id, stand.status)?;
    if let Some(position) = stand.position {
        write!(out, " number {position}")?;
    }
    if let (Some(percent), Some(phase)) = (stand.percent, &stand.phase) {
        write!(out, " {percent:3} % {phase}")?;
    }
    if let Some(reason) = &stand.reason {
        write!(out, ": {reason}")?;
    }
    writeln!(out)?;
    for end in &stand.ends {
        let text = printable(&end.text);
        writeln!(out, "{:7} {} {text}", end.result, end.services)?;
    }
    Ok(())
}

/// Why nothing more is heard of a job that waits or runs.
fn without_scheduler(status: Status) -> &'static str {
    match status {
        Status::Running => {
            "no scheduler is at work: how it ends is written down once tsimd is started"
        }
        _ => "no scheduler is at work: it waits until tsimd is started",
    }
}

/// Looks at a job's files, and sleeps until they change.
struct Follower {
    spool: Spool,
    run_id: RunId,
    inotify: Inotify,
    queue: queue::QueueReader,
    progress: Option<ProgressReader>,
}

impl Follower {
    fn new(spool: Spool, run_id: RunId) -> Result<Self, Failure> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).map_err(io::Error::from)?;
        // A scheduler that takes the lead writes so into the file of its lock.
        let of_queue = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_MODIFY;
        for (dir, flags) in [
            (spool.queue_dir(), of_queue),
            (spool.runs_dir(), AddWatchFlags::IN_CREATE),
        ] {
            inotify.add_watch(dir, flags).map_err(io::Error::from)?;
        }
        Ok(Self {
            spool,
            run_id,
            inotify,
            queue: queue::QueueReader::default(),
            progress: None,
        })
    }

    fn look(&mut self) -> Result<(Stand, Option<FinishedJob>), Failure> {
        let (spool, run_id) = (self.spool.clone(), self.run_id.clone());
        let jobs = match stand::look(&spool, &run_id, || self.queue.read(&spool))? {
            Ok(job) => return Ok((Stand::of_finished(&spool, &job), Some(job))),
            Err(jobs) => jobs,
        };
        let Some(stand) = Stand::of_open(&run_id, &jobs, || self.progress())? else {
            return Err(no_job(&spool, &run_id)?);
        };
        let reason = match leader::is_led(&spool)? {
            true => None,
            false => Some(without_scheduler(stand.status).to_owned()),
        };
        Ok((Stand { reason, ..stand }, None))
    }

    fn progress(&mut self) -> io::Result<Option<(u8, String)>> {
        if self.progress.is_none() {
            // Watch first, look afterwards: what is made in between wakes the next wait.
            let dir = self.spool.run_dir(&self.run_id);
            let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY;
            let _ = self.inotify.add_watch(&dir, flags);
            let file = self.spool.run_file(&self.run_id, PROGRESS);
            self.progress = file.ok().flatten().map(ProgressReader::new);
        }
        let Some(reader) = &mut self.progress else {
            return Ok(None);
        };
        reader.read()?;
        let line = reader.last();
        Ok(line.map(|line| (line.percent, line.phase.clone())))
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
