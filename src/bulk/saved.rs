//! Results that were kept as JSON, once more as a report.

use serde::{Deserialize, de::DeserializeOwned};
use thiserror::Error;

use super::{
    answers::{Answers, VERSION},
    check::{self, Checked},
    diff::{self, Diff},
    document::Document,
    matrix::{self, Names},
    one::{self, SavedDetailed},
};
use crate::run::report::QuickReport;

/// Something is no result that can be shown.
#[derive(Debug, Error)]
pub enum NotShown {
    /// It is nothing that is written here.
    #[error(
        "is no result of tsim: what `tsim matrix`, `check`, `diff`, `what-if`, `quick` and `detailed` \
         write as JSON can be shown"
    )]
    Foreign(#[source] Option<serde_json::Error>),
    /// Lines of answers.
    #[error(
        "is a list of answers, one a line, as `tsim sweep` writes them for other programs: \
         `tsim matrix` asks for what can be shown"
    )]
    Lines,
    /// It is of a release that writes another form.
    #[error("has version {0}, which is not known; {VERSION} is")]
    Version(serde_json::Value),
    /// It is none of the kind that it says.
    #[error("says that it is a {kind}, and cannot be read as one")]
    Damaged {
        /// The kind.
        kind: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// By which a result is known; those of single jobs have no kind.
#[derive(Deserialize)]
struct ResultHead {
    kind: Option<String>,
    version: Option<serde_json::Value>,
}

/// The report of a result, whatever it is of.
///
/// # Errors
/// [`NotShown`] where it is none.
pub fn document(text: &str) -> Result<Document, NotShown> {
    let first = || text.lines().next().unwrap_or_default();
    let head: ResultHead = match serde_json::from_str(text) {
        Ok(head) => head,
        Err(_) if is_answers(first()) => return Err(NotShown::Lines),
        Err(error) => return Err(NotShown::Foreign(Some(error))),
    };
    let Some(kind) = head.kind else {
        return of_job(text);
    };
    let version = head.version.unwrap_or_default();
    if version != VERSION {
        return Err(NotShown::Version(version));
    }
    match kind.as_str() {
        "matrix" => {
            let answers: Answers = parse(text, kind)?;
            Ok(matrix::document(&answers, &Names::new()))
        }
        "check" => Ok(check::document(&parse::<Checked>(text, kind)?)),
        "diff" => Ok(diff::document(&parse::<Diff>(text, kind)?)),
        "answers" => Err(NotShown::Lines),
        _ => Err(NotShown::Foreign(None)),
    }
}

fn parse<T: DeserializeOwned>(text: &str, kind: String) -> Result<T, NotShown> {
    serde_json::from_str(text).map_err(|source| NotShown::Damaged { kind, source })
}

fn is_answers(line: &str) -> bool {
    let head = serde_json::from_str::<ResultHead>(line);
    head.is_ok_and(|head| head.kind.as_deref() == Some("answers"))
}

/// What a quick or detailed job printed.
fn of_job(text: &str) -> Result<Document, NotShown> {
    if let Ok(detailed) = serde_json::from_str::<SavedDetailed>(text) {
        return Ok(one::document_of_saved_detailed(detailed));
    }
    match serde_json::from_str::<QuickReport>(text) {
        Ok(quick) => Ok(one::document_of_saved_quick(&quick)),
        Err(error) => Err(NotShown::Foreign(Some(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::WithCauses;

    #[test]
    fn what_is_no_result_is_said_in_a_sentence() {
        for (text, want) in [
            ("", "is no result of tsim"),
            ("{\"a\":1}", "is no result of tsim"),
            ("[1]", "is no result of tsim"),
            (
                "{\"kind\":\"answers\",\"version\":1}\n{}\n",
                "as `tsim sweep` writes them",
            ),
            (
                "{\"kind\":\"answers\",\"version\":1}\n",
                "as `tsim sweep` writes them",
            ),
            ("{\"kind\":\"check\",\"version\":2}", "has version 2"),
            (
                "{\"kind\":\"diff\",\"version\":1}",
                "says that it is a diff, and cannot be read",
            ),
            ("{\"kind\":\"other\",\"version\":1}", "is no result of tsim"),
        ] {
            let error = document(text).unwrap_err();
            let said = WithCauses(&error).to_string();
            assert!(said.contains(want), "{text}: {said}");
        }
    }

    /// A packet of ping has no ports, which detailed jobs write as null.
    #[test]
    fn a_detailed_jobs_result_reads_as_its_report() {
        let text = r#"{"timestamp":"2026-01-02T03:04:05Z","version":"0.1.0","run_id":"r","lab":"corp10",
            "summary":{"source_ip":"10.0.0.1","source_port":"ephemeral","destination_ip":"10.0.0.2"},
            "end_to_end":[{"port":0,"protocol":"icmp","result":"NO","status":"TIMEOUT","reason":"dropped by rule 5",
            "router":"fw","end":"stopped","way":[{"router":"fw","iface_in":"a","iface_out":null,"next_hop":null,
            "source":"10.0.0.1","destination":"10.0.0.2","sport":null,"dport":null}],"answer":[]}],
            "routers":[],"services":[],"locks":[],"warnings":["so"],"timing_ms":{}}"#;
        let found = document(text).unwrap();
        assert_eq!(
            (found.kind, found.title.as_str()),
            ("detailed", "10.0.0.1 → 10.0.0.2 on lab corp10")
        );
        assert_eq!(
            found.about[2].1,
            "2026-01-02T03:04:05Z with real connections"
        );
        let item = &found.sections[0].items[0];
        assert!(item.answer[0].contains("dropped by rule 5"), "{item:?}");
        assert_eq!(item.answer[1], "way fw a>-");
        assert_eq!(found.warnings, ["so"]);
    }
}
