//! A job's answer as a report like those of many questions: it is a matrix of one pair.

use std::{net::IpAddr, sync::Arc};

use serde::Deserialize;

use super::{
    answers::{Answers, Cell, HeadLine, LabIdentity, VerdictCounts},
    document::Document,
    matrix::{self, Names},
};
use crate::run::{
    detailed::result::{DetailedReport, ServiceResult, TakenLeg},
    report::{EndToEnd, Leg, LegHop, QuickReport, VerdictScope},
};

/// What a quick job on `lab` found, from end to end.
#[must_use]
pub fn document(report: &QuickReport, lab: LabIdentity) -> Document {
    let pair = (report.source, report.destination);
    let head = HeadLine::now("quick", lab, report.backend.clone());
    let ends = report.end_to_end.iter().cloned();
    let mut document = of_pair("quick", head, pair, ends, &report.warnings);
    if report.scope == VerdictScope::Named {
        let asked = "the way through the routers that were named";
        document.about.push(("asked about", asked.to_owned()));
    }
    document
}

/// What a detailed job on `lab` found, from end to end; its evidence is in reports of its own.
#[must_use]
pub fn document_of_detailed(report: &DetailedReport, lab: LabIdentity) -> Document {
    let pair = (report.source, report.destination);
    let head = HeadLine::now("detailed", lab, "real connections".to_owned());
    let ends = report.services.iter().map(end_to_end);
    of_pair("detailed", head, pair, ends, &report.warnings)
}

/// What a quick job printed as JSON, which says neither the lab nor when it was measured.
#[must_use]
pub fn document_of_saved_quick(report: &QuickReport) -> Document {
    Document {
        title: format!("{} → {}", report.source, report.destination),
        about: vec![
            ("run", report.run_id.to_string()),
            ("measured", format!("with {}", report.backend)),
        ],
        ..document(report, LabIdentity::default())
    }
}

/// What a detailed job printed as JSON, without its evidence.
#[derive(Debug, Deserialize)]
pub struct SavedDetailed {
    timestamp: String,
    version: String,
    run_id: String,
    lab: String,
    summary: SavedSummary,
    end_to_end: Vec<EndToEnd>,
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct SavedSummary {
    source_ip: IpAddr,
    destination_ip: IpAddr,
}

/// [`document_of_detailed`] of a result that was kept, which does not say what its lab was made of.
#[must_use]
pub fn document_of_saved_detailed(saved: SavedDetailed) -> Document {
    let lab = LabIdentity {
        name: saved.lab.clone(),
        ..LabIdentity::default()
    };
    let head = HeadLine::now("detailed", lab, String::new());
    let pair = (saved.summary.source_ip, saved.summary.destination_ip);
    let ends = saved.end_to_end.into_iter();
    Document {
        about: vec![
            ("lab", saved.lab),
            ("run", saved.run_id),
            (
                "measured",
                format!("{} with real connections", saved.timestamp),
            ),
            ("tsim", saved.version),
        ],
        ..of_pair("detailed", head, pair, ends, &saved.warnings)
    }
}

fn of_pair(
    kind: &'static str,
    head: HeadLine,
    (source, destination): (IpAddr, IpAddr),
    ends: impl Iterator<Item = EndToEnd>,
    warnings: &[String],
) -> Document {
    let mut counts = VerdictCounts::default();
    let cell = |end: EndToEnd| {
        counts.add(end.result);
        Cell {
            source,
            destination,
            end,
        }
    };
    let cells = ends.map(cell).collect();
    let answers = Answers {
        head,
        counts,
        cells,
        warnings: warnings.to_vec(),
    };
    Document {
        kind,
        title: format!("{source} → {destination} on lab {}", answers.head.lab.name),
        ..matrix::document(&answers, &Names::new())
    }
}

/// A detailed answer as a quick job words it.
fn end_to_end(result: &ServiceResult) -> EndToEnd {
    let end = &result.end;
    EndToEnd {
        port: result.service.port,
        protocol: result.service.protocol,
        result: end.result,
        reason: end.reason.as_deref().map(Into::into),
        router: end.router.clone(),
        end: end.kind,
        way: end.way.iter().map(leg).collect(),
    }
}

fn leg(taken: &TakenLeg) -> Leg {
    Leg {
        hop: Arc::new(LegHop {
            router: taken.router.clone(),
            iface_in: taken.iface_in.clone(),
            iface_out: taken.iface_out.clone(),
            next_hop: taken.next_hop,
            bridged: taken.bridged,
        }),
        source: taken.came.source,
        destination: taken.came.destination,
        sport: taken.came.source_port.unwrap_or_default(),
        dport: taken.came.destination_port.unwrap_or_default(),
    }
}
