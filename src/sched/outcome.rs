//! How a job ended: judged from what its runner left, its exit status and why it was made to end.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::Path,
    process::ExitStatus,
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{
    bulk::{check::RuleCounts, diff::DiffCounts},
    model::{RunId, printable},
    run::report::Verdict,
};

use super::{
    job::{Status, UserName, Verdicts},
    policy::EndCause,
    runner::{MEASURED, RESULT, STDERR, describe},
    spool::Spool,
};

/// Exit codes of a runner that came to a result: all YES, some NO, some UNKNOWN.
const WITH_RESULT: [i32; 3] = [0, 1, 3];
/// How much of a runner's last words are kept.
const LAST_WORDS: u64 = 1024;

/// What a runner left when it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Its exit code, where it is known and it ended by itself.
    pub exit_code: Option<i32>,
    /// Whether it came to a result.
    pub complete: bool,
    /// The verdicts counted, if it did.
    pub verdicts: Option<Verdicts>,
    /// What went wrong, if it did not.
    pub reason: Option<String>,
    /// How often a service was measured and written down, if it did not.
    pub measured: usize,
    /// Whether it was ended by a signal, so that nothing was undone.
    pub crashed: bool,
    /// How many bytes its directory has on disk.
    pub bytes: u64,
}

impl Left {
    /// Looks at the files of the runner of `run_id`, which ended with `status`; none is of one that
    /// ended unseen.
    #[must_use]
    pub fn look(spool: &Spool, run_id: &RunId, status: Option<ExitStatus>) -> Self {
        let open = |name| {
            let file = spool.run_file(run_id, name).map_err(io::Error::other)?;
            file.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        };
        let exit_code = status.and_then(|status| status.code());
        let crashed = status.is_some_and(|status| status.code().is_none());
        let verdicts = open(RESULT).and_then(|file| count_verdicts(&file));
        let ran = exit_code.is_none_or(|code| WITH_RESULT.contains(&code));
        let complete = verdicts.is_ok() && !crashed && ran;
        let reason = (!complete).then(|| {
            let words = open(STDERR).and_then(last_words).unwrap_or_default();
            sentence(&words, &describe(status))
        });
        let measured = match complete {
            true => 0,
            false => open(MEASURED).and_then(count_lines).unwrap_or_default(),
        };
        Self {
            exit_code,
            complete,
            verdicts: verdicts.ok().flatten().filter(|_| complete),
            reason,
            crashed,
            measured,
            bytes: bytes_of(&spool.run_dir(run_id)),
        }
    }

    /// The job's status and the reason for it. A job that came to its result in time is done,
    /// even if somebody wanted it to end.
    #[must_use]
    pub fn conclude(
        &self,
        cause: Option<EndCause>,
        cancelled_by: Option<&UserName>,
    ) -> (Status, Option<String>) {
        let (status, reason) = match cause {
            _ if self.complete => return (Status::Done, None),
            None => (Status::Failed, self.reason.clone()),
            Some(EndCause::TimedOut) => (
                Status::TimedOut,
                Some("it ran longer than it may".to_owned()),
            ),
            Some(EndCause::Cancelled) => {
                let by = cancelled_by.map_or("somebody", UserName::as_str);
                (Status::Cancelled, Some(format!("it was cancelled by {by}")))
            }
            Some(EndCause::Shutdown) => (
                Status::Cancelled,
                Some("it was cancelled because the scheduler was stopped".to_owned()),
            ),
        };
        let kept = |reason| match self.measured {
            0 => reason,
            count => format!(
                "{reason}; `tsim result --measured` shows what it had measured by then ({count} lines)"
            ),
        };
        (status, reason.map(kept))
    }
}

#[derive(Deserialize)]
struct Service {
    result: Verdict,
    #[serde(default = "yes")]
    reached: bool,
}

#[derive(Deserialize)]
struct Router {
    #[serde(default = "yes")]
    on_way: bool,
    services: Vec<Service>,
}

fn yes() -> bool {
    true
}

/// The part of a result that is counted.
#[derive(Deserialize)]
struct Counted {
    /// From end to end. Results of older versions have none.
    #[serde(default)]
    end_to_end: Vec<Service>,
    routers: Vec<Router>,
}

impl Counted {
    /// The verdicts from end to end; of an older version's result those at each router. What a
    /// packet did not reach never counts.
    fn verdicts(&self) -> Verdicts {
        let old = self.end_to_end.is_empty();
        let routers = self.routers.iter().filter(|router| old && router.on_way);
        let per_router = routers
            .flat_map(|router| &router.services)
            .filter(|service| service.reached);
        let all = self.end_to_end.iter().chain(per_router);
        all.map(|service| service.result).collect()
    }
}

