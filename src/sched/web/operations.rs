//! Every operation of the API in one table: the router serves what stands here, and
//! `/api/v1/openapi.json` describes it.

use std::sync::LazyLock;

use axum::{
    http::header,
    response::{IntoResponse, Response},
};

use super::{
    JOB_MAX, answers, api, documents, labs,
    openapi::{Operation, describe, get, post},
    read, sse, stand, submit, who,
};
use crate::sched::{board::Update, stand::Stand};

const HTML: &str = "text/html";
const JSON: &str = "application/json";
const LINES: &str = "application/jsonl";
const TEXT: &str = "text/plain";

/// Made at its first use.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| format!("{:#}", describe(all())));

async fn document() -> Response {
    ([(header::CONTENT_TYPE, JSON)], DOCUMENT.as_str()).into_response()
}

/// All of them.
pub(super) fn all() -> Vec<Operation> {
    let mut all = live();
    all.extend(of_jobs());
    all.extend(of_results());
    all.extend(of_labs());
    all
}

fn live() -> Vec<Operation> {
    vec![
        get("/healthz", "healthz", api::healthz)
            .summary("Whether the scheduler answers")
            .for_everybody(),
        get("/metrics", "metrics", api::metrics)
            .summary("Counters for Prometheus")
            .answers_with(TEXT, "Text exposition format 0.0.4."),
        get("/api/v1/openapi.json", "openapi", document)
            .summary("This document")
            .answers_with(JSON, "OpenAPI 3.1.")
            .for_everybody(),
        get("/api/v1/state", "state", api::state).summary("Everything that is live, at once"),
        get("/api/v1/events", "events", sse::events)
            .summary("The same as a stream of changes")
            .about(
                "Server-sent events. `snapshot` carries a Snapshot, `update` an Update; a comment comes at \
                 least every 15 seconds. Send the last id as `Last-Event-ID` to go on there; what is no longer \
                 known is made up for by a snapshot.",
            )
            .takes_header("Last-Event-ID")
            .answers_with("text/event-stream", "The stream.")
            .mentions::<Update>()
            .refuses(&[503]),
        get("/api/v1/queue", "queue", api::queue).summary("The waiting jobs, first job first"),
        get("/api/v1/listing", "listing", api::listing).summary(
            "What `tsim queue` lists: running and waiting jobs, and the latest that are over",
        ),
        get("/api/v1/whoami", "whoami", who::whoami).summary("Who asks, and what they may do"),
        get("/api/v1/token", "token", who::token).summary("The token, for administrators"),
        get("/api/v1/history", "history", api::history)
            .summary("The jobs that are over, latest first"),
        get("/api/v1/registry", "registry", api::registry)
            .summary("Who holds which DSCP value, lock and lease"),
    ]
}

fn of_jobs() -> Vec<Operation> {
    vec![
        post("/api/v1/jobs", "submit", submit::submit)
            .summary("Submit a job")
            .about("The same job under the same run id is one job: asking again says where it stands.")
            .takes_body_of(JOB_MAX)
            .answers(200, "It was there already.")
            .answers(201, "It waits.")
            .refuses(&[409, 503]),
        get("/api/v1/policies", "policies", documents::policies)
            .summary(
                "The policies that were checked of late and the matrices that were asked, with their latest \
                 results by lab",
            )
            .answers(200, "Policies first, and the latest of each."),
        get("/api/v1/jobs/{run_id}", "job", api::job).summary("A job wherever it stands"),
        get("/api/v1/jobs/{run_id}/watch", "watch", stand::watch)
            .summary("Where a job stands, a line whenever that changes, until it is over")
            .answers_with(
                LINES,
                "A JSON object per line, each a `Stand`; empty lines between them say that nothing changed.",
            )
            .mentions::<Stand>()
            .refuses(&[503]),
        post("/api/v1/jobs/{run_id}/cancel", "cancel", api::cancel)
            .summary("Cancel a job")
            .answers(200, "It waited, and is over.")
            .answers(202, "It runs, and is being ended.")
            .refuses(&[409, 503]),
    ]
}

fn of_results() -> Vec<Operation> {
    vec![
        get("/api/v1/jobs/{run_id}/answer", "answer", answers::head)
            .summary("Its verdicts from end to end, and what to know beside them"),
        get("/api/v1/jobs/{run_id}/matrix", "matrix", answers::matrix)
            .summary("Its verdicts by service and router, by page"),
        get(
            "/api/v1/jobs/{run_id}/evidence",
            "evidence",
            answers::evidence,
        )
        .summary("What a detailed job found out about one service, at every router")
        .answers_with(JSON, "As in the result."),
        get(
            "/api/v1/jobs/{run_id}/document",
            "document",
            documents::document,
        )
        .summary("The result of a job as a report")
        .about("What is not as wanted first; `/result` has all of it, `/report` is one HTML file."),
        get("/api/v1/jobs/{run_id}/table", "table", documents::table)
            .summary("All answers of a check or matrix as a truth table"),
        get(
            "/api/v1/jobs/{run_id}/since/{before}",
            "since",
            documents::difference,
        )
        .summary("How the answers of a check or matrix differ from those of an earlier one")
        .about("A question that one of them was not asked is not known there."),
        get("/api/v1/jobs/{run_id}/result", "result", read::result)
            .summary("What its runner wrote, as it is")
            .answers_with(JSON, "The result."),
        get("/api/v1/jobs/{run_id}/report", "report", read::report)
            .summary("The report of a detailed job as one HTML file")
            .answers_with(HTML, "A file to keep; quick jobs have none."),
        get("/api/v1/jobs/{run_id}/text", "text", read::text)
            .summary("A detailed job's report as text")
            .answers_with(TEXT, "Text."),
        get("/api/v1/jobs/{run_id}/measured", "measured", read::measured)
            .summary("What a detailed job had measured when it was ended before its result")
            .answers_with(LINES, "A JSON object per line."),
        get("/api/v1/jobs/{run_id}/stderr", "stderr", read::stderr)
            .summary("What its runner said")
            .answers_with(TEXT, "Text."),
    ]
}

fn of_labs() -> Vec<Operation> {
    vec![
        get("/api/v1/labs", "labs", labs::list)
            .summary("The labs")
            .answers(200, "By name."),
        get("/api/v1/labs/{lab}", "lab", labs::one).summary("Routers and segments of a lab"),
        get("/api/v1/lab-states", "labStates", labs::states)
            .summary("The labs as `tsim lab list --json` has them, with all that is kept of them"),
        get("/api/v1/lab-states/{lab}", "labState", labs::state).summary(
            "A lab with all that is kept of it, what is missing, and what of its routers is not as it was made",
        ),
    ]
}
