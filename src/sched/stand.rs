//! Where a job stands, as it is told again and again until the job is over.

use std::io;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    answer::{AlikeServices, Answer},
    job::{FinishedJob, Status},
    queue::Jobs,
    spool::{Spool, SpoolError},
};
use crate::model::RunId;

/// Where a job stands; one line of what `tsim watch` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stand {
    /// The job.
    pub run_id: RunId,
    /// Where it stands.
    pub status: Status,
    /// Its place among the waiting ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub position: Option<usize>,
    /// How much is done, 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub percent: Option<u8>,
    /// What is being done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Why there is no result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The verdicts from end to end, once it is done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<AlikeServices>,
}

impl Stand {
    fn new(run_id: &RunId, status: Status) -> Self {
        Self {
            run_id: run_id.clone(),
            status,
            position: None,
            percent: None,
            phase: None,
            reason: None,
            ends: Vec::new(),
        }
    }

    /// That of a job that waits or runs, `progress` being what a running one says of itself; none
    /// when it does neither.
    pub fn of_open(
        run_id: &RunId,
        jobs: &Jobs,
        progress: impl FnOnce() -> io::Result<Option<(u8, String)>>,
    ) -> io::Result<Option<Self>> {
        if jobs.running.iter().any(|job| job.run_id == *run_id) {
            let (percent, phase) = progress()?.unzip();
            return Ok(Some(Self {
                percent,
                phase,
                ..Self::new(run_id, Status::Running)
            }));
        }
        Ok(jobs.position(run_id).map(|position| Self {
            position: Some(position),
            ..Self::new(run_id, Status::Queued)
        }))
    }

    /// As JSON on one line: ways are kept as their runner wrote them, which may be over several.
    ///
    /// # Errors
    /// None that our own types can cause.
    pub fn line(&self) -> io::Result<String> {
        Ok(serde_json::to_value(self)?.to_string())
    }

    /// That of a job that is over. A result that cannot be shown here is said by `tsim result`.
    #[must_use]
    pub fn of_finished(spool: &Spool, job: &FinishedJob) -> Self {
        let answer = (job.status == Status::Done).then(|| Answer::read(spool, &job.run_id));
        Self {
            reason: job.reason.clone(),
            ends: answer
                .and_then(Result::ok)
                .map(|answer| answer.head.ends)
                .unwrap_or_default(),
            ..Self::new(&job.run_id, job.status)
        }
    }
}

/// The job if it is over, and otherwise the jobs that wait and run. Where it comes from is looked at
/// first: one that moves meanwhile is then not missed.
///
/// # Errors
/// [`SpoolError`] when a file cannot be read.
pub fn look(
    spool: &Spool,
    run_id: &RunId,
    jobs: impl FnOnce() -> Result<Jobs, SpoolError>,
) -> Result<Result<FinishedJob, Jobs>, SpoolError> {
    let jobs = jobs()?;
    Ok(spool.finished(run_id)?.ok_or(jobs))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_is_one_line_however_the_way_was_written() {
        let text = "{\"run_id\":\"r1\",\"status\":\"DONE\",\"ends\":[{\"result\":\"YES\",\
            \"end\":\"delivered\",\"services\":\"80/tcp\",\"count\":1,\"text\":\"arrives\",\
            \"way\":[\n  {\"router\": \"gw\"}\n]}]}";
        let stand: Stand = serde_json::from_str(text).unwrap();
        let line = stand.line().unwrap();
        assert!(!line.contains('\n'), "{line}");
        let again: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(again["ends"][0]["way"], json!([{"router": "gw"}]));
    }
}