/// The part of a result in bulk that is counted.
#[derive(Deserialize)]
struct InBulk {
    /// The rules of a check.
    rule_counts: Option<RuleCounts>,
    counts: Option<BulkCounts>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum BulkCounts {
    Diff(DiffCounts),
    Matrix(Verdicts),
}

impl InBulk {
    fn verdicts(self) -> Option<Verdicts> {
        let counted = |[yes, no, unknown]: [usize; 3]| Verdicts {
            yes: yes as u64,
            no: no as u64,
            unknown: unknown as u64,
        };
        if let Some(rules) = self.rule_counts {
            return Some(counted([
                rules.as_stated,
                rules.contradicted,
                rules.unknown,
            ]));
        }
        Some(match self.counts? {
            BulkCounts::Diff(counts) => {
                counted([counts.same, counts.lost + counts.gained, counts.unknown])
            }
            BulkCounts::Matrix(verdicts) => verdicts,
        })
    }
}

/// The verdicts of a whole JSON document, or none when it has another shape.
fn count_verdicts(file: &File) -> io::Result<Option<Verdicts>> {
    if let Some(counted) = parse::<Counted>(file)? {
        return Ok(Some(counted.verdicts()));
    }
    if let Some(verdicts) = parse::<InBulk>(file)?.and_then(InBulk::verdicts) {
        return Ok(Some(verdicts));
    }
    serde_json::from_reader::<_, Map<String, Value>>(rewound(file)?)?;
    Ok(None)
}

fn rewound(mut file: &File) -> io::Result<BufReader<&File>> {
    file.rewind()?;
    Ok(BufReader::new(file))
}

/// None when the document has another shape.
fn parse<T: DeserializeOwned>(file: &File) -> io::Result<Option<T>> {
    match serde_json::from_reader(rewound(file)?) {
        Ok(parsed) => Ok(Some(parsed)),
        Err(error) if error.is_data() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Why there is no result, as one sentence: the runner's own error where it said one, how it ended
/// otherwise. What else it said is in its standard error.
fn sentence(words: &[String], end: &str) -> String {
    let said = |line: &String| line.strip_prefix("error: ").map(str::to_owned);
    match words.iter().rev().find_map(said).or(words.last().cloned()) {
        Some(error) => format!("{error} ({end})"),
        None => end.to_owned(),
    }
}

/// The last lines that a runner wrote to its standard error.
fn last_words(mut file: File) -> io::Result<Vec<String>> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(|line| printable(line).into_owned()).collect())
}

fn count_lines(file: File) -> io::Result<usize> {
    let mut lines = BufReader::new(file).split(b'\n');
    lines.try_fold(0, |count, line| line.map(|_| count + 1))
}

/// What the files of a run take on disk, the directories in it included. What cannot be looked at
/// counts nothing: it is there to limit, not to bill.
fn bytes_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_of(&entry.path()),
        Ok(found) => found.blocks().saturating_mul(512),
        Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::sched::spool::temporary;

    const RESULT_TEXT: &str = r#"{"source":"10.0.0.1","routers":[
        {"name":"a","services":[{"port":1,"result":"YES"},{"port":2,"result":"NO"}]},
        {"name":"b","services":[{"port":1,"result":"UNKNOWN","reason":"x"}]}]}"#;

    fn left(result: &str, stderr: &str, status: Option<i32>) -> Left {
        let (_dir, spool) = temporary();
        let run_id = RunId::new("run").unwrap();
        let run = spool.run_dir(&run_id);
        fs::create_dir(&run).unwrap();
        fs::write(run.join(RESULT), result).unwrap();
        fs::write(run.join(STDERR), stderr).unwrap();
        Left::look(&spool, &run_id, status.map(ExitStatus::from_raw))
    }

    /// The status of an exit with `code`, as wait(2) encodes it.
    fn code(code: i32) -> Option<i32> {
        Some(code << 8)
    }

    #[test]
    fn a_complete_result_is_done_whatever_its_verdicts() {
        for status in [code(0), code(1), code(3), None] {
            let left = left(RESULT_TEXT, "a warning\n", status);
            assert_eq!(
                left.conclude(Some(EndCause::Cancelled), None).0,
                Status::Done
            );
            let verdicts = left.verdicts.unwrap();
            assert_eq!((verdicts.yes, verdicts.no, verdicts.unknown), (1, 1, 1));
        }
        assert!(left("{\"summary\":{}}", "", code(0)).complete);
        for counted in [
            r#"{"rule_counts":{"as_stated":4,"contradicted":1,"unknown":2}}"#,
            r#"{"counts":{"yes":4,"no":1,"unknown":2}}"#,
            r#"{"counts":{"same":4,"lost":1,"gained":0,"unknown":2}}"#,
        ] {
            let verdicts = left(counted, "", code(1)).verdicts.unwrap();
            assert_eq!((verdicts.yes, verdicts.no, verdicts.unknown), (4, 1, 2));
        }
    }

    #[test]
    fn anything_else_is_failed_with_the_runners_last_words() {
        for (result, status, want) in [
            (
                "",
                code(4),
                "no lab\\u{7} (the runner ended with exit code 4)",
            ),
            (RESULT_TEXT, code(4), "exit code 4"),
            ("{\"routers\":[", code(0), "exit code 0"),
            ("[]", code(0), "exit code 0"),
            (RESULT_TEXT, Some(9), "SIGKILL"),
            ("", Some(25), "more than it may"),
            ("", None, "no scheduler watched"),
        ] {
            let left = left(
                result,
                "warning: so\nerror: no lab\u{7}\nhint: doctor\n",
                status,
            );
            let (status, reason) = left.conclude(None, None);
            let reason = reason.unwrap();
            assert_eq!(status, Status::Failed);
            assert!(reason.contains(want), "{reason}");
            assert_eq!(left.verdicts, None);
        }
    }

    #[test]
    fn what_was_measured_before_the_end_is_told_of() {
        let mut left = left("", "", Some(15));
        left.measured = 3;
        let (status, reason) = left.conclude(Some(EndCause::TimedOut), None);
        assert_eq!(status, Status::TimedOut);
        let want = "it ran longer than it may; `tsim result --measured` shows what";
        assert!(reason.as_deref().unwrap().starts_with(want), "{reason:?}");
    }

    #[test]
    fn the_cause_of_an_end_is_its_status() {
        let left = left("", "", Some(15));
        assert!(left.crashed);
        let ann = UserName::new("ann").unwrap();
        let (status, reason) = left.conclude(Some(EndCause::Cancelled), Some(&ann));
        assert_eq!(status, Status::Cancelled);
        assert_eq!(reason.as_deref(), Some("it was cancelled by ann"));
        assert_eq!(
            left.conclude(Some(EndCause::TimedOut), None).0,
            Status::TimedOut
        );
    }
}
